"""Euler's method for all steps at once (Picard iteration; Shih et al. 2023, arXiv 2305.16317): many times in one call.

    u_k <- u_0 + sum_{j<k} h_j F(u_j, s_j), for every k, until nothing changes by more than `tolerance`

Sweep k makes the first k steps exact, so it ends where Euler's method does, after at most n sweeps of one call on n
times as many samples: for whoever has the memory and no time. It has the whole run in hand, so it is a Driver.
"""

from collections.abc import Iterator, Sequence

import torch

import diffsolve as ds
from diffsolve.solver import Driver


@ds.register_solver("picard", order=1, form="sigma", source="Shih et al. 2023 (arXiv 2305.16317), Algorithm 1")
class Picard(Driver):
    """tolerance: of the largest change relative to the largest state, 0 for all sweeps."""

    stages = None  # evaluations of a step: as many as there are sweeps

    def __init__(self, tolerance: float = 1e-6) -> None:
        self.tolerance = tolerance

    def run(self, f: ds.Field, u: torch.Tensor, spans: Sequence[ds.Span]) -> Iterator[torch.Tensor]:
        problem = getattr(f, "problem", None)
        if not isinstance(problem, ds.ProbabilityFlow) or f.form.name != "sigma":
            raise ds.SolverError("picard calls a denoiser at many levels at once: of a diffusion, in form 'sigma'")
        count, batch = len(spans), len(u)
        sigma, h = (torch.tensor([getattr(span, name) for span in spans], dtype=u.dtype, device=u.device)
                    .reshape(-1, *[1] * u.ndim) for name in ("start", "h"))  # fmt: skip
        levels = sigma.double().flatten().repeat_interleave(batch)
        states = u.expand(count, *u.shape)
        for _ in range(count):
            denoised = problem.denoiser(states.flatten(0, 1), levels).denoised.reshape(states.shape)  # the one call
            f.nfe += count
            ends = u + (h * (states - denoised) / sigma).cumsum(0)
            moved = (ends - torch.cat([states[1:], ends[-1:]])).abs().amax()
            states = torch.cat([u[None], ends[:-1]])
            if moved <= self.tolerance * states.abs().amax():
                break
        yield from ends
