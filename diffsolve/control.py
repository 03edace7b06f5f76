"""Step-size control: from the error estimate of a step to whether it is kept and how long the next one is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from .errors import SolverError
from .register import F, Owner, Register, instance, make, parse
from .validate import above_zero, at_least, between

Errors = tuple[float, float, float]


class Controller(ABC):
    """Chooses the steps of an adaptive solve. Subclass it and write `judge`, or take one of `diffsolve.solvers`.

    rtol, atol: about the error that a step may make, relative to the state and absolute, in VE coordinates (an ODE's);
    where one alone is given the other is equal to it, and without either both are 1e-3. h_init, h_min, h_max: lengths
    in the variable of the solver's form; unless it is given h_init is found by Hairer's rule, for one evaluation more
    (of a stochastic solver, a hundredth of the way). order: what the error's norm is taken to shrink with, the solver's
    order unless it is given.

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
        if self.order is not None:
            between(self.order, "order", 0.1, 100)
        self.h_max = above_zero(self.h_max, "h_max", infinite=True)
        if self.h_min > self.h_max:
            raise SolverError(f"h_min = {self.h_min:g} is above h_max = {self.h_max:g}")

    def tolerating(self, rtol: float | None, atol: float | None) -> Controller:
        """The same controller with those of the tolerances that are given; one alone takes the other with it.

        Their proportion stays, where neither is 0: rtol=1e-3 alone makes (0.05, 0.0078) into (1e-3, 1.56e-4).
        """
        changed = copy(self)
        changed.rtol, changed.atol = self.rtol if rtol is None else rtol, self.atol if atol is None else atol
        changed._check()
        if atol is None and rtol and self.rtol:
            changed.atol = self.atol * (changed.rtol / self.rtol)
        elif rtol is None and atol and self.atol:
            changed.rtol = self.rtol * (changed.atol / self.atol)
        return changed

    def norm(self, error: Tensor, low: Tensor, before: Tensor) -> Tensor:
        """The error in units of what is tolerated, a 0-d tensor: the RMS of error/delta over all elements.

        delta = max(atol, rtol max(|low|, |before|)), with `low` the less exact solution at the step's end and `before`
        that of the newest kept step: the adaptive DPM-Solver's (Lu et al. 2022, appendix C).
        """
        delta = torch.maximum(low.abs(), before.abs()).mul_(self.rtol)
        delta.clamp_(min=max(self.atol, torch.finfo(delta.dtype).tiny))
        size: Tensor = torch.linalg.vector_norm(torch.div(error, delta, out=delta)) / math.sqrt(max(1, error.numel()))
        return size

    @abstractmethod
    def judge(self, errors: Errors, order: float) -> tuple[bool, float]:
        """(whether to keep the step, the factor from its length to the next one's).

        errors: norms, all finite, of this step and of the two kept before it; at the start, of this one three times.
        """


def register_controller(name: str) -> Callable[[F], F]:
    """Decorate a Controller class, or a function (rtol, atol, ...) that makes one, to give it a name."""
    return CONTROLLERS.decorator(name, Owner.calling())


def _maker(name: str, found: Any, owner: Owner) -> Callable[..., Controller]:
    instance(found, Controller, SolverError)
    made: Callable[..., Controller] = found
    return made


CONTROLLERS = Register[Callable[..., Controller]]("controller", "diffsolve.controllers", SolverError, _maker)
"""name -> what makes a controller; "pid" is the default of a solve with a tolerance."""


def controlled(own: Controller | None, given: object, rtol: float | None, atol: float | None) -> Controller | None:
    """The controller of a solve: the one that is given, or the solver's own, or the default where a tolerance asks.

    given: a Controller, or the name of one, "pid(safety=0.9)". Raises SolverError for anything else.
    """
    if isinstance(given, str):
        name, options = parse(given)
        given = make(CONTROLLERS.find(name), options, f"controller {name!r}", SolverError)
    if given is not None and not isinstance(given, Controller):
        raise SolverError(
            "controller must be a diffsolve Controller, such as PIDController(rtol=1e-3), or the name of one, such as "
            f"'pid', got {type(given).__name__}"
        )
    chosen = own if given is None else given
    if chosen is None:
        return None if rtol is None and atol is None else CONTROLLERS["pid"](rtol, atol)
    return chosen.tolerating(rtol, atol)
