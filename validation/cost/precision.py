"""Error against cost: every solver on every schedule at equal budgets of evaluations, and the peers beside them.

The error of a cell is the relative error of the state at sigma_min against the exact flow, over many starts: the
median, which is smooth, and the RMS, which jumps when a start ends in another mode.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

import diffsolve as ds

from .error_for_cost import DEFAULT, summary, versus
from .peers import Method, OtherEndsError, check_ends, methods
from .problems import Case
from .references import Reference, reference, row_errors, sampling_cases
from .report import as_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)
LOST = 1.0  # a median relative error above it has nothing to do with the answer
Measure = Literal["median", "rms"]


@dataclass(frozen=True)
class Cell:
    """One run. `budget` is what it might cost, `nfe` what it did; budget is None for an adaptive peer.

    status: "ok"; "diverged" (not finite, or a median error above 1); "too dear" (no grid fits the budget); "other ends"
    (the schedule does not run from sigma_max to sigma_min, so that its error is another thing); "failed".
    peer: whose solver it is, "" for ours.
    """

    problem: str
    solver: str
    schedule: str
    budget: int | None
    peer: str = ""
    nfe: int = 0
    median: float = math.inf
    rms: float = math.inf
    seconds: float = math.nan
    status: str = "ok"
    note: str = ""

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.peer, self.solver, self.schedule)))

    @property
    def key(self) -> tuple[str, str, str, str, int | str]:
        return self.problem, self.peer, self.solver, self.schedule, self.budget or self.note


@dataclass(frozen=True)
class WorkPrecisionReport:
    """All cells, the problems' references (name -> estimate of their own error), and what is worth a note."""

    cells: tuple[Cell, ...]
    budgets: tuple[int, ...]
    references: dict[str, float]
    converged: bool
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """No solver of ours raised, and every reference converged."""
        return self.converged and not any(c.status == "failed" and not c.peer for c in self.cells)

    @property
    def problems(self) -> list[str]:
        return list(dict.fromkeys(c.problem for c in self.cells))

    def at(self, problem: str, budget: int, peers: bool | None = None, measure: Measure = "median") -> list[Cell]:
        """The cells that the budget pays for, best first; an adaptive peer counts once it is cheap enough.

        peers: True for theirs, False for ours, None for both.
        """
        found = [
            c for c in self.cells
            if c.problem == problem and c.status == "ok" and c.nfe <= budget and c.budget in (budget, None)
            and peers in (None, bool(c.peer))
        ]  # fmt: skip
        return sorted(found, key=lambda c: getattr(c, measure))

    def winner(self, problem: str, budget: int, peers: bool | None = False, measure: Measure = "median") -> Cell | None:
        return next(iter(self.at(problem, budget, peers, measure)), None)

    def ranking(self, measure: Measure = "median", peers: bool | None = None) -> list[tuple[str, float]]:
        """(solver and schedule, geometric mean over all cells of its error to the cell's best), the best pair first.

        Only pairs that have an answer in every cell that anyone has one in: what may serve as one default for all.
        """
        ratios: dict[str, list[float]] = {}
        places = [(p, b) for p in self.problems for b in self.budgets if self.at(p, b)]
        for problem, budget in places:
            cells = self.at(problem, budget, None, measure)
            for cell in cells:
                if peers in (None, bool(cell.peer)) and cell.budget is not None:
                    ratio = getattr(cell, measure) / max(getattr(cells[0], measure), 1e-300)
                    ratios.setdefault(cell.label, []).append(ratio)
        whole = {label: _geometric(r) for label, r in ratios.items() if len(r) == len(places)}
        return sorted(whole.items(), key=lambda item: item[1])

    def against_peers(self, measure: Measure = "median") -> list[tuple[str, float, float, float]]:
        """(our solver and schedule, and of its error to the cell's best peer: geometric mean, share of the cells in
        which it is at most 0.8, largest), the best mean first. Only pairs with an answer wherever a peer has one.
        """
        best = {(p, b): w for p in self.problems for b in self.budgets if (w := self.winner(p, b, True, measure))}
        ratios: dict[str, list[float]] = {}
        for (problem, budget), peer in best.items():
            for cell in self.at(problem, budget, False, measure):
                ratio = getattr(cell, measure) / max(getattr(peer, measure), 1e-300)
                ratios.setdefault(cell.label, []).append(ratio)
        rows = [(label, _geometric(r), sum(x <= 0.8 for x in r) / len(r), max(r)) for label, r in ratios.items()
                if len(r) == len(best)]  # fmt: skip
        return sorted(rows, key=lambda row: row[1])

    def to_json(self) -> str:
        """The report as JSON; what is not a number is null."""
        winners = {
            p: {str(b): w.label for b in self.budgets if (w := self.winner(p, b, None))} for p in self.problems
        }
        data = {
            "cells": [asdict(c) for c in self.cells], "budgets": self.budgets, "references": self.references,
            "converged": self.converged, "winners": winners, "ranking": self.ranking(),
            "against_peers": self.against_peers(), "notes": self.notes, "passed": self.passed,
        }  # fmt: skip
        return as_json(data)

    def __str__(self) -> str:
        lines = [f"work-precision, median relative error at sigma_min: {'passed' if self.passed else 'FAILED'}"]
        theirs = any(c.peer for c in self.cells)
        compared = {(c.problem, c.budget): c for c in versus(self)}
        if compared:
            lines.append(f"NFE, our best, the best peer, their ratio, and the ratio of {DEFAULT} to that peer:")
        for problem in self.problems:
            lines.append(f"{problem} (reference {self.references[problem]:.0e})")
            for budget in self.budgets:
                line = f"  {budget:4}  {_named(self.winner(problem, budget)):58}"
                if theirs:
                    line += f"  {_named(self.winner(problem, budget, True)):52}"
                if cell := compared.get((problem, budget)):
                    line += f"  {cell.ratio:.2f}"
                    line += "" if math.isnan(cell.default) else f"  {cell.default_ratio:.2f}"
                lines.append(line.rstrip())
        ranked = self.ranking()
        if ranked:
            lines.append("one pair for every cell (geometric mean of its error to the cell's best):")
            lines += [f"  {ratio:6.2f}  {label}" for label, ratio in ranked[:5]]
        against = self.against_peers()
        if against:
            lines.append("one pair of ours for every cell, its error to the cell's best peer: geometric mean, share of")
            lines.append("cells with at most 0.8, largest:")
            lines += [f"  {mean:6.2f}  {share:4.0%}  {most:6.2f}  {label}" for label, mean, share, most in against[:5]]
        lines += summary(list(compared.values()))
        for status in ("diverged", "too dear", "other ends", "failed"):
            bad = [c for c in self.cells if c.status == status]
            if bad:
                shown = ", ".join(f"{c.label} on {c.problem} at {c.budget}" for c in bad[:6])
                more = ", ..." if len(bad) > 6 else ""
                lines.append(f"{status}: {len(bad)} of {len(self.cells)} cells: {shown}{more}")
        return "\n".join([*lines, *self.notes])

    def plot(self, measure: Measure = "median", against: Literal["nfe", "seconds"] = "nfe", top: int = 5) -> Figure:
        """Error against cost, log-log, one panel a problem: the `top` pairs in colour, the others grey."""
        from .precision_plot import plot_work_precision

        return plot_work_precision(self, measure, against, top)


