"""Rows of DPM-Solver that choose their own steps (DPM-Solver-12 and -23), or their own orders (DPM-Solver-fast)."""

from __future__ import annotations

from diffsolve import Field, PIDController, Solver, Span, register_solver
from diffsolve.validate import whole

from .. import tableaux
from ..ending import Ending
from ..runge_kutta import ExponentialRungeKutta
from ..wrappers import Ancestral, ddim
from .sources import LU


def _to_the_end(f: Field, span: Span) -> float:
    """DDIM's sigma_down, but not below the noise level at which the run ends."""
    return max(ddim(f, span), 0.0 if span.stop is None else f.form.sigma(span.stop))


def _noisy(solver: Solver, eta: float) -> Solver:
    if not eta:
        return solver
    wrapped = Ancestral(solver, _to_the_end)
    wrapped.eta = eta
    return wrapped


@register_solver(
    "dpm_adaptive", order=3, form="noise", stages=3, tags=("one-step", "adaptive"), source=f"{LU}, appendix C",
    aliases={"k-diffusion": "sample_dpm_adaptive", "A1111": "DPM adaptive", "ComfyUI": "dpm_adaptive",
             "dpm-solver": "adaptive"},
    note="chooses its steps, with k-diffusion's controller and defaults; order=2 is DPM-Solver-12, 3 DPM-Solver-23. "
    "eta > 0 takes ancestral steps. final='none' stops at sigma_min, as k-diffusion does",
)  # fmt: skip
def dpm_adaptive(
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
) -> Solver:
    order = whole(order, "dpm_adaptive's order", least=2, most=3)
    solver = _noisy(ExponentialRungeKutta(tableaux.dpm_2() if order == 2 else tableaux.dpm_3()), eta)
    solver.controller = PIDController(
        rtol, atol, h_init=h_init, pcoeff=pcoeff, icoeff=icoeff, dcoeff=dcoeff, safety=accept_safety,
        order=1.5 if eta else order,
    )  # fmt: skip
    return solver


@register_solver(
    "dpm_fast", order=2, form="noise", stages=3, tags=("singlestep",), source=f"{LU}, sec. 3.4 (DPM-Solver-fast)",
    aliases={"k-diffusion": "sample_dpm_fast", "A1111": "DPM fast", "ComfyUI": "dpm_fast",
             "dpm-solver": "singlestep_fixed"},
    note="steps of order 3, then 2 and 1 (remainder=0), 1 (1) or 2 (2): 3 (n - 1) + remainder calls in n steps. For "
    "nfe=N give remainder = N mod 3, schedule='exponential' and final='none'. remainder=2 is of order 3",
)  # fmt: skip
def dpm_fast(remainder: int = 0, eta: float = 0.0) -> Solver:
    weights = (tableaux.EXPONENTIAL_EULER, tableaux.dpm_2(), tableaux.dpm_3())
    first, second, third = map(ExponentialRungeKutta, weights)
    remainder = whole(remainder, "dpm_fast's remainder, that of nfe by 3,", least=0, most=2)
    return _noisy(Ending(third, *((second, first), (first,), (second,))[remainder]), eta)
