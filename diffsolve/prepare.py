"""From a solver and a grid to a program that solves the whole equation; made once for what has not changed."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import SolverError
from .form import Form
from .grid import Grid
from .problem import RightHandSide
from .program import Program, evaluations_of, first_step, plan
from .solver import Solver
from .tape import record

_MOST = 64


@dataclass
class Prepared:
    """A program and what is known of it. What it was made of stays alive with it, so that no other takes its id."""

    program: Program
    made_of: tuple[Solver, Grid, Form]
    nfe: int | None = None


_MADE: dict[tuple[object, ...], Prepared] = {}


def prepared(solver: Solver, grid: Grid, field: RightHandSide) -> Program:
    """`plan`, checked. A program is kept for the next run of the same solver object on the same grid and form.

    Raises SolverError for a method that would leave out a part of the equation.
    """
    return _kept(solver, grid, field).program


def evaluations(solver: Solver, grid: Grid, field: RightHandSide) -> int:
    """How many evaluations that program makes."""
    kept = _kept(solver, grid, field)
    if kept.nfe is None:
        kept.nfe = evaluations_of(kept.program, solver, field)
    return kept.nfe


def _kept(solver: Solver, grid: Grid, field: RightHandSide) -> Prepared:
    key = (id(solver), id(grid), id(field.form), solver.steps_to_zero, field.constrained, field.traceable)
    if key not in _MADE:
        program = plan(solver, grid, field)
        _check_complete(solver, field, program)
        made = Prepared(program, (solver, grid, field.form))
        if type(solver).plan is not Solver.plan:  # it may read more of the field than its form
            return made
        if len(_MADE) >= _MOST:
            _MADE.clear()
        _MADE[key] = made
    return _MADE[key]


def _check_complete(solver: Solver, field: RightHandSide, program: Program) -> None:
    """Refuse a method that would leave out a part of the equation: the form's noise, or its linear part."""
    own = first_step(program)
    if not (own and solver.traceable and field.traceable):
        return
    span = own[0].span
    noise = field.form.noise_std(span.start, span.end)
    if not (field.form.linear or noise):
        return
    tape = record(solver, field, [own])
    if noise and not tape.draws:
        raise SolverError(
            f"{solver!r} adds no noise, so it can't solve the reverse SDE; "
            "take a stochastic solver, eta = 0, or another form"
        )
    if field.form.linear and tape.start_factor == 1:
        raise SolverError(
            f"{solver!r} leaves out the linear part of u' = {field.form.linear:g} u + f(u, s); "
            "add f.form.linear * u to each evaluation in its step, or take a form without one ('sigma', 'v', 'flow')"
        )
