"""Rows of solvers of codes, and of RePaint."""

from __future__ import annotations

from diffsolve import get_solver, register_solver

from ..discrete import AncestralJumps
from ..repaint import RePaint


@register_solver(
    "vq_diffusion", order=1, form=None, stochastic=True, tags=("one-step", "discrete"),
    source="Gu et al. 2022 (arXiv 2111.14822), Algorithm 2; purity: Tang et al. 2022 (arXiv 2205.16007), sec. 3.3",
    aliases={"diffusers": "VQDiffusionScheduler"},
    note="for a DiscreteProblem. truncation: the share of p(x_0 | x_t) that is kept, 0.86 in the paper; purity: the "
    "sure places first, made surer with this weight",
)
def vq_diffusion(truncation: float = 1.0, purity: float | None = None) -> AncestralJumps:
    return AncestralJumps(truncation, purity)


@register_solver(
    "repaint", order=1, form="sde", stochastic=True, tags=("one-step", "inpainting"),
    source="Lugmayr et al. 2022 (arXiv 2201.09865), Algorithm 1 and sec. 4.2",
    aliases={"diffusers": "RePaintScheduler"},
    note="for an Inpaint: goes back up by jump_length steps so that each is taken jump_n_sample times; on any other "
    "problem it is `solver`, ddpm unless told otherwise",
)
def repaint(jump_length: int = 10, jump_n_sample: int = 10, solver: str = "ddpm") -> RePaint:
    return RePaint(get_solver(solver), jump_length, jump_n_sample)
