"""Our solvers against the peers', cell by cell: what is run for the comparison, its figures, and its page.

A cell is a problem at a budget. Its ratio is our least median error over the peers' least, both chosen in hindsight.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import diffsolve as ds

if TYPE_CHECKING:
    from .precision import Cell, WorkPrecisionReport
    from .report import Saved

PEERS = ("diffusers", "k_diffusion", "torchdiffeq", "azula")
SCHEDULES = ("karras", "karras(rho=12)", "exponential")
VARIANTS = (
    # The peers' own methods where the catalogue's rows have other defaults: azula's, DEIS, UniPC, DPM-Solver on eps.
    *(f"lms(order={n}, form={form})" for form in ("sigma", "noise", "v", "data") for n in (2, 3, 4)),
    *(f"unipc(order={n}, variant={b}, form={form})"
      for n in (1, 2, 3) for b in ("bh1", "bh2") for form in ("data", "noise")),
    "dpmpp_2m(form=noise)", "dpmpp_3m_published(form=noise)",
    # Beyond them.
    "lms(order=5, form=v)", "abm(order=5, form=flow)", "abm(order=5, form=data)", "abm(order=5, predictor=4)",
    "damped_abm(order=3)", "damped_abm(tilt=0)", "damped_abm(order=5, reach=2, trust=0.67)",
    "damped_abm(order=5, tilt=0, reach=2, trust=0.67)", "damped_abm(order=5, tilt=1, reach=2, trust=0.67)",
    "damped_abm(order=5, tilt=0.5, reach=2.5, trust=0.8)", "damped_abm(order=6, reach=2, trust=0.67)",
)  # fmt: skip
DEFAULT = f"{ds.ProbabilityFlow.default_solver} {ds.ProbabilityFlow.default_schedule}"
FEW, WON = 8, 0.8  # evaluations from which a cell is held against us, and the ratio at which it is won
TIE = 1.005  # the same method in float32 and in float64 differs by less


def field() -> list[str]:
    """Every deterministic row of the catalogue, and the options that make a row another method."""
    return [row.name for row in ds.list_solvers() if not row.stochastic and row.form in ds.FORMS] + list(VARIANTS)


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


def markdown(done: Sequence[Saved], command: str) -> str:
    """A page of work-precision reports: how it was made, each one's sentences, then each one's table."""
    made = {name: _version(name) for name in ("diffsolve", "torch", "numpy", *PEERS)}
    versions = ", ".join(f"{name.replace('_', '-')} {number}" for name, number in made.items() if number)
    lines = [
        "# Error for cost",
        "",
        f"    {command}",
        "",
        f"{date.today().isoformat()}; {versions}; Python {platform.python_version()}. Median relative error of the "
        "state at sigma_min against the exact flow. Each cell shows the best of ours and the best of the peers in the "
        f"same run, both chosen in hindsight; the last column is {DEFAULT}, what solve() takes by itself, over that "
        f"peer. A tie is a ratio within {TIE - 1:.1%} of 1: mostly the same method.",
    ]
    reports = [read(saved.data) for saved in done]
    everything = [cell for report in reports for cell in versus(report)]
    if len(done) > 1:
        lines += ["", "## All of them", "", *(f"- {line}" for line in summary(everything))]
    for saved, report in zip(done, reports, strict=True):
        cells = versus(report)
        ours, theirs = (len({c.label for c in report.cells if bool(c.peer) == peer}) for peer in (False, True))
        lines += ["", f"## {saved.title[0].upper()}{saved.title[1:]}", ""]
        lines += [f"{ours} pairs of ours, {theirs} of the peers'; {saved.seconds:.0f} s on one core.", ""]
        lines += [f"- {line}" for line in (*summary(cells), *report.notes)]
        for label, mean, share, most in report.against_peers()[:3]:
            figures = f"geometric mean {mean:.2f}, at most {WON:g} in {share:.0%}, largest {most:.2f}"
            lines.append(f"- {label}, for every cell: {figures}")
        lines += ["", "| problem | NFE | our best | error | best peer | error | ratio | default |"]
        lines += ["|" + "---|" * 8]
        for c in cells:
            lines.append(
                f"| {c.problem} | {c.budget} | {c.ours.label} | {c.ours.median:.1e} | {c.peer.label} | "
                f"{c.peer.median:.1e} | {c.ratio:.2f} | {_ratio(c.default_ratio)} |"
            )
    return "\n".join(lines) + "\n"


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _version(package: str) -> str:
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return ""


def read(data: dict[str, Any]) -> WorkPrecisionReport:
    """The report whose `to_json` gave `data`."""
    from .precision import Cell, WorkPrecisionReport

    def cell(kept: dict[str, Any]) -> Cell:
        return Cell(**{k: v for k, v in kept.items() if v is not None or k == "budget"})  # a null was not finite

    cells = tuple(cell(kept) for kept in data["cells"])
    return WorkPrecisionReport(
        cells, tuple(data["budgets"]), data["references"], data["converged"], tuple(data["notes"])
    )
