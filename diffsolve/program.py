"""A solve as a program: what happens to the state, operation by operation, and the one function that does it.

`plan` lists the operations of a run; `advance` carries one out, on tensors or on the symbols of a tape. The eager loop,
`record`, the adaptive loop and the inside-out run are all made of it. A loop is settings; where it stands is the State
that its `next` is handed and hands back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import SolverError
from .field import Evaluation, Field, FieldView, Noise, Vector, combine
from .form import Form
from .grid import Final, Grid
from .problem import Problem, RightHandSide
from .solver import Driver, Past, Renoise, Solver, Span, Step
from .validate import check_like


@dataclass(frozen=True)
class Advance:
    """A step of the solver over `span`, to the grid's node `node`."""

    span: Span
    node: float


@dataclass(frozen=True)
class Denoise:
    """The Euler step to sigma = 0: the denoised state at the span's start."""

    span: Span
    node: float = 0.0


@dataclass(frozen=True)
class Project:
    """The problem's constraint put on the state that was reached: data consistency."""

    span: Span
    node: float


@dataclass(frozen=True)
class External:
    """The next span of a run that another library has in hand; `spans` are all of its spans."""

    span: Span
    node: float
    spans: tuple[Span, ...]


Op = Advance | Denoise | Renoise | Project | External


@dataclass(frozen=True)
class Program:
    """The steps of a run, each of one or two operations, the second a Project; `nodes` are those that are visited."""

    start: float
    steps: tuple[tuple[Op, ...], ...]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[Op, ...]]:
        return iter(self.steps)

    @property
    def nodes(self) -> list[float]:
        return [self.start, *(float(step[0].node or 0.0) for step in self.steps)]


@dataclass(frozen=True)
class State:
    """Where a run stands: the form's state `u` at `node`, and the history that the next step is given.

    nfe: evaluations so far. steps: how many were taken. error, mean: of the step that led there, see `Step`. ended: why
    the run is over, "" while it is not. x: u in VE coordinates, where that is at hand; finite: whether that is known to
    be finite.
    """

    node: float
    u: Vector
    past: Past = ()
    nfe: int = 0
    steps: int = 0
    error: Vector | None = None
    mean: Vector | None = None
    ended: str = ""
    x: Vector | None = None
    finite: bool = False


def spans_of(grid: Grid, form: Form) -> list[Span]:
    """The grid's steps in the form's variable."""
    ends = [form.variable(node) for node in grid.sigmas.tolist()]
    count, to_zero = len(grid), grid.final != "none"
    stop = ends[-2 if to_zero else -1]
    return [Span(ends[i], ends[i + 1], i, count, last=to_zero and i == count - 1, stop=stop) for i in range(count)]


def plan(solver: Solver, grid: Grid, field: Field) -> Program:
    """The program of `solver` over `grid`. field: of the problem, for its form, its eta and what constrains it.

    A step to sigma = 0 is the solver's own where the grid leaves it the choice (final="step") and both it and its form
    can end there; else it is Denoise.
    """
    nodes, form = grid.sigmas.tolist(), field.form
    spans = spans_of(grid, form)
    node_of = {spans[0].start: nodes[0], **{span.end: node for span, node in zip(spans, nodes[1:], strict=True)}}
    planned = solver.plan(spans, field)
    own = tuple(s for s in planned if isinstance(s, Span) and not s.last) if isinstance(solver, Driver) else ()
    steps: list[tuple[Op, ...]] = []
    for item in planned:
        span = item.span if isinstance(item, Renoise) else item
        node = node_of[span.end] if span.end in node_of else form.sigma(span.end)
        if isinstance(item, Renoise):
            steps.append((Renoise(span, node),))
        elif own and not span.last:
            steps.append((External(span, node, own),))
        else:
            steps.append(step_ops(span, node, grid.final, solver, field))
    return Program(nodes[0], tuple(steps))


def step_ops(span: Span, node: float, final: Final, solver: Solver, field: Field) -> tuple[Op, ...]:
    """The operations of one step: the solver's or the one to 0, and what the problem's constraint asks for."""
    own_end = final == "step" and solver.steps_to_zero and field.form.finite_at_zero
    op: Op = Denoise(span) if span.last and not own_end else Advance(span, node)
    constrained = isinstance(field, RightHandSide) and field.constrained
    return (op, Project(span, node)) if constrained else (op,)


def advance(state: State, op: Op, solver: Solver, field: Field) -> State:
    """What happens in one operation: the only place that says so. field: a problem's, or a tape's recorder.

    Raises SolverError or ProblemError for a step that hands back what is no step, or changes its state in place.
    """
    u, span = state.u, op.span
    if isinstance(op, Advance):
        step = take(solver, field, u, span, state.past)
        return State(op.node, step.y, step.past, state.nfe, state.steps, step.error, step.mean)
    if isinstance(op, Denoise):
        denoised = field.evaluate(u, span.start).denoised
        if denoised is None:
            raise SolverError("only a diffusion problem has a noise level to denoise; pass final='none'")
        return State(op.node, denoised, (), state.nfe, state.steps)
    if isinstance(op, Renoise):
        form = field.form
        up = form.renoise_std(span.start, span.end), field.normal(span, Noise.RENOISE)
        return State(op.node or 0.0, combine((form.rescale(span.start, span.end), u), up), (), state.nfe, state.steps)
    if isinstance(op, Project):
        assert isinstance(field, RightHandSide)
        return replace(state, u=field.project(u, span, op.node))
    run = state.past[0][1] if state.past else solver.run(field, u, op.spans)  # type: ignore[attr-defined]
    end = next(run)
    check_like(end, u, "{0!r}.run", solver)
    return State(op.node, end, ((span.end, run),), state.nfe, state.steps)


