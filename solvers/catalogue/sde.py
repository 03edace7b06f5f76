"""Rows of classical SDE methods: they take a form's SDE, or the user's own, with its drift and noise as they are."""

from __future__ import annotations

from diffsolve import register_solver

from ..sde import SRA1, SRA3, AdditiveRungeKutta, EulerMaruyama

ROESSLER = "Roessler 2010 (SIAM J. Numer. Anal. 48(3), 922-952)"


@register_solver(
    "euler_maruyama", order=1, form="sde", stochastic=True, tags=("one-step",), strong=1, weak=1,
    source="Maruyama 1955; Kloeden & Platen 1992, sec. 10.2",
    note="strong order 1/2 where the noise depends on the state; with a step's exact noise it is euler_ancestral",
)
def euler_maruyama() -> EulerMaruyama:
    return EulerMaruyama()


@register_solver(
    "milstein", order=1, form="sde", stochastic=True, tags=("one-step", "multiplicative"), strong=1, weak=1,
    source="Milstein 1974; Kloeden & Platen 1992, sec. 10.3",
    note="diagonal noise; where the noise is additive, as a diffusion's is, the same as euler_maruyama",
)
def milstein() -> EulerMaruyama:
    return EulerMaruyama(corrected=True)


@register_solver(
    "sra1", order=2, form="sde", stages=2, stochastic=True, tags=("one-step",), strong=1.5, weak=2,
    source=f"{ROESSLER}, table 6.2", note="additive noise",
)
def sra1() -> AdditiveRungeKutta:
    return AdditiveRungeKutta(SRA1)


@register_solver(
    "sra3", order=3, form="sde", stages=3, stochastic=True, tags=("one-step",), strong=1.5, weak=2,
    source=f"{ROESSLER}, table 6.3", note="additive noise; of order 3 where there is none",
)
def sra3() -> AdditiveRungeKutta:
    return AdditiveRungeKutta(SRA3)
