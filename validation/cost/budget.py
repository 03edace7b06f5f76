"""Where a run's error comes from: each step's local error, what becomes of it at the end, and a grid that evens it out.

The fan of Lady Windermere (Hairer, Norsett & Wanner I, sec. II.3 and III.4): a step's error is carried to the end as
the difference of two runs, and neighbouring differences telescope. For a one-step method the runs go on exactly from
the step's two ends, exact and computed. A multistep method's error goes on through its past as well, so its runs are
its own: exact up to one node, and up to the next.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import diffsolve as ds

from .problems import Case
from .references import case_of, row_errors, sampling_cases
from .report import as_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FINE, ROUGH = 1e-10, 1e-7  # rtol of the fine flow, for what is reported and for the search of a grid
ROUNDS, DAMPING = 4, 0.7  # of the search for a grid with equal shares
TINY = 1e-300
LEAST = 1e-4  # of the largest part: a step at which an error happens to vanish is not made endless
LONG, SHORT = 2.0, 0.5  # times the even share: steps that are too long, or could be longer


@dataclass(frozen=True)
class Interval:
    """A step from sigma = start to end. Errors are medians over starts, relative to the exact state at sigma_min.

    local: as made in the step, from the run's state (one-step) or from the exact state and past (multistep);
    propagated: what it has become at sigma_min. share: of the sum of all propagated lengths, a mean over starts;
    signed: of the whole error along its own direction, so that parts that cancel are negative.
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

    error: the median over starts. mismatch: how far the sum of the parts is from the whole, relative, the median.
    first_order: the same where each local error is carried by the exact flow alone; for a multistep method it shows how
    much of the error went through the past, and falls as n grows.
    before, after: the median error on starts that the grid was not made from, on the given grid and on `evened`.
    """

    name: str
    problem: str
    schedule: str
    multistep: bool
    intervals: tuple[Interval, ...]
    error: float
    mismatch: float
    first_order: float
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
        """The parts add up to the whole error, to a thousandth of it."""
        return self.mismatch <= 1e-3

    def verdict(self, interval: Interval) -> str:
        times = interval.share * len(self.intervals)
        return "too long" if times > LONG else "could be longer" if times < SHORT else ""

    def to_json(self) -> str:
        """The report as JSON; what is not a number is null."""
        data = {
            "solver": self.name, "problem": self.problem, "schedule": self.schedule, "multistep": self.multistep,
            "intervals": [asdict(i) | {"verdict": self.verdict(i)} for i in self.intervals],
            "error": self.error, "mismatch": self.mismatch, "first_order": self.first_order,
            "evened": self.evened, "before": self.before, "after": self.after, "kept": self.kept,
            "sigmas": self.sigmas.tolist(), "passed": self.passed,
        }  # fmt: skip
        return as_json(data)

    def __str__(self) -> str:
        lines = [
            f"{self.name}, {self.schedule}, {len(self.intervals)} steps on {self.problem}: median error "
            f"{self.error:.2e}; its parts add up to it within {self.mismatch:.0e}: "
            + ("passed" if self.passed else "FAILED"),
            f"  {'step':>4}  {'sigma':>19}  {'local':>8}  {'at end':>8}  {'share':>6}  {'signed':>7}",
        ]
        for place, i in enumerate(self.intervals):
            lines.append(
                f"  {place + 1:4}  {i.start:8.4f} -> {i.end:7.4f}  {i.local:8.1e}  {i.propagated:8.1e}  {i.share:6.1%}"
                f"  {i.signed:7.1%}  {self.verdict(i)}".rstrip()
            )
        if self.multistep:
            lines.append(f"  carried by the exact flow alone, the local errors' sum is off by {self.first_order:.0%}")
        return "\n".join([*lines, f"  {self.advice()}"])

    def advice(self) -> str:
        change = f"{self.before:.2e} -> {self.after:.2e} on other starts"
        if not self.kept:
            return f"a grid with even shares is no better ({change}): the given one is kept"
        return f"a grid with even shares: {change}; pass schedule=report.sigmas, final='none'"

    def plot(self) -> Figure:
        """The share of each step over log sigma, the suggested nodes under it, and the errors before and at the end."""
        from .budget_plot import plot_error_budget

        return plot_error_budget(self)


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
    judging the suggested grid. schedule: as in `solve`; one with ends of its own is judged between them, from the exact
    state at its first node. A stochastic solver is run at eta = 0.
    Raises SolverError for fewer than two starts, ProblemError for an unknown name.
    """
    method, case = ds.get_solver(solver), _case(problem, seed, starts)
    if len(case.x) < 2:
        raise ds.SolverError(f"an error budget needs at least 2 starts, got {len(case.x)}")
    grid = _grid(case, schedule, n)
    nodes = np.array(grid.nodes)
    made, judged = (_part_of(case, rows, nodes) for rows in (slice(0, None, 2), slice(1, None, 2)))
    end = _flow(made, made.x[None], made.start, made.end)[0]
    whole = _rows(_computed(method, made, nodes) - end, end)
    local, carried = _carried(method, made, nodes)
    parts = _rows(_replaced(method, made, nodes) if method.history else carried, end)
    lengths, made_lengths = parts.norm(dim=-1), _rows(local, end).norm(dim=-1)
    shares = (lengths / lengths.sum(0).clamp(min=TINY)).mean(1)
    signed = (parts * whole).sum((1, 2)) / whole.square().sum().clamp(min=TINY)
    medians = [t.median(1).values.tolist() for t in (made_lengths, lengths)]
    columns = zip(nodes[:-1].tolist(), nodes[1:].tolist(), *medians, shares.tolist(), signed.tolist(), strict=True)
    evened = _evened(method, made, nodes)
    return ErrorBudgetReport(
        method.name or type(method).__name__, case.name, grid.name, method.history > 0,
        tuple(Interval(*column) for column in columns), float(whole.norm(dim=1).median()), _gap(parts, whole),
        _gap(_rows(carried, end), whole), tuple(evened.tolist()), _error(method, judged, nodes),
        _error(method, judged, evened),
    )  # fmt: skip


