"""Rows of exponential one-step methods: the linear part of the noise and data forms is exact."""

from __future__ import annotations

from diffsolve import register_solver

from .. import tableaux
from ..adams import Adams
from ..runge_kutta import ExponentialRungeKutta
from .sources import LU, LU_PP

HOCHBRUCK = "Hochbruck & Ostermann 2005 (SIAM J. Numer. Anal. 43)"
RES = "Zhang et al. 2023 (arXiv 2308.02157)"


@register_solver(
    "dpm_solver_1", order=1, form="noise", source=f"{LU}, eq. 3.7", tags=("one-step",),
    aliases={"dpm-solver": "dpm_solver_first_update"}, note="the same as ddim",
)
def dpm_solver_1() -> Adams:
    return Adams(1)


@register_solver(
    "dpm_solver_2", order=2, form="noise", stages=2, source=f"{LU}, Algorithm 1", tags=("one-step", "embedded"),
    aliases={"dpm-solver": "singlestep_dpm_solver_second_update"},
)
def dpm_solver_2(r: float = 0.5) -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.dpm_2(tableaux.place(r, "r")))


@register_solver(
    "dpm2", order=2, form="noise", stages=2, tags=("one-step",),
    source="Crowson 2022 (k-diffusion); dpm_solver_2 at r = 1/2",
    aliases={"diffusers": "KDPM2DiscreteScheduler", "k-diffusion": "sample_dpm_2", "A1111": "DPM2",
             "ComfyUI": "dpm_2"},
)
def dpm2() -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.dpm_2())


@register_solver(
    "dpm_solver_3", order=3, form="noise", stages=3, source=f"{LU}, Algorithm 2", tags=("one-step", "embedded"),
    aliases={"dpm-solver": "singlestep_dpm_solver_third_update"},
    note="for any L h of order 2; with an r2 other than 2/3 of order 2 altogether",
)
def dpm_solver_3(r1: float = 1 / 3, r2: float = 2 / 3) -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.dpm_3(tableaux.place(r1, "r1"), tableaux.place(r2, "r2")))


@register_solver(
    "dpmpp_1", order=1, form="data", source=f"{LU_PP}, eq. 8, k = 1", tags=("one-step",), note="the same as ddim",
)
def dpmpp_1() -> Adams:
    return Adams(1)


@register_solver(
    "dpmpp_2s", order=2, form="data", stages=2, source=f"{LU_PP}, Algorithm 1", tags=("one-step", "embedded"),
    aliases={"diffusers": "DPMSolverSinglestepScheduler", "RES4LYF": "dpmpp_2s"},
    note="its second weight is phi_1/(2r), as published and in diffusers and k-diffusion; phi_2/r is res_2s",
)
def dpmpp_2s(r: float = 0.5) -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.dpm_2(tableaux.place(r, "r")))


@register_solver(
    "dpmpp_3s", order=3, form="data", stages=3, tags=("one-step", "embedded"), aliases={"RES4LYF": "dpmpp_3s"},
    source="Lu et al. 2022b (dpm-solver's singlestep_dpm_solver_third_update in its data form)",
    note="for any L h of order 2; with an r2 other than 2/3, as between the nodes of diffusers' order 3, of order 2 "
         "altogether; its inner stage there has half of phi_1 for phi_2",
)
def dpmpp_3s(r1: float = 1 / 3, r2: float = 2 / 3) -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.dpm_3(tableaux.place(r1, "r1"), tableaux.place(r2, "r2")))


@register_solver(
    "res_2s", order=2, form="data", stages=2, source=f"{RES}; {HOCHBRUCK}, eq. 5.3", tags=("one-step", "embedded"),
    aliases={"RES4LYF": "res_2s"}, note="of order 2 for any L h, where dpmpp_2s is of order 1",
)
def res_2s(c2: float = 0.5) -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.res_2(tableaux.place(c2, "c2")))


@register_solver(
    "res_3s", order=3, form="data", stages=3, source=f"{RES}; {HOCHBRUCK}, eq. 5.8", tags=("one-step", "embedded"),
    aliases={"RES4LYF": "res_3s"}, note="for any L h of order 2; gamma follows from c2 and c3, and c2 = 2/3 has none",
)
def res_3s(c2: float = 0.5, c3: float = 1.0) -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.res_3(tableaux.place(c2, "c2"), tableaux.place(c3, "c3")))


@register_solver(
    "res_5s", order=4, form="data", stages=5, source=f"{HOCHBRUCK}, eq. 5.19", tags=("one-step",),
    aliases={"RES4LYF": "res_5s"}, note="for any L h of order 3, of order 4 in the weak form",
)
def res_5s() -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.HOCHBRUCK_OSTERMANN)


@register_solver(
    "etdrk4", order=4, form="data", stages=4, source="Cox & Matthews 2002, eq. 26 to 29", tags=("one-step",),
    aliases={"RES4LYF": "res_4s_cox_matthews"}, note="for any L h of order 2",
)
def etdrk4() -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.ETDRK4)


@register_solver(
    "krogstad", order=4, form="data", stages=4, source="Krogstad 2005, eq. 51 (ETDRK4-B)", tags=("one-step",),
    aliases={"RES4LYF": "res_4s_krogstad"}, note="for any L h of order 3",
)
def krogstad() -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.KROGSTAD)


@register_solver(
    "lawson4", order=4, form="data", stages=4, source="Lawson 1967", tags=("one-step",),
    aliases={"RES4LYF": "lawson4_4s"}, note="rk4 on e^(-L s) u; for any L h of order 0",
)
def lawson4() -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.LAWSON4)
