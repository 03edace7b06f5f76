"""Rows that solve the reverse SDE in a stochastic form. Their noise over a step is exact; eta = 0 is the flow."""

from __future__ import annotations

import math
from typing import Literal

from diffsolve import Solver, register_solver
from diffsolve.validate import between, choice

from .. import tableaux
from ..adams import Adams
from ..er_sde import OneSidedAdams
from ..langevin import Langevin
from ..predictor_corrector import PredictorCorrector, interval
from ..runge_kutta import ExponentialRungeKutta
from ..wrappers import AncestralStages, LargeVariance, LearnedVariance
from .sources import DDPM, ER_SDE, LU_PP, SEEDS, SONG


@register_solver(
    "euler_ancestral", order=1, form="sde", stochastic=True, tags=("one-step",), strong=1, weak=1,
    source=f"exponential Euler on the reverse SDE; the step of {DDPM} at eta = 1",
    aliases={"diffusers": "EulerAncestralDiscreteScheduler", "k-diffusion": "sample_euler_ancestral",
             "A1111": "Euler a", "ComfyUI": "euler_ancestral"},
    note="k-diffusion's eta between 0 and 1 is another share of noise: ddim_eta has it",
)  # fmt: skip
def euler_ancestral() -> Adams:
    return Adams(1)


@register_solver(
    "ddpm", order=1, form="sde", stochastic=True, tags=("one-step",), strong=1, weak=1, source=f"{DDPM}, Algorithm 2",
    aliases={"diffusers": "DDPMScheduler", "ComfyUI": "ddpm"},
    note='the same as euler_ancestral; variance="fixed_small" (of q(x_s | x_t, x_0)), "fixed_large" (of q(x_t | x_s)) '
    'or "learned_range", between them, of a network that tells it (Nichol & Dhariwal 2021, eq. 15)',
)
def ddpm(variance: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_small") -> Solver:
    wrappers = {"fixed_small": None, "fixed_large": LargeVariance, "learned_range": LearnedVariance}
    wrapper = wrappers[choice(variance, "ddpm's variance", wrappers)]
    return wrapper(Adams(1)) if wrapper else Adams(1)


@register_solver(
    "dpmpp_sde", order=2, form="sde", stages=2, stochastic=True, tags=("one-step",), strong=1, weak=2,
    source=f"Crowson 2022 (k-diffusion); singlestep SDE-DPM-Solver++, {LU_PP}, sec. 4",
    aliases={"diffusers": "DPMSolverSDEScheduler", "k-diffusion": "sample_dpmpp_sde", "A1111": "DPM++ SDE",
             "ComfyUI": "dpmpp_sde, dpmpp_sde_gpu"},
    note='r: the inner stage\'s place. rule="ddim": k-diffusion\'s share of noise at eta between 0 and 1, see ddim_eta',
)  # fmt: skip
def dpmpp_sde(r: float = 0.5, rule: Literal["sde", "ddim"] = "sde") -> Solver:
    place = tableaux.place(r, "r")
    if choice(rule, "dpmpp_sde's rule", ("sde", "ddim")) == "ddim":
        return AncestralStages(between(float(place), "r", 1e-3, 1))
    return ExponentialRungeKutta(tableaux.dpm_2(place))


@register_solver(
    "dpmpp_2m_sde", order=2, form="sde", stochastic=True, tags=("multistep",), strong=1, weak=2,
    source=f"{LU_PP}, eq. 18 (SDE-DPM-Solver++(2M))",
    aliases={"k-diffusion": "sample_dpmpp_2m_sde", "A1111": "DPM++ 2M SDE",
             "ComfyUI": "dpmpp_2m_sde, dpmpp_2m_sde_gpu"},
    note='solver_type = "midpoint", or "heun": the exact weights of exponential Adams',
)
def dpmpp_2m_sde(solver_type: Literal["midpoint", "heun"] = "midpoint") -> Adams:
    rules = {"midpoint": "midpoint", "heun": "exact"}
    return Adams(2, quadrature=rules[choice(solver_type, "solver_type", rules)])


@register_solver(
    "dpmpp_3m_sde", order=2, form="sde", stochastic=True, tags=("multistep",), strong=1, weak=2,
    source="Crowson 2023 (k-diffusion), as published",
    aliases={"k-diffusion": "sample_dpmpp_3m_sde", "A1111": "DPM++ 3M SDE",
             "ComfyUI": "dpmpp_3m_sde, dpmpp_3m_sde_gpu"},
    note="its second difference has half the weight that order 3 takes; mended=True: in full, and order 3 at eta = 0",
)
def dpmpp_3m_sde(mended: bool = False) -> Adams:
    return Adams(3, quadrature="exact" if mended else "third_halved")


@register_solver(
    "sa_solver", order=3, form="sde", stochastic=True, tags=("multistep", "predictor-corrector"),
    strong=1, weak=2, source="SA-Solver, Xue et al. 2023 (arXiv 2309.05019), Algorithm 1 (PEC); eta = tau^2",
    aliases={"diffusers": "SASolverScheduler", "ComfyUI": "sa_solver"},
    note="orders of predictor and corrector are options: ComfyUI has 3 and 4, diffusers 2 and 2 with "
    "simple_order_2=True, lower_final=True. diffusers' weights cancel in float32: of order 3, on a Karras grid, 200 "
    "steps are worse than 100. s_tmin, s_tmax: noise in steps that start between these levels alone, as published",
)
def sa_solver(
    predictor: int = 3, corrector: int = 3, simple_order_2: bool = False, lower_final: bool = False,
    s_tmin: float = 0.0, s_tmax: float = math.inf,
) -> PredictorCorrector:  # fmt: skip
    rule, noisy = "bh1" if simple_order_2 else "exact", interval(s_tmin, s_tmax)
    return PredictorCorrector(predictor, corrector, quadrature=rule, lower_final=lower_final, noisy=noisy)


@register_solver(
    "seeds_1", order=1, form="sde_noise", stochastic=True, tags=("one-step",), strong=1, weak=1,
    source=f"{SEEDS}, Algorithm 1",
)
def seeds_1() -> Adams:
    return Adams(1)


@register_solver(
    "seeds_2", order=2, form="sde_noise", stages=2, stochastic=True, tags=("one-step",), strong=1, weak=2,
    source=f"{SEEDS}, Algorithm 2",
    note="the inner stage's noise is part of the step's. ComfyUI's takes D for eps: seeds_2(form=sde), dpmpp_sde",
)
def seeds_2(r: float = 0.5) -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.dpm_2(tableaux.place(r, "r")))


