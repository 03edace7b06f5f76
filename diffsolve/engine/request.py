"""What is asked of `solve_many`, and what comes back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SolverError, did_you_mean
from ..integrate import solve, start
from ..problem import Problem
from ..run import Run
from ..solution import Callbacks, Solution


class Request:
    """One of many solves.

    problem: its own, in place of the one that all have. key: anything, to be known by. options: of `start`, and
    `callback` and `quality` as in `solve`, whose number of calls is found before it begins; other ones are what the
    problem is asked for, `problem.replace(...)`, or the call of a model:
    `Request(prompt="red apple", guidance=4, solver="heun", n=10, seed=3)`.
    """

    def __init__(self, problem: Problem | None = None, /, *, key: object = None, **options: Any) -> None:
        self.problem, self.key, self.options = problem, key, options

    def __repr__(self) -> str:
        told = {"key": self.key} if self.key is not None else {}
        return f"Request({', '.join(f'{k}={v!r}' for k, v in {**told, **self.options}.items())})"

    def begin(self, shared: Problem | Callable[..., Problem]) -> Run:
        """The run of it. Raises what `start` and the problem raise."""
        given = inspect.signature(start).parameters.keys() - {"problem", "gradient"}
        taken = {k: v for k, v in self.options.items() if k in given}
        own = {k: v for k, v in self.options.items() if k not in given and k not in ("callback", "quality")}
        if "gradient" in own:
            raise SolverError("solve_many keeps no graph; leave gradient out, or take solve")
        problem: Any = shared if self.problem is None else self.problem
        if own or not isinstance(problem, Problem):
            problem = _changed(problem, own, given)
        if self.options.get("quality") is not None:
            with torch.no_grad():
                taken["nfe"] = solve(problem, quality=self.options["quality"], **taken).stats["calls"]
        run = start(problem, **taken)
        if run.solution.x.requires_grad and torch.is_grad_enabled():
            raise SolverError("solve_many keeps no graph, and x carries a gradient; pass x.detach(), or take solve")
        if self.options.get("callback") is not None:
            run.watchers.append(Callbacks(self.options["callback"]))
        return run


def _changed(problem: Any, own: Mapping[str, Any], given: Iterable[str]) -> Problem:
    """The problem that is asked for. Raises SolverError for an option that neither it nor `start` takes."""
    change = problem.replace if isinstance(problem, Problem) and hasattr(problem, "replace") else problem
    known = inspect.signature(change).parameters if callable(change) else {}
    known = {} if any(p.kind is p.VAR_KEYWORD for p in known.values()) else known
    for name in own:
        hint = did_you_mean(name, [*given, *known])
        if name not in known and (known or not callable(change) or "did you mean" in hint):
            raise SolverError(f"unknown option {name!r}{hint}")
    made: Problem = change(**own)
    return made


@dataclass(frozen=True)
class Answer:
    """How a request ended.

    index: which one it was, in order of arrival. status: the solution's reason ("end", "max_nfe", "stopped"), "failed"
    on the way, "refused" before a step was taken, or "cancelled"; message: why, in words. solution: what there is of
    it, None where it was refused. denoised: the newest data estimate, what to show where it ended early.
    """

    index: int
    request: Request
    status: str
    message: str = ""
    solution: Solution | None = None
    error: Exception | None = None
    denoised: Tensor | None = None

    def result(self) -> Solution:
        """The solution; raises the error that the request ended with, SolverError where it was cancelled."""
        if self.error is not None:
            raise self.error
        if self.solution is None or self.status == "cancelled":
            raise SolverError(f"request {self.index} was cancelled")
        return self.solution
