"""The user's own right-hand side as a problem: any ODE, with a linear part where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve import Grid, GridError, Problem, ProblemError, RightHandSide, Solver, SolverError
from diffsolve.field import Evaluation
from diffsolve.form import PlainForm
from diffsolve.grid import Final, explicit, steps_of
from diffsolve.problem import Event, Uniform, freeze
from diffsolve.run import Run
from diffsolve.solution import Watcher
from diffsolve.validate import (
    Device,
    Samples,
    check_dense,
    check_like,
    finite,
    placed,
    state_dtype,
    unchanged,
    without_gradient,
)

from .states import check_function

_STIFF = 20.0  # |linear| times the span, from which on an exponential method makes fewer calls than one of order 5
_SLACK = 1e-6  # of the span: times that were printed in float32 are still inside it


class GivenForm(PlainForm):
    """The form of a user's own u' = linear u + f(s, u): the state and the time as they are."""

    name = "given"
    finite_at_zero = False

    def __init__(self, linear: float = 0.0) -> None:
        self.linear = linear  # there is no process

    def weights(self, sigma: float) -> tuple[float, float]:
        return 0.0, -1 / sigma if sigma else -1.0

    def renoise_std(self, start: float, end: float) -> float:
        raise SolverError("only a diffusion problem can go back up in noise")

    def time(self, s: float) -> float:
        return s

    def variable_at_time(self, t: float) -> float:
        return t

    def alpha(self, s: float) -> float:
        return 1.0

    def deps_dN(self, s: float) -> float:
        return 1.0


@dataclass(frozen=True, eq=False, init=False, repr=False)
class SemilinearODE(Problem):
    """u' = linear u + f(t, u) on span = (t0, t1), from x0; `linear` is a constant scalar.

    f: (t: float, u: tensor) -> tensor of u's shape. x0: tensor (or what torch.as_tensor takes), of any shape; float64
    and float32 are kept. exact: (u, t, s) -> u at s, where known. Exponential solvers integrate the linear part
    exactly; classical ones take it into the right-hand side. Raises ProblemError for a span or x0 that can't be used.
    """

    linear: float
    f: Callable[[float, Tensor], Tensor]
    span: tuple[float, float]
    x0: Tensor

    default_solver, default_schedule = "etdrk4", "uniform"
    forms = False
    remedy = "Look at the right-hand side there: the solution may grow without bound, or the steps be too long for it"

    def __init__(
        self,
        linear: float,
        f: Callable[[float, Tensor], Tensor],
        span: tuple[float, float],
        x0: object,
        exact: Callable[[Tensor, float, float], Tensor] | None = None,
    ) -> None:
        check_function(f, "f", 2, "f(t, x)")
        without_gradient("an end of span", ProblemError, *(span if isinstance(span, list | tuple) else ()))
        try:
            t0, t1 = (math.nan if isinstance(t, str) else float(t) for t in span)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            t0 = t1 = np.nan
        if not (np.isfinite([t0, t1]).all() and t0 != t1):
            raise ProblemError(f"span must be two different finite times (t0, t1), got {span!r}")
        coefficient = finite(linear)
        if coefficient is None:
            raise ProblemError(f"linear must be a finite number, got {linear!r}")
        if coefficient * (t1 - t0) > 700:
            raise ProblemError(
                f"linear = {coefficient:g} grows by e^{coefficient * (t1 - t0):.3g} over the span, more than float64 "
                "holds; put it into f"
            )
        state = _state(x0, "x0", whole_numbers=True)
        if max(abs(t0), abs(t1), abs(t1 - t0)) > torch.finfo(state.dtype).max:
            raise ProblemError(f"span = {span!r} is longer than {state.dtype}, the state's, holds; change t's unit")
        by_error = "tsit5" if abs(coefficient * (t1 - t0)) < _STIFF else "res_3s"
        freeze(self, linear=coefficient, f=f, span=(t0, t1), x0=state, adaptive_solver=by_error)
        if exact is not None:
            freeze(self, exact=exact)

    def grid(
        self, schedule: object, n: int, *, final: Final, sigma_min: float | None, sigma_max: float | None, name: str
    ) -> Grid:
        if sigma_min is not None or sigma_max is not None:
            raise GridError("an ODE problem has no sigma_min and sigma_max; its ends are its span")
        if isinstance(schedule, Uniform):
            return Grid(np.linspace(*self.span, steps_of(n) + 1), "uniform")
        if isinstance(schedule, Tensor) and schedule.requires_grad:
            raise GridError("the times carry a gradient, and a solve has none in its times; detach them")
        try:
            grid = schedule if isinstance(schedule, Grid) else Grid(explicit(schedule))
        except GridError as error:
            if error.__cause__ is not None:
                raise GridError(f"an ODE takes schedule='uniform' or explicit times, got {schedule!r}") from error
            raise
        low, high = sorted(self.span)
        slack = _SLACK * (high - low)
        for t in grid.nodes.tolist():
            if not low - slack <= t <= high + slack:
                raise GridError(f"t = {t:g} is outside the problem's span, from {low:g} to {high:g}; widen it")
        return grid

    def start(
        self, x: object, samples: Samples, seed: int, node: float, dtype: torch.dtype | None, device: Device | None
    ) -> Tensor:
        if x is None and not math.isclose(node, self.span[0], rel_tol=1e-9, abs_tol=1e-12):
            raise GridError(
                f"the times start at {node:g}, but x0 is the state at {self.span[0]:g}; pass x, the state at {node:g}, "
                f"or begin the times with {self.span[0]:g}"
            )
        if x is None and len(samples) != 1:
            raise ProblemError(f"batch names {len(samples)} samples, but an ODE's batch is a dimension of its x0")
        state = self.x0 if x is None else _state(x, "x")
        wanted = state_dtype(state.dtype if dtype is None else dtype)
        return _state(state.to(dtype=wanted, device=placed(state.device if device is None else device)), "the state")

    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> RightHandSide:
        if eta is not None:
            raise SolverError(f"eta = {eta!r} was given, but an ODE has no noise; leave eta out")
        if solver.stochastic:
            raise SolverError(f"{solver.name or solver!r} adds noise, and an ODE has none; choose a solver of the ODE")
        return GivenField(self)

    def watchers(self, run: Run, events: Event | Sequence[Event] | None, tolerant: bool) -> list[Watcher]:
        from .observe import observers

        return observers(self, run, events, tolerant)


def _state(value: object, what: str, *, whole_numbers: bool = False) -> Tensor:
    """A copy of `value` as a float32 or float64 tensor; whole numbers become the default dtype where they may."""
    if isinstance(value, Tensor):
        check_dense(value, what)
    try:
        state = value.clone() if isinstance(value, Tensor) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProblemError(f"{what} must be a tensor or nested numbers, got {value!r}: {error}") from error
    if whole_numbers and not (state.is_floating_point() or state.is_complex()):
        state = state.to(torch.get_default_dtype())
    if state.dtype not in (torch.float32, torch.float64):
        how = "give torch.view_as_real of it to an f that does so too" if state.is_complex() else "convert it first"
        raise ProblemError(f"{what} has dtype {state.dtype}; a state is float32 or float64, so {how}")
    return state


class GivenField(RightHandSide):
    """The user's own right-hand side."""

    def __init__(self, problem: SemilinearODE) -> None:
        self.form, self.f = GivenForm(problem.linear), problem.f

    def answer(self, u: Tensor, s: float) -> Any:
        with unchanged(u, "the right-hand side at t = {:g}", s):
            try:
                return self.f(s, u)
            except TypeError as error:
                error.add_note("diffsolve: f is called with t, a float, and x, a tensor: math.sin(t), not torch.sin(t)")
                raise

    def accept(self, u: Tensor, s: float, reply: Any) -> Evaluation:
        check_like(reply, u, "the right-hand side at t = {:g}", s)
        self.count(s)
        self.newest = Evaluation(reply.clone())  # it may be a buffer of f's own, or u itself
        return self.newest


class ODEProblem(SemilinearODE):
    """x' = f(t, x) on span = (t0, t1), from x0: any ODE, solved by the same solvers (see SemilinearODE).

    With a tolerance, explicit times are where its states come back: `solve(problem, schedule=[0, 0.1, 1], rtol=1e-6)`
    has them as `trajectory`, at `t`. Between its steps the solution is the solver's own continuous extension, or a
    Hermite interpolant whose error is that of a step; above order 5 that takes a few calls more.

    `solve(events=)`: one or more functions (t, x) -> a number, or one for each row of x. Where one crosses or reaches
    0, it happens, and is in `Solution.events`; a 0 to begin with is none. As scipy's, such a function may have the
    attributes `direction`, 1 where it is to rise, -1 to fall, and `terminal`, True or after how many times. A number
    then ends the run, for the reason "event", x being the state there. A row stops alone: in x, and at later times, it
    is as it was then, and the run ends when every row has stopped, or with its times, where a row that has not is at
    its end.
    """

    def __init__(
        self,
        f: Callable[[float, Tensor], Tensor],
        span: tuple[float, float],
        x0: object,
        exact: Callable[[Tensor, float, float], Tensor] | None = None,
    ) -> None:
        super().__init__(0.0, f, span, x0, exact)