def _named(cell: Cell | None) -> str:
    return f"{cell.median:.1e}  {cell.label}" if cell else "none"


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(v, 1e-300)) for v in values) / len(values))


def work_precision(
    solvers: Sequence[str | ds.Solver] | None = None,
    schedules: Sequence[str] = ("karras", "exponential"),
    budgets: Sequence[int] = BUDGETS,
    problems: Sequence[Case] | None = None,
    peers: Sequence[str] = (),
    *,
    tags: str = "",
    seed: int = 0,
    starts: int = 256,
    done: Iterable[Cell] = (),
    progress: Callable[[Cell], None] | None = None,
) -> WorkPrecisionReport:
    """Run every solver on every schedule at every budget, and measure each against the exact flow.

    solvers: names (with options) or Solvers; by default every deterministic row that carries all of `tags`
    ("multistep,data"). schedules: names, with options ("karras(rho=12)"). budgets: the most evaluations; each
    solver takes as many steps as they pay for. problems: `sampling_cases(seed, starts)` by default. peers: of
    "diffusers", "k_diffusion", "torchdiffeq", "azula", run on the same problems; one that can't be imported is noted.
    done: cells of an earlier run, which are taken over. progress: called with each new cell.
    """
    rows = [e.name for e in ds.list_solvers(tags) if not e.stochastic] if solvers is None else solvers
    chosen = [ds.get_solver(s) for s in rows]
    others = {peer: methods(peer) for peer in peers}
    notes = tuple(f"{peer} can't be imported: nothing of it was run" for peer, found in others.items() if not found)
    kept = {cell.key: cell for cell in done}
    cells: list[Cell] = []
    estimates: dict[str, float] = {}
    converged = True

    def keep(cell: Cell, run: Callable[[], tuple[Tensor, int, float]]) -> None:
        if cell.key not in kept:
            kept[cell.key] = _measured(cell, run, exact)
            if progress is not None:
                progress(kept[cell.key])
        cells.append(kept[cell.key])

    for case in sampling_cases(seed, starts) if problems is None else problems:
        exact = reference(case)
        estimates[case.name], converged = exact.error, converged and exact.converged
        for solver in chosen:
            for schedule in schedules:
                for budget in budgets:
                    name = solver.name or type(solver).__name__
                    keep(Cell(case.name, name, schedule, budget), _ours(case, solver, schedule, budget))
        for peer, found in others.items():
            for method in found:
                for cell, run in _theirs(case, peer, method, schedules, budgets):
                    keep(cell, run)
    return WorkPrecisionReport(tuple(cells), tuple(budgets), estimates, converged, notes)


