"""The row that has the least error for its cost over all cells of `diffsolve validate work-precision`."""

from __future__ import annotations

from diffsolve import register_solver

from ..damped import damped
from ..predictor_corrector import PredictorCorrector


@register_solver(
    "damped_abm", order=4, order_as_started=3, form="noise", tags=("multistep", "predictor-corrector"),
    source="this project: exponential Adams-Bashforth-Moulton, PEC, its weights damped where steps are long",
    note="the default: least error for cost on smooth problems among those that bear guided networks. order=5, "
    "reach=2, trust=0.67 is better where the network is smooth; tilt, reach and trust in units of lambda",
)
def damped_abm(order: int = 4, tilt: float = 0.6, reach: float = 1.5, trust: float = 1.0) -> PredictorCorrector:
    method = PredictorCorrector(order - 1, order, hold="denoised", quadrature=damped(tilt, reach, trust))
    method.scale_free = False
    return method
