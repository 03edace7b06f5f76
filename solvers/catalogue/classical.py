"""Rows of classical one-step methods: Runge-Kutta in sigma, and in the straight path's own time."""

from __future__ import annotations

from typing import Literal

from diffsolve import register_solver
from diffsolve.validate import choice

from .. import tableaux
from ..adams import Adams
from ..runge_kutta import RungeKutta
from .sources import KARRAS


@register_solver(
    "euler", order=1, source=f"{KARRAS}, Algorithm 1 without its correction", tags=("one-step",),
    aliases={"diffusers": "EulerDiscreteScheduler", "k-diffusion": "sample_euler", "A1111": "Euler",
             "ComfyUI": "euler", "torchdiffeq": "euler"},
)  # fmt: skip
def euler() -> RungeKutta:
    return RungeKutta(tableaux.EULER)


@register_solver(
    "ddim", order=1, source="Song et al. 2021 (arXiv 2010.02502), eq. 13, eta = 0", tags=("one-step",),
    aliases={"diffusers": "DDIMScheduler", "A1111": "DDIM", "ComfyUI": "ddim"},
    note="the same method as euler, written with D and eps",
)
def ddim() -> Adams:
    return Adams(1)


@register_solver(
    "heun", order=2, stages=2, source=f"{KARRAS}, Algorithm 1", tags=("one-step",),
    aliases={"diffusers": "HeunDiscreteScheduler", "k-diffusion": "sample_heun", "A1111": "Heun", "ComfyUI": "heun",
             "RES4LYF": "heun_2s", "torchdiffeq": "heun2, adaptive_heun"},
)  # fmt: skip
def heun() -> RungeKutta:
    return RungeKutta(tableaux.HEUN)


@register_solver(
    "flow_euler", order=1, form="flow", tags=("one-step", "flow-matching"),
    source="Liu et al. 2023 (arXiv 2209.03003), eq. 1 by Euler's method; Esser et al. 2024 (arXiv 2403.03206)",
    aliases={"diffusers": "FlowMatchEulerDiscreteScheduler"},
    note="the same as euler on any process: both follow the line of constant D and eps",
)
def flow_euler() -> RungeKutta:
    return RungeKutta(tableaux.EULER)


@register_solver(
    "flow_heun", order=2, stages=2, form="flow", tags=("one-step", "flow-matching"),
    source="Liu et al. 2023 (arXiv 2209.03003), eq. 1 by Heun's method",
    aliases={"diffusers": "FlowMatchHeunDiscreteScheduler"},
)
def flow_heun() -> RungeKutta:
    return RungeKutta(tableaux.HEUN)


@register_solver(
    "midpoint", order=2, stages=2, source="Runge 1895", tags=("one-step",),
    aliases={"torchdiffeq": "midpoint", "RES4LYF": "midpoint_2s"},
)
def midpoint() -> RungeKutta:
    return RungeKutta(tableaux.MIDPOINT)


@register_solver(
    "fehlberg2", order=2, stages=3, tags=("one-step", "embedded"), aliases={"torchdiffeq": "fehlberg2"},
    source="Fehlberg 1969 (NASA TR R-315), RK1(2), carried on with its order 2",
)
def fehlberg2() -> RungeKutta:
    # Its estimate, h (k_3 - k_1)/512, is small, and misses more in lambda than in sigma.
    return RungeKutta(tableaux.FEHLBERG2).with_changes(adaptive_form=None)


THREE = {"kutta": tableaux.KUTTA3, "ralston": tableaux.RALSTON3, "ssp": tableaux.SSP3}


@register_solver(
    "rk3", order=3, stages=3, source="Kutta 1901; Ralston 1962; Shu & Osher 1988", tags=("one-step",),
    aliases={"RES4LYF": "kutta_3s"}, note='kind = "kutta", "ralston" (least error bound) or "ssp"',
)
def rk3(kind: Literal["kutta", "ralston", "ssp"] = "kutta") -> RungeKutta:
    return RungeKutta(THREE[choice(kind, "rk3's kind", THREE)])


@register_solver(
    "heun3", order=3, stages=3, source="Heun 1900", tags=("one-step",),
    aliases={"torchdiffeq": "heun3", "RES4LYF": "heun_3s"},
)
def heun3() -> RungeKutta:
    return RungeKutta(tableaux.HEUN3)


@register_solver(
    "bs23", order=3, stages=3, source="Bogacki & Shampine 1989, 3(2)", tags=("one-step", "embedded"),
    aliases={"torchdiffeq": "bosh3", "RES4LYF": "bogacki-shampine_4s", "scipy": "RK23"},
)
def bs23() -> RungeKutta:
    return RungeKutta(tableaux.BS23)


@register_solver(
    "rk4", order=4, stages=4, source="Kutta 1901", tags=("one-step",), aliases={"RES4LYF": "rk4_4s"},
    note="torchdiffeq's rk4 is rk4_38",
)
def rk4() -> RungeKutta:
    return RungeKutta(tableaux.RK4)


@register_solver(
    "rk4_38", order=4, stages=4, source="Kutta 1901, the 3/8 rule", tags=("one-step",), aliases={"RES4LYF": "rk38_4s"},
    note="what torchdiffeq calls rk4",
)
def rk4_38() -> RungeKutta:
    return RungeKutta(tableaux.RK4_38)


@register_solver(
    "dopri5", order=5, stages=6, source="Dormand & Prince 1980, RK5(4)7M", tags=("one-step", "embedded"),
    aliases={"torchdiffeq": "dopri5", "RES4LYF": "dormand-prince_6s", "scipy": "RK45"},
)
def dopri5() -> RungeKutta:
    return RungeKutta(tableaux.DOPRI5)


@register_solver(
    "cash_karp", order=5, stages=6, source="Cash & Karp 1990, 5(4)", tags=("one-step", "embedded"),
)
def cash_karp() -> RungeKutta:
    return RungeKutta(tableaux.CASH_KARP)


@register_solver(
    "tsit5", order=5, stages=6, source="Tsitouras 2011, 5(4)", tags=("one-step", "embedded"),
    aliases={"RES4LYF": "tsi_7s"},
)
def tsit5() -> RungeKutta:
    return RungeKutta(tableaux.TSIT5)


@register_solver(
    "verner6", order=6, stages=7, source="Verner 1978, 6(5)", tags=("one-step", "embedded"),
    aliases={"netlib": "dverk"}, note="seven stages are the fewest that order 6 takes",
)
def verner6() -> RungeKutta:
    return RungeKutta(tableaux.VERNER6)


@register_solver(
    "fehlberg78", order=7, stages=11, tags=("one-step", "embedded"), aliases={"GSL": "rkf78"},
    source="Fehlberg 1968 (NASA TR R-287), RK7(8), carried on with its order 7",
    note="blind to its own error where f does not depend on the state: the embedded order 8 quadrature is the same",
)
def fehlberg78() -> RungeKutta:
    return RungeKutta(tableaux.FEHLBERG78)


@register_solver(
    "dopri8", order=8, stages=13, source="Prince & Dormand 1981, RK8(7)13M", tags=("one-step", "embedded"),
    aliases={"torchdiffeq": "dopri8", "RES4LYF": "dormand-prince_13s"},
)
def dopri8() -> RungeKutta:
    return RungeKutta(tableaux.DOPRI8)
