"""`solve(problem, quality=...)`: as many steps as an error takes that is asked for, by pairs of grids.

Two grids whose numbers of steps are as 5 to 6 tell the error of the finer: they differ by e_fine (r^p - 1), and since r
is near 1 it matters little what p is: of a method of order 4, from p = 3 to 5 the estimate is within 0.72 to 1.5.
From the estimate follows how many calls are needed; a pair there says whether that was so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..errors import NonFiniteError, SolverError, did_you_mean
from ..validate import finite, whole, written

if TYPE_CHECKING:
    from ..run import Run
    from ..solution import Solution
    from ..solver import Solver

PRESETS = {"draft": 0.1, "good": 0.02, "exact": 0.002}
"""name -> the relative distance from the flow's own end that is asked for, see docs/quality.md."""
ORDER = 4.0  # at most, with which an error of few steps is seen to shrink
AIM, ENOUGH = 0.8, 1.5  # of what is asked: what a new grid is made for, and what is good enough
GROWTH, PAIRS = 3.0, 5  # the most by which calls grow from pair to pair, and the most pairs


def asked(quality: object) -> float:
    """The relative error of a preset's name, or of a number. Raises SolverError."""
    if isinstance(quality, str):
        if quality in PRESETS:
            return PRESETS[quality]
        try:  # as the command line has it
            quality = float(quality)
        except ValueError:
            hint = did_you_mean(quality, PRESETS)
            raise SolverError(f"unknown quality {quality!r}{hint}, or a relative error such as 0.01") from None
    wanted = finite(quality)
    if wanted is None or not 1e-12 < wanted < 1:
        raise SolverError(f"quality is 'draft', 'good', 'exact' or a relative error below 1, got {written(quality)}")
    return wanted


@dataclass
class Pair:
    """Two runs, the finer's number of calls, and the estimate of its relative error, of all and of each sample."""

    calls: int
    coarse: Solution | None
    fine: Solution | None
    order: float

    def __post_init__(self) -> None:
        self.each, self.error = [math.inf], math.inf
        if self.coarse is None or self.fine is None or self.fine.reason != "end":
            return
        if self.coarse.steps >= self.fine.steps:
            raise SolverError("quality chooses the number of steps, and the schedule or the solver has one of its own; "
                              "leave quality out, or give a schedule by its rule")  # fmt: skip
        factor = (self.fine.steps / self.coarse.steps) ** self.order - 1
        gaps = relative_gaps(self.coarse.x, self.fine.x) / factor
        self.each, self.error = gaps.tolist(), float(gaps.square().mean().sqrt())


@torch.no_grad()
def relative_gaps(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|/|y| of each sample, (B,)."""
    a, b = (v.detach().double().reshape(len(v) if v.ndim else 1, -1) for v in (x, y))
    gaps: Tensor = (a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-300)
    return gaps


class Begin(Protocol):
    """A run of a number of calls."""

    def __call__(self, *, nfe: int) -> Run: ...


def reach(quality: str | float, begin: Begin, finish: Callable[[Run], Solution], most: int | None = None) -> Solution:
    """The solution of the last pair's finer grid. finish: takes the steps of a run.

    Its nfe are the calls of all pairs together, which `most` is a budget for; stats: `asked`, `estimate` (root mean
    square over samples), `estimates`, `calls` of the grid itself, `pairs` as [calls, estimate]. Raises SolverError for
    a method with noise or steps of its own choice.
    """
    target, found = asked(quality), list[Pair]()
    most = None if most is None else whole(most, "nfe")
    solver = _checked(begin(nfe=64))
    order, stages, spent = min(ORDER, solver.order or 1), solver.stages or 1, 0
    calls = max(round(6 * (0.1 / target) ** 0.18), 3 * stages)
    while True:
        fewer = calls - max(stages, round(calls / 6))
        if most is not None and spent + fewer + calls > most:
            if not found:
                raise SolverError(f"quality={quality!r} begins with {fewer + calls} calls, the budget is nfe = {most}")
            if (last := found[-1].fine) is not None:
                last.reason = "max_nfe"
            break
        coarse = _taken(begin, finish, fewer)
        stopped = coarse is not None and coarse.reason != "end"
        newest = Pair(calls, coarse, None if stopped else _taken(begin, finish, calls), order)
        found, spent = [*found, newest], spent + fewer + calls
        stopped = stopped or (newest.fine is not None and newest.fine.reason != "end")
        if stopped or newest.error <= ENOUGH * target or len(found) == PAIRS:
            break
        calls = _next(found, target, order)
    return _told(found, quality, target)


def _next(found: list[Pair], target: float, order: float) -> int:
    """The calls that the error needs, by the order that was seen, or the method's."""
    newest, slope = found[-1], order
    if not math.isfinite(newest.error):
        return 2 * newest.calls
    if len(found) > 1 and math.isfinite(found[-2].error) and newest.error > 0:
        seen = math.log(found[-2].error / newest.error) / math.log(newest.calls / found[-2].calls)
        slope = min(max(seen, min(1.5, order)), 5.0)
    needed = newest.calls * math.exp(math.log(newest.error / (AIM * target)) / slope)
    return math.ceil(min(max(needed, 1.15 * newest.calls), GROWTH * newest.calls))


def _taken(begin: Begin, finish: Callable[[Run], Solution], calls: int) -> Solution | None:
    """The solution in so many calls; None where it was lost on the way."""
    try:
        return finish(begin(nfe=calls))
    except NonFiniteError:
        return None


def _checked(run: Run) -> Solver:
    """The solver. Raises SolverError where there is no grid to be refined, or noise."""
    if run.count is None:
        raise SolverError("quality= chooses the number of steps of a grid; leave out rtol, atol and controller, or it")
    if run.solver.stochastic:
        raise SolverError(f"quality is the error of a flow, and {run.solution.solver} adds noise; give n or nfe")
    return run.solver


def _told(found: list[Pair], quality: str | float, target: float) -> Solution:
    """The delivered solution, with what is known of its error."""
    newest = found[-1]
    solution = newest.fine or newest.coarse
    if solution is None:
        raise NonFiniteError(f"no grid of up to {newest.calls} calls kept its state finite; look at the model's output")
    taken = [s for pair in found for s in (pair.coarse, pair.fine) if s is not None]
    solution.stats |= {
        "quality": str(quality), "asked": target, "estimate": newest.error, "estimates": newest.each,
        "calls": solution.nfe, "pairs": [[pair.calls, pair.error] for pair in found],
    }  # fmt: skip
    solution.seconds, solution.nfe = sum(s.seconds for s in taken), sum(s.nfe for s in taken)
    return solution
