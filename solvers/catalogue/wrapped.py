"""Rows made by wrapping a method of the flow: ancestral steps, churn, restarts, consistency models' rules, CFG++."""

from __future__ import annotations

import math

from diffsolve import Solver, get_solver, register_solver

from .. import tableaux
from ..adams import Adams
from ..runge_kutta import ExponentialRungeKutta, RungeKutta
from ..wrappers import Ancestral, CFGpp, Churn, Restart, tcd
from .sources import CFG_PP, KARRAS, SONG_DDIM


@register_solver(
    "ddim_eta", order=1, stochastic=True, tags=("one-step", "ancestral"), source=f"{SONG_DDIM}, eq. 12 and 16",
    strong=1, weak=1,
    note="eta as in the paper: 0 is ddim, 1 ddpm; k-diffusion's euler_ancestral at any eta. "
    'rule = "flow": ComfyUI\'s euler_ancestral_RF',
)
def ddim_eta(rule: str = "ddim") -> Ancestral:
    return Ancestral(RungeKutta(tableaux.EULER), rule)


@register_solver(
    "dpm2_ancestral", order=2, form="noise", stages=2, stochastic=True, tags=("one-step", "ancestral"),
    strong=1, weak=1, source="Crowson 2022 (k-diffusion); dpm2 to sigma_down, then noise",
    aliases={"diffusers": "KDPM2AncestralDiscreteScheduler", "k-diffusion": "sample_dpm_2_ancestral",
             "A1111": "DPM2 a", "ComfyUI": "dpm_2_ancestral"},
)  # fmt: skip
def dpm2_ancestral(rule: str = "ddim") -> Ancestral:
    return Ancestral(ExponentialRungeKutta(tableaux.dpm_2()), rule)


@register_solver(
    "dpmpp_2s_ancestral", order=2, form="data", stages=2, stochastic=True, tags=("one-step", "ancestral"),
    strong=1, weak=1, source="Crowson 2022 (k-diffusion); dpmpp_2s to sigma_down, then noise",
    aliases={"k-diffusion": "sample_dpmpp_2s_ancestral", "A1111": "DPM++ 2S a", "ComfyUI": "dpmpp_2s_ancestral"},
    note='rule = "flow" is ComfyUI\'s dpmpp_2s_ancestral_RF up to its place of the inner stage',
)
def dpmpp_2s_ancestral(r: float = 0.5, rule: str = "ddim") -> Ancestral:
    return Ancestral(ExponentialRungeKutta(tableaux.dpm_2(tableaux.place(r, "r"))), rule)


@register_solver(
    "edm_stochastic", order=2, stages=2, stochastic=True, tags=("one-step", "churn"), source=f"{KARRAS}, Algorithm 2",
    aliases={"diffusers": "KarrasVeScheduler"},
    note="k-diffusion's sample_heun with s_churn; eta multiplies churn. The paper's for ImageNet-64: churn=40, "
    "s_tmin=0.05, s_tmax=50, s_noise=1.003. solver: any other of the flow in heun's place",
)
def edm_stochastic(
    churn: float = 40.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0,
    solver: str | Solver = "heun",
) -> Churn:  # fmt: skip
    inside = RungeKutta(tableaux.HEUN) if solver == "heun" else get_solver(solver)
    return Churn(inside, churn, s_tmin, s_tmax, s_noise)


@register_solver(
    "restart", order=2, stages=2, stochastic=True, tags=("restart",),
    source="Xu et al. 2023 (arXiv 2306.14878), Algorithm 1", aliases={"A1111": "Restart"},
    note="over heun; the interval (t_min, t_max) of sigma is passed `times` times more, over the grid's own nodes "
    "inside, which makes more steps than n; several intervals: solvers.Restart",
)
def restart(t_min: float = 0.1, t_max: float = 2.0, times: int = 2) -> Restart:
    return Restart(RungeKutta(tableaux.HEUN), [(t_min, t_max)], times)


@register_solver(
    "lcm", order=None, stochastic=True, tags=("one-step", "consistency"),
    source="Luo et al. 2023 (arXiv 2310.04378), Algorithm 3; Song et al. 2023 (arXiv 2303.01469), Algorithm 1",
    aliases={"diffusers": "LCMScheduler", "A1111": "LCM", "ComfyUI": "lcm"},
    note="no integrator: each step denoises to the data and puts noise back, so more steps do not lead to the flow. "
    "For networks trained for it; their c_skip and c_out, 0 and 1 to 1e-5, are left out",
)
def lcm() -> Ancestral:
    return Ancestral(RungeKutta(tableaux.EULER), "lcm")


@register_solver(
    "tcd", order=None, stochastic=True, tags=("one-step", "consistency"),
    source="Zheng et al. 2024 (arXiv 2402.19159), Algorithm 4", aliases={"diffusers": "TCDScheduler", "A1111": "TCD"},
    note="no integrator: each step goes to the time (1 - gamma) t and noise back to t, however short the steps are; "
    "diffusers' eta is gamma",
)
def tcd_(gamma: float = 0.3) -> Ancestral:
    return Ancestral(RungeKutta(tableaux.EULER), tcd(gamma))


@register_solver(
    "euler_cfg_pp", order=None, tags=("one-step", "CFG++"), source=f"{CFG_PP}, Algorithm 1 (DDIM)",
    aliases={"A1111": "DDIM CFG++", "ComfyUI": "euler_cfg_pp"},
    note="no integrator of the guided flow: what guidance adds does not shrink with the step. It takes guidance of 0 "
    "to 2; without any it is euler",
)
def euler_cfg_pp() -> CFGpp:
    return CFGpp(Adams(1))


@register_solver(
    "dpmpp_2m_cfg_pp", order=None, form="data", tags=("multistep", "CFG++"), source=f"{CFG_PP}, on DPM-Solver++ 2M",
    aliases={"ComfyUI": "dpmpp_2m_cfg_pp"}, note="no integrator of the guided flow; without guidance it is dpmpp_2m",
)
def dpmpp_2m_cfg_pp() -> CFGpp:
    return CFGpp(Adams(2, quadrature="midpoint"))


@register_solver(
    "euler_ancestral_cfg_pp", order=None, stochastic=True, tags=("one-step", "ancestral", "CFG++"),
    source=f"{CFG_PP}, Algorithm 1 with DDIM's noise", aliases={"ComfyUI": "euler_ancestral_cfg_pp"},
    note="no integrator of the guided flow; without guidance it is ddim_eta",
)
def euler_ancestral_cfg_pp() -> Ancestral:
    return Ancestral(CFGpp(Adams(1)))
