"""Rows for flow models: SDE steps that tell log-probabilities, as reinforcement learning asks for, and guidance."""

from __future__ import annotations

from diffsolve import register_solver

from .. import tableaux
from ..adams import Adams
from ..rectified import RectifiedCFG
from ..runge_kutta import RungeKutta
from ..wrappers import Ancestral

ROLLOUT = "its steps tell log-probabilities, Solution.log_probs"


@register_solver(
    "flow_grpo", order=1, form="sde_flow", stochastic=True, tags=("one-step", "flow-matching"), strong=1, weak=1,
    source="Flow-GRPO, Liu et al. 2025 (arXiv 2505.05470): Euler-Maruyama",
    note=f"eta = a^2/2: 0.245 at the paper's a = 0.7. {ROLLOUT}",
)
@register_solver(
    "dance_grpo", order=1, form="sde_flow_even", stochastic=True, tags=("one-step", "flow-matching"), strong=1, weak=1,
    source="DanceGRPO, Xue et al. 2025 (arXiv 2505.07818): Euler-Maruyama",
    note=f"eta = epsilon^2: 0.09 at the paper's 0.3. {ROLLOUT}",
)
def euler_maruyama_of_a_flow() -> Adams:
    return _inside(Adams(1))


@register_solver(
    "flow_cps", order=None, form="flow", stochastic=True, tags=("one-step", "ancestral", "flow-matching"),
    source="CPS, Wang & Yu 2025 (arXiv 2509.05952), coefficients-preserving sampling",
    note="no integrator: each step puts back sin(eta pi/2) of the noise, however short it is; eta from 0 to 1. "
    f"{ROLLOUT}",
)
def flow_cps() -> Ancestral:
    return Ancestral(RungeKutta(tableaux.EULER), "cps")


@register_solver(
    "rectified_cfg_pp", order=None, form="flow", stages=2, tags=("one-step", "flow-matching"),
    source="Rectified-CFG++, Saini et al. 2025 (arXiv 2510.07631), Algorithm 1",
    note="no integrator, but at strength = guidance - 1 (the default) of the guided flow, of order 1. guidance: the "
    "problem's own. place=1.0 asks at the step's end, as the authors' code does",
)
def rectified_cfg_pp(
    guidance: float | None = None, strength: float | None = None, decay: float = 0.0, place: float = 0.5
) -> RectifiedCFG:
    return RectifiedCFG(guidance, strength, decay, place)


def _inside(method: Adams) -> Adams:
    """`method` that takes no step to sigma = 0, which is without noise there."""
    method.steps_to_zero = False
    return method
