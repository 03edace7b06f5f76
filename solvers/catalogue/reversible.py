"""Rows of 2024 to 2026 with a step of their own: reversible pairs of states, corrected Adams-Bashforth."""

from __future__ import annotations

from diffsolve import register_solver
from diffsolve.validate import at_least, whole

from .. import quadrature
from ..adams import Adams
from ..reversible import Leapfrog


@register_solver(
    "bdia", order=2, tags=("multistep", "reversible", "even weights"),
    source="BDIA, Zhang et al. 2023 (arXiv 2307.10829)",
    note="gamma: from ddim (0) to the leapfrog rule (1); below 1 it is of order 1, and calmer (0.96 for editing). Two "
    "neighbouring states give the one before back, whatever the network is",
)
def bdia(gamma: float = 1.0) -> Leapfrog:
    return Leapfrog(gamma)


@register_solver(
    "o_belm", order=2, tags=("multistep", "reversible"), source="O-BELM, Wang et al. 2024 (arXiv 2410.07273)",
    note="bdia with the gamma that cancels the second derivative; two neighbouring states give the one before back",
)
def o_belm() -> Leapfrog:
    return Leapfrog()


@register_solver(
    "cab", order=2, tags=("multistep",), source="CAB, Roy & Nair 2026 (arXiv 2605.16736)",
    note="lms(order=2 or 3), and theta h times what the newest eps is off the line of those before; theta = 0.2 for "
    "flow models, 5/12 is lms(order=3) on an even grid",
)
def cab(order: int = 2, theta: float = 0.9) -> Adams:
    corrected = quadrature.corrected(whole(order, "cab's order", least=2, most=3), at_least(theta, "theta"))
    return Adams(3, quadrature=corrected)
