"""Steps whose lengths a controller chooses from their error estimates: one attempt at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .control import Controller
from .errors import NonFiniteError, SolverError
from .execution.lengths import first_length
from .field import Evaluation, EvaluationCache
from .grid import Grid
from .program import State, advance, step_ops
from .registry import solver_entries
from .solver import Driver, Solver, Span
from .tape import trial

if TYPE_CHECKING:
    from .problem import Problem, RightHandSide

_ENDLESS = "the error was NaN or infinite {} times, at ever shorter steps. {}"
_CUT = 0.2  # what is left of a step whose error is no number
_PATIENCE = 8  # such steps in a row before it is not the length that is to blame


@dataclass(frozen=True)
class AdaptiveState(State):
    """A state with what its loop has learnt: `s` is its variable, `h` the length to try next.

    before: the less exact state of the newest kept step. recent: the errors of the two kept last. unknown: attempts in
    a row whose error was no number. rejected, lengths, sizes: for the statistics. known: evaluations at the state.
    """

    s: float = 0.0
    h: float = 0.0
    before: Tensor | None = None
    recent: tuple[float, float] | None = None
    unknown: int = 0
    rejected: int = 0
    lengths: tuple[float, ...] = ()
    sizes: tuple[float, ...] = ()
    known: tuple[tuple[Tensor, float, Evaluation], ...] = ()


class AdaptiveLoop:
    """Attempts at steps over `grid` from its first node to its last, and on to 0 where it does.

    calls: evaluations of a step. Past `budget` evaluations it stops, for the reason "max_nfe". Reads one number of the
    device for each attempt, and two for a first length that nobody gave.
    """

    count = None
    execution = "eager"

    def __init__(
        self, problem: Problem, solver: Solver, controller: Controller, grid: Grid, field: RightHandSide, calls: int,
        budget: int | None,
    ) -> None:  # fmt: skip
        self.problem, self.solver, self.controller, self.grid = problem, solver, controller, grid
        self.form, self.calls, self.budget = field.form, calls, budget
        self.first, self.stop = _ends(grid, field)
        self.order = controller.order or solver.order or 1
        noisy = solver.stochastic or field.form.stochastic
        self.fewest = calls + (controller.h_init is None and not noisy)  # evaluations to the end of the first attempt
        self.least = max(controller.h_min, 1e-14 * max(abs(self.first), abs(self.stop)))

    def begin(self, x: Tensor, field: RightHandSide) -> AdaptiveState:
        """The state at the first node; of h = 0 where its length is still to be found."""
        node = float(self.grid.nodes[0])
        usual = 0.0 if self.fewest > self.calls else abs(self.stop - self.first) / 100
        h = self._bounded(self.controller.h_init or usual)
        return AdaptiveState(node, field.form.to_form(x, node), s=self.first, h=h, before=x)

    def _bounded(self, h: float) -> float:
        """The length, towards the end and within bounds; 0 stays."""
        return math.copysign(min(max(h, self.least), self.controller.h_max), self.stop - self.first) if h else 0.0

    def _first(self, state: AdaptiveState, field: RightHandSide) -> AdaptiveState:
        """The state with a length to try, by Hairer's rule."""
        distance, cache = self.stop - state.s, EvaluationCache(field)
        assert state.before is not None
        h = first_length(cache, state.u, state.s, state.before, state.node, distance, self.controller, self.order)
        return replace(state, h=self._bounded(h), nfe=field.nfe, known=cache.of_state(state.u))

    def span(self, state: AdaptiveState) -> Span:
        """The interval that the next attempt is over."""
        if state.s == self.stop:
            end = self.form.variable(0.0)
            return Span(self.stop, end, state.steps, state.steps + 1, last=True, stop=self.stop)
        whole = abs(state.h) >= abs(self.stop - state.s) * (1 - 1e-9)
        end = self.stop if whole else state.s + state.h
        return Span(state.s, end, state.steps, adaptive=True, stop=self.stop)

    def share(self, state: AdaptiveState) -> float:
        """How much of the way is done, in the form's variable."""
        at_end = state.node == 0 or state.s == self.stop
        return 1.0 if at_end else (state.s - self.first) / (self.stop - self.first)

    def next(self, state: AdaptiveState, field: RightHandSide) -> AdaptiveState:
        """The state after one attempt, or the same with `ended` set. field: the problem's, or one that replays it."""
        to_zero = state.s == self.stop
        if to_zero and (self.grid.final == "none" or state.node == 0):
            return replace(state, ended="end")
        if state.h == 0:
            return self._first(state, field)
        cache = EvaluationCache(field, state.known)
        declared = self.solver.evaluations(self.span(state), len(state.past)) or self.calls
        more = (1 if to_zero else min(declared, self.calls)) - any(at == state.s for _, at, _ in state.known)
        if self.budget is not None and state.nfe + more > self.budget:
            return replace(state, ended="max_nfe")
        span = self.span(state)
        if not to_zero:
            return self._attempt(state, span, cache, field)
        first, *rest = step_ops(span, 0.0, self.grid.final, self.solver, field)
        after = advance(State(state.node, state.u, state.past), first, self.solver, cache)
        for op in rest:
            after = advance(after, op, self.solver, field)
        return replace(
            state, node=0.0, u=after.u, x=None, past=after.past, nfe=field.nfe, steps=state.steps + 1, error=None,
            known=(),
        )  # fmt: skip

    def _attempt(
        self, state: AdaptiveState, span: Span, cache: EvaluationCache, field: RightHandSide
    ) -> AdaptiveState:
        node = float(self.grid.nodes[-1]) if span.end == self.stop else self.form.sigma(span.end)
        first, *rest = step_ops(span, node, "none", self.solver, field)
        after = advance(State(state.node, state.u, state.past), first, self.solver, cache)
        if after.error is None:
            raise SolverError(_no_error(self.solver, self.problem, self.grid))
        x, error = (self.form.from_form(u, node) for u in (after.u, after.error))
        low = (x if after.mean is None else self.form.from_form(after.mean, node)) - error
        assert state.before is not None
        size = float(self.controller.norm(error.detach(), low.detach(), state.before.detach()))
        keep, factor, unknown, recent = self._judge(state, size)
        h = state.h * factor
        while not keep and abs(h) >= abs(span.h):  # the attempt was cut short at the end: do not repeat it
            h *= factor
        h = math.copysign(min(max(abs(h), self.least), self.controller.h_max), h)
        if not keep:
            if unknown == _PATIENCE:
                raise NonFiniteError(_ENDLESS.format(unknown, self.problem.remedy))
            if abs(span.h) <= self.least:
                raise SolverError(_underflow(span, size, self.controller, state.u))
            return replace(
                state, h=h, unknown=unknown, recent=recent, rejected=state.rejected + 1, nfe=field.nfe,
                known=cache.of_state(state.u),
            )  # fmt: skip
        for op in rest:
            after = advance(after, op, self.solver, field)
        return replace(
            state, node=node, u=after.u, x=None if rest else x, past=after.past, nfe=field.nfe, steps=state.steps + 1,
            s=span.end, h=h, before=low, recent=(size, (state.recent or (size, size))[0]), unknown=0, error=after.error,
            lengths=(*state.lengths, span.h), sizes=(*state.sizes, size), known=cache.of_state(after.u),
        )  # fmt: skip

    def _judge(self, state: AdaptiveState, size: float) -> tuple[bool, float, int, tuple[float, float] | None]:
        """(whether to keep it, the factor to the next length, errors in a row that were no number, errors before)."""
        if not math.isfinite(size):
            return False, _CUT, state.unknown + 1, state.recent
        last = state.recent or (size, size)
        keep, factor = self.controller.judge((size, *last), self.order)
        if not 0 < factor < (math.inf if keep else 1):
            raise SolverError(
                f"{type(self.controller).__name__}.judge gave {keep, factor}; the factor is above 0, and of a rejected "
                "step below 1"
            )
        return keep, factor, 0, last


