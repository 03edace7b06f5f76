"""The picture of a QualityReport."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .distances import Estimate
from .figures import COLOURS, MARKERS
from .quality import MEASURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .quality import QualityReport

SPREAD = 0.06  # how far apart, in octaves of evaluations, the solvers' points of one budget stand at most
DASHES = ("-", "--", ":", "-.")


def plot_quality(report: QualityReport) -> Figure:
    """A panel a measure: its value against evaluations, bars for 95 %, the reference grey, perfect samples dotted."""
    from matplotlib.figure import Figure

    measures = report.measures
    columns = min(len(measures), 3)
    rows = math.ceil(len(measures) / columns)
    figure = Figure(figsize=(4.6 * columns + 1.8, 3.9 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(measures) :]:
        axis.remove()
    for axis, measure in zip(axes, measures, strict=False):
        _panel(axis, report, measure)
    found = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    solvers = [name for name in dict.fromkeys(c.solver for c in report.cells) if name in found]
    named = {name: found[name] for name in (*solvers, *(f for f in found if f not in solvers))}
    figure.legend(named.values(), named.keys(), fontsize=9, frameon=False, loc="outside right upper")
    guided = "" if report.guidance is None else f", guidance {report.guidance:g}"
    figure.suptitle(f"{report.count} samples of {report.problem}, {report.schedule} grid{guided}; bars: 95 % intervals",
                    fontsize=11)  # fmt: skip
    return figure


def _panel(axis: Axes, report: QualityReport, measure: str) -> None:
    from matplotlib.ticker import NullLocator

    names = list(dict.fromkeys(c.solver for c in report.cells))
    shown: list[float] = []
    for place, name in enumerate(names):
        cells = sorted((c for c in report.cells if c.solver == name and measure in c.measures), key=lambda c: c.nfe)
        if not cells:
            continue
        found = [c.measures[measure] for c in cells]
        aside = 2 ** (SPREAD * (2 * place / max(len(names) - 1, 1) - 1))
        shown += [e.value for e in found]
        axis.errorbar(
            [c.nfe * aside for c in cells], [e.value for e in found],
            yerr=[[max(e.value - e.low, 0) for e in found], [max(e.high - e.value, 0) for e in found]],
            color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)],
            ls=DASHES[place // len(COLOURS) % len(DASHES)], ms=4.5, lw=1.2, elinewidth=1, capsize=2, label=name,
        )  # fmt: skip
    if measure in report.reference.measures:
        own = report.reference
        shown += _level(axis, own.measures[measure], f"reference: {own.solver}, {own.steps} steps", "-", 0.15)
    if measure in report.floors:
        shown += _level(axis, report.floors[measure], "as many perfect samples", ":", 0.0)
    if measure == "paired" and report.reference_error.value > 0:
        shown += _level(axis, report.reference_error, "the reference at half its steps", "--", 0.0)
    positive = [v for v in shown if v > 0]
    if measure != "psnr" and positive:
        axis.set_yscale("log")
        axis.set_ylim(min(positive) / 1.6, max(positive) * 1.6)
    axis.set_xscale("log", base=2)
    axis.set_xticks(report.budgets, [str(b) for b in report.budgets])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("evaluations (NFE)")
    axis.set_title(MEASURES[measure].replace(", median", "\nmedian", 1), fontsize=9, loc="left")
    axis.grid(alpha=0.25)


def _level(axis: Axes, level: Estimate, label: str, dashes: str, shade: float) -> list[float]:
    axis.axhline(level.value, color="0.45", lw=1, ls=dashes, zorder=0, label=label)
    if shade:
        axis.axhspan(level.low, level.high, color="0.45", alpha=shade, lw=0, zorder=0)
    return [level.value]
