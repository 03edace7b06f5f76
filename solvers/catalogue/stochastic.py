"""Rows that solve the reverse SDE."""

from __future__ import annotations

from diffsolve import register_solver

from ..adams import Adams


@register_solver(
    "euler_ancestral", order=1, form="sde", stochastic=True, tags=("one-step",),
    source="exponential Euler on the reverse SDE; DDPM's step (Ho et al. 2020, Algorithm 2) at eta = 1",
    aliases={"diffusers": "EulerAncestralDiscreteScheduler, DDPMScheduler", "k-diffusion": "sample_euler_ancestral",
             "A1111": "Euler a"},
)  # fmt: skip
def euler_ancestral() -> Adams:
    return Adams(1)
