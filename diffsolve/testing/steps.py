"""Checks of a step as algebra: what it declares, what it reads, and that it branches on no value."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from ..errors import SolverError
from ..form import FORMS
from ..grid import Grid, make_grid
from ..problems import Inpaint
from ..program import Program, State, count_evaluations, plan
from ..registry import SOLVERS, get_schedule
from ..solver import Solver
from ..tape import Combine, Draw, Evaluate, Projected, Tape, record
from .needs import of_solvers
from .runs import final_of
from .world import Stub, advances, by_hand, knows_linear, mixture, numbers, spans

LINEAR = (0.0, 1.0, -1.0, -2.0)


def _linears(solver: Solver) -> tuple[float, ...]:
    return LINEAR if knows_linear(solver) else (0.0,)


def taped(solver: Solver, schedule: str = "karras", n: int = 0) -> Tape:
    """The steps of a solver alone, whatever it plans."""
    problem = mixture()
    grid = make_grid(get_schedule(schedule)[0], n or solver.history + 4, problem.process, final="none")
    field = problem.field(solver, torch.zeros(1), (0,), 0, None)
    nodes = [field.form.variable(node) for node in grid.nodes.tolist()]
    return record(solver, field, advances(spans(nodes)))


@of_solvers("trace")
def check_declared(solver: Solver) -> None:
    """`stages`, `history` and `stochastic` are what the steps do; the order as started is at most the order."""
    row = SOLVERS.entries.get(solver.name)
    cheaper = row is not None and "singlestep" in row.tags  # its last steps are
    planned = type(solver).plan is not Solver.plan
    made_before, state = {0}, 0  # the start's register
    tape = taped(solver)
    for index, step in enumerate(tape.structure):
        calls = [op for op in step.operations if isinstance(op, Evaluate)]
        read = {register for op in step.operations if not isinstance(op, Draw) for register in op.row}
        if solver.stages is not None:
            if cheaper or index <= solver.history:
                assert len(calls) <= solver.stages or not cheaper
            else:
                assert len(calls) == solver.stages, f"stages = {solver.stages}, and a step makes {len(calls)} calls"
        reads = len((read & made_before) - {state})
        told = f"history = {solver.history}, and step {index} reads {reads} earlier evaluations"
        if tape.linear:  # else there is more to be seen, which is no part of a sum
            assert reads == solver.history if index >= solver.history else reads <= index, told
        drawn = any(isinstance(op, Draw) for op in step.operations)
        assert drawn == solver.stochastic or planned, f"stochastic = {solver.stochastic}, and a step draws: {drawn}"
        made_before |= {register for op in calls for _, register in op.parts}
        made_before |= {op.out for op in step.operations if isinstance(op, Combine | Draw | Projected)}
        state = step.out
    assert solver.form in FORMS
    if solver.order is not None:
        assert solver.order >= (solver.order_as_started or solver.order) >= 1


def _programs(solver: Solver, n: int, place: int, problem: object) -> tuple[object, list[tuple[Grid, Program]]]:
    """The field of a solver, and of each of three schedules its grid and what is done on it."""
    final = final_of(place)
    field = problem.field(solver, torch.zeros(1), (0,), 0, None)  # type: ignore[attr-defined]
    rules = [get_schedule(name)[0] for name in ("karras", "linspace", "beta")]
    grids = [make_grid(rule, n, problem.process, final=final) for rule in rules]  # type: ignore[attr-defined]
    return field, [(grid, plan(solver, grid, field)) for grid in grids]


@of_solvers("trace")
def check_structure(solver: Solver) -> None:
    """What a step does depends on its place alone, not on the grid: one structure, and numbers that differ."""
    tapes = [taped(solver, schedule, 9) for schedule in ("karras", "linspace", "beta")]
    assert len({tape.structure for tape in tapes}) == 1, "on another grid a step does other things"
    assert len({tuple(tape.table) for tape in tapes}) == 3
    if type(solver).plan is Solver.plan:  # else what is passed again depends on the noise levels
        for place in range(3):
            field, planned = _programs(solver, 5, place, mixture())
            made = [record(solver, field, steps) for _, steps in planned]  # type: ignore[arg-type]
            assert len({tape.structure for tape in made}) == 1
            tapes += made
    assert {type(number) for tape in tapes for number in tape.table} == {float}, "its numbers are no floats"


@of_solvers("trace")
def check_evaluations(solver: Solver) -> None:
    """The evaluations that are counted before a run are those of its tape, under a constraint too."""
    plain = mixture()
    painted = Inpaint(plain, numbers(2), [1, 0])
    for problem, place, n in itertools.product((plain, painted), range(3), (1, 2, 3, 5, 11)):
        field, ((grid, steps), *_) = _programs(solver, n, place, problem)
        counted = count_evaluations(solver, grid, problem)
        made = record(solver, field, steps).nfe  # type: ignore[arg-type]
        assert counted == made, f"n = {n}, final = {final_of(place)}: {counted} are declared, {made} are made"


@of_solvers("trace")
def check_memory(solver: Solver) -> None:
    """A step keeps nothing on the solver, and reads `history` pairs of `past`, no more and no fewer."""
    steps = spans([0.1, 0.3, 0.4, 0.7, 0.8, 1.0, 1.3, 1.4])
    for linear in _linears(solver):
        f = Stub(linear, noise=0.1)
        first = by_hand(solver, f, 0.7, steps)
        assert by_hand(solver, f, 0.7, steps) == first, "the same steps again are others: something is kept"
        assert by_hand(solver, f, 0.7, steps, keep=solver.history) == first, "more is read than `history` says"
        if solver.history:
            assert by_hand(solver, f, 0.7, steps, keep=solver.history - 1) != first, "less is read than `history` says"


@of_solvers("trace")
def check_numbers(solver: Solver) -> None:
    """One step for every kind of number: floats, numpy, torch in two precisions, and the recorded tape."""
    steps = spans([0.1, 0.3, 0.4, 0.7, 0.8, 1.0])
    noise = 0.1 if solver.stochastic else 0.0
    kinds = {
        "float": 0.7,
        "numpy": np.array([0.7]),
        "torch": torch.tensor([0.7], dtype=torch.float64),
        "float32": torch.tensor([0.7]),
    }
    for linear in _linears(solver):
        ends = {kind: by_hand(solver, Stub(linear, noise), y, steps)[-1] for kind, y in kinds.items()}
        runs = {kind: float(np.asarray(y).squeeze()) for kind, y in ends.items()}
        tape = record(solver, Stub(linear, noise), advances(steps))
        *_, last = tape.play(Stub(linear, noise), State(0.1, kinds["torch"]))  # type: ignore[arg-type]
        runs["tape"] = float(last.u)
        assert abs(runs.pop("float32") / runs["float"] - 1) < 1e-5
        assert max(runs.values()) - min(runs.values()) < 1e-12 * abs(runs["float"]), runs


@of_solvers()
def check_told(solver: Solver) -> None:
    """Its repr, its name and its source are texts; a form that it names exists."""
    assert isinstance(repr(solver), str)
    assert isinstance(solver.source, str)
    if solver.form not in FORMS:
        raise SolverError(f"unknown form {solver.form!r}")
