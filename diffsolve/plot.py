"""What a solve did, as a matplotlib figure; without pyplot, so that no window and no backend is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .diffusion import ProbabilityFlow
from .errors import ProblemError
from .solution import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SNAPSHOTS = 8
COMPONENTS = 8
STEP, LAST = "#4c72b0", "#b8c4dc"


def plot_solution(solution: Solution) -> Figure:
    """The steps of a solution and, where it was solved with save="all", what happened along them.

    Left, one bar a step, from the node it starts at to the node it ends at (log scale for noise levels). Right, up to 8
    decoded states of sample 0; the components over time of a small ODE; or else the root mean square of the state.
    """
    from matplotlib.figure import Figure

    states = solution.trajectory
    figure = Figure(figsize=(10, 4) if states else (5, 4), layout="constrained")
    if states is None:
        _steps(figure.add_subplot(), solution)
        return figure
    panels: Any = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    left, right = panels
    _steps(left.add_subplot(), solution)
    pictures = _pictures(solution, states)
    if pictures:
        _strip(right, pictures)
    else:
        _states(right.add_subplot(), solution, states)
    return figure


def _steps(axes: Axes, solution: Solution) -> None:
    from matplotlib.ticker import MaxNLocator

    nodes = np.asarray(solution.sigmas)
    diffusion = isinstance(solution.problem, ProbabilityFlow)
    lower, upper = np.minimum(nodes[1:], nodes[:-1]), np.maximum(nodes[1:], nodes[:-1])
    colours = [STEP] * len(lower)
    if diffusion:
        axes.set_yscale("log")
        if nodes[-1] == 0:  # log 0 is nowhere: the last bar fades out below the last noise level
            lower[-1], colours[-1] = nodes[-2] / 2, LAST
            axes.annotate("to 0", (len(lower), lower[-1]), (0, -2), textcoords="offset points", ha="center", va="top")
    places = np.arange(1, len(nodes))
    axes.bar(places, upper - lower, 0.9, lower, color=colours, edgecolor="white", linewidth=0.5)
    if diffusion:
        axes.set_ylim(lower.min() / 2, upper.max() * 1.5)
    axes.set_xlim(0.3, len(nodes) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("noise level sigma" if diffusion else "t")
    axes.set_title(f"{solution.solver} on {solution.schedule}: {solution.steps} steps, {solution.nfe} NFE", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _states(axes: Axes, solution: Solution, states: list[Tensor]) -> None:
    from matplotlib.ticker import MaxNLocator

    nodes = np.asarray(solution.sigmas)[: len(states)]
    stacked = torch.stack(states).flatten(1).double().cpu().numpy()
    if isinstance(solution.problem, ProbabilityFlow):
        axes.plot(np.arange(len(nodes)), np.sqrt((stacked**2).mean(1)), "o-", color=STEP, markersize=3)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("steps taken")
        axes.set_title("root mean square of the state", fontsize=10)
    elif stacked.shape[1] <= COMPONENTS:
        for i, component in enumerate(stacked.T):
            axes.plot(nodes, component, "o-", color=f"C{i}", markersize=3)
            end = (nodes[-1], component[-1])
            axes.annotate(f"x[{i}]", end, (5, 0), textcoords="offset points", va="center", color=f"C{i}")
        axes.set_xlabel("t")
        axes.set_title("components of the state", fontsize=10)
    else:
        axes.plot(nodes, np.sqrt((stacked**2).mean(1)), "o-", color=STEP, markersize=3)
        axes.set_xlabel("t")
        axes.set_title("root mean square of the state", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _pictures(solution: Solution, states: list[Tensor]) -> list[tuple[str, Any]]:
    """(title, picture) of up to 8 states of sample 0, each scaled to the size that it has at sigma = 0."""
    decode = getattr(solution.problem, "decode", None)
    if decode is None:
        return []
    chosen = np.unique(np.linspace(0, len(states) - 1, SNAPSHOTS).round().astype(int))
    nodes = np.asarray(solution.sigmas)
    try:
        shown = torch.cat([states[i][:1] / float(np.hypot(1, nodes[i])) for i in chosen])
        return [(f"{nodes[i]:.3g}", picture) for i, picture in zip(chosen, decode(shown), strict=True)]
    except ProblemError:
        return []


def _strip(figure: SubFigure, pictures: list[tuple[str, Any]]) -> None:
    axes = figure.subplots(2, (len(pictures) + 1) // 2, squeeze=False).ravel()
    for place in axes:
        place.set_axis_off()
    for place, (title, picture) in zip(axes, pictures, strict=False):
        place.imshow(picture, interpolation="nearest")
        place.set_title(title, fontsize=9)
    figure.suptitle("sample 0 at these noise levels, decoded", fontsize=10)
