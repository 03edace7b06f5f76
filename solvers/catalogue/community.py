"""Rows that ComfyUI's core has by a name: its own combinations of methods that the other files hold."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

from diffsolve import Solver, register_solver
from diffsolve.validate import choice

from .. import quadrature, tableaux
from ..adams import Adams
from ..heunpp import HeunPlusPlus
from ..predictor_corrector import TwiceEvaluated, interval
from ..runge_kutta import ExponentialRungeKutta, GeometricMidpoint, RungeKutta
from ..wrappers import Ancestral, MovedCFGpp
from .multistep import unipc
from .sources import CFG_PP, LU_PP, SEEDS

COMFY = "ComfyUI 2025"
RES = "Zhang et al. 2023 (arXiv 2308.02157)"
SolverType = Literal["phi_1", "phi_2"]


def _heun(solver_type: SolverType) -> ExponentialRungeKutta:
    tables = {"phi_1": tableaux.dpm_2, "phi_2": tableaux.res_2}
    return ExponentialRungeKutta(tables[choice(solver_type, "solver_type", tables)](Fraction(1)))


@register_solver(
    "exp_heun_2_x0", order=2, form="data", stages=2, tags=("one-step", "embedded"),
    source=f"{SEEDS}, eta = 0; Hochbruck & Ostermann 2005, eq. 5.3", aliases={"ComfyUI": "exp_heun_2_x0"},
    note='res_2s(c2=1); solver_type = "phi_1" weighs both evaluations alike, as dpmpp_2s(r=1) does',
)
def exp_heun_2_x0(solver_type: SolverType = "phi_2") -> ExponentialRungeKutta:
    return _heun(solver_type)


@register_solver(
    "exp_heun_2_x0_sde", order=2, form="sde", stages=2, stochastic=True, tags=("one-step",), strong=1, weak=2,
    source=f"{SEEDS}, Algorithm 2 on D, its inner stage at the end", aliases={"ComfyUI": "exp_heun_2_x0_sde"},
)
def exp_heun_2_x0_sde(solver_type: SolverType = "phi_2") -> ExponentialRungeKutta:
    return _heun(solver_type)


@register_solver(
    "dpmpp_2m_sde_heun", order=2, form="sde", stochastic=True, tags=("multistep",), strong=1, weak=2,
    source=f"{LU_PP}, eq. 18 with the weights of exponential Adams",
    aliases={"ComfyUI": "dpmpp_2m_sde_heun, dpmpp_2m_sde_heun_gpu", "A1111": "DPM++ 2M SDE Heun"},
    note="dpmpp_2m_sde(solver_type=heun)",
)  # fmt: skip
def dpmpp_2m_sde_heun() -> Adams:
    return Adams(2)


@register_solver(
    "unipc_bh1", order=4, order_as_started=3, form="data", tags=("multistep", "predictor-corrector"),
    source="Zhao et al. 2023 (arXiv 2302.04867), Algorithms 5 to 8, B_1", aliases={"ComfyUI": "uni_pc"},
    note="unipc(variant=bh1); ComfyUI's falls to order 1 at the end, lower_final=True",
)
def unipc_bh1(order: int = 3, corrector: bool = True, lower_final: bool = False) -> Adams:
    return unipc(order, "bh1", corrector, lower_final)


@register_solver(
    "sa_solver_pece", order=4, order_as_started=3, form="sde", stages=2, stochastic=True, strong=1, weak=2,
    tags=("multistep", "predictor-corrector"), aliases={"ComfyUI": "sa_solver_pece"},
    source="SA-Solver, Xue et al. 2023 (arXiv 2309.05019), Algorithm 1 as PECE; eta = tau^2",
    note="the same eta all the way unless s_tmin and s_tmax say between which levels a step starts: ComfyUI's is 1 "
    "where one ends from 20 to 80 % of the way. On a list that ends in 0 its orders fall, lower_final=True",
)
def sa_solver_pece(
    predictor: int = 3, corrector: int = 4, simple_order_2: bool = False, lower_final: bool = False,
    s_tmin: float = 0.0, s_tmax: float = math.inf,
) -> TwiceEvaluated:  # fmt: skip
    rule, noisy = "bh1" if simple_order_2 else "exact", interval(s_tmin, s_tmax)
    return TwiceEvaluated(predictor, corrector, quadrature=rule, lower_final=lower_final, noisy=noisy)


@register_solver(
    "heunpp2", order=1, stages=3, tags=("singlestep",), source=f"{COMFY}, sample_heunpp2 (Heun++)",
    aliases={"ComfyUI": "heunpp2"},
    note="slopes at the next two nodes, weighed by noise level; the last two steps are Heun's and Euler's. Of order 1",
)
def heunpp2() -> HeunPlusPlus:
    return HeunPlusPlus()


@register_solver(
    "res_multistep_ancestral", order=2, form="data", stochastic=True, tags=("multistep", "ancestral"), strong=1, weak=1,
    source=f"{COMFY}; res_2m, {RES}, to sigma_down, then noise", aliases={"ComfyUI": "res_multistep_ancestral"},
    note="published=False takes each evaluation where it was made",
)
def res_multistep_ancestral(published: bool = True, rule: str = "ddim") -> Ancestral:
    return Ancestral(_data(Adams(2)), rule, published)


@register_solver(
    "res_multistep_cfg_pp", order=None, form="data", tags=("multistep", "CFG++"), source=f"{CFG_PP}; {COMFY}",
    aliases={"ComfyUI": "res_multistep_cfg_pp"},
    note="no integrator of the guided flow; without guidance it is res_2m",
)
def res_multistep_cfg_pp() -> MovedCFGpp:
    return MovedCFGpp(Adams(2))


@register_solver(
    "res_multistep_ancestral_cfg_pp", order=None, form="data", stochastic=True,
    tags=("multistep", "ancestral", "CFG++"), source=f"{CFG_PP}; {COMFY}",
    aliases={"ComfyUI": "res_multistep_ancestral_cfg_pp"},
    note="no integrator of the guided flow; without guidance it is res_multistep_ancestral",
)
def res_multistep_ancestral_cfg_pp(published: bool = True, rule: str = "ddim") -> Ancestral:
    return Ancestral(_data(MovedCFGpp(_data(Adams(2)))), rule, published)


@register_solver(
    "gradient_estimation_cfg_pp", order=None, tags=("multistep", "CFG++"), source=f"{CFG_PP}; {COMFY}",
    aliases={"ComfyUI": "gradient_estimation_cfg_pp"},
    note="no integrator of the guided flow; without guidance it is gradient_estimation",
)
def gradient_estimation_cfg_pp(gamma: float = 2.0) -> MovedCFGpp:
    return MovedCFGpp(Adams(2, quadrature=quadrature.extrapolated(float(gamma))))


@register_solver(
    "dpmpp_2s_ancestral_cfg_pp", order=None, form="data", stages=2, stochastic=True,
    tags=("one-step", "ancestral", "CFG++"), source=f"{CFG_PP}; {COMFY}",
    aliases={"ComfyUI": "dpmpp_2s_ancestral_cfg_pp"},
    note="no integrator of the guided flow; without guidance it is dpmpp_2s_ancestral. published=False moves the end "
    "as the first stage, by the guidance at the start",
)
def dpmpp_2s_ancestral_cfg_pp(published: bool = True, rule: str = "ddim") -> Ancestral:
    inside = _data(ExponentialRungeKutta(tableaux.dpm_2()))
    return Ancestral(_data(MovedCFGpp(inside, plain=False, published=published)), rule)


@register_solver(
    "euler_ancestral_rf", order=1, form="flow", stochastic=True, tags=("one-step", "ancestral", "flow-matching"),
    strong=1, weak=1, source=f"{COMFY}, sample_euler_ancestral_RF",
    note="ddim_eta(rule=flow): what ComfyUI's euler_ancestral is on a flow model",
)
def euler_ancestral_rf() -> Ancestral:
    return Ancestral(RungeKutta(tableaux.EULER), "flow")


@register_solver(
    "dpm2_ancestral_rf", order=2, form="flow", stages=2, stochastic=True,
    tags=("one-step", "ancestral", "flow-matching"), strong=1, weak=1,
    source=f"{COMFY}, sample_dpm_2_ancestral_RF", note="what ComfyUI's dpm_2_ancestral is on a flow model",
)
def dpm2_ancestral_rf() -> Ancestral:
    return Ancestral(GeometricMidpoint(), "flow")


@register_solver(
    "dpmpp_2s_ancestral_rf", order=2, form="data", stages=2, stochastic=True,
    tags=("one-step", "ancestral", "flow-matching"), strong=1, weak=1,
    source=f"{COMFY}, sample_dpmpp_2s_ancestral_RF",
    note="dpmpp_2s_ancestral(rule=flow): what ComfyUI's dpmpp_2s_ancestral is on a flow model",
)
def dpmpp_2s_ancestral_rf() -> Ancestral:
    return Ancestral(ExponentialRungeKutta(tableaux.dpm_2()), "flow")


def _data(solver: Solver) -> Solver:
    """In the data form, which a wrapper takes over."""
    return solver.with_changes(form="data")
