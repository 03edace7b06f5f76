"""Rows of exponential one-step methods: the linear part of the noise and data forms is exact."""

from __future__ import annotations

from fractions import Fraction

from diffsolve import register_solver

from .. import tableaux
from ..adams import Adams
from ..runge_kutta import ExponentialRungeKutta
from .sources import LU, LU_PP


@register_solver(
    "dpm_solver_1", order=1, form="noise", source=f"{LU}, eq. 3.7", tags=("one-step",),
    aliases={"dpm-solver": "dpm_solver_first_update"}, note="the same as ddim",
)
def dpm_solver_1() -> Adams:
    return Adams(1)


@register_solver(
    "dpm_solver_2", order=2, form="noise", stages=2, source=f"{LU}, Algorithm 1", tags=("one-step",),
    aliases={"diffusers": "DPMSolverSinglestepScheduler", "dpm-solver": "singlestep_dpm_solver_second_update"},
)
def dpm_solver_2(r: float = 0.5) -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.dpm_2(Fraction(r)))


@register_solver(
    "dpm2", order=2, form="noise", stages=2, tags=("one-step",),
    source="Crowson 2022 (k-diffusion); dpm_solver_2 at r = 1/2",
    aliases={"diffusers": "KDPM2DiscreteScheduler", "k-diffusion": "sample_dpm_2", "A1111": "DPM2"},
)
def dpm2() -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.dpm_2())


@register_solver(
    "dpm_solver_3", order=3, form="noise", stages=3, source=f"{LU}, Algorithm 2", tags=("one-step",),
    aliases={"dpm-solver": "singlestep_dpm_solver_third_update"},
)
def dpm_solver_3() -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.dpm_3())


@register_solver(
    "dpmpp_1", order=1, form="data", source=f"{LU_PP}, eq. 8, k = 1", tags=("one-step",), note="the same as ddim",
)
def dpmpp_1() -> Adams:
    return Adams(1)
