"""Error against cost, a row at a time and wherever that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from diffsolve import Solver, list_solvers

from ..references import sampling_cases
from .cells import Cell, WorkPrecisionReport
from .precision import work_precision

Names = tuple[str, ...]
Part = tuple[tuple[str | Solver, ...], Names, tuple[int, ...], tuple[int, int, tuple[int, ...]], Names]
"""Rows, schedules, budgets, (seed, starts, dimensions) of the problems, and peers."""
Spread = Callable[[Callable[[Part], tuple[Cell, ...]], Iterable[Part]], Iterable[tuple[Cell, ...]]]
"""As `map`, such as `diffsolve.interop.ray.spread`."""


def spread_work_precision(
    solvers: Sequence[str | Solver] | None, schedules: Sequence[str], budgets: Sequence[int],
    problems: tuple[int, int, tuple[int, ...]], peers: Sequence[str] = (), *, tags: str = "", spread: Spread = map,
) -> WorkPrecisionReport:  # fmt: skip
    """`work_precision` on sampling_cases(seed, starts, dims), each row and each peer a part of its own."""
    rows = [e.name for e in list_solvers(tags) if not e.stochastic] if solvers is None else list(solvers)
    common = tuple(schedules), tuple(budgets), problems
    parts: list[Part] = [((row,), *common, ()) for row in rows] + [((), *common, (peer,)) for peer in peers]
    cells = [cell for made in spread(_cells, parts) for cell in made]
    seed, starts, dims = problems
    return work_precision(rows, schedules, budgets, sampling_cases(seed, starts, dims=dims), peers, done=cells)


def _cells(part: Part) -> tuple[Cell, ...]:
    rows, schedules, budgets, (seed, starts, dims), peers = part
    return tuple(work_precision(rows, schedules, budgets, sampling_cases(seed, starts, dims=dims), peers).cells)
