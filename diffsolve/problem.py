"""What a problem must offer to be solved, and the generic problems with the user's own right-hand side."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import GridError, ProblemError, SolverError, finite, whole
from .grid import Final, Grid
from .solver import Field, Solver

State = Tensor
Samples = Sequence[int]


SWAPPED = "f(y, s) takes the state first, then the form's variable; got {} first"


class RightHandSide(Field):
    """A solver's `f` on tensors, with the maps between the user's state and the form's.

    nfe counts the evaluations made so far, the one of the last denoise step included.
    """

    def __init__(self) -> None:
        self.nfe = 0
        self.latest: tuple[Tensor, Tensor, float] | None = None  # (u, N, s) of the newest evaluation

    def __call__(self, u: Tensor, s: float) -> Tensor:
        if not isinstance(u, Tensor):
            raise SolverError(SWAPPED.format(type(u).__name__))
        self.nfe += 1
        value = self.evaluate(u, s)
        self.latest = (u, value, s)
        return value

    @abstractmethod
    def evaluate(self, u: Tensor, s: float) -> Tensor:
        """N(u, s)."""

    def enter(self, x: Tensor, node: float) -> Tensor:
        """The form's state u for the user's state x at a node."""
        return x

    def leave(self, u: Tensor, node: float) -> Tensor:
        """The user's state x for the form's u."""
        return u

    def denoise(self, u: Tensor, s: float) -> Tensor:
        """The Euler step to sigma = 0, in the user's state; one evaluation."""
        raise SolverError("only a diffusion problem has a noise level to denoise; pass final='none'")

    def denoised(self) -> Tensor | None:
        """The data estimate of the newest evaluation, where there is one; costs no network call."""
        return None


def check_like(value: Any, state: Tensor, what: str, *at: object) -> None:
    """Raise ProblemError unless `value` is a tensor of the state's shape, dtype and device; `what.format(*at)` is."""
    if (
        isinstance(value, Tensor)
        and value.shape == state.shape
        and value.dtype == state.dtype
        and value.device == state.device
    ):
        return
    what = what.format(*at)
    if not isinstance(value, Tensor):
        raise ProblemError(f"{what} returned {type(value).__name__}, expected a tensor of shape {tuple(state.shape)}")
    for trait in ("shape", "dtype", "device"):
        got, expected = getattr(value, trait), getattr(state, trait)
        if got != expected:
            got, expected = (tuple(got), tuple(expected)) if trait == "shape" else (got, expected)
            raise ProblemError(f"{what} returned {trait} {got}, expected {expected}, the state's")


class Problem(ABC):
    """What `solve` asks of a problem, in this order: a grid, a start, a right-hand side."""

    default_solver: str
    default_schedule: str
    forms = True  # whether a solve may choose the variable, see `diffsolve.form`

    @abstractmethod
    def grid(
        self, schedule: Any, n: int, *, final: Final, sigma_min: float | None, sigma_max: float | None, name: str
    ) -> Grid:
        """The nodes to visit; `schedule` has been looked up already, `name` is how it was called."""

    @abstractmethod
    def start(
        self, x: Any, samples: Samples, seed: int, node: float, dtype: torch.dtype | None, device: Any
    ) -> Tensor:
        """The checked state at the first node: the caller's `x`, or the problem's own."""

    @abstractmethod
    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> RightHandSide:
        """The right-hand side in the form that `solver` is written for."""


class Uniform:
    """Evenly spaced nodes over an ODE's span: the schedule of generic problems."""


