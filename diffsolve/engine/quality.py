"""`solve(problem, quality=...)`: as many steps as an error takes that is asked for, by runs that measure each other.

What few steps end at scatters about any law by as much as it errs: a run's own error can't be told by coarser ones (at
best within 0.3 to 3 in 83 of 100). By a finer one it can: of half as many calls again, its distance is the coarser's
error in 97 of 100. So each run is measured by the finest, and what is delivered is the run whose error, so measured, is
what was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
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
ORDER = 4.0  # at most, with which an error of few steps is taken to shrink where nothing is known
AIM, TOO_GOOD, ENOUGH = 0.95, 0.4, 2.0  # of what is asked: what a new run is made for, and between which it is that
FINER, GROWTH = 1.5, 2.0  # calls of a run to those of one that it measures, and at most to the finest's before it
RUNS, SLOW = 8, 1.5  # at most; the least order that is believed of what few runs show


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


@torch.no_grad()
def relative_gaps(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|/|y| of each sample, (B,)."""
    a, b = (v.detach().double().reshape(len(v) if v.ndim else 1, -1) for v in (x, y))
    gaps: Tensor = (a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-300)
    return gaps


class Begin(Protocol):
    """A run of a number of calls."""

    def __call__(self, *, nfe: int) -> Run: ...


@dataclass(eq=False)
class Made:
    """A run: its calls, its end (None where it was lost on the way), and its relative error, as far as it is known."""

    calls: int
    solution: Solution | None
    each: list[float] = field(default_factory=lambda: [math.inf])
    error: float = math.inf

    def beside(self, other: Made, order: float) -> None:
        """The error, by the distance from another run of a solver of this order: each sample's, and of all."""
        if self.solution is None or other.solution is None:
            return
        shrink = (other.solution.steps / self.solution.steps) ** -order
        gaps = relative_gaps(self.solution.x, other.solution.x) / abs(1 - shrink)
        self.each, self.error = gaps.tolist(), float(gaps.square().mean().sqrt())


class Search:
    """Runs by their calls, the finest of which measures the others.

    target: the error; order: of the solver, as far as it is trusted; stages: calls of a step.
    """

    def __init__(self, target: float, order: float, stages: int) -> None:
        self.target, self.order, self.stages = target, order, stages
        self.runs: list[Made] = []

    def first(self) -> list[int]:
        fewest = max(round(4 * (0.1 / self.target) ** 0.18), 2 * self.stages)
        return [fewest, self._finer(fewest)]

    def add(self, made: Made) -> None:
        self.runs = sorted([*self.runs, made], key=lambda run: run.calls)
        for run in self.runs[:-1]:
            run.beside(self.runs[-1], self.order)
        if len(self.runs) > 1:
            self.runs[-1].beside(self.runs[-2], self.order)

    def best(self) -> Made:
        """The measured run whose error is nearest to what was asked; where all of them err by far more, the finest."""
        ended = [run for run in self.runs if run.solution is not None] or self.runs
        return min(self._kept(), key=lambda run: abs(math.log(max(run.error, 1e-300) / self.target)), default=ended[-1])

    def _kept(self) -> list[Made]:
        return [run for run in self.runs[:-1] if run.error <= ENOUGH * self.target]

    def next(self) -> int | None:
        """The calls of the next run; None where there is none to be made."""
        measured = self.runs[:-1]
        if any(run.error >= TOO_GOOD * self.target for run in self._kept()):
            return None
        enough = next((i for i, run in enumerate(measured) if run.error <= self.target), len(measured))
        worse, better = measured[:enough][-2:], measured[enough:]
        if not better:
            return self._beyond(worse)
        return self._between(worse[-1] if worse else None, better[0])

    def _beyond(self, worse: list[Made]) -> int:
        """Where all that is measured errs too much: what is needed, or what measures it."""
        last, finest = worse[-1], self.runs[-1].calls
        if not math.isfinite(last.error):
            return 2 * finest
        slope = self.order
        if len(worse) > 1 and math.isfinite(worse[0].error):
            slope = min(max(_slope(*worse), min(SLOW, self.order)), 5.0)
        excess, room = last.error / (AIM * self.target), int(finest / 1.25)
        needed, hoped = (round(last.calls * math.pow(excess, 1 / p)) for p in (slope, max(slope, self.order)))
        if max(hoped, last.calls + self.stages) <= room:  # what is here already measures that: try it first
            return min(max(needed, last.calls + self.stages), room)
        return min(self._finer(max(needed, finest)), math.ceil(GROWTH * finest))

    def _between(self, worse: Made | None, better: Made) -> int | None:
        """Fewer calls than those of a run that is better than was asked; None where there are none."""
        low, high = (self.stages if worse is None else worse.calls), better.calls
        if high - low <= self.stages:
            return None
        wanted = math.sqrt(low * high)
        if worse is None:
            wanted = max(high * math.pow(better.error / (AIM * self.target), 1 / self.order), high / 2)
        elif math.isfinite(worse.error):
            wanted = low * math.pow(worse.error / (AIM * self.target), 1 / _slope(worse, better))
        return min(max(round(wanted), low + self.stages), high - self.stages)

    def _finer(self, calls: int) -> int:
        return max(round(FINER * calls), calls + self.stages)


