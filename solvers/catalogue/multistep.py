"""Rows of (exponential) multistep methods."""

from __future__ import annotations

from diffsolve import register_solver

from ..adams import Adams
from .sources import LU_PP


@register_solver(
    "lms", order=4, started=2, tags=("multistep",),
    source="Adams-Bashforth on the uneven grid; Crowson 2022 (k-diffusion)",
    aliases={"diffusers": "LMSDiscreteScheduler", "k-diffusion": "sample_lms", "A1111": "LMS"},
    note="order=1..12; as started 2, since the first step is Euler's",
)
def lms(order: int = 4) -> Adams:
    return Adams(order)


@register_solver(
    "plms", order=2, started=2, tags=("multistep",),
    source="Liu et al. 2022 (arXiv 2202.09778), eq. 12; Rombach et al. 2022",
    aliases={"diffusers": "PNDMScheduler", "A1111": "PLMS"},
    note="the weights of an even grid: order 4 (3 as started) there, 2 on smooth uneven grids, 1 on jagged ones",
)
def plms(order: int = 4) -> Adams:
    return Adams(order, quadrature="uniform", start="heun")


@register_solver(
    "dpmpp_2m", order=2, form="data", source=f"{LU_PP}, Algorithm 2", tags=("multistep",),
    aliases={"diffusers": "DPMSolverMultistepScheduler", "k-diffusion": "sample_dpmpp_2m", "A1111": "DPM++ 2M"},
)
def dpmpp_2m() -> Adams:
    return Adams(2, quadrature="midpoint")
