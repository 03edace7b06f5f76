"""The pictures of the reports. Figures are made without pyplot, so that nothing global is touched."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .order import OrderReport

# Okabe & Ito's palette, in an order that keeps neighbours apart for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dvph"


def plot_order(report: OrderReport) -> Figure:
    """Errors over steps; the filled points are the asymptotic window."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="steps n", ylabel="relative error at the end")
    for place, (name, s) in enumerate(report.slopes.items()):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        first, end = s.window
        slope = f"{s.slope:.2f}" if s.found else "no window"
        look: dict[str, Any] = {"marker": marker, "color": colour, "lw": 1, "ms": 6}
        axes.plot(s.ns, s.errors, mfc="white", **look)
        axes.plot(s.ns[first:end], s.errors[first:end], label=f"{name}: {slope}", **look)
    n = np.array(sorted({n for s in report.slopes.values() for n in s.ns}), float)
    line = 3 * max((e * k**report.claimed for k, e in _finest(report)), default=1.0) * n**-report.claimed
    axes.plot(n, line, color="0.5", ls="--", lw=1, zorder=0, label=f"order {report.claimed:g}, as claimed")
    floors = [s.floor for s in report.slopes.values() if not math.isnan(s.floor)]
    if floors:
        axes.axhline(max(floors), color="0.5", ls=":", lw=1, zorder=0, label="rounding floor")
    powers = [k for k in n if math.log2(k).is_integer()]
    axes.xaxis.set_major_locator(FixedLocator(powers or list(n)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    verdict = "claim met" if report.passed else "claim NOT met"
    start = "exact start" if report.start == "exact" else "as started"
    axes.set_title(f"{report.name}, {start}, {report.grid} grid: {verdict}", loc="left", fontsize=11)
    figure.legend(title="measured order", fontsize=9, title_fontsize=9, frameon=False, loc="outside right upper")
    return figure


def _finest(report: OrderReport) -> list[tuple[int, float]]:
    """(n, error) at the fine end of each window, or of each run that has none."""
    ends = [(s, s.window[1] - 1 if s.found else len(s.ns) - 1) for s in report.slopes.values()]
    return [(s.ns[i], s.errors[i]) for s, i in ends if math.isfinite(s.errors[i])]
