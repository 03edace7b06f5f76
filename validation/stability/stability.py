"""The linear stability of any traceable solver, as a report: its regions, intervals, roots, and what has been shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffsolve import Solver, get_solver
from diffsolve.form import as_form
from diffsolve.process import as_process

from ..report import as_json
from .matrix import TERMS, Region, at_points, consistency, exact_linear_part, needed, root_condition, step_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d5a97", "#c98a1b")


@dataclass(frozen=True, eq=False)
class StabilityReport:
    """What one step does to u' = (L + mu) u.

    order: as claimed; linear_order: the p of zeta = e^{(L + mu) h} + O(h^{p+1}), a necessary condition only, since this
    problem can't see a wrong node; constant: the first wrong coefficient at L = 0. roots: of rho, largest first.
    regions: one for each L h. statements: what has been shown, and no more. scale_free: whether a step knows its length
    through L h and mu h alone; if not, it is shown at length 1, and linear_order says nothing of shorter ones.
    """

    name: str
    form: str | None
    order: int | None
    linear_order: int
    constant: float
    roots: tuple[complex, ...]
    zero_stable: bool
    regions: tuple[Region, ...]
    statements: tuple[str, ...]
    scale_free: bool = True

    @property
    def passed(self) -> bool:
        """Zero-stable, and consistent of the claimed order on the linear problem where that can be told."""
        return self.zero_stable and (self.linear_order >= max(self.order or 1, 1) or not self.scale_free)

    @property
    def multistep(self) -> bool:
        return len(self.roots) > 1

    def to_json(self) -> str:
        """The report as JSON; an interval without an end is null."""
        data = {
            "solver": self.name, "form": self.form, "order": self.order, "linear_order": self.linear_order,
            "constant": self.constant, "roots": [[r.real, r.imag] for r in self.roots], "zero_stable": self.zero_stable,
            "regions": [
                {
                    "Lh": r.linear, "real": r.real, "imaginary": r.imaginary, "matrix": r.matrix.tolist(),
                }
                for r in self.regions
            ],
            "statements": list(self.statements), "passed": self.passed,
        }  # fmt: skip
        return as_json(data)

    def __str__(self) -> str:
        kind = f"{len(self.roots)} roots" if self.multistep else "one-step"
        top = f"at least {self.linear_order}" if self.linear_order == TERMS - 1 else f"{self.linear_order}"
        lines = [
            f"{self.name} ({self.form} form, {kind}): {'passed' if self.passed else 'FAILED'}",
            f"  order on linear problems {top}, claimed {self.order or 'none'} (necessary, not sufficient)",
            f"  {'zero-stable' if self.zero_stable else 'NOT zero-stable'}; moduli of the roots of rho: "
            + ", ".join(f"{abs(r):.3g}" for r in self.roots),
            f"  {'L h':>6} {'real interval':>18} {'imaginary interval':>22}",
        ]
        for r in self.regions:
            imaginary = f"[-{r.imaginary:.6f}i, {r.imaginary:.6f}i]"
            lines.append(f"  {r.linear:6g} {f'[-{r.real:.6f}, 0]':>18} {imaginary:>22}")
        return "\n".join([*lines, *(f"  {s}" for s in self.statements)])

    def plot(self) -> Figure:
        """Left the regions in m = mu h, right the moduli of the roots on the negative real axis beside e^m."""
        return _plot(self)


def validate_stability(solver: str | Solver, steps: Sequence[float] = (0.0, 0.5, 2.0)) -> StabilityReport:
    """The stability of any traceable solver, a plugin's too. A stochastic one is looked at in its mean.

    steps: lengths h in the form's variable at which a form with a linear part (L = 1 noise, -1 data, -2 sde) is shown.
    Raises SolverError for a solver that can't be traced.
    """
    method = get_solver(solver)
    linear = as_form(method.form or "", as_process("sd")).linear
    start = needed(step_matrix(method))[..., 0]
    roots = sorted(np.linalg.eigvals(start).astype(complex).tolist(), key=abs, reverse=True)
    regions = tuple(Region.of(method, linear * h + 0.0) for h in (steps if linear else (0.0,)))
    order, constant = consistency(method, bool(linear))
    return StabilityReport(
        method.name or type(method).__name__, method.form, method.order, order, constant, tuple(roots),
        root_condition(start), regions, tuple(_shown(method, regions, bool(linear))), method.scale_free,
    )  # fmt: skip


def _shown(solver: Solver, regions: Sequence[Region], linear: bool) -> list[str]:
    near, far = (np.poly(at_points(m, regions[0].matrix)) for m in (-1.0, -3.0))
    shown = [] if solver.scale_free else ["its weights depend on the length of a step itself: shown at length 1"]
    if not np.allclose(near, far, rtol=1e-9, atol=1e-12):
        shown.append("not A-stable: the coefficients of its characteristic polynomial are polynomials in mu h that are "
                     "not constant, so a root has no bound on the left half-plane")  # fmt: skip
    if linear and exact_linear_part(solver):
        shown.append("exact in the linear part: u' = L u is multiplied by e^{L h} for every L h (shown symbolically), "
                     "so it is A- and L-stable there")  # fmt: skip
    return shown


def _plot(report: StabilityReport) -> Figure:
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
