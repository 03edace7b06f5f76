"""The picture of a WorkPrecisionReport."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .precision import Cell, Measure, WorkPrecisionReport

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#c98a1b", "#8d5a97", "#2a9d8f", "#6b705c", "#b5179e")
MARKERS = "osD^vPX*"


def plot_work_precision(report: WorkPrecisionReport, measure: Measure, against: str, top: int) -> Figure:
    """Error against cost, log-log, one panel a problem: the `top` pairs in colour, the others grey."""
    from matplotlib.figure import Figure

    count = len(report.problems)
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(5.2 * columns, 4.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.remove()
    for axis, problem in zip(axes, report.problems, strict=False):
        _panel(axis, report, problem, measure, against, top)
    figure.suptitle(f"error against cost: {measure} relative error at sigma_min (dashed: peers; ×: diverged)")
    return figure


def _panel(axis: Axes, report: WorkPrecisionReport, problem: str, measure: Measure, against: str, top: int) -> None:
    lines: dict[str, list[Cell]] = {}
    for cell in report.cells:
        if cell.problem == problem and cell.status in ("ok", "diverged") and 0 < cell.nfe <= max(report.budgets):
            lines.setdefault(cell.label, []).append(cell)
    best = _leaders(report, problem, measure)[:top]
    shown = [getattr(c, measure) for cells in lines.values() for c in cells if c.status == "ok"]
    if not shown:
        axis.set_title(f"{problem}: nothing converged")
        return
    ceiling = min(3 * max(shown), 3.0)
    for label, cells in lines.items():
        cells.sort(key=lambda c: c.nfe)
        good = [c for c in cells if c.status == "ok"]
        x, y = [getattr(c, against) for c in good], [getattr(c, measure) for c in good]
        style = "--" if cells[0].peer else "-"
        if label in best:
            place = best.index(label)
            colour = COLOURS[place % len(COLOURS)]
            axis.plot(x, y, style, color=colour, marker=MARKERS[place % len(MARKERS)], markersize=4.5, linewidth=1.8,
                      label=label, zorder=3 + top - place)  # fmt: skip
        else:
            axis.plot(x, y, style, color="0.78", linewidth=0.8, zorder=1)
        lost = [getattr(c, against) for c in cells if c.status == "diverged"]
        colour = COLOURS[best.index(label) % len(COLOURS)] if label in best else "0.6"
        axis.plot(lost, [ceiling] * len(lost), "x", color=colour, markersize=5, zorder=2)
    axis.set(xscale="log", yscale="log", title=problem, ylabel=f"{measure} error", ylim=(min(shown) / 2, 1.3 * ceiling),
             xlabel="evaluations (NFE)" if against == "nfe" else "seconds")  # fmt: skip
    if against == "nfe":
        axis.set_xticks(report.budgets, [str(b) for b in report.budgets])
        axis.minorticks_off()
        fewest = min(c.nfe for cells in lines.values() for c in cells)
        axis.set_xlim(0.9 * max(fewest, 0.7 * min(report.budgets)), 1.1 * max(report.budgets))
    axis.grid(color="0.92", zorder=0)
    order = {label: i for i, label in enumerate(best)}
    handles = sorted(zip(*axis.get_legend_handles_labels(), strict=True), key=lambda item: order[item[1]])
    axis.legend([h for h, _ in handles], [name for _, name in handles], fontsize=8, loc="lower left")


def _leaders(report: WorkPrecisionReport, problem: str, measure: Measure) -> list[str]:
    """Labels by how near they stay to the best of each budget, those with an answer at more budgets first."""
    logs: dict[str, list[float]] = {}
    for budget in report.budgets:
        cells = report.at(problem, budget, None, measure)
        for cell in cells:
            if cell.budget is not None:
                least = max(getattr(cells[0], measure), 1e-300)
                logs.setdefault(cell.label, []).append(math.log(max(getattr(cell, measure), 1e-300) / least))
    return sorted(logs, key=lambda label: (-len(logs[label]), sum(logs[label]) / len(logs[label])))
