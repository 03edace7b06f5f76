"""The picture of a StabilityReport."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .stability import Region, StabilityReport

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d5a97", "#c98a1b")


def plot_stability(report: StabilityReport) -> Figure:
    """Left the regions in m = mu h, right the moduli of the roots on the negative real axis beside e^m."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    plane, axis = figure.subplots(1, 2, width_ratios=(1.15, 1))
    windows = [_window(region) for region in report.regions]
    left, right, top = (f(w[i] for w in windows) for i, f in enumerate((min, max, max)))
    x, y = np.meshgrid(np.linspace(left, right, 181), np.linspace(0, top, 121))
    for region, colour in zip(report.regions, _cycle(len(report.regions)), strict=True):
        radius = region.radius(x + 1j * y)
        for sign in (1, -1):
            plane.contourf(x, sign * y, radius, [0, 1], colors=[colour], alpha=0.15)
            plane.contour(x, sign * y, radius, [1], colors=[colour], linewidths=1.6)
        if report.multistep:
            locus = region.locus().ravel()
            plane.plot(locus.real, locus.imag, ".", color=colour, markersize=1.2, alpha=0.7)
    plane.axhline(0, color="0.6", linewidth=0.7)
    plane.axvline(0, color="0.6", linewidth=0.7)
    plane.set(xlim=(left, right), ylim=(-top, top), aspect="equal", xlabel="Re μh", ylabel="Im μh")
    plane.set_title("stable: |ζ| ≤ 1" + (" (dots: boundary locus)" if report.multistep else ""))
    _moduli(axis, report)
    verdict = "zero-stable" if report.zero_stable else "NOT zero-stable"
    figure.suptitle(f"{report.name}, {report.form} form: {verdict}, order {report.linear_order} on u' = (L + μ) u")
    return figure


def _moduli(axis: Axes, report: StabilityReport) -> None:
    ends = [min(r.real, 20.0) for r in report.regions]
    t = np.linspace(0, 1.5 * max(*ends, 1.0), 601)
    for region, colour in zip(report.regions, _cycle(len(report.regions)), strict=True):
        moduli = np.sort(np.abs(region.roots(-t)), -1)[:, ::-1]
        for rank, column in enumerate(moduli.T):
            label = f"Lh = {region.linear:g}: [−{region.real:.4g}, 0]" if rank == 0 else None
            width, alpha = (1.8, 1.0) if rank == 0 else (0.9, 0.6)
            axis.plot(-t, column, color=colour, linewidth=width, alpha=alpha, label=label)
        axis.plot(-t, np.exp(min(region.linear, 0.0) - t), "--", color=colour, linewidth=0.9)
    axis.axhline(1, color="0.6", linewidth=0.7)
    axis.set(xlim=(-t[-1], 0), ylim=(0, 2), xlabel="μh on the negative real axis", ylabel="|ζ|")
    axis.set_title("moduli of the roots (dashed: exact)")
    axis.legend(loc="upper right", title="real interval", frameon=True)


def _window(region: Region) -> tuple[float, float, float]:
    """(left, right, top) that hold the stable region with a margin."""
    size = 3.0 + 1.6 * min(max(region.real, region.imaginary), 30.0)
    left, right, top = -size, size / 2, size
    for _ in range(3):  # a small region is seen when the window has closed in on it
        x, y = np.meshgrid(np.linspace(left, right, 151), np.linspace(0, top, 101))
        stable = region.radius(x + 1j * y) <= 1
        if not stable.any():
            return -1.0, 0.5, 1.0
        margin = max(0.12 * max(np.ptp(x[stable]), np.ptp(y[stable])), 2 * (right - left) / 150)
        left, right, top = x[stable].min() - margin, x[stable].max() + margin, y[stable].max() + margin
    return float(left), float(right), float(top)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
