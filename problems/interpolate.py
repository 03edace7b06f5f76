"""The great circles between noises."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffsolve import ProblemError
from diffsolve.validate import check_dense


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
    check_dense(a, "a"), check_dense(b, "b")
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
