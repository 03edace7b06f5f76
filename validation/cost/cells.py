"""Error against cost, cell by cell: what a run found, ours beside the peers', in figures and in a picture.

A cell is a problem at a budget. Its ratio is our least median error over the peers' least, both chosen in hindsight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from diffsolve.problems import Gaussian

from ..report import as_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measure = Literal["median", "rms"]
DEFAULT = f"{(flow := Gaussian([0.0])).default_solver} {flow.default_schedule}"
FEW, WON = 8, 0.8  # evaluations from which a cell is held against us, and the ratio at which it is won
TIE = 1.005  # the same method in float32 and in float64 differs by less
COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#c98a1b", "#8d5a97", "#2a9d8f", "#6b705c", "#b5179e")
MARKERS = "osD^vPX*"


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
        return _plot(self, measure, against, top)


def _named(cell: Cell | None) -> str:
    return f"{cell.median:.1e}  {cell.label}" if cell else "none"


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(v, 1e-300)) for v in values) / len(values))


@dataclass(frozen=True)
class Versus:
    """One cell: our best and the best peer's, and the error there of the pair that `solve` takes by itself."""

    problem: str
    budget: int
    ours: Cell
    peer: Cell
    default: float

    @property
    def ratio(self) -> float:
        return self.ours.median / max(self.peer.median, 1e-300)

    @property
    def default_ratio(self) -> float:
        """nan where the default was not run, or lost."""
        return self.default / max(self.peer.median, 1e-300)


def versus(report: WorkPrecisionReport) -> list[Versus]:
    """Every cell in which both have an answer."""
    found = []
    for problem in report.problems:
        for budget in report.budgets:
            ours, theirs = report.at(problem, budget, False), report.at(problem, budget, True)
            if ours and theirs:
                default = next((c.median for c in ours if c.label == DEFAULT), math.nan)
                found.append(Versus(problem, budget, ours[0], theirs[0], default))
    return found


def summary(cells: Sequence[Versus]) -> list[str]:
    """The shares, the worst cell, and the default's mean, a sentence each; nothing where no peer was run."""
    if not cells:
        return []
    won = sum(c.ratio <= WON for c in cells)
    held = [c for c in cells if c.budget >= FEW]
    above = [f"{c.problem} at {c.budget} ({c.ratio:.2f})" for c in held if c.ratio > TIE]
    tied = sum(1 / TIE <= c.ratio <= TIE for c in cells)
    lines = [
        f"our best pair of each cell to the best peer: at most {WON:g} in {won} of {len(cells)} cells, a tie in {tied}",
        f"from {FEW} evaluations on above 1: {', '.join(above) or 'nowhere'}"
        + (f"; the largest {max(c.ratio for c in held):.2f}" if held else ""),
    ]
    defaults = [c.default_ratio for c in cells if not math.isnan(c.default)]
    if len(defaults) == len(cells):
        mean = math.exp(sum(math.log(max(r, 1e-300)) for r in defaults) / len(defaults))
        lines.append(f"{DEFAULT}, the default of solve(), to each cell's best peer: geometric mean {mean:.2f}, "
                     f"at most {WON:g} in {sum(r <= WON for r in defaults)}, largest {max(defaults):.2f}")  # fmt: skip
    elif defaults:
        lines.append(f"{DEFAULT}, the default of solve(), has no answer in {len(cells) - len(defaults)} cells")
    return lines


def _plot(report: WorkPrecisionReport, measure: Measure, against: str, top: int) -> Figure:
    """Error against cost, log-log, one panel a problem: the `top` pairs in colour, the others grey."""
    from matplotlib.figure import Figure

    count = len(report.problems)
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(5.2 * columns, 4.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.remove()
    for axis, problem in zip(axes, report.problems, strict=False):
        _panel(axis, report, problem, measure, against, top)
    figure.suptitle(f"error against cost: {measure} relative error at sigma_min (dashed: peers; ×: diverged)")
    return figure


def _panel(axis: Axes, report: WorkPrecisionReport, problem: str, measure: Measure, against: str, top: int) -> None:
    lines: dict[str, list[Cell]] = {}
    for cell in report.cells:
        if cell.problem == problem and cell.status in ("ok", "diverged") and 0 < cell.nfe <= max(report.budgets):
            lines.setdefault(cell.label, []).append(cell)
    best = _leaders(report, problem, measure)[:top]
    shown = [getattr(c, measure) for cells in lines.values() for c in cells if c.status == "ok"]
    if not shown:
        axis.set_title(f"{problem}: nothing converged")
        return
    ceiling = min(3 * max(shown), 3.0)
    for label, cells in lines.items():
        cells.sort(key=lambda c: c.nfe)
        good = [c for c in cells if c.status == "ok"]
        x, y = [getattr(c, against) for c in good], [getattr(c, measure) for c in good]
        style = "--" if cells[0].peer else "-"
        if label in best:
            place = best.index(label)
            colour = COLOURS[place % len(COLOURS)]
            axis.plot(x, y, style, color=colour, marker=MARKERS[place % len(MARKERS)], markersize=4.5, linewidth=1.8,
                      label=label, zorder=3 + top - place)  # fmt: skip
        else:
            axis.plot(x, y, style, color="0.78", linewidth=0.8, zorder=1)
        lost = [getattr(c, against) for c in cells if c.status == "diverged"]
        colour = COLOURS[best.index(label) % len(COLOURS)] if label in best else "0.6"
        axis.plot(lost, [ceiling] * len(lost), "x", color=colour, markersize=5, zorder=2)
    axis.set(xscale="log", yscale="log", title=problem, ylabel=f"{measure} error", ylim=(min(shown) / 2, 1.3 * ceiling),
             xlabel="evaluations (NFE)" if against == "nfe" else "seconds")  # fmt: skip
    if against == "nfe":
        axis.set_xticks(report.budgets, [str(b) for b in report.budgets])
        axis.minorticks_off()
        fewest = min(c.nfe for cells in lines.values() for c in cells)
        axis.set_xlim(0.9 * max(fewest, 0.7 * min(report.budgets)), 1.1 * max(report.budgets))
    axis.grid(color="0.92", zorder=0)
    order = {label: i for i, label in enumerate(best)}
    handles = sorted(zip(*axis.get_legend_handles_labels(), strict=True), key=lambda item: order[item[1]])
    axis.legend([h for h, _ in handles], [name for _, name in handles], fontsize=8, loc="lower left")


def _leaders(report: WorkPrecisionReport, problem: str, measure: Measure) -> list[str]:
    """Labels by how near they stay to the best of each budget, those with an answer at more budgets first."""
    logs: dict[str, list[float]] = {}
    for budget in report.budgets:
        cells = report.at(problem, budget, None, measure)
        for cell in cells:
            if cell.budget is not None:
                least = max(getattr(cells[0], measure), 1e-300)
                logs.setdefault(cell.label, []).append(math.log(max(getattr(cell, measure), 1e-300) / least))
    return sorted(logs, key=lambda label: (-len(logs[label]), sum(logs[label]) / len(logs[label])))
