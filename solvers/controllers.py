"""Controllers of the step: from the errors of a step and of those before it to the next one's length."""

from __future__ import annotations

import math
from typing import Any

from diffsolve import Controller, SolverError
from diffsolve.control import Errors, register_controller
from diffsolve.validate import between, finite

MOST = 4.0  # of a coefficient of PID control; beyond it lengths swing without end


@register_controller("integral")
class IntegralController(Controller):
    """Keeps a step whose error is at most 1; factor = safety error^(-1/order) in [shrink, grow].

    Hairer, Norsett & Wanner 1993, sec. II.4, eq. 4.13: the classical rule.
    """

    def __init__(
        self,
        rtol: float | None = None,
        atol: float | None = None,
        *,
        safety: float = 0.9,
        shrink: float = 0.2,
        grow: float = 5.0,
        **lengths: Any,
    ) -> None:
        if not 0 < (finite(shrink) or 0) <= (finite(safety) or 0) < 1 < (finite(grow) or 0):
            raise SolverError(
                f"0 < shrink <= safety < 1 < grow must hold, got shrink={shrink!r}, safety={safety!r}, grow={grow!r}"
            )
        self.safety, self.shrink, self.grow = safety, shrink, grow
        super().__init__(rtol, atol, **lengths)

    def judge(self, errors: Errors, order: float) -> tuple[bool, float]:
        wanted = self.safety * errors[0] ** (-1 / order) if errors[0] else self.grow
        return errors[0] <= 1, min(max(wanted, self.shrink), self.grow)


@register_controller("pid")
class PIDController(Controller):
    """factor = 1 + atan(x - 1), x = e_0^(-b_1) e_1^(-b_2) e_2^(-b_3), and a step is kept where it is at least `safety`.

    b = (p + i + d, -(p + 2 d), d)/order over the errors of this step and of the two kept before it (Soderlind 2003,
    with the limiter of his eq. 38): k-diffusion's PIDStepSizeController, whose samplers' p, i, d are 0, 1, 0. Those
    here reject fewer steps. What `solve(rtol=...)` takes unless it is told otherwise.
    """

    def __init__(
        self,
        rtol: float | None = None,
        atol: float | None = None,
        *,
        pcoeff: float = 0.2,
        icoeff: float = 0.7,
        dcoeff: float = 0.0,
        safety: float = 0.81,
        **lengths: Any,
    ) -> None:
        for name, value in (("pcoeff", pcoeff), ("icoeff", icoeff), ("dcoeff", dcoeff)):
            if finite(value) is None:
                raise SolverError(f"{name} must be a finite number, got {value!r}")
            between(value, name, 1e-3 if name == "icoeff" else -MOST, MOST)  # without it no step gets longer
        if not 0 < (finite(safety) or 0) < 1:
            raise SolverError(f"safety must be above 0 and below 1, got {safety!r}")
        self.powers = (pcoeff + icoeff + dcoeff, -(pcoeff + 2 * dcoeff), dcoeff)
        self.safety = safety
        super().__init__(rtol, atol, **lengths)

    def judge(self, errors: Errors, order: float) -> tuple[bool, float]:
        wanted = math.prod((error + 1e-8) ** (-power / order) for error, power in zip(errors, self.powers, strict=True))
        factor = 1 + math.atan(wanted - 1)
        return factor >= self.safety, factor
