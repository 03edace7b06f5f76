"""The row that has the least error for its cost over all cells of `diffsolve validate work-precision`."""

from __future__ import annotations

from diffsolve import register_solver

from ..damped import damped
from ..predictor_corrector import PredictorCorrector


@register_solver(
    "damped_abm", order=5, started=3, form="noise", tags=("multistep", "predictor-corrector"),
    source="this project: exponential Adams-Bashforth-Moulton, PEC, its weights damped where steps are long",
    note="least error for cost from 5 to 50 evaluations, on karras; tilt, reach and trust in units of lambda",
)
def damped_abm(tilt: float = 0.6, reach: float = 1.5, trust: float = 0.4) -> PredictorCorrector:
    return PredictorCorrector(4, 5, quadrature=damped(tilt, reach, trust))
