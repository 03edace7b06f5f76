"""The picture of an ErrorBudgetReport."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .budget import ErrorBudgetReport

COLOURS = {"too long": "#d1495b", "": "#5b8db8", "could be longer": "#b9d3b0"}


def plot_error_budget(report: ErrorBudgetReport) -> Figure:
    """The share of each step over log sigma, the suggested nodes under it, and the errors before and at the end."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(9.5, 6.6), layout="constrained")
    bars, errors = figure.subplots(2, 1, sharex=True, height_ratios=(1.4, 1))
    starts, ends = np.array(report.nodes[:-1]), np.array(report.nodes[1:])
    verdicts = [report.verdict(i) for i in report.intervals]
    shares = [i.share for i in report.intervals]
    bars.bar(ends, shares, starts - ends, align="edge", color=[COLOURS[v] for v in verdicts], edgecolor="white")
    bars.axhline(1 / len(shares), color="0.3", linestyle="--", linewidth=1)
    bars.annotate("even share", (0, 1 / len(shares)), xycoords=("axes fraction", "data"), ha="left", va="bottom",
                  xytext=(4, 2), textcoords="offset points", color="0.3", fontsize=9)  # fmt: skip
    bars.plot(report.nodes, [0.0] * len(report.nodes), "|", color="0.55", markersize=6)
    floor = -0.07 * max(shares)
    bars.plot(report.evened, [floor] * len(report.evened), "|", color="black", markersize=9)
    bars.annotate("nodes with even shares", (0.995, floor), xycoords=("axes fraction", "data"), ha="right", va="top",
                  xytext=(0, -6), textcoords="offset points", fontsize=8.5)  # fmt: skip
    bars.set(ylabel="share of the error at the end", ylim=(2.6 * floor, 1.1 * max(shares)))
    bars.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%" if value >= 0 else "")
    named = {"too long": "too long (over twice the even share)", "": "in between",
             "could be longer": "could be longer (under half of it)"}  # fmt: skip
    bars.legend(handles=[Patch(color=COLOURS[v], label=named[v]) for v in COLOURS if v in verdicts], fontsize=9)
    centre = np.sqrt(starts * ends)
    errors.plot(centre, [i.local for i in report.intervals], "o-", color="#8d8d8d", markersize=4,
                label="made in the step")  # fmt: skip
    errors.plot(centre, [i.propagated for i in report.intervals], "s-", color="#1b6ca8", markersize=4,
                label="of that, at the end")  # fmt: skip
    errors.axhline(report.error, color="black", linewidth=0.8, linestyle=":", label=f"whole: {report.error:.1e}")
    errors.set(xscale="log", yscale="log", xlabel="σ (the run goes from left to right)", ylabel="median relative error")
    errors.set_xlim(report.nodes[0] * 1.06, report.nodes[-1] / 1.06)
    errors.legend(fontsize=9)
    errors.grid(color="0.92")
    result = f"even shares: {report.before:.2e} → {report.after:.2e} on other starts"
    figure.suptitle(f"{report.name}, {report.schedule}, {len(shares)} steps on {report.problem}; {result}"
                    + ("" if report.kept else " (no better)"))  # fmt: skip
    return figure