def _slope(worse: Made, better: Made) -> float:
    """Of the error in the calls."""
    return max(math.log(worse.error / max(better.error, 1e-300)) / math.log(better.calls / worse.calls), 0.5)


def reach(
    quality: str | float, begin: Begin, finish: Callable[[Run], Solution], most: int | None = None, n: int = 20
) -> Solution:
    """The solution that errs by what is asked for. finish: takes the steps of a run.

    Its nfe are the calls of all runs together, which `most` is a budget for; stats: `asked`, `estimate` (root mean
    square over samples), `estimates`, `calls` of the run itself, `runs` as [calls, estimate]. Raises SolverError for
    a method with noise or steps of its own choice, and for an n that is not the default's.
    """
    if n != 20:
        raise SolverError(f"n is {written(n)} beside quality={quality!r}, which chooses the steps; leave one out")
    target = asked(quality)
    most = None if most is None else whole(most, "nfe")
    solver = _checked(begin(nfe=64))
    search = Search(target, min(ORDER, solver.order or 1), solver.stages or 1)
    ahead, spent, cut = search.first(), 0, False
    if most is not None and sum(ahead) > most:
        raise SolverError(f"quality={quality!r} begins with {sum(ahead)} calls, the budget is nfe = {most}")
    counts: set[int | None] = set()
    while ahead:
        calls = ahead.pop(0)
        if cut := most is not None and spent + calls > most:
            break
        run = begin(nfe=calls)
        if run.count in counts:
            _refined(counts)
            break
        counts.add(run.count)
        made = Made(calls, _taken(run, finish))
        if made.solution is not None and made.solution.reason != "end":
            search.runs.append(made)
            return _told(search, made, quality)
        search.add(made)
        spent += calls
        if not ahead and len(search.runs) < RUNS and (more := search.next()) is not None:
            ahead = [more]
    best = search.best()
    if best.solution is None:
        raise NonFiniteError(f"no grid of up to {best.calls} calls kept its state finite; look at the model's output")
    if cut and best.error > ENOUGH * target:
        best.solution.reason = "max_nfe"
    return _told(search, best, quality)


def _taken(run: Run, finish: Callable[[Run], Solution]) -> Solution | None:
    """The solution; None where it was lost on the way."""
    try:
        return finish(run)
    except NonFiniteError:
        return None


def _refined(counts: set[int | None]) -> None:
    if len(counts) == 1:
        raise SolverError("quality chooses the number of steps, and the schedule or the solver has one of its own; "
                          "leave quality out, or give a schedule by its rule")  # fmt: skip


def _checked(run: Run) -> Solver:
    """The solver. Raises SolverError where there is no grid to be refined, or noise."""
    if run.count is None:
        raise SolverError("quality= chooses the number of steps of a grid; leave out rtol, atol and controller, or it")
    if run.solver.stochastic:
        raise SolverError(f"quality is the error of a flow, and {run.solution.solver} adds noise; give n or nfe")
    return run.solver


def _told(search: Search, made: Made, quality: str | float) -> Solution:
    """The solution of a run, with what is known of its error."""
    solution, taken = made.solution, [run.solution for run in search.runs if run.solution is not None]
    assert solution is not None
    solution.stats |= {
        "quality": str(quality), "asked": search.target, "estimate": made.error, "estimates": made.each,
        "calls": solution.nfe, "runs": [[run.calls, run.error] for run in search.runs],
    }  # fmt: skip
    solution.seconds, solution.nfe = sum(s.seconds for s in taken), sum(s.nfe for s in taken)
    return solution