class _TooDearError(Exception):
    """The budget pays for no step."""


def _ours(case: Case, solver: ds.Solver, schedule: str, budget: int) -> Callable[[], tuple[Tensor, int, float]]:
    def run() -> tuple[Tensor, int, float]:
        rule, name = ds.get_schedule(schedule)
        one = case.problem.grid(rule, 1, final="none", sigma_min=case.end, sigma_max=case.start, name=name)
        if ds.count_evaluations(solver, one, case.problem) > budget:
            raise _TooDearError
        solution = ds.solve(
            case.problem, solver, schedule, nfe=budget, x=case.x, final="none", sigma_min=case.end, sigma_max=case.start
        )
        check_ends(solution.grid.nodes, case)
        return solution.x, solution.nfe, solution.seconds

    return run


def _theirs(
    case: Case, peer: str, method: Method, schedules: Sequence[str], budgets: Sequence[int]
) -> Iterable[tuple[Cell, Callable[[], tuple[Tensor, int, float]]]]:
    if method.tolerances:
        for rtol in method.tolerances:
            cell = Cell(case.name, method.name, "adaptive", None, peer, note=f"rtol = {rtol:g}")
            yield cell, _counted(case, method, "adaptive", rtol)
        return
    for schedule in schedules:
        if method.schedules is None or schedule in method.schedules:
            for budget in budgets:
                steps = budget // method.calls
                yield Cell(case.name, method.name, schedule, budget, peer), _counted(case, method, schedule, steps)


def _counted(case: Case, method: Method, schedule: str, steps: float) -> Callable[[], tuple[Tensor, int, float]]:
    def run() -> tuple[Tensor, int, float]:
        nfe = 0

        def denoise(y: Tensor, sigma: float) -> Tensor:
            nonlocal nfe
            nfe += 1
            return case.problem.denoise(y, sigma)  # type: ignore[attr-defined]

        if not steps:
            raise _TooDearError
        began = time.perf_counter()
        with torch.no_grad():
            x = method.run(denoise, case, schedule, steps)
        return x, nfe, time.perf_counter() - began

    return run


def _measured(cell: Cell, run: Callable[[], tuple[Tensor, int, float]], exact: Reference) -> Cell:
    head = cell.problem, cell.solver, cell.schedule, cell.budget, cell.peer
    try:
        x, nfe, seconds = run()
    except _TooDearError:
        return Cell(*head, status="too dear")
    except OtherEndsError as error:
        return Cell(*head, status="other ends", note=str(error))
    except ds.NonFiniteError as error:
        return Cell(*head, nfe=error.solution.nfe if error.solution else 0, status="diverged", note=str(error))
    except Exception as error:  # whatever a plugin or a peer raises is a finding, not the end of the run
        return Cell(*head, status="failed", note=f"{type(error).__name__}: {error}")
    if not bool(x.isfinite().all()):
        return Cell(*head, nfe=nfe, seconds=seconds, status="diverged", note="not finite")
    median = float(row_errors(x, exact.state).median())
    rms = float((x.double() - exact.state).norm() / exact.state.norm())
    return Cell(*head, nfe, median, rms, seconds, "ok" if median <= LOST else "diverged", cell.note)