def _rows(x: Tensor, end: Tensor) -> Tensor:
    """(..., B, *shape) as (..., B, d), each start over the size of its exact end, (B, *shape)."""
    return x.flatten(1 - end.ndim) / end.flatten(1).norm(dim=1)[:, None]


def _gap(parts: Tensor, whole: Tensor) -> float:
    return float(((parts.sum(0) - whole).norm(dim=1) / whole.norm(dim=1).clamp(min=TINY)).median())


def _case(problem: str | Case | ds.ProbabilityFlow, seed: int, starts: int) -> Case:
    if isinstance(problem, Case):
        return problem
    if not isinstance(problem, str):
        return case_of(type(problem).__name__, problem, seed, starts)
    cases = {case.name: case for case in sampling_cases(seed, starts)}
    if problem not in cases:
        raise ds.ProblemError(f"unknown problem {problem!r}; choose from {', '.join(cases)}, or pass a flow")
    return cases[problem]


def _grid(case: Case, schedule: Any, n: int) -> ds.Grid:
    rule, name = ds.get_schedule(schedule)
    if isinstance(rule, ds.Schedule) and not isinstance(rule, ds.Timesteps):
        return case.problem.grid(rule, n, final="none", sigma_min=case.end, sigma_max=case.start, name=name)
    return case.problem.grid(rule, n, final="none", sigma_min=None, sigma_max=None, name=name)


def _part_of(case: Case, rows: slice, nodes: np.ndarray) -> Case:
    """Some of the starts, between the grid's own ends: from the exact states at its first node."""
    first, last = float(nodes[0]), float(nodes[-1])
    x = case.x[rows]
    if first != case.start:
        x = _flow(case, x[None], case.start, first)[0]
    return Case(case.name, case.problem, first, last, x)


@torch.no_grad()
def _flow(case: Case, x: Tensor, start: float, end: float, rtol: float = FINE) -> Tensor:
    """The exact flow of states (k, B, *shape) from sigma = start to end."""
    flat = x.flatten(0, 1)
    if known := getattr(case.problem, "exact", None):
        return known(flat, start, end).reshape(x.shape)
    return Case("", case.problem, start, end, flat, rtol=rtol, atol=rtol / 100).at(end).reshape(x.shape)


