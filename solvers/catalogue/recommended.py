"""The row that `solve` takes by itself, and its relation without a guard, for problems that are known to be smooth."""

from __future__ import annotations

from diffsolve import PIDController, register_solver
from diffsolve.validate import whole

from ..adaptive_pair import AdaptivePair
from ..damped import damped
from ..guarded import Guarded
from ..predictor_corrector import PredictorCorrector


@register_solver(
    "damped_abm", order=4, order_as_started=3, form="noise", tags=("multistep", "predictor-corrector"),
    source="this project: exponential Adams-Bashforth-Moulton, PEC, its weights damped where steps are long",
    note="least error for cost on smooth problems; not for networks under guidance. order=5, reach=2, trust=0.67 is "
    "better where steps are not few; tilt, reach and trust in units of lambda",
)
def damped_abm(order: int = 4, tilt: float = 0.6, reach: float = 1.5, trust: float = 1.0) -> PredictorCorrector:
    method = PredictorCorrector(order - 1, order, hold="denoised", quadrature=damped(tilt, reach, trust))
    method.scale_free = False
    return method


@register_solver(
    "guarded_abm", order=4, order_as_started=3, form="noise", tags=("multistep", "predictor-corrector"),
    source="this project: damped_abm with a share of Euler's step where a sample's history shows instability",
    note="the default: nearly as good as damped_abm where that is good, and bears guidance, a sample at a time. "
    "guided=True where guidance is put on outside of the problem, as a diffusers pipeline does",
)
def guarded_abm(order: int = 5, guided: bool | None = None, memory: float = 0.75) -> Guarded:
    return Guarded(order, guided, memory)


@register_solver(
    "adaptive_abm", order=4, order_as_started=3, form="noise", tags=("multistep", "predictor-corrector", "adaptive"),
    source="this project: damped_abm's pair, the corrector's change its error; Hairer, Norsett & Wanner I, sec. III.5",
    note="chooses its steps, one evaluation an attempt; order=2..6. Least calls to an error of all rows that do",
)  # fmt: skip
def adaptive_abm(
    order: int = 4, rtol: float = 0.01, atol: float | None = None, reach: float = 1.5, trust: float = 1.0
) -> AdaptivePair:
    order = whole(order, "adaptive_abm's order", least=2, most=6)
    method = AdaptivePair(order - 1, order, quadrature=damped(reach=reach, trust=trust))
    method.scale_free, method.controller = False, PIDController(rtol, atol)
    return method