@register_solver(
    "seeds_3", order=3, form="sde_noise", stages=3, stochastic=True, tags=("one-step",), strong=1, weak=2,
    source=f"{SEEDS}, Algorithm 3",
    note="each stage's noise is part of the step's. ComfyUI's takes D for eps: seeds_3(form=sde)",
)
def seeds_3() -> ExponentialRungeKutta:
    return ExponentialRungeKutta(tableaux.dpm_3())


@register_solver(
    "er_sde_1", order=1, form="er_sde", stochastic=True, tags=("one-step",), strong=1, weak=1,
    source=f"{ER_SDE}, Algorithm 1", note="eta = 1 is the paper's ER SDE, phi(sigma) = sigma (e^(sigma^0.3) + 10)",
)
def er_sde_1() -> Adams:
    return Adams(1)


@register_solver(
    "er_sde_2", order=2, form="er_sde", stochastic=True, tags=("multistep",), strong=1, weak=2,
    source=f"{ER_SDE}, Algorithm 2", note="its integral, which the paper sums over 100 places, is right to 1e-13",
)
def er_sde_2() -> Adams:
    return Adams(2, coordinate="sigma")


@register_solver(
    "er_sde_3", order=3, order_as_started=2, form="er_sde", stochastic=True, tags=("multistep",), strong=1, weak=2,
    source=f"{ER_SDE}, Algorithm 3", aliases={"ComfyUI": "er_sde"},
    note="with D's slope of the order that the name says; published=True takes it from one side, as the paper and "
    "ComfyUI do, which is of order 2",
)
def er_sde_3(published: bool = False) -> Adams:
    return OneSidedAdams() if published else Adams(3, coordinate="sigma")


@register_solver(
    "score_sde_ve", order=1, form="sde_sigma", stages=2, stochastic=True, tags=("one-step",),
    source=f"{SONG}, Algorithm 2 (predictor-corrector)", aliases={"diffusers": "ScoreSdeVeScheduler"},
    note="a Langevin step, then Euler's in sigma^2; corrections=0 leaves the latter, of strong and weak order 1",
)
def score_sde_ve(snr: float = 0.16, corrections: int = 1) -> Solver:
    return Langevin(_inside(Adams(1)), snr, corrections)


@register_solver(
    "score_sde_vp", order=1, form="sde_time", stochastic=True, tags=("one-step",), strong=1, weak=1,
    source=f"{SONG}, eq. 6 by Euler-Maruyama (app. E)", aliases={"diffusers": "ScoreSdeVpScheduler"},
    note="as smooth as sigma(t): a continuous process",
)
def score_sde_vp() -> Adams:
    return _inside(Adams(1))


def _inside(method: Adams) -> Adams:
    """`method` that takes no step to sigma = 0: there is no noise beyond sigma_min."""
    method.steps_to_zero = False
    return method
