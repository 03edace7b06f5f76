"""Where a run's error comes from: each step's local error, what becomes of it at the end, and a grid that evens it out.

The fan of Lady Windermere (Hairer, Norsett & Wanner I, sec. II.3): a step's error is carried to the end by the exact
flow, as the difference of the flows through the step's two ends, exact and computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import diffsolve as ds

from .problems import Case
from .references import case_of, row_errors, sampling_cases

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FINE, ROUGH = 1e-10, 1e-7  # rtol of the fine flow, for what is reported and for the search of a grid
ROUNDS, DAMPING = 4, 0.7  # of the search for a grid with equal shares
LEAST = 1e-4  # of the largest part: a step at which an error happens to vanish is not made endless
LONG, SHORT = 2.0, 0.5  # times the even share: steps that are too long, or could be longer


@dataclass(frozen=True)
class Interval:
    """A step from sigma = start to end. Errors are medians over starts, relative to the exact state at sigma_min.

    local: as made in the step; propagated: what it has become at sigma_min. share: of the sum of all propagated lengths,
    a mean over starts; signed: of the whole error along its own direction, so that parts that cancel are negative.
    """

    start: float
    end: float
    local: float
    propagated: float
    share: float
    signed: float


@dataclass(frozen=True)
class ErrorBudgetReport:
    """The parts of one run's error, and a grid with the same number of steps that evens them out.

    error: the median over starts. mismatch: how far the sum of the parts is from the whole, relative, the median. For a
    one-step method the parts telescope and only the fine flow's own error is left; a multistep method's local errors are taken
    with an exact past, so that their sum is the whole to first order only.
    before, after: the median error on starts that the grid was not made from, on the given grid and on `evened`.
    """

    name: str
    problem: str
    schedule: str
    multistep: bool
    intervals: tuple[Interval, ...]
    error: float
    mismatch: float
    evened: tuple[float, ...]
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the evened grid is better than the given one."""
        return self.after < self.before

    @property
    def nodes(self) -> tuple[float, ...]:
        """The given grid."""
        return (*(i.start for i in self.intervals), self.intervals[-1].end)

    @property
    def sigmas(self) -> np.ndarray:
        """The suggestion, for `schedule=` with final="none": the evened grid where it is better, else the given one."""
        return np.array(self.evened if self.kept else self.nodes)

    @property
    def passed(self) -> bool:
        """The parts add up to the whole: to 0.1 % for a one-step method, to half of it for a multistep one."""
        return self.mismatch <= (0.5 if self.multistep else 1e-3)

    def verdict(self, interval: Interval) -> str:
        times = interval.share * len(self.intervals)
        return "too long" if times > LONG else "could be longer" if times < SHORT else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "solver": self.name, "problem": self.problem, "schedule": self.schedule, "multistep": self.multistep,
            "intervals": [asdict(i) | {"verdict": self.verdict(i)} for i in self.intervals],
            "error": self.error, "mismatch": self.mismatch, "evened": list(self.evened), "before": self.before,
            "after": self.after, "kept": self.kept, "sigmas": self.sigmas.tolist(), "passed": self.passed,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [
            f"{self.name}, {self.schedule}, {len(self.intervals)} steps on {self.problem}: median error {self.error:.2e}; "
            f"its parts add up to it within {self.mismatch:.1e}: {'passed' if self.passed else 'FAILED'}",
            f"  {'step':>4}  {'sigma':>19}  {'local':>8}  {'at end':>8}  {'share':>6}  {'signed':>7}",
        ]
        for place, i in enumerate(self.intervals):
            lines.append(
                f"  {place + 1:4}  {i.start:8.4f} -> {i.end:7.4f}  {i.local:8.1e}  {i.propagated:8.1e}  {i.share:6.1%}"
                f"  {i.signed:7.1%}  {self.verdict(i)}".rstrip()
            )
        return "\n".join([*lines, f"  {self.advice()}"])

    def advice(self) -> str:
        change = f"{self.before:.2e} -> {self.after:.2e} on other starts"
        if not self.kept:
            return f"a grid with even shares is no better ({change}): the given one is kept"
        return f"a grid with even shares: {change}; pass schedule=report.sigmas, final='none'"

    def plot(self) -> Figure:
        """The share of each step over log sigma, the suggested nodes under it, and the errors before and at the end."""
        from .error_budget_plot import plot_error_budget

        return plot_error_budget(self)


@dataclass(frozen=True, eq=False)
class _Parts:
    """Lengths (steps, B) relative to the exact end, the signed shares (steps,), and the whole error of each start (B,)."""

    local: Tensor
    propagated: Tensor
    signed: Tensor
    whole: Tensor
    mismatch: float


def error_budget(
    solver: str | ds.Solver,
    problem: str | Case | ds.ProbabilityFlow = "gmm2",
    schedule: Any = "karras",
    n: int = 20,
    *,
    seed: int = 0,
    starts: int = 64,
) -> ErrorBudgetReport:
    """Divide the error of a solve of `n` steps from sigma_max to sigma_min among its steps.

    problem: a name of `sampling_cases`, a Case, or a flow, from `starts` of its priors; every other start is left for
    judging the suggested grid. schedule: as in `solve`. A stochastic solver is run at eta = 0.
    Raises SolverError for fewer than two starts, ProblemError for an unknown name.
    """
    method, case = ds.get_solver(solver), _case(problem, seed, starts)
    if len(case.x) < 2:
        raise ds.SolverError(f"an error budget needs at least 2 starts, got {len(case.x)}")
    rule, name = ds.get_schedule(schedule)
    grid = case.problem.grid(rule, n, final="none", sigma_min=case.end, sigma_max=case.start, name=name)
    made, judged = (_part_of(case, rows) for rows in (slice(0, None, 2), slice(1, None, 2)))
    nodes = np.array(grid.nodes)
    parts = _parts(method, made, nodes)
    evened = _evened(method, made, nodes, parts)
    lengths = parts.propagated
    shares = (lengths / lengths.sum(0).clamp(min=1e-300)).mean(1)
    intervals = tuple(
        Interval(float(nodes[i]), float(nodes[i + 1]), float(parts.local[i].median()), float(lengths[i].median()),
                 float(shares[i]), float(parts.signed[i]))
        for i in range(len(nodes) - 1)
    )  # fmt: skip
    return ErrorBudgetReport(
        method.name or type(method).__name__, case.name, grid.name, method.history > 0, intervals,
        float(parts.whole.median()), parts.mismatch, tuple(evened.tolist()), _error(method, judged, nodes),
        _error(method, judged, evened),
    )  # fmt: skip


