"""The one loop that every fixed-grid solver runs in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from .errors import SolverError
from .grid import Grid
from .problem import RightHandSide, check_like
from .solver import Driver, Past, Solver, Span, Step
from .tape import check_step, climb, ends_by_denoising


def march(
    solver: Solver, field: RightHandSide, spans: Sequence[Span], u: Tensor, past: Past = ()
) -> Iterator[Tensor]:
    """The loop: every step of every fixed-grid solver is taken here. Yields the form's state after each span.

    past: the history that the first step is given, for a multistep method that does not start from one state.
    """
    if isinstance(solver, Driver):
        yield from _driven(solver, field, spans, u)
        return
    for span in spans:
        if ends_by_denoising(solver, field, span):
            u = field.denoise(u, span.start)
        elif span.up:
            u, past = climb(field, u, span), ()
        else:
            step = take(solver, field, u, span, past)
            u, past = step.y, step.past
        u = field.settle(u, span)
        yield u


def take(solver: Solver, field: Any, u: Tensor, span: Span, past: Past) -> Step:
    """One step, checked. Raises SolverError or ProblemError for what is no step, or one that changes u in place."""
    before = None if u.is_inference() else u._version
    step = solver.step(field, u, span, past)
    check_step(step, solver)
    check_like(step.y, u, "{0!r}.step", solver)
    if before is not None and u._version != before:  # u may be the user's own, or kept in the trajectory
        raise SolverError(f"{solver!r}.step changes the state it is given; write y = y + ..., not y += ...")
    return step


def _driven(solver: Driver, field: RightHandSide, spans: Sequence[Span], u: Tensor) -> Iterator[Tensor]:
    own = [span for span in spans if not ends_by_denoising(solver, field, span)]
    if own:
        for state in solver.run(field, u, own):
            check_like(state, u, "{0!r}.run", solver)
            u = state
            yield u
    for span in spans[len(own) :]:
        yield field.denoise(u, span.start)


def spans_of(grid: Grid, field: RightHandSide) -> list[Span]:
    """The grid's steps in the variable of the field's form."""
    ends = [field.variable(node) for node in grid.sigmas.tolist()]
    count, to_zero = len(grid), grid.final != "none"
    own, stop = grid.final == "step", ends[-2 if to_zero else -1]
    return [Span(ends[i], ends[i + 1], i, count, to_zero and i == count - 1, own, stop=stop) for i in range(count)]
