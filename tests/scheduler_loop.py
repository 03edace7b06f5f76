"""The loop of a pipeline around a scheduler, with a network that is exact: what the tests of schedulers share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from stubs import numbers
from torch import Tensor

import diffsolve as ds
from diffsolve.interop.diffusers import DiffsolveScheduler
from diffsolve.interop.diffusers.session import seeds_of
from diffsolve.problems import GaussianMixture

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"config_of": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
WORLDS = {"sd": SD, "flow": FLOW}
SHAPE = (3,)


def problem(world: str) -> ds.ProbabilityFlow:
    """A mixture in one of the worlds, as a network that predicts eps, or a flow's velocity."""
    process = ds.VP() if world == "sd" else ds.RectifiedFlow(shift=3.0, scale=1000.0)
    exact = GaussianMixture(numbers(3, *SHAPE), [0.3, 0.5, 0.2], [1, 2, 3], process, dtype=torch.float64)

    def network(x: Tensor, t: Tensor) -> Tensor:
        levels = t.float().double().numpy()  # as a pipeline's network is told it
        sigma = process.sigma(levels) if world == "sd" else levels / (1000 - levels)
        level = torch.from_numpy(sigma).reshape(-1, 1)
        y = x.double() * (level**2 + 1).sqrt() if world == "sd" else x.double() * (1 + level)
        denoised = exact.denoise(y, float(sigma[0]))
        return ((y - denoised) / level - (0 if world == "sd" else denoised)).to(x.dtype)

    return ds.ProbabilityFlow(network, process, "eps" if world == "sd" else "flow", shape=SHAPE, dtype=torch.float64)


def network_of(world: str) -> Callable[[Tensor, Tensor], Tensor]:
    return problem(world).denoiser.network  # type: ignore[attr-defined]


def scheduler(world: str, solver: str | None, **options: Any) -> DiffsolveScheduler:
    return DiffsolveScheduler(solver=solver, **({"schedule": "karras"} | WORLDS[world] | options))


def loop(
    made: Any, network: Callable[[Tensor, Tensor], Tensor], x: Tensor, timesteps: Any = None,
    between: Callable[[int, Tensor], Tensor] = lambda i, x: x, **given: Any,
) -> Tensor:  # fmt: skip
    """What a pipeline does, from its latents to its result."""
    for i, t in enumerate(made.timesteps if timesteps is None else timesteps):
        entered = made.scale_model_input(x, t)
        x = made.step(network(entered, t.expand(len(x))), t, x, **given, return_dict=False)[0]
        x = between(i, x)
    return x


def started(count: int = 2) -> Tensor:
    """Normal latents, float64."""
    return ds.normals(5, range(count), 3, SHAPE, torch.float64, "cpu")


def first_latents(run: Any) -> Tensor:
    """What the network is given first in a run: the latents of a pipeline that does the same."""
    return next(copy.copy(run).calls()).x


def seeded(count: int = 2, seed: int = 0) -> tuple[Any, list[int]]:
    """A generator, and the keys that a scheduler makes of it."""
    return torch.Generator().manual_seed(seed), seeds_of(torch.Generator().manual_seed(seed), count)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())

