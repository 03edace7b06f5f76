"""Between the latents of diffusers and the states of a solve."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffsolve import ProblemError, Process
from diffsolve.process import as_process
from diffsolve.validate import above_zero, check_dense


def from_latents(
    latents: Tensor, process: str | Process, sigma: float | None = None, init_noise_sigma: float = 1.0
) -> Tensor:
    """The state that `solve(x=)` takes for latents (B, *shape) of a diffusers pipeline, float32 or float64.

    sigma None: they are the noise at the start, of deviation init_noise_sigma (1 for what a pipeline takes as
    `latents=`, `scheduler.init_noise_sigma` for what its scheduler is given); the state is noise of deviation sigma_max
    of the process. sigma: latents in the middle, at that noise level, the grid's first node. Schedulers whose
    init_noise_sigma is 1 (DDIM, DPM-Solver, UniPC, PNDM, flow matching) keep x_t = alpha y there, and the state is
    x_t/alpha; the others (Euler, Heun, LMS, KDPM2, EDM) keep y, the state itself. Raises ProblemError.
    """
    if not isinstance(latents, Tensor) or not latents.is_floating_point() or latents.ndim < 2:
        got = f"{latents.dtype} {tuple(latents.shape)}" if isinstance(latents, Tensor) else type(latents).__name__
        raise ProblemError(f"latents are a tensor of floats (B, *shape), got {got}")
    check_dense(latents, "latents")
    forward, deviation = as_process(process), above_zero(init_noise_sigma, "init_noise_sigma", ProblemError)
    x = latents.to(torch.promote_types(latents.dtype, torch.float32), copy=True)
    if sigma is None:
        return x * (forward.sigma_max / deviation)
    level = above_zero(sigma, "sigma", ProblemError)
    return x / forward.alpha(level) if math.isclose(deviation, 1) else x
