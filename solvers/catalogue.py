"""The catalogue. A row is a name for method x form, with its claimed order, its names elsewhere and its source."""

from __future__ import annotations

from fractions import Fraction

from diffsolve import register_solver

from . import tableaux
from .adams import Adams
from .runge_kutta import ExponentialRungeKutta, RungeKutta

KARRAS = "Karras et al. 2022 (arXiv 2206.00364)"
LU = "Lu et al. 2022 (arXiv 2206.00927)"
LU_PP = "Lu et al. 2022b (arXiv 2211.01095)"


@register_solver(
    "euler", order=1, source=f"{KARRAS}, Algorithm 1 without its correction", tags=("one-step",),
    aliases={"diffusers": "EulerDiscreteScheduler", "k-diffusion": "sample_euler", "A1111": "Euler"},
)
def euler() -> RungeKutta:
    return RungeKutta(tableaux.EULER)


@register_solver(
    "ddim", order=1, source="Song et al. 2021 (arXiv 2010.02502), eq. 13, eta = 0", tags=("one-step",),
    aliases={"diffusers": "DDIMScheduler", "A1111": "DDIM"}, note="the same method as euler, written with D and eps",
)
def ddim() -> Adams:
    return Adams(1)


@register_solver(
    "heun", order=2, stages=2, source=f"{KARRAS}, Algorithm 1", tags=("one-step",),
    aliases={"diffusers": "HeunDiscreteScheduler", "k-diffusion": "sample_heun", "A1111": "Heun"},
)
def heun() -> RungeKutta:
    return RungeKutta(tableaux.HEUN)


@register_solver(
    "midpoint", order=2, stages=2, source="Runge 1895", tags=("one-step",), aliases={"torchdiffeq": "midpoint"},
)
def midpoint() -> RungeKutta:
    return RungeKutta(tableaux.MIDPOINT)


@register_solver("rk4", order=4, stages=4, source="Kutta 1901", tags=("one-step",), aliases={"torchdiffeq": "rk4"})
def rk4() -> RungeKutta:
    return RungeKutta(tableaux.RK4)


@register_solver(
    "dopri5", order=5, stages=6, source="Dormand & Prince 1980, RK5(4)7M; fixed step", tags=("one-step",),
    aliases={"torchdiffeq": "dopri5"},
)
def dopri5() -> RungeKutta:
    return RungeKutta(tableaux.DOPRI5)


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


@register_solver(
    "dpmpp_2m", order=2, form="data", source=f"{LU_PP}, Algorithm 2", tags=("multistep",),
    aliases={"diffusers": "DPMSolverMultistepScheduler", "k-diffusion": "sample_dpmpp_2m", "A1111": "DPM++ 2M"},
)
def dpmpp_2m() -> Adams:
    return Adams(2, quadrature="midpoint")


@register_solver(
    "euler_ancestral", order=1, form="sde", stochastic=True, tags=("one-step",),
    source="exponential Euler on the reverse SDE; DDPM's step (Ho et al. 2020, Algorithm 2) at eta = 1",
    aliases={"diffusers": "EulerAncestralDiscreteScheduler, DDPMScheduler", "k-diffusion": "sample_euler_ancestral",
             "A1111": "Euler a"},
)  # fmt: skip
def euler_ancestral() -> Adams:
    return Adams(1)
