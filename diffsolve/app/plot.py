"""What a solve did, as a matplotlib figure; without pyplot, so that no window and no backend is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import ProbabilityFlow
from ..errors import ProblemError
from ..solution import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SNAPSHOTS = 8
COMPONENTS = 8
STEP, LAST, BACK = "#4c72b0", "#b8c4dc", "#dd8452"


def plot_solution(solution: Solution) -> Figure:
    """The steps that were taken and, where it was solved with save="all", what happened along them.

    Left, one bar a step, from the node it starts at to the node it ends at (log scale for noise levels), in another
    colour where it goes back. Right, up to 8 decoded states of sample 0; the components over time of a small ODE; or
    else the root mean square of the state.
    """
    from matplotlib.figure import Figure

    states = solution.trajectory
    levels = isinstance(solution.problem, ProbabilityFlow)  # the nodes are noise levels, else times
    figure = Figure(figsize=(10, 4) if states else (5, 4), layout="constrained")
    if states is None:
        _steps(figure.add_subplot(), solution, levels)
        return figure
    panels: Any = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    left, right = panels
    _steps(left.add_subplot(), solution, levels)
    pictures = _pictures(solution, states, levels)
    if pictures:
        _strip(right, pictures, "noise levels" if levels else "times")
    else:
        _states(right.add_subplot(), solution, states, levels)
    return figure


def _steps(axes: Axes, solution: Solution, levels: bool) -> None:
    nodes = solution.visited
    lower, upper = np.minimum(nodes[1:], nodes[:-1]), np.maximum(nodes[1:], nodes[:-1])
    back = np.diff(nodes) * (solution.sigmas[-1] - solution.sigmas[0]) < 0
    colours = np.where(back, BACK, STEP)
    if levels:
        axes.set_yscale("log")
        if nodes[-1] == 0:  # log 0 is nowhere: the last bar fades out below the last noise level
            lower[-1], colours[-1] = nodes[-2] / 2, LAST
            axes.annotate("to 0", (len(lower), lower[-1]), (0, -2), textcoords="offset points", ha="center", va="top")
        low, high = (lower, upper) if len(lower) else (nodes, nodes)
        axes.set_ylim(low.min() / 2, high.max() * 1.5)
    numbers = np.arange(1, len(nodes))
    bars = axes.bar(numbers, upper - lower, 0.9, lower, color=colours, edgecolor="white", linewidth=0.5)
    if back.any():
        label = "back up, with new noise" if levels else "back"
        axes.legend([bars[int(back.argmax())]], [label], frameon=False, fontsize=8)
    axes.set_xlim(0.3, max(len(nodes), 2) - 0.3)
    _whole_numbers(axes, "step")
    axes.set_ylabel("noise level sigma" if levels else "t")
    axes.set_title(f"{solution.solver} on {solution.schedule}: {solution.steps} steps, {solution.nfe} NFE", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _states(axes: Axes, solution: Solution, states: list[Tensor], levels: bool) -> None:
    nodes = solution.t
    stacked = torch.stack(states).reshape(len(states), -1).detach().double().cpu().numpy()
    components = not levels and stacked.shape[1] <= COMPONENTS
    if components:
        for i, component in enumerate(stacked.T):
            axes.plot(nodes, component, "o-", color=f"C{i}", markersize=3)
            end = (nodes[-1], component[-1])
            axes.annotate(f"x[{i}]", end, (5, 0), textcoords="offset points", va="center", color=f"C{i}")
    else:
        over = np.arange(len(nodes)) if levels else nodes
        axes.plot(over, np.sqrt((stacked**2).mean(1)), "o-", color=STEP, markersize=3)
    if levels:
        axes.set_yscale("log")
        _whole_numbers(axes, "steps taken")
    else:
        axes.set_xlabel("t")
    axes.set_title("components of the state" if components else "root mean square of the state", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _whole_numbers(axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label)


def _pictures(solution: Solution, states: list[Tensor], levels: bool) -> list[tuple[str, Any]]:
    """(title, picture) of up to 8 states of sample 0, each scaled to the size that it has at sigma = 0."""
    decode = getattr(solution.problem, "decode", None)
    if decode is None:
        return []
    nodes = solution.visited
    chosen = np.unique(np.linspace(0, len(states) - 1, SNAPSHOTS).round().astype(int))
    try:
        shown = torch.cat([states[i][:1] / float(np.hypot(1, nodes[i])) if levels else states[i][:1] for i in chosen])
        return [(f"{nodes[i]:.3g}", picture) for i, picture in zip(chosen, decode(shown), strict=True)]
    except ProblemError:
        return []


def _strip(figure: SubFigure, pictures: list[tuple[str, Any]], at: str) -> None:
    panels = figure.subplots(2, (len(pictures) + 1) // 2, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, (title, picture) in zip(panels, pictures, strict=False):
        panel.imshow(picture, interpolation="nearest")
        panel.set_title(title, fontsize=9)
    figure.suptitle(f"sample 0 at these {at}, decoded", fontsize=10)
