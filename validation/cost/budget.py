"""Where a run's error comes from: each step's local error, what becomes of it at the end, and a grid that evens it out.

The fan of Lady Windermere (Hairer, Norsett & Wanner I, sec. II.3 and III.4): a step's error is carried to the end as
the difference of two runs, and neighbouring differences telescope. For a one-step method the runs go on exactly from
the step's two ends, exact and computed. A multistep method's error goes on through its past as well, so its runs are
its own: exact up to one node, and up to the next.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffsolve import (
    Grid,
    ProbabilityFlow,
    ProblemError,
    Schedule,
    Solver,
    SolverError,
    Timesteps,
    get_schedule,
    get_solver,
)

from ..problems import Case
from ..references import case_of, row_errors, sampling_cases
from ..report import as_json
from ..runs import begin_flow, finish, go_on_from

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FINE, ROUGH = 1e-10, 1e-7  # rtol of the fine flow, for what is reported and for the search of a grid
ROUNDS, DAMPING = 4, 0.7  # of the search for a grid with equal shares
TINY = 1e-300
LEAST = 1e-4  # of the largest part: a step at which an error happens to vanish is not made endless
LONG, SHORT = 2.0, 0.5  # times the even share: steps that are too long, or could be longer
COLOURS = {"too long": "#d1495b", "": "#5b8db8", "could be longer": "#b9d3b0"}


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
        return _plot(self)


def error_budget(
    solver: str | Solver,
    problem: str | Case | ProbabilityFlow = "gmm2",
    schedule: object = "karras",
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
    method, case = get_solver(solver), _case(problem, seed, starts)
    if len(case.x) < 2:
        raise SolverError(f"an error budget needs at least 2 starts, got {len(case.x)}")
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


def _case(problem: str | Case | ProbabilityFlow, seed: int, starts: int) -> Case:
    if isinstance(problem, Case):
        return problem
    if not isinstance(problem, str):
        return case_of(type(problem).__name__, problem, seed, starts)
    cases = {case.name: case for case in sampling_cases(seed, starts)}
    if problem not in cases:
        raise ProblemError(f"unknown problem {problem!r}; choose from {', '.join(cases)}, or pass a flow")
    return cases[problem]


def _grid(case: Case, schedule: object, n: int) -> Grid:
    rule, name = get_schedule(schedule)
    if isinstance(rule, Schedule) and not isinstance(rule, Timesteps):
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


@torch.no_grad()
def _computed(solver: Solver, case: Case, nodes: np.ndarray) -> Tensor:
    return finish(begin_flow(case.problem, solver, nodes, case.x))


def _error(solver: Solver, case: Case, nodes: np.ndarray) -> float:
    exact = _flow(case, case.x[None], case.start, case.end)[0]
    return float(row_errors(_computed(solver, case, nodes), exact).median())


@torch.no_grad()
def _carried(solver: Solver, case: Case, nodes: np.ndarray) -> tuple[Tensor, Tensor]:
    """Each step's error as made, and as the exact flow carries it to the end: (steps, B, *shape) both.

    Flows through all the computed states so far, and through the start, go along together, one interval at a time.
    """
    run, exact_past = begin_flow(case.problem, solver, nodes, case.x), solver.history > 0
    flows, local = case.x[None], []
    for start, end in pairwise(nodes.tolist()):
        if exact_past:
            go_on_from(run, flows[0])
        run.step()
        computed = run.solution.x
        flows = _flow(case, flows, start, end)
        local.append(computed - flows[0 if exact_past else -1])
        flows = torch.cat([flows, computed[None]])
    return torch.stack(local), flows[1:] - (flows[:1] if exact_past else flows[:-1])


@torch.no_grad()
def _replaced(solver: Solver, case: Case, nodes: np.ndarray, rtol: float = FINE) -> Tensor:
    """What it changes at the end that a step is the solver's own, where all before it are exact and all after it the
    solver's: (steps, B, *shape). They sum to the whole error.
    """
    run, state, ends = begin_flow(case.problem, solver, nodes, case.x), case.x, []
    for start, end in pairwise(nodes.tolist()):
        go_on_from(run, state)
        rest = begin_flow(case.problem, solver, nodes, case.x)
        rest.resume(run.state)
        ends.append(finish(rest))
        run.step()
        state = _flow(case, state[None], start, end, rtol)[0]
    return torch.stack(ends) - torch.stack([*ends[1:], state])


def _evened(solver: Solver, case: Case, nodes: np.ndarray) -> np.ndarray:
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
        weights = np.maximum(sizes, LEAST * sizes.max()) ** (1 / ((solver.order or 1) + 1))
        filled = np.concatenate([[0.0], np.cumsum(weights)])
        logs = logs + DAMPING * (np.interp(np.linspace(0, filled[-1], len(logs)), filled, logs) - logs)
        trial = np.exp(logs)
        trial[0], trial[-1] = nodes[0], nodes[-1]
    return best


def _plot(report: ErrorBudgetReport) -> Figure:
    """The share of each step over log sigma, the suggested nodes under it, and the errors before and at the end."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(9.5, 6.6), layout="constrained")
    bars, errors = figure.subplots(2, 1, sharex=True, height_ratios=(1.4, 1))
    starts, ends = np.array(report.nodes[:-1]), np.array(report.nodes[1:])
    verdicts = [report.verdict(i) for i in report.intervals]
    shares = [i.share for i in report.intervals]
    bars.bar(ends, shares, starts - ends, align="edge", color=[COLOURS[v] for v in verdicts], edgecolor="white")
    bars.axhline(1 / len(shares), color="0.3", linestyle="--", linewidth=1)
    bars.annotate("even share", (0, 1 / len(shares)), xycoords=("axes fraction", "data"), ha="left", va="bottom",
                  xytext=(4, 2), textcoords="offset points", color="0.3", fontsize=9)  # fmt: skip
    bars.plot(report.nodes, [0.0] * len(report.nodes), "|", color="0.55", markersize=6)
    floor = -0.07 * max(shares)
    bars.plot(report.evened, [floor] * len(report.evened), "|", color="black", markersize=9)
    bars.annotate("nodes with even shares", (0.995, floor), xycoords=("axes fraction", "data"), ha="right", va="top",
                  xytext=(0, -6), textcoords="offset points", fontsize=8.5)  # fmt: skip
    bars.set(ylabel="share of the error at the end", ylim=(2.6 * floor, 1.1 * max(shares)))
    bars.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%" if value >= 0 else "")
    named = {"too long": "too long (over twice the even share)", "": "in between",
             "could be longer": "could be longer (under half of it)"}  # fmt: skip
    bars.legend(handles=[Patch(color=COLOURS[v], label=named[v]) for v in COLOURS if v in verdicts], fontsize=9)
    centre = np.sqrt(starts * ends)
    errors.plot(centre, [i.local for i in report.intervals], "o-", color="#8d8d8d", markersize=4,
                label="made in the step")  # fmt: skip
    errors.plot(centre, [i.propagated for i in report.intervals], "s-", color="#1b6ca8", markersize=4,
                label="of that, at the end")  # fmt: skip
    errors.axhline(report.error, color="black", linewidth=0.8, linestyle=":", label=f"whole: {report.error:.1e}")
    errors.set(xscale="log", yscale="log", xlabel="σ (the run goes from left to right)", ylabel="median relative error")
    errors.set_xlim(report.nodes[0] * 1.06, report.nodes[-1] / 1.06)
    errors.legend(fontsize=9)
    errors.grid(color="0.92")
    result = f"even shares: {report.before:.2e} → {report.after:.2e} on other starts"
    figure.suptitle(f"{report.name}, {report.schedule}, {len(shares)} steps on {report.problem}; {result}"
                    + ("" if report.kept else " (no better)"))  # fmt: skip
    return figure