def _case(problem: str | Case | ds.ProbabilityFlow, seed: int, starts: int) -> Case:
    if isinstance(problem, Case):
        return problem
    if not isinstance(problem, str):
        return case_of(type(problem).__name__, problem, seed, starts)
    cases = {case.name: case for case in sampling_cases(seed, starts)}
    if problem not in cases:
        raise ds.ProblemError(f"unknown problem {problem!r}; choose from {', '.join(cases)}, or pass a flow")
    return cases[problem]


def _part_of(case: Case, rows: slice) -> Case:
    return Case(case.name, case.problem, case.start, case.end, case.x[rows])


@torch.no_grad()
def _flow(case: Case, x: Tensor, start: float, end: float, rtol: float = FINE) -> Tensor:
    """The exact flow of states (k, B, *shape) from sigma = start to end."""
    flat = x.flatten(0, 1)
    if known := getattr(case.problem, "exact", None):
        return known(flat, start, end).reshape(x.shape)
    return Case("", case.problem, start, end, flat, rtol=rtol, atol=rtol / 100).at(end).reshape(x.shape)


def _field(solver: ds.Solver, case: Case) -> ds.RightHandSide:
    return case.problem.field(solver, case.x, range(len(case.x)), 0, 0.0 if solver.form == "sde" else None)


@torch.no_grad()
def _computed(solver: ds.Solver, case: Case, nodes: np.ndarray) -> Tensor:
    field = _field(solver, case)
    u = field.enter(case.x, float(nodes[0]))
    for u in ds.march(solver, field, ds.spans_of(ds.Grid(nodes), field), u):  # noqa: B007, B020
        pass
    return field.leave(u, float(nodes[-1]))


def _error(solver: ds.Solver, case: Case, nodes: np.ndarray) -> float:
    exact = _flow(case, case.x[None], case.start, case.end)[0]
    return float(row_errors(_computed(solver, case, nodes), exact).median())


@torch.no_grad()
def _parts(solver: ds.Solver, case: Case, nodes: np.ndarray, rtol: float = FINE) -> _Parts:
    """Each step's error, from the state that the run has there (one-step) or from the exact state and past (multistep).

    Flows of all the computed states so far, the start's first, are carried along together, one interval at a time.
    """
    field, exact_past = _field(solver, case), solver.history > 0
    flows, state, past = case.x[None], case.x, ()
    local = []
    ends = nodes.tolist()
    for span, start, end in zip(ds.spans_of(ds.Grid(nodes), field), ends, ends[1:], strict=False):
        step = solver.step(field, field.enter(state, start), span, past)
        computed, past = field.leave(step.y, end), step.past
        flows = _flow(case, flows, start, end, rtol)
        local.append(computed - flows[0 if exact_past else -1])
        state = flows[0] if exact_past else computed
        flows = torch.cat([flows, computed[None]])
    parts = flows[1:] - (flows[:1] if exact_past else flows[:-1])
    whole = _computed(solver, case, nodes) - _flow(case, case.x[None], case.start, case.end, rtol)[0]
    scale = flows[0].flatten(1).norm(dim=1)
    parts, whole, lengths = parts.flatten(2) / scale[:, None], whole.flatten(1) / scale[:, None], torch.stack(local)
    return _Parts(
        lengths.flatten(2).norm(dim=2) / scale,
        parts.norm(dim=2),
        (parts * whole).sum((1, 2)) / whole.square().sum().clamp(min=1e-300),
        whole.norm(dim=1),
        float(((parts.sum(0) - whole).norm(dim=1) / whole.norm(dim=1).clamp(min=1e-300)).median()),
    )


def _evened(solver: ds.Solver, case: Case, nodes: np.ndarray, parts: _Parts) -> np.ndarray:
    """The best grid that a few damped rounds of equal shares lead to: a step of length h makes c h^{p+1}.

    Between its nodes the density (share)^{1/(p+1)}/h is taken as constant in log sigma, and new nodes cut its integral into
    equal parts (de Boor 1973, Good approximation by splines with variable knots).
    """
    best, least = nodes, math.inf
    logs = np.log(nodes)
    for _ in range(ROUNDS):
        sizes = parts.propagated.median(1).values.numpy()
        weights = np.maximum(sizes, LEAST * sizes.max()) ** (1 / (solver.order + 1))
        filled = np.concatenate([[0.0], np.cumsum(weights)])
        even = np.interp(np.linspace(0, filled[-1], len(logs)), filled, logs)
        logs = logs + DAMPING * (even - logs)
        trial = np.exp(logs)
        trial[0], trial[-1] = nodes[0], nodes[-1]
        parts = _parts(solver, case, trial, ROUGH)
        if (error := float(parts.whole.median())) < least:
            best, least = trial, error
    return best