def take(solver: Solver, field: Field, u: Vector, span: Span, past: Past) -> Step:
    """One step, checked."""
    before = None if not isinstance(u, Tensor) or u.is_inference() else u._version
    step = solver.step(field, u, span, past)
    if not isinstance(step, Step):
        raise SolverError(f"{solver!r}.step returned {type(step).__name__}, expected diffsolve.Step(y, error, past)")
    for pair in step.past:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise SolverError(f"{solver!r}.step handed back a past that is not ((node, vector), ...), oldest first")
    if isinstance(u, Tensor):
        check_like(step.y, u, "{0!r}.step", solver)
        if before is not None and u._version != before:  # u may be the user's own, or kept in the trajectory
            raise SolverError(f"{solver!r}.step changes the state it is given; write y = y + ..., not y += ...")
    return step


def count_evaluations(solver: Solver, grid: Grid, problem: Problem, eta: float | None = None) -> int:
    """Evaluations of a solve over `grid`: as declared by the solver, or read off its tape where it declares nothing.

    Raises SolverError where neither can tell.
    """
    field = problem.field(solver, torch.zeros(1), (0,), 0, eta)
    return evaluations_of(plan(solver, grid, field), solver, field)


def evaluations_of(program: Program, solver: Solver, field: RightHandSide) -> int:
    """The evaluations of a program, see `count_evaluations`."""
    total = known = traced = 0
    method = solver if field.eta else solver.noiseless()
    for i, (op, *_) in enumerate(program, 1):
        calls = 0 if isinstance(op, Renoise) else 1 if isinstance(op, Denoise) else method.evaluations(op.span, known)
        known = 0 if isinstance(op, Renoise) else known + 1
        if calls is None:  # all up to here is traced in its place
            total, traced = 0, i
        else:
            total += calls
    return total + _traced(program.steps[:traced], solver, field) if traced else total


def _traced(steps: Sequence[Sequence[Op]], solver: Solver, field: RightHandSide) -> int:
    from .tape import record

    if solver.traceable and field.traceable:
        return record(solver, field, steps).nfe
    if not solver.stages:
        raise SolverError(f"how often {solver!r} evaluates can't be told before it is run; pass n in place of nfe")
    return sum(1 if isinstance(op, Denoise) else 0 if isinstance(op, Renoise) else solver.stages for op, *_ in steps)


def first_step(program: Program) -> Sequence[Op]:
    """The first operation that is a step of the solver's own, alone, or nothing."""
    return next(((op,) for op, *_ in program if isinstance(op, Advance)), ())


class _LinearPart(FieldView):
    """The same equation without f and without noise: u' = L u."""

    def __init__(self, f: Field, zero: Tensor) -> None:
        super().__init__(f)
        self.zero = zero

    def __call__(self, u: Vector, s: float, /) -> Vector:
        return self.zero

    def evaluate(self, u: Vector, s: float, /) -> Evaluation:
        return Evaluation(self.zero, self.zero, self.zero, self.zero)

    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Vector:
        return self.zero

    def g_prod(self, u: Vector, s: float, z: Vector) -> Vector:
        return self.zero

    def gdg_prod(self, u: Vector, s: float) -> Vector:
        return self.zero


def leaves_linear_out(solver: Solver, field: Field, program: Program, x: Tensor) -> bool:
    """Whether a step of u' = L u, on a state like x, stays where it was: asked of steps that can't be traced."""
    one = torch.ones_like(x)
    with suppress(Exception), torch.no_grad():  # what such a step can't do with zeros is no fault of it
        for op in first_step(program):
            done = copy(solver).step(_LinearPart(field, 0 * one), one.clone(), op.span, ())
            return torch.equal(done.y, one)
    return False


class FixedLoop:
    """Every step of a program in turn."""

    execution = "eager"

    def __init__(self, solver: Solver, program: Program) -> None:
        self.solver, self.program, self.count = solver, program, len(program)

    def begin(self, x: Tensor, field: RightHandSide) -> State:
        """The state at the first node, x in VE coordinates."""
        return State(self.program.start, field.form.to_form(x, self.program.start))

    def share(self, state: State) -> float:
        """How much of the way is done."""
        return state.steps / self.count

    def next(self, state: State, field: RightHandSide) -> State:
        """The state after one step more. field: the problem's, or one that replays it."""
        steps = state.steps + 1
        for op in self.program.steps[state.steps]:
            state = advance(state, op, self.solver, field)
        return replace(state, nfe=field.nfe, steps=steps, ended="end" if steps == self.count else "")


def fixed_step_loop(solver: Solver, field: RightHandSide, program: Program, state: State) -> Iterator[State]:
    """The states after each step of a program, from `state` at its start: the bare loop, with nothing that watches."""
    loop = FixedLoop(solver, program)
    while not state.ended:
        state = loop.next(state, field)
        yield state
