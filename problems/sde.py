"""The generic stochastic problem: the user's own drift and diagonal noise, x' = f(t, x) dt + g(t, x) dW (Ito)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import ProblemError, SolverError, finite
from .form import CODES
from .noise import SpaceTimePath
from .problem import RightHandSide, Samples, SemilinearODE, check_like
from .solver import Solver, Span

_DEPTH = 24  # 2^-24 of the span is the shortest step, with LEVELS or more of it in the tree
Noise = Callable[..., Any]


class SDEProblem(SemilinearODE):
    """dx = f(t, x) dt + g(t, x) dW in Ito's sense, on span = (t0, t1), from x0 of shape (B, ...).

    f: (t: float, x) -> tensor of x's shape. g: (t, x) -> tensor of x's shape, each component with a Brownian motion of
    its own; or, where the noise is additive, g(t) -> a number or a tensor that fits x: it is told by the number of its
    arguments. W is a function of (seed, sample), one for each row of x0. exact: (x, t, s, W) -> x at s, from x at t and
    W = W(s) - W(t), where known. Solved by euler_maruyama, milstein and, additive, by sra1 and sra3.

    Raises ProblemError for a span, an x0 or functions that can't be used.
    """

    default_solver = "milstein"

    def __init__(
        self,
        f: Callable[[float, Tensor], Tensor],
        g: Noise,
        span: tuple[float, float],
        x0: Any,
        exact: Callable[[Tensor, float, float, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(0.0, f, span, x0)
        if not callable(g):
            raise ProblemError(f"g must be a function g(t, x), or g(t) for additive noise, got {type(g).__name__}")
        if self.x0.ndim == 0:
            raise ProblemError(f"x0 is the number {float(self.x0):g}; an SDE's x0 is (B, ...), a row for each sample")
        if _arguments(g) not in (1, 2):
            raise ProblemError(f"g must take (t, x), or t alone for additive noise; this one takes {_arguments(g)}")
        self.g, self.additive = g, _arguments(g) == 1
        if exact is not None:
            self.exact_path = exact

    def start(
        self, x: Any, samples: Samples, seed: int, node: float, dtype: torch.dtype | None, device: Any
    ) -> Tensor:
        rows = len(self.x0) if x is None else 0
        return super().start(x, (0,) if len(samples) == rows else samples, seed, node, dtype, device)

    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> RightHandSide:
        if eta is not None:
            raise SolverError(f"eta = {eta!r} was given, but an SDE's noise is its own g; leave eta out")
        if not solver.stochastic or solver.form == CODES:
            what = "is one of codes" if solver.form == CODES else "solves ODEs and would leave out the noise"
            raise SolverError(
                f"{solver.name or solver!r} {what}; "
                "take 'euler_maruyama', 'milstein', 'sra1' or 'sra3'"
            )
        return _GivenSDE(self, x, samples if len(samples) == len(x) else range(len(x)), seed)


def _arguments(g: Noise) -> int:
    try:
        given = list(inspect.signature(g).parameters.values())
    except (TypeError, ValueError):  # builtins tell nothing
        return 2
    if any(p.kind is p.VAR_POSITIONAL for p in given):
        return 2
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in given)


class _GivenSDE(RightHandSide):
    traceable = False  # g(t, x) z is no multiple of z
    eta = 1.0

    def __init__(self, problem: SDEProblem, x: Tensor, samples: Samples, seed: int) -> None:
        super().__init__()
        self.problem, self.additive = problem, problem.additive
        self._like = x
        self._path = SpaceTimePath(
            seed, samples, x.shape[1:], *problem.span, dtype=x.dtype, device=x.device, depth=_DEPTH
        )

    def evaluate(self, u: Tensor, s: float) -> Tensor:
        value = self.problem.f(s, u)
        check_like(value, u, "f at t = {:g}", s)
        return value

    def sigma(self, s: float) -> float:
        raise SolverError(
            "this solver reads a noise level, and an SDEProblem has none; "
            "take 'euler_maruyama', 'milstein', 'sra1' or 'sra3'"
        )

    def diffusion(self, s: float) -> float:
        level = self.problem.g(s) if self.additive else None
        if not isinstance(level, int | float) and not (isinstance(level, Tensor) and level.ndim == 0):
            raise SolverError(
                "this solver takes additive noise of one level, and g(t, x) has a level for each component; "
                "take 'euler_maruyama' or 'milstein'"
            )
        return float(level)

    def noise(self, span: Span) -> float:
        return abs(self.diffusion(span.start)) * math.sqrt(abs(span.h))

    def spread(self, y: Tensor, s: float, z: Tensor) -> Tensor:
        noise: Tensor = self._level(y, s) * z
        return noise

    def milstein(self, y: Tensor, s: float) -> Tensor:
        if self.additive:
            return torch.zeros_like(y)
        with torch.enable_grad():
            x = y.detach().requires_grad_()
            level = self._level(x, s)
            if not level.requires_grad:
                return torch.zeros_like(y)
            (slope,) = torch.autograd.grad(level.sum(), x)  # g_i reads x_i alone: the noise is diagonal
            product: Tensor = level.detach() * slope
        return product

    def _level(self, y: Tensor, s: float) -> Any:
        if not self.additive:
            level = self.problem.g(s, y)
            check_like(level, y, "g at t = {:g}", s)
            return level
        level = self.problem.g(s)
        try:
            if not isinstance(level, Tensor) and finite(level) is None:
                raise TypeError
            torch.broadcast_to(torch.as_tensor(level), y.shape)
        except (TypeError, RuntimeError) as error:
            got = f"shape {tuple(level.shape)}" if isinstance(level, Tensor) else repr(level)
            raise ProblemError(
                f"g at t = {s:g} returned {got}, expected a number, or a tensor that fits {tuple(y.shape)}"
            ) from error
        return level

    def draw(self, span: Span) -> Tensor:
        return self.wiener(span)

    def wiener(self, span: Span) -> Tensor:
        return self._path.wiener(span.start, span.end)

    def area(self, span: Span) -> Tensor:
        return self._path.area(span.start, span.end)