class SemilinearODE(Problem):
    """u' = linear u + f(t, u) on span = (t0, t1), from x0; `linear` is a constant scalar.

    f: (t: float, u: tensor) -> tensor of u's shape. x0: tensor (or what torch.as_tensor takes), of any shape; float64
    and float32 are kept. exact: (u, t, s) -> u at s, where known. Exponential solvers integrate the linear part
    exactly; classical ones take it into the right-hand side. Raises ProblemError for a span or x0 that can't be used.
    """

    default_solver, default_schedule = "etdrk4", "uniform"
    forms = False

    def __init__(
        self,
        linear: float,
        f: Callable[[float, Tensor], Tensor],
        span: tuple[float, float],
        x0: Any,
        exact: Callable[[Tensor, float, float], Tensor] | None = None,
    ) -> None:
        if not callable(f):
            raise ProblemError(f"f must be a function f(t, x), got {type(f).__name__}")
        try:
            t0, t1 = (float(t) for t in span)
        except (TypeError, ValueError):
            t0 = t1 = np.nan
        if not (np.isfinite([t0, t1]).all() and t0 != t1):
            raise ProblemError(f"span must be two different finite times (t0, t1), got {span!r}")
        coefficient = finite(linear)
        if coefficient is None:
            raise ProblemError(f"linear must be a finite number, got {linear!r}")
        self.x0 = _state(x0, "x0", whole_numbers=True)
        self.linear, self.f, self.span = coefficient, f, (t0, t1)
        if exact is not None:
            self.exact = exact

    def grid(
        self, schedule: Any, n: int, *, final: Final, sigma_min: float | None, sigma_max: float | None, name: str
    ) -> Grid:
        if sigma_min is not None or sigma_max is not None:
            raise GridError("an ODE problem has no sigma_min and sigma_max; its ends are its span")
        if isinstance(schedule, Grid):
            return schedule
        if isinstance(schedule, str | Uniform):
            if schedule == "uniform" or isinstance(schedule, Uniform):
                return Grid(np.linspace(*self.span, whole(n, "the number of steps n", GridError) + 1), "uniform")
            raise GridError(f"schedule {schedule!r} places noise levels; an ODE takes 'uniform' or explicit times")
        try:
            return Grid(np.asarray(schedule, np.float64))
        except (TypeError, ValueError) as error:
            if isinstance(error, GridError):
                raise
            raise GridError(f"an ODE takes schedule='uniform' or explicit times, got {schedule!r}") from error

    def start(
        self, x: Any, samples: Samples, seed: int, node: float, dtype: torch.dtype | None, device: Any
    ) -> Tensor:
        if x is None and not math.isclose(node, self.span[0], rel_tol=1e-9, abs_tol=1e-12):
            raise GridError(
                f"the times start at {node:g}, but x0 is the state at {self.span[0]:g}; pass x, the state at {node:g}"
            )
        if x is None and len(samples) != 1:
            raise ProblemError(f"batch names {len(samples)} samples, but an ODE's batch is a dimension of its x0")
        state = self.x0 if x is None else _state(x, "x")
        return _state(state.to(dtype=dtype or state.dtype, device=placed(device or state.device)), "the state")

    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> RightHandSide:
        if eta is not None:
            raise SolverError(f"eta = {eta!r} was given, but an ODE has no noise; leave eta out")
        if solver.stochastic:
            raise SolverError(f"{solver.name or solver!r} adds noise, and an ODE has none; choose a solver of the ODE")
        return _Given(self)


def placed(device: Any) -> torch.device:
    """The device as a tensor on it reports it ("cuda" -> "cuda:0"). Raises ProblemError where it can't be used."""
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ProblemError(f"device {device!r} can't be used here: {reason}") from error


def _state(value: Any, what: str, *, whole_numbers: bool = False) -> Tensor:
    """`value` as a float32 or float64 tensor; whole numbers become the default dtype where they may."""
    try:
        state = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProblemError(f"{what} must be a tensor or nested numbers, got {value!r}: {error}") from error
    if whole_numbers and not (state.is_floating_point() or state.is_complex()):
        state = state.to(torch.get_default_dtype())
    if state.dtype not in (torch.float32, torch.float64):
        raise ProblemError(f"{what} has dtype {state.dtype}; a state is float32 or float64, so convert it first")
    return state


class _Given(RightHandSide):
    def __init__(self, problem: SemilinearODE) -> None:
        super().__init__()
        self.linear, self.f = problem.linear, problem.f

    def evaluate(self, u: Tensor, s: float) -> Tensor:
        value = self.f(s, u)
        check_like(value, u, "the right-hand side at t = {:g}", s)
        return value


class ODEProblem(SemilinearODE):
    """x' = f(t, x) on span = (t0, t1), from x0: any ODE, solved by the same solvers (see SemilinearODE)."""

    def __init__(
        self,
        f: Callable[[float, Tensor], Tensor],
        span: tuple[float, float],
        x0: Any,
        exact: Callable[[Tensor, float, float], Tensor] | None = None,
    ) -> None:
        super().__init__(0.0, f, span, x0, exact)
