"""The other loop: steps whose lengths a controller chooses from their error estimates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .control import Controller
from .errors import NonFiniteError, SolverError
from .grid import Grid
from .loop import march, take
from .problem import Problem, RightHandSide
from .registry import solver_entries
from .solution import Solution
from .solver import Driver, FieldView, Past, Solver, Span
from .tape import trial

LOOK = "Look at the model's output there; half precision and a guidance scale that is too high are the usual causes"
_CUT = 0.2  # what is left of a step whose error is no number
_PATIENCE = 8  # such steps in a row before it is not the length that is to blame


def check_adaptive(
    solver: Solver, field: RightHandSide, controller: Controller, solution: Solution, execution: str
) -> int:
    """The evaluations of one step. Raises SolverError where the steps of `solver` can't be chosen by their error."""
    if execution == "tape":
        raise SolverError("a tape's steps are fixed before it is played; leave execution out, or rtol and atol")
    if not solution.x.is_floating_point():
        raise SolverError(f"{solver!r} jumps between codes, which has no error; leave rtol, atol and controller out")
    grid, problem, tightest = solution.grid, solution.problem, 4 * torch.finfo(solution.x.dtype).eps
    if max(controller.rtol, controller.atol) < tightest:
        raise SolverError(
            f"rtol = {controller.rtol:g} and atol = {controller.atol:g}, but a state in {_dtype(solution.x)} is "
            f"no better than {tightest:.0e}; raise them, or pass dtype=torch.float64"
        )
    if isinstance(solver, Driver) or type(solver).plan is not Solver.plan:
        raise SolverError(f"{solver!r} plans its own steps; leave rtol, atol and controller out")
    if not solver.traceable:
        return solver.stages
    try:
        calls, estimates = trial(solver, field, Span(*_ends(grid, field), adaptive=True))
    except (SolverError, AttributeError, TypeError):  # it can't be traced, so its first step will tell
        return solver.stages
    if not estimates:
        raise SolverError(_no_error(solver, problem, grid))
    return calls


def _ends(grid: Grid, field: RightHandSide) -> tuple[float, float]:
    return field.variable(float(grid.nodes[0])), field.variable(float(grid.nodes[-1]))


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
        f"leave rtol, atol and controller out, or take one of: {', '.join(able)}"
    )


class Remembering(FieldView):
    """A field that does not repeat an evaluation at the state the run has reached.

    So a rejected step costs one evaluation less to try again, and so does a step whose predecessor's last stage was its
    end. The state is known by being the same object.
    """

    def __init__(self, field: RightHandSide) -> None:
        super().__init__(field)
        self._known: list[tuple[str, Any, float, Any]] = []
        self.state: Any = None

    def __call__(self, y: Any, s: float) -> Any:
        return self._once("__call__", y, s)

    def both(self, y: Any, s: float) -> Any:
        return self._once("both", y, s)

    def knows(self, s: float) -> bool:
        return any(y is self.state and at == s for _, y, at, _ in self._known)

    def _once(self, how: str, y: Any, s: float) -> Any:
        for known_how, known_y, known_s, value in self._known:
            if known_y is y and known_s == s and known_how == how:
                return value
        value = getattr(self._f, how)(y, s)
        self._known = [known for known in self._known if known[1] is self.state]
        self._known.append((how, y, s, value))
        return value


def adapt(
    solver: Solver, field: RightHandSide, controller: Controller, spans: list[Span], u: Tensor, solution: Solution,
    calls: int, budget: int | None,
) -> Iterator[Tensor]:  # fmt: skip
    """Steps over solution.grid from its first node to its last, and on to 0 where it does. Yields each kept state.

    spans: empty; filled with the kept steps, the attempt that is under way behind them. calls: evaluations of a step.
    Past `budget` evaluations it stops, with solution.reason = "max_nfe". What is learnt goes into solution.stats.
    Reads one number of the device for each attempt.
    """
    grid = solution.grid
    s, stop = _ends(grid, field)
    order = controller.order or solver.order
    least = max(controller.h_min, 1e-14 * max(abs(s), abs(stop)))
    h = math.copysign(min(max(controller.h_init or abs(stop - s) / 100, least), controller.h_max), stop - s)
    known: Any = Remembering(field)
    past: Past = ()
    before, kept, unknown = solution.x, 0, 0
    recent: tuple[float, float] | None = None
    lengths: list[float] = []
    sizes: list[float] = []
    stats = solution.stats
    stats.update(accepted=0, rejected=0, h=lengths, errors=sizes, rtol=controller.rtol, atol=controller.atol)

    def spent(more: int) -> bool:
        if budget is None or field.nfe + more <= budget:
            return False
        solution.reason = "max_nfe"
        return True

    while s != stop:
        known.state = u
        if spent(calls - known.knows(s)):
            return
        whole = abs(h) >= abs(stop - s) * (1 - 1e-9)
        span = Span(s, stop if whole else s + h, kept, adaptive=True, stop=stop)
        spans[kept:] = [span]
        step = take(solver, known, u, span, past)
        if step.error is None:
            raise SolverError(_no_error(solver, solution.problem, grid))
        node = field.sigma(span.end)
        error = field.leave(step.error, node)
        low = field.leave(step.y if step.mean is None else step.mean, node) - error
        size = float(controller.norm(error, low, before))
        last = recent or (size, size)
        if math.isfinite(size):
            unknown, recent = 0, last
            keep, factor = controller.judge((size, *last), order)
        else:
            unknown, keep, factor = unknown + 1, False, _CUT
        if not 0 < factor < (math.inf if keep else 1):
            raise SolverError(
                f"{type(controller).__name__}.judge gave {keep, factor}; the factor is above 0, and of a rejected step "
                "below 1"
            )
        if keep:
            u, past, before, s = field.settle(step.y, span), step.past, low, span.end
            kept, recent = kept + 1, (size, last[0])
            lengths.append(span.h)
            sizes.append(size)
            stats["accepted"] = kept
        else:
            stats["rejected"] += 1
            if unknown == _PATIENCE:
                raise NonFiniteError(f"the error was NaN or infinite {unknown} times, at ever shorter steps. {LOOK}")
            if abs(span.h) <= least:
                raise SolverError(_underflow(span, size, controller, u))
        h *= factor
        while not keep and abs(h) >= abs(span.h):  # the attempt was cut short at the end: do not repeat it
            h *= factor
        h = math.copysign(min(max(abs(h), least), controller.h_max), h)
        if keep:
            yield u
    if grid.final != "none" and not spent(1):
        spans[kept:] = [Span(stop, field.variable(0.0), kept, kept + 1, last=True, own=grid.final == "step", stop=stop)]
        yield from march(solver, field, spans[kept:], u, past)


def _underflow(span: Span, size: float, controller: Controller, u: Tensor) -> str:
    return (
        f"a step of {abs(span.h):.3g} still has an error of {size:.3g} times the tolerance, and a shorter one is "
        f"{'below h_min' if abs(span.h) <= controller.h_min else 'lost in rounding'}; raise rtol = {controller.rtol:g} "
        f"and atol = {controller.atol:g} (a state in {_dtype(u)} resolves {torch.finfo(u.dtype).eps:.0e}), or end "
        "before the place where the problem is singular"
    )


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
