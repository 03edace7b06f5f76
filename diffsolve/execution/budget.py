"""The finest grid that a number of evaluations pays for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from ..errors import GridError, SolverError
from ..grid import Final, Grid, steps_of
from ..problem import RightHandSide
from ..program import Program, evaluations_of, plan
from ..solver import Solver, Span

_AHEAD = 4  # steps by which a plan of its own may be short of a greater number of them
_SEEN = 6  # steps, beside a history, after which every one more costs the same


def within(
    nfe: object, solver: Solver, grid_of: Callable[[int], Grid], field: RightHandSide, final: Final,
    planned: Callable[[Solver, Grid, RightHandSide], Program],
) -> Grid:  # fmt: skip
    """The finest grid whose solve makes at most `nfe` evaluations. planned: `plan`, where programs are kept.

    Raises GridError and SolverError.
    """
    budget, own_plan = steps_of(nfe, "nfe"), type(solver).plan is not Solver.plan

    def counted(grid: Grid) -> int:
        return evaluations_of((plan if own_plan else planned)(solver, grid, field), solver, field)

    steps, calls = _by_declaration(budget, solver, field, final)
    with suppress(GridError):  # more steps than the problem has
        if steps and counted(grid := grid_of(steps)) == calls:
            return grid
    steps, calls = _most(budget, solver, lambda n: counted(grid_of(n)))
    if not steps:
        raise too_few(budget, solver, calls)
    if own_plan:  # of more steps it may pass fewer again
        for more in range(steps + _AHEAD, steps, -1):
            with suppress(GridError):
                if counted(grid_of(more)) <= budget:
                    return grid_of(more)
    return grid_of(steps)


def _most(budget: int, solver: Solver, count: Callable[[int], int]) -> tuple[int, int]:
    """(the most steps that cost at most the budget, 0 if there are none; what was counted last)."""
    stages = solver.stages or 1
    low, high, calls, steps = 0, (budget + 2 * stages + 2) // stages + 1, 0, max(1, budget // stages)
    while high - low > 1:
        try:
            calls = count(steps)
        except GridError:  # more steps than the problem has, unless there is no grid at all
            if steps == 1:
                raise
            high, steps = steps, (low + steps) // 2
            continue
        if calls <= budget:
            low = steps
        if calls == budget:  # and a step more is an evaluation more
            break
        if calls > budget:
            high = steps
        steps = min(max(steps + (budget - calls) * steps // calls, low + 1), high - 1)
    return low, calls


def _by_declaration(budget: int, solver: Solver, field: RightHandSide, final: Final) -> tuple[int, int]:
    """(steps, evaluations) of the most steps that cost at most the budget; 0 steps where that can't be told so."""
    few = solver.history + _SEEN
    calls, before = (declared(solver, n, field, final) for n in (few, few - 1))
    if calls is None or before is None or calls == before:
        return 0, 0
    if budget >= calls:
        more = (budget - calls) // (calls - before)
        return few + more, calls + more * (calls - before)
    steps, _ = _most(budget, solver, lambda n: declared(solver, n, field, final) or 0)
    return steps, declared(solver, steps, field, final) or 0


def declared(solver: Solver, n: int, field: RightHandSide, final: Final) -> int | None:
    """Evaluations of a grid of n steps by what the solver declares; None where it plans or traces."""
    if type(solver).plan is not Solver.plan:
        return None
    method = solver if field.eta else solver.noiseless()
    to_zero = final != "none"
    own_end, total = final == "step" and solver.steps_to_zero and field.form.finite_at_zero, 0
    for i in range(n):
        last = to_zero and i == n - 1
        span = Span(-float(i), -float(i + 1), i, n, last=last, stop=-float(n))
        calls = 1 if last and not own_end else method.evaluations(span, i)
        if calls is None:
            return None
        total += calls
    return total


def too_few(budget: int, solver: Solver, least: int) -> SolverError:
    return SolverError(
        f"{solver!r} needs at least {least} evaluations, the budget is nfe = {budget}; "
        "raise it, or take a solver with fewer stages"
    )