def check_adaptive(
    solver: Solver, field: RightHandSide, controller: Controller, problem: Problem, grid: Grid, x: Tensor,
    execution: str,
) -> int:  # fmt: skip
    """The evaluations of one step. Raises SolverError where the steps of `solver` can't be chosen by their error."""
    if execution not in ("auto", "eager"):
        raise SolverError(f"a {execution}'s steps are fixed before it is played; leave execution out, or rtol and atol")
    if len(grid.nodes) < 2:
        raise SolverError(f"steps are chosen from a node to another, and there is the one node {grid.nodes[0]:g}")
    if not x.is_floating_point():
        raise SolverError(f"{solver!r} jumps between codes, which has no error; leave rtol, atol and controller out")
    tightest = 4 * torch.finfo(x.dtype).eps
    if max(controller.rtol, controller.atol) < tightest:
        raise SolverError(
            f"rtol = {controller.rtol:g} and atol = {controller.atol:g}, but a state in {_dtype(x)} is "
            f"no better than {tightest:.0e}; raise them{', or pass dtype=torch.float64' * (x.dtype != torch.float64)}"
        )
    if isinstance(solver, Driver) or type(solver).plan is not Solver.plan:
        raise SolverError(f"{solver!r} plans its own steps; leave rtol, atol and controller out")
    stages = solver.stages or 1
    if not solver.traceable:
        return stages
    try:
        calls, estimates = trial(solver, field, Span(*_ends(grid, field), adaptive=True))
    except (SolverError, AttributeError, TypeError):  # it can't be traced, so its first step will tell
        return stages
    if not estimates:
        raise SolverError(_no_error(solver, problem, grid))
    return calls


def _ends(grid: Grid, field: RightHandSide) -> tuple[float, float]:
    return field.form.variable(float(grid.nodes[0])), field.form.variable(float(grid.nodes[-1]))


def _no_error(solver: Solver, problem: Problem, grid: Grid) -> str:
    """Refuse it, naming the rows that do give an estimate here: found by asking each, so a plugin's are among them."""
    able = []
    for entry in solver_entries():
        try:
            other = entry.build()
            field = problem.field(other, torch.zeros(1), (0,), 0, None)
            if not other.stochastic and trial(other, field, Span(*_ends(grid, field), adaptive=True))[1]:
                able.append(entry.name)
        except Exception:  # not of this problem, not to be traced, or a plugin that is broken
            continue
    return (
        f"{solver!r} gives no estimate of its error, so its steps can't be chosen by it; "
        f"leave rtol, atol and controller out{', or take one of: ' * bool(able)}{', '.join(able)}"
    )


def _underflow(span: Span, size: float, controller: Controller, u: Tensor) -> str:
    return (
        f"a step of {abs(span.h):.3g} still has an error of {size:.3g} times the tolerance, and a shorter one is "
        f"{'below h_min' if abs(span.h) <= controller.h_min else 'lost in rounding'}; raise rtol = {controller.rtol:g} "
        f"and atol = {controller.atol:g} (a state in {_dtype(u)} resolves {torch.finfo(u.dtype).eps:.0e}), or end "
        "before the place where the problem is singular"
    )


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
