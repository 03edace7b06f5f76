"""The generic stochastic problem: the user's own drift and noise, dx = f(t, x) dt + g(t, x) dW (Ito)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffsolve import Grid, GridError, ProblemError, RightHandSide, Solver, SolverError
from diffsolve.grid import Final
from diffsolve.problem import Event, freeze
from diffsolve.run import Run
from diffsolve.solution import Watcher
from diffsolve.validate import Device, Samples, choice

from .ode import SemilinearODE
from .sde_field import TAKE, GivenSDEField
from .states import check_function

Diffusion = Callable[..., Any]
NoiseType = Literal["diagonal", "scalar", "general"]


@dataclass(frozen=True, eq=False, init=False, repr=False)
class SDEProblem(SemilinearODE):
    """dx = f(t, x) dt + g(t, x) dW in Ito's sense, on span = (t0, t1), from x0 of shape (B, ...).

    f: (t: float, x) -> tensor of x's shape. g: (t, x), or g(t) where the noise is additive, which is told by the number
    of its arguments. noise says what g is of, in torchsde's words:
    "diagonal", a Brownian motion for each component: g is of x's shape; of g(t), a number or a tensor that fits x;
    "scalar", one for all components of a row: the same shapes, or x's with a 1 behind it;
    "general", m of them for each row: g is (B, d, m) for x of (B, d), in general x's shape and m; of g(t) also (d, m).
    None is "diagonal", and asks where a square g might also be a matrix. Every row of x0 has its own W, a function of
    (seed, sample), which begins at t0 and runs towards t1, be it before t0. exact: (x, t, s, W) -> x at s, from x at t
    and W = W(s) - W(t), of x's shape, (B, 1, ...) or (B, m), where known.

    Solved by euler_maruyama, of strong order 1/2 where the noise is not additive; by milstein, for "diagonal" noise
    whose g_i reads x_i alone, and for "scalar"; where it is additive, by sra1 and sra3; and by the exponential ones,
    such as seeds_2, where g(t) is a number. Raises ProblemError for a span, an x0 or functions that can't be used.
    """

    g: Diffusion
    additive: bool
    noise: NoiseType | None

    default_solver: str
    remedy = "Look at f and g there: the solution may grow without bound, or the steps be too long for it"

    def __init__(
        self,
        f: Callable[[float, Tensor], Tensor],
        g: Diffusion,
        span: tuple[float, float],
        x0: object,
        exact: Callable[[Tensor, float, float, Tensor], Tensor] | None = None,
        noise: NoiseType | None = None,
    ) -> None:
        super().__init__(0.0, f, span, x0)
        if not callable(g):
            raise ProblemError(f"g must be a function g(t, x), or g(t) for additive noise, got {type(g).__name__}")
        if self.x0.ndim == 0:
            raise ProblemError(f"x0 is the number {float(self.x0):g}; an SDE's x0 is (B, ...), a row for each sample")
        if _arguments(g) not in (1, 2):
            raise ProblemError(f"g must take (t, x), or t alone for additive noise; this one takes {_arguments(g)}")
        if noise is not None:
            choice(noise, "noise (additive noise is told by g(t))", get_args(NoiseType), ProblemError)
        additive = _arguments(g) == 1
        check_function(g, "g", 1 if additive else 2, "g(t, x), or g(t) for additive noise")
        default = "euler_maruyama" if noise == "general" and not additive else "milstein"
        freeze(self, g=g, additive=additive, noise=noise, default_solver=default, adaptive_solver="")
        if exact is not None:
            freeze(self, exact_path=exact)

    def grid(
        self, schedule: object, n: int, *, final: Final, sigma_min: float | None, sigma_max: float | None, name: str
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
        self, x: object, samples: Samples, seed: int, node: float, dtype: torch.dtype | None, device: Device | None
    ) -> Tensor:
        rows = len(self.x0) if x is None else 0
        state = super().start(x, (0,) if len(samples) == rows else samples, seed, node, dtype, device)
        if state.ndim == 0:
            raise ProblemError(f"x is the number {float(state):g}; an SDE's state is (B, ...), a row for each sample")
        return state

    def watchers(self, run: Run, events: Event | Sequence[Event] | None, tolerant: bool) -> list[Watcher]:
        if events is not None:
            raise ProblemError("a path of an SDE is known at its nodes alone, so it has no events; look at each Visit")
        return super().watchers(run, None, tolerant)

    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> RightHandSide:
        if eta is not None:
            raise SolverError(f"eta = {eta!r} was given, but an SDE's noise is its own g; leave eta out")
        if not solver.stochastic or solver.form is None:
            what = "is no method of an SDE" if solver.form is None else "solves ODEs and would leave out the noise"
            raise SolverError(f"{solver.name or solver!r} {what}; {TAKE}")
        return GivenSDEField(self, x, samples if len(samples) == len(x) else range(len(x)), seed)


def _arguments(g: Diffusion) -> int:
    try:
        given = list(inspect.signature(g).parameters.values())
    except (TypeError, ValueError):  # builtins tell nothing
        return 2
    if any(p.kind is p.VAR_POSITIONAL for p in given):
        return 2
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in given)
