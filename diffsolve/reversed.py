"""Encoding, data to noise: a flow solved from low noise to high; and the great circles between the noises it finds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .diffusion import ProbabilityFlow
from .errors import GridError, ProblemError, SolverError
from .form import as_form
from .grid import Final, Grid, Schedule, explicit
from .problem import RightHandSide, Samples, Uniform
from .solver import Solver


class Reversed(ProbabilityFlow):
    """The same flow from sigma_min up to sigma_max, made by `problem.reversed()` (Song et al. 2021, appendix D.2).

    `solve(problem.reversed(), solver, x=x)` encodes: x is the state at the lowest node in VE coordinates (clean data
    serve, sigma_min being small beside them), the result the state at the highest, which `solve(problem, x=...)`
    takes. Schedules are the problem's own, passed upwards; explicit nodes may be listed either way. Nothing follows
    the last node, so `final` is not read, and the 0 at the end of a grid that is given is left out.

    `inner` is the problem that was reversed, whose other attributes are found here too; `reversed()` hands it back.
    Raises ProblemError where x is missing or the problem is an SDE, SolverError for a solver or a variable with noise.
    """

    def __init__(self, inner: ProbabilityFlow) -> None:
        if inner.reverse_eta is not None:
            raise ProblemError("the reverse SDE has no way back to the noise it came from; reverse the flow, not sde()")
        super().__init__(
            inner.network, inner.process, inner.prediction, shape=inner.shape, dtype=inner.dtype, device=inner.device
        )
        self.inner = inner
        self.default_solver, self.default_schedule = inner.default_solver, inner.default_schedule

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "inner" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.inner, name)

    def reversed(self) -> ProbabilityFlow:
        return self.inner

    @property
    def span(self) -> tuple[float, float]:
        """(sigma_min, sigma_max): where an encode starts and ends."""
        high, low = self.inner.span
        return low, high

    def denoise(self, y: Tensor, sigma: float) -> Tensor:
        return self.inner.denoise(y, sigma)

    def denoise_both(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return self.inner.denoise_both(y, sigma)

    def decode(self, x: Tensor) -> list[Any]:
        return self.inner.decode(x)

    def grid(
        self, schedule: Any, n: int, *, final: Final, sigma_min: float | None, sigma_max: float | None, name: str
    ) -> Grid:
        if not isinstance(schedule, Grid | Schedule | Uniform):
            nodes = explicit(schedule)
            schedule = nodes[::-1] if nodes.ndim == 1 and len(nodes) > 1 and nodes[0] < nodes[-1] else nodes
        grid = self.inner.grid(schedule, n, final="none", sigma_min=sigma_min, sigma_max=sigma_max, name=name)
        if len(grid.nodes) < 2:
            raise GridError(f"an encode goes from a noise level up to another, got the one node {grid.nodes[0]:g}")
        return replace(grid, nodes=np.sort(grid.nodes), final="none")

    def start(
        self, x: Any, samples: Samples, seed: int, node: float, dtype: torch.dtype | None, device: Any
    ) -> Tensor:
        if x is None:
            raise ProblemError(
                f"a reversed problem encodes what it is given: pass x, the state at sigma = {node:g} in VE "
                "coordinates (data, or problem.noised(data, sigma))"
            )
        return super().start(x, samples, seed, node, dtype, device)

    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> RightHandSide:
        if solver.stochastic or as_form(solver.form, self.process).stochastic:
            adds = f"{solver.name or repr(solver)} adds noise" if solver.stochastic else f"{solver.form!r} has noise"
            raise SolverError(f"{adds}, and only the flow can be reversed; choose a solver of the ODE, such as 'ddim'")
        return super().field(solver, x, samples, seed, eta)


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """The point at t on the great circle from a (t = 0) to b (t = 1): Song et al. 2021 (DDIM), eq. 67 (Shoemake 1985).

    a, b: noises (B, *shape) of one dtype, the angle taken sample by sample; a batch of 1 goes with any other. t: a
    number, or (B,), so that `slerp(a, b, torch.linspace(0, 1, 8))` of single noises is a row of 8. Unlike a straight
    line it keeps the norm of Gaussian noises, and so their noise level. Parallel noises are joined by a straight line;
    opposite ones by a half circle, one of many, through the axis that they are farthest from.
    Raises ProblemError for tensors that do not go together.
    """
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.ndim < 1 or a.shape[1:] != b.shape[1:]:
        shapes = " and ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in (a, b))
        raise ProblemError(f"slerp takes two tensors (B, *shape) of one shape, got {shapes}")
    if a.dtype != b.dtype or not a.is_floating_point():
        raise ProblemError(f"slerp takes noises of one floating dtype, got {a.dtype} and {b.dtype}")
    try:
        share = torch.as_tensor(t, dtype=a.dtype, device=a.device).reshape(-1, 1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProblemError(f"t must be a number or a tensor (B,), got {t!r}") from error
    if not bool(share.isfinite().all()):
        raise ProblemError(f"t must be finite, got {t!r}")
    sizes = {len(a), len(b), len(share)} - {1}
    if len(sizes) > 1:
        raise ProblemError(f"slerp of {len(a)} and {len(b)} noises at {len(share)} places; expected one number, or 1")
    first, second = a.reshape(len(a), -1), b.reshape(len(b), -1)
    u, v = (x / x.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) for x in (first, second))
    angle = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    small = torch.finfo(a.dtype).eps ** 0.5
    parallel, opposite = angle < small, angle > math.pi - small
    if first.shape[1] < 2:  # on a line there is no way round 0
        parallel, opposite = parallel | opposite, torch.zeros_like(opposite)
    arc = ((1 - share) * angle).sin() * first + (share * angle).sin() * second
    mixed = torch.where(parallel, (1 - share) * first + share * second, arc / torch.where(parallel, 1.0, angle.sin()))
    if bool(opposite.any()):
        axis = torch.zeros_like(u).scatter_(1, u.abs().argmin(1, keepdim=True), 1.0)
        across = axis - (axis * u).sum(1, keepdim=True) * u
        across = across / across.norm(dim=1, keepdim=True)
        length = (1 - share) * first.norm(dim=1, keepdim=True) + share * second.norm(dim=1, keepdim=True)
        turned = length * ((share * math.pi).cos() * u + (share * math.pi).sin() * across)
        turned = torch.where(share == 0, first, torch.where(share == 1, second, turned))
        mixed = torch.where(opposite, turned, mixed)
    return mixed.reshape(-1, *a.shape[1:])
