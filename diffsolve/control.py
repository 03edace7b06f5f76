"""Step-size control: from the error estimate of a step to whether it is kept and how long the next one is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from copy import copy
from typing import Any

import torch
from torch import Tensor

from .errors import SolverError
from .validate import above_zero, at_least, between, finite

MOST = 4.0  # of a coefficient of PID control; beyond it lengths swing without end
Errors = tuple[float, float, float]


class Controller(ABC):
    """Chooses the steps of an adaptive solve. Subclass it and write `judge`, or take one of this module.

    rtol, atol: about the error that a step may make, relative to the state and absolute, in VE coordinates (an ODE's);
    where one alone is given the other is equal to it, and without either both are 1e-3. h_init, h_min, h_max: lengths
    in the variable of the solver's form; h_init is a hundredth of the way unless it is given. order: what the error's
    norm is taken to shrink with, the solver's order unless it is given.

    It holds settings alone: what a run has seen is handed to it. Raises SolverError for settings that can't be.
    """

    def __init__(
        self,
        rtol: float | None = None,
        atol: float | None = None,
        *,
        h_init: float | None = None,
        h_min: float = 0.0,
        h_max: float = math.inf,
        order: float | None = None,
    ) -> None:
        known = [tolerance for tolerance in (rtol, atol, 1e-3) if tolerance is not None]
        self.rtol, self.atol = known[0] if rtol is None else rtol, known[0] if atol is None else atol
        self.h_init, self.h_min, self.h_max, self.order = h_init, h_min, h_max, order
        self._check()

    def _check(self) -> None:
        for name in ("rtol", "atol", "h_min"):
            setattr(self, name, at_least(getattr(self, name), name))
        if self.rtol == self.atol == 0:
            raise SolverError("rtol and atol are both 0, and no step is that good; give one of them, such as rtol=1e-3")
        for name in ("h_init", "order"):
            if getattr(self, name) is not None:
                setattr(self, name, above_zero(getattr(self, name), name))
        self.h_max = above_zero(self.h_max, "h_max", infinite=True)
        if self.h_min > self.h_max:
            raise SolverError(f"h_min = {self.h_min:g} is above h_max = {self.h_max:g}")

    def tolerating(self, rtol: float | None, atol: float | None) -> Controller:
        """The same controller with those of the tolerances that are given."""
        changed = copy(self)
        changed.rtol, changed.atol = self.rtol if rtol is None else rtol, self.atol if atol is None else atol
        changed._check()
        return changed

    def norm(self, error: Tensor, low: Tensor, before: Tensor) -> Tensor:
        """The error in units of what is tolerated, a 0-d tensor: the RMS of error/delta over all elements.

        delta = max(atol, rtol max(|low|, |before|)), with `low` the less exact solution at the step's end and `before`
        that of the newest kept step: the adaptive DPM-Solver's (Lu et al. 2022, appendix C).
        """
        delta = torch.maximum(low.abs(), before.abs()).mul_(self.rtol)
        delta.clamp_(min=max(self.atol, torch.finfo(delta.dtype).tiny))
        size: Tensor = torch.linalg.vector_norm(error / delta) / math.sqrt(max(1, error.numel()))
        return size

    @abstractmethod
    def judge(self, errors: Errors, order: float) -> tuple[bool, float]:
        """(whether to keep the step, the factor from its length to the next one's).

        errors: norms, all finite, of this step and of the two kept before it; at the start, of this one three times.
        """


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


def controlled(own: Controller | None, given: Any, rtol: float | None, atol: float | None) -> Controller | None:
    """The controller of a solve: the one that is given, or the solver's own, or the default where a tolerance asks."""
    if given is not None and not isinstance(given, Controller):
        raise SolverError(
            f"controller must be a diffsolve Controller, such as PIDController(rtol=1e-3), got {type(given).__name__}"
        )
    chosen = own if given is None else given
    if chosen is None:
        return None if rtol is None and atol is None else PIDController(rtol, atol)
    return chosen.tolerating(rtol, atol)
