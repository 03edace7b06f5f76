"""What a scheduler is asked beside its run: noised samples, velocities, the tables of its process."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from ...errors import ProblemError
from ...grid import Nodes
from .calls import Nature, network_of
from .config import levels


def noise_levels(times: object, nature: Nature, known: dict[float, float]) -> Nodes:
    """The noise levels at which the network is told `times`, (B,), or (1,) of one. known: time -> level."""
    given = np.atleast_1d(np.asarray(times.detach().cpu() if isinstance(times, Tensor) else times, np.float32))
    if given.ndim != 1:
        raise ProblemError(f"expected one timestep, or one for each sample, got shape {given.shape}")
    found = [known.get(float(t)) for t in given]
    asked = [float(t) for t, sigma in zip(given, found, strict=True) if sigma is None]
    others = iter(levels(asked, nature).tolist() if asked else ())
    return np.asarray([next(others) if sigma is None else sigma for sigma in found], np.float64)


def noised(sample: Tensor, noise: Tensor, sigmas: Nodes, nature: Nature) -> Tensor:
    """Clean data (B, *shape) with noise, as the network is given it at these levels; in the dtype of the sample."""
    scale = np.asarray(network_of(nature).scaling(sigmas).c_in)
    return _mixed(sample, noise, scale, scale * sigmas)


def velocity(sample: Tensor, noise: Tensor, sigmas: Nodes, nature: Nature) -> Tensor:
    """What a network that predicts v would say: alpha noise - sigma alpha sample; of a flow noise - sample."""
    if nature.flow:
        return _mixed(sample, noise, -np.ones_like(sigmas), np.ones_like(sigmas))
    alpha = np.asarray(nature.process.alpha(sigmas))
    return _mixed(sample, noise, -alpha * sigmas, alpha)


def _mixed(first: Tensor, second: Tensor, a: Nodes, b: Nodes) -> Tensor:
    """a first + b second, in float32 or better, with a number or one for each sample."""
    wide = torch.promote_types(first.dtype, torch.float32)
    if len(a) not in (1, len(first)):
        raise ProblemError(f"there are {len(a)} timesteps and {len(first)} samples; expected one, or as many")
    shape = (-1, *[1] * (first.ndim - 1))
    on_first, on_second = (torch.from_numpy(c).to(wide).reshape(shape).to(first.device) for c in (a, b))
    return (first.to(wide) * on_first + second.to(first.device, wide) * on_second).to(first.dtype)


def alphas_cumprod(nature: Nature) -> Tensor | None:
    """alpha^2 at each timestep of a discrete process, float32; None of another."""
    table = getattr(nature.process, "table", None)
    return None if table is None else torch.from_numpy(1 / (1 + np.asarray(table) ** 2)).float()


def betas(nature: Nature) -> Tensor | None:
    """1 - alpha^2 over the one before, float32."""
    table = getattr(nature.process, "table", None)
    if table is None:
        return None
    bars = [1.0, *(1 / (1 + np.asarray(table) ** 2)).tolist()]
    return torch.tensor([1 - after / before for before, after in itertools.pairwise(bars)], dtype=torch.float32)