def _field(solver: ds.Solver, case: Case) -> ds.RightHandSide:
    return case.problem.field(solver, case.x, range(len(case.x)), 0, 0.0 if solver.stochastic else None)


@torch.no_grad()
def _computed(solver: ds.Solver, case: Case, nodes: np.ndarray) -> Tensor:
    field = _field(solver, case)
    spans = ds.spans_of(ds.Grid(nodes), field)
    return field.leave(_last(ds.march(solver, field, spans, field.enter(case.x, float(nodes[0])))), float(nodes[-1]))


def _error(solver: ds.Solver, case: Case, nodes: np.ndarray) -> float:
    exact = _flow(case, case.x[None], case.start, case.end)[0]
    return float(row_errors(_computed(solver, case, nodes), exact).median())


@torch.no_grad()
def _carried(solver: ds.Solver, case: Case, nodes: np.ndarray) -> tuple[Tensor, Tensor]:
    """Each step's error as made, and as the exact flow carries it to the end: (steps, B, *shape) both.

    Flows through all the computed states so far, and through the start, go along together, one interval at a time.
    """
    field, exact_past = _field(solver, case), solver.history > 0
    flows, state, local = case.x[None], case.x, []
    past: ds.Past = ()
    ends = nodes.tolist()
    for span, start, end in zip(ds.spans_of(ds.Grid(nodes), field), ends, ends[1:], strict=False):
        step = solver.step(field, field.enter(state, start), span, past)
        computed, past = field.leave(step.y, end), step.past
        flows = _flow(case, flows, start, end)
        local.append(computed - flows[0 if exact_past else -1])
        state = flows[0] if exact_past else computed
        flows = torch.cat([flows, computed[None]])
    return torch.stack(local), flows[1:] - (flows[:1] if exact_past else flows[:-1])


@torch.no_grad()
def _replaced(solver: ds.Solver, case: Case, nodes: np.ndarray, rtol: float = FINE) -> Tensor:
    """What it changes at the end that a step is the solver's own, where all before it are exact and all after it the
    solver's: (steps, B, *shape). They sum to the whole error.
    """
    field, ends = _field(solver, case), nodes.tolist()
    spans = ds.spans_of(ds.Grid(nodes), field)
    state, runs = case.x, []
    past: ds.Past = ()
    for i, span in enumerate(spans):
        u = field.enter(state, ends[i])
        runs.append(field.leave(_last(ds.march(solver, field, spans[i:], u, past)), ends[-1]))
        past = solver.step(field, u, span, past).past
        state = _flow(case, state[None], ends[i], ends[i + 1], rtol)[0]
    return torch.stack(runs) - torch.stack([*runs[1:], state])


def _last(states: Iterable[Tensor]) -> Tensor:
    return deque(states, maxlen=1).pop()


def _evened(solver: ds.Solver, case: Case, nodes: np.ndarray) -> np.ndarray:
    """The best grid that a few damped rounds of equal shares lead to: a step of length h makes c h^{p+1}.

    Between nodes the density (share)^{1/(p+1)}/h is taken as constant in log sigma, and new nodes cut its integral into
    equal parts (de Boor 1973, Good approximation by splines with variable knots).
    """
    end = _flow(case, case.x[None], case.start, case.end, ROUGH)[0]
    best, least, trial, logs = nodes, math.inf, nodes, np.log(nodes)
    for round_ in range(ROUNDS + 1):
        parts = _rows(_replaced(solver, case, trial, ROUGH), end)
        error = float(parts.sum(0).norm(dim=1).median())
        if round_ and error < least:
            best, least = trial, error
        sizes = parts.norm(dim=-1).median(1).values.numpy()
        weights = np.maximum(sizes, LEAST * sizes.max()) ** (1 / (solver.order + 1))
        filled = np.concatenate([[0.0], np.cumsum(weights)])
        logs = logs + DAMPING * (np.interp(np.linspace(0, filled[-1], len(logs)), filled, logs) - logs)
        trial = np.exp(logs)
        trial[0], trial[-1] = nodes[0], nodes[-1]
    return best
