"""Rows of classical one-step methods: Runge-Kutta in sigma."""

from __future__ import annotations

from diffsolve import register_solver

from .. import tableaux
from ..adams import Adams
from ..runge_kutta import RungeKutta
from .sources import KARRAS


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
