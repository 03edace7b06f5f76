"""The empirical order of any solver: as started, or with an exact start, on problems that can expose a wrong method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from diffsolve import NonFiniteError, Problem, Solver, SolverError, get_solver

from ..palette import COLOURS, MARKERS
from ..problems import GRIDS, Case, as_case, problem_set
from ..report import as_json
from ..runs import begin_flow, finish, go_on_from, on
from .slopes import Slope, fit_slope

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

Start = Literal["as_started", "exact"]
BELOW, ABOVE = 0.15, 0.6  # how far a measured order may lie under a claim, and above it
HIGH, SHARE = 3, 0.07  # above order 3 rounding comes soon: a share of the claim takes the place of 0.15
OCTAVES = (8, 16, 32, 64, 128, 256, 512)
HALF_OCTAVES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # a high order meets the floor within few octaves
CLOSE = (8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)  # and orders above 6 within two
MOST, SOON = 8192, 2048  # steps: how far a slope that has not settled is followed; and where it is quick
EARLY, LATE = 96, 192  # steps from which on a slope that has settled on its claim is not followed: early, and quick


def _under(order: float) -> float:
    return BELOW if order <= HIGH else SHARE * order


def within(measured: float, order: float) -> bool:
    """Whether a measured order agrees with another."""
    return -_under(order) <= measured - order <= ABOVE


@dataclass(frozen=True)
class OrderReport:
    """What was claimed and what was measured. `slopes` has one Slope for each problem, by its name.

    The measured order is the least of them: a method is as good as the problem that exposes it.
    """

    name: str
    claimed: float
    start: Start
    grid: str
    slopes: Mapping[str, Slope]
    above: float = ABOVE

    @property
    def worst(self) -> str:
        """The problem with the least slope, or one where none was found."""
        return min(self.slopes, key=lambda name: self.slopes[name].slope if self.slopes[name].found else -math.inf)

    @property
    def measured(self) -> float:
        return self.slopes[self.worst].slope

    @property
    def band(self) -> tuple[float, float]:
        """The 95 % band of `measured`."""
        worst = self.slopes[self.worst]
        return worst.low, worst.high

    @property
    def passed(self) -> bool:
        """No problem is under the claim by over 0.15 (7 % above order 3); the least is at most `above` above."""
        return self.measured <= self.claimed + self.above and all(map(self._meets, self.slopes.values()))

    def _meets(self, slope: Slope) -> bool:
        return slope.meets(self.claimed, _under(self.claimed))

    @property
    def errors(self) -> dict[str, tuple[float, ...]]:
        return {name: slope.errors for name, slope in self.slopes.items()}

    @property
    def ns(self) -> dict[str, tuple[int, ...]]:
        return {name: slope.ns for name, slope in self.slopes.items()}

    def _title(self) -> str:
        start = "with an exact start" if self.start == "exact" else "as started"
        return f"{self.name}: order {self.claimed:g} claimed {start}, {self.grid} grid"

    def _verdict(self) -> str:
        low, high = self.band
        return f"measured {self.measured:.2f} [{low:.2f}, {high:.2f}]: {'met' if self.passed else 'NOT met'}"

    def __str__(self) -> str:
        rows = [f"  {name:<20} {slope}" for name, slope in self.slopes.items()]
        return "\n".join([f"{self._title()}; {self._verdict()}", *rows])

    def __rich__(self) -> Table:
        from rich.table import Table

        colour = "green" if self.passed else "red"
        table = Table("problem", "slope", "95 % band", "n", "finest error", "floor", title=self._title())
        table.caption, table.caption_style = self._verdict(), colour
        for name, s in self.slopes.items():
            first, end = s.window
            steps = f"{s.ns[first]}..{s.ns[end - 1]}" if s.found else "no window"
            band = f"{s.low:.2f} to {s.high:.2f}" if s.found else ""
            style = "" if self._meets(s) else "red"
            floor = "" if math.isnan(s.floor) else f"{s.floor:.0e}"
            table.add_row(name, f"{s.slope:.2f}", band, steps, f"{s.errors[-1]:.1e}", floor, style=style)
        return table

    def to_json(self) -> str:
        """The report as JSON; what is not a number is null."""
        data = {
            "solver": self.name, "claimed": self.claimed, "start": self.start, "grid": self.grid,
            "measured": self.measured, "band": self.band, "passed": self.passed,
            "problems": {
                name: {
                    "n": s.ns, "errors": s.errors, "pairs": s.pairs, "window": s.window, "slope": s.slope,
                    "low": s.low, "high": s.high, "floor": s.floor,
                }
                for name, s in self.slopes.items()
            },
        }  # fmt: skip
        return as_json(data)

    def plot(self) -> Figure:
        """log error against log steps: filled points are in the window, the dashed line has the claimed slope."""
        return _plot(self)


def validate_order(
    solver: str | Solver,
    problem: Problem | Case | Sequence[Problem | Case] | None = None,
    start: Start = "as_started",
    *,
    grid: str = "uneven",
    claimed: float | None = None,
    ns: Sequence[int] | None = None,
    quick: bool = False,
    early: bool = False,
    above: float = ABOVE,
) -> OrderReport:
    """Measure the order of `solver` against its claim.

    solver: a name, a name with options ("lms(order=3, form=data)"), or a Solver, a plugin's too. Stochastic ones are
    measured at eta = 0. problem: one or several; by default a set chosen for the solver, or the two best of it (quick).
    start: "as_started" from one state, or "exact": a multistep method is given the past it would have had on the exact
    solution. grid: "uneven", "uniform" or "jagged", see `Case.nodes`. claimed: by default what the solver declares for
    that start. ns: step counts, rising; by default from 8 until the slope has settled or the error has met the floor.
    early: take no finer grid once the slope has settled on the claim, as is enough where that is proved; quick does so
    from 192 steps on, and takes none above 2048. above: how far over the claim a measured order may lie; inf where a
    method may be better than it claims.

    Raises SolverError where nothing is claimed, or for a start or a grid that does not exist.
    """
    method = get_solver(solver)
    if start not in ("as_started", "exact") or grid not in GRIDS:
        raise SolverError(
            f"start is 'as_started' or 'exact', grid one of {', '.join(GRIDS)}; got start={start!r}, grid={grid!r}"
        )
    claim = claimed or (method.order if start == "exact" else method.order_as_started or method.order)
    if not claim:
        raise SolverError(f"{method!r} claims no order; register it with one, or pass claimed=")
    if problem is None:
        cases: list[Case] = problem_set(method, quick)
    else:
        given = [problem] if isinstance(problem, Problem | Case) else problem
        cases = [as_case(p) for p in given]
    counts = ns or (CLOSE if claim > 6 else HALF_OCTAVES if claim > 3 else OCTAVES)
    most = max(counts) if ns else SOON if quick else MOST
    enough = EARLY if early else LATE if quick else math.inf
    slopes: dict[str, Slope] = {}
    for place, case in enumerate(cases, 1):
        name = f"{case.name} ({place})" if case.name in slopes else case.name
        slopes[name] = _measure(method, case, counts, most, start, grid, claim, enough)
    return OrderReport(method.name or type(method).__name__, claim, start, grid, slopes, above)


def _measure(
    solver: Solver, case: Case, counts: Sequence[int], most: int, start: Start, grid: str, claim: float, enough: float
) -> Slope:
    """enough: steps from which on it ends where the slope has settled on the claim."""
    done: dict[int, float] = {}
    for n in chain(counts, _doubled(counts[-1], most)):
        if n > counts[-1] and len(done) > 1 and _fit(done, case).settled:
            break
        if len(done) > 1 and max(done) >= enough:
            fit = _fit(done, case)
            if fit.settled and fit.meets(claim, _under(claim), ABOVE):
                break
        error = error_at(solver, case, n, start, grid)
        if error is not None:
            done[n] = error
        if sum(e <= case.resolution for e in done.values()) == 2:
            break
    if len(done) < 2:
        raise SolverError(f"{solver!r} needs more room before {case.start:g} than {case.name} has; pass larger ns")
    return _fit(done, case)


def _doubled(n: int, most: int) -> Iterator[int]:
    while (n := 2 * n) <= most:
        yield n


def _fit(done: Mapping[int, float], case: Case) -> Slope:
    return fit_slope(list(done), list(done.values()), resolution=case.resolution)


@torch.no_grad()
def error_at(solver: Solver, case: Case, n: int, start: Start = "as_started", grid: str = "uneven") -> float | None:
    """The relative error at the end of `n` steps; None where the exact start reaches further back than the problem."""
    before = 2 * solver.history if start == "exact" else 0
    nodes = case.nodes(grid, solver, n, before)
    if not case.has_room(nodes):
        return None
    with on(case.name), suppress(NonFiniteError):
        # The solver's own steps, each from the exact state, leave the past that it would have had; twice as many as it
        # reads, since the first of them are of low order, and a method may keep what it evaluated at its predictions.
        run = begin_flow(case.problem, solver, nodes, case.at(float(nodes[0])) if before else case.x)
        for node in nodes[1 : before + 1].tolist():
            run.step()
            go_on_from(run, case.at(node))
        return case.error(finish(run))
    return math.inf


def _plot(report: OrderReport) -> Figure:
    """Errors over steps; the filled points are the asymptotic window."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="steps n", ylabel="relative error at the end")
    for place, (name, s) in enumerate(report.slopes.items()):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        first, end = s.window
        slope = f"{s.slope:.2f}" if s.found else "no window"
        axes.plot(s.ns, s.errors, color=colour, lw=1)
        outside = [*zip(s.ns[:first], s.errors[:first], strict=True), *zip(s.ns[end:], s.errors[end:], strict=True)]
        axes.plot([n for n, _ in outside], [e for _, e in outside], marker, color=colour, ms=6, mfc="white")
        axes.plot(s.ns[first:end], s.errors[first:end], marker=marker, color=colour, lw=1, ms=6,
                  label=f"{name}: {slope}")  # fmt: skip
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
