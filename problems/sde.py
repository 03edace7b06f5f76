"""The generic stochastic problem: the user's own drift and diagonal noise, x' = f(t, x) dt + g(t, x) dW (Ito)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffsolve import Grid, GridError, Noise, ProblemError, RightHandSide, Solver, SolverError, Span
from diffsolve.denoiser import check_like
from diffsolve.grid import Final
from diffsolve.noise import SpaceTimePath
from diffsolve.problem import Device, Event, Samples, freeze
from diffsolve.run import Run
from diffsolve.validate import finite
from diffsolve.watch import Watcher

from .ode import GivenField, GivenForm, SemilinearODE

_DEPTH = 24  # 2^-24 of the span is the shortest step, with LEVELS or more of it in the tree
Diffusion = Callable[..., Any]


@dataclass(frozen=True, eq=False, init=False, repr=False)
class SDEProblem(SemilinearODE):
    """dx = f(t, x) dt + g(t, x) dW in Ito's sense, on span = (t0, t1), from x0 of shape (B, ...).

    f: (t: float, x) -> tensor of x's shape. g: (t, x) -> tensor of x's shape, each component with a Brownian motion of
    its own; or, where the noise is additive, g(t) -> a number or a tensor that fits x: it is told by the number of its
    arguments. W is a function of (seed, sample), one for each row of x0. exact: (x, t, s, W) -> x at s, from x at t and
    W = W(s) - W(t), where known. Solved by euler_maruyama, milstein and, additive, by sra1 and sra3.

    Raises ProblemError for a span, an x0 or functions that can't be used.
    """

    g: Diffusion
    additive: bool

    default_solver = "milstein"

    def __init__(
        self,
        f: Callable[[float, Tensor], Tensor],
        g: Diffusion,
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
        freeze(self, g=g, additive=_arguments(g) == 1, adaptive_solver="")
        if exact is not None:
            freeze(self, exact_path=exact)

    def grid(
        self, schedule: Any, n: int, *, final: Final, sigma_min: float | None, sigma_max: float | None, name: str
    ) -> Grid:
        grid = super().grid(schedule, n, final=final, sigma_min=sigma_min, sigma_max=sigma_max, name=name)
        (t0, t1), (first, last) = self.span, (float(grid.nodes[0]), float(grid.nodes[-1]))
        if (last - first) * (t1 - t0) < 0:
            raise GridError(
                f"the times run from {first:g} to {last:g}, against the span {self.span}, along which the noise is "
                "added; turn the span about too"
            )
        return grid

    def start(
        self, x: Any, samples: Samples, seed: int, node: float, dtype: torch.dtype | None, device: Device | None
    ) -> Tensor:
        rows = len(self.x0) if x is None else 0
        return super().start(x, (0,) if len(samples) == rows else samples, seed, node, dtype, device)

    def watchers(self, run: Run, events: Event | Sequence[Event] | None, tolerant: bool) -> list[Watcher]:
        if events is not None:
            raise ProblemError("a path of an SDE is known at its nodes alone, so it has no events; look at each Visit")
        return super().watchers(run, None, tolerant)

    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> RightHandSide:
        if eta is not None:
            raise SolverError(f"eta = {eta!r} was given, but an SDE's noise is its own g; leave eta out")
        if not solver.stochastic or solver.form is None:
            what = "is no method of an SDE" if solver.form is None else "solves ODEs and would leave out the noise"
            raise SolverError(f"{solver.name or solver!r} {what}; {_TAKE}")
        return GivenSDEField(self, x, samples if len(samples) == len(x) else range(len(x)), seed)


def _arguments(g: Diffusion) -> int:
    try:
        given = list(inspect.signature(g).parameters.values())
    except (TypeError, ValueError):  # builtins tell nothing
        return 2
    if any(p.kind is p.VAR_POSITIONAL for p in given):
        return 2
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in given)


_TAKE = "take 'euler_maruyama', 'milstein', 'sra1' or 'sra3'"


class _SDEForm(GivenForm):
    """The form of a user's SDE, which has noise but no noise level."""

    def __init__(self, problem: SDEProblem) -> None:
        super().__init__()
        self.problem = problem

    def sigma(self, s: float) -> float:
        raise SolverError(f"this solver reads a noise level, and an SDEProblem has none; {_TAKE}")

    def diffusion(self, s: float) -> float:
        level = self.problem.g(s) if self.problem.additive else None
        if not isinstance(level, int | float) and not (isinstance(level, Tensor) and level.ndim == 0):
            raise SolverError(
                "this solver takes additive noise of one level, and g(t, x) has a level for each component; "
                "take 'euler_maruyama' or 'milstein'"
            )
        return float(level)

    def noise_std(self, start: float, end: float) -> float:
        return abs(self.diffusion(start)) * math.sqrt(abs(end - start))


class GivenSDEField(GivenField):
    """The user's own drift and noise."""

    traceable = False  # g(t, x) z is no multiple of z
    eta = 1.0

    def __init__(self, problem: SDEProblem, x: Tensor, samples: Samples, seed: int) -> None:
        super().__init__(problem)
        self.form, self.problem, self.additive = _SDEForm(problem), problem, problem.additive
        self._checked_at: float | None = None
        self._path = SpaceTimePath(
            seed, samples, x.shape[1:], *problem.span, dtype=x.dtype, device=x.device, depth=_DEPTH
        )

    def g_prod(self, u: Tensor, s: float, z: Tensor) -> Tensor:
        product: Tensor = self._level(u, s) * z
        return product

    def gdg_prod(self, u: Tensor, s: float) -> Tensor:
        if self.additive:
            return torch.zeros_like(u)
        level, slope = self._slope(u, s, torch.ones_like(u))  # g_i reads x_i alone: the noise is diagonal
        self._checked_at = s if self._checked_at is None else self._checked_at
        if self._checked_at == s:  # a step that is taken again for its gradient does the same again
            self._check_diagonal(u, s, slope)
        product: Tensor = level * slope
        return product

    def _slope(self, u: Tensor, s: float, direction: Tensor) -> tuple[Tensor, Tensor]:
        """g and its derivative along a direction."""
        level, slope, *_ = torch.func.jvp(lambda x: self._level(x, s), (u,), (direction,))
        return level, slope

    def _check_diagonal(self, u: Tensor, s: float, slope: Tensor) -> None:
        """Raise SolverError where a component of g reads another component of the state: one product tells."""
        direction = torch.linspace(0.5, 1.5, max(u.numel(), 1), dtype=u.dtype, device=u.device).reshape(u.shape)
        with torch.no_grad():
            error = (self._slope(u, s, direction)[1] - slope * direction).abs().max()
        if bool(error > 1e-4 * slope.abs().max()):
            raise SolverError(
                "Milstein's correction is for diagonal noise, and a component of this g(t, x) reads other components "
                "of x; take 'euler_maruyama'"
            )

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

    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Tensor:
        if kind is Noise.LEVY_AREA:
            return self._path.area(span.start, span.end)
        return self._path.wiener(span.start, span.end)
