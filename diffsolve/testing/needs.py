"""How a check is registered, and which things it is asked of."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import wraps
from unittest import SkipTest

from ..registry import get_solver
from ..solver import Driver, Solver

Check = Callable[[object], None]
CHECKS: dict[str, list[Check]] = {"solver": [], "schedule": [], "process": [], "problem": []}
"""kind of thing -> its checks."""

_UNMET: dict[str, Callable[[Solver], str]] = {
    "trace": lambda s: "" if s.traceable else "it declares traceable = False",
    "no noise": lambda s: "it is stochastic" if s.stochastic else "",
    "noise": lambda s: "" if s.stochastic else "it is not stochastic",
    "order": lambda s: "it claims no order" if s.order is None else "",
    "steps": lambda s: "another library takes its steps" if isinstance(s, Driver) else "",
}


def of_solvers(*needs: str) -> Callable[[Callable[[Solver], None]], Callable[[Solver | str], None]]:
    """A check of solvers, left out where a need is not met. It is given the method on steps that it does not choose."""

    def decorate(function: Callable[[Solver], None]) -> Callable[[Solver | str], None]:
        @wraps(function)
        def check(solver: Solver | str) -> None:
            method = get_solver(solver)
            method = method.with_changes(controller=None, name=method.name or type(method).__name__)
            if reason := unmet(method, needs):
                raise SkipTest(reason)
            function(method)

        check.needs = needs  # type: ignore[attr-defined]
        CHECKS["solver"].append(check)  # type: ignore[arg-type]
        return check

    return decorate


def unmet(solver: Solver, needs: tuple[str, ...]) -> str:
    """Why a check with those needs is not asked of the solver; empty where it is."""
    if solver.form is None:
        return "it is no method of a flow"
    return next(filter(None, (_UNMET[need](solver) for need in needs)), "")


def of(kind: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A check of schedules, processes or problems."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        CHECKS[kind].append(function)
        return function

    return decorate


def place(solver: Solver) -> int:
    """Where a solver starts in a cycle of values, so that over many solvers all combinations are met."""
    return zlib.crc32(solver.name.encode())
