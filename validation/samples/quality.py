"""Sample quality beside order: how far samples are from the data, from the exact flow's, and from each other's.

Order is not quality: a solver may be far from the flow and near to the data, or the reverse, so both are measured.
Frechet distances are taken in the features of a small classifier of emoji, which ships; they can be compared with each
other at equal counts, and with nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from diffsolve import ProbabilityFlow, Solver, get_schedule, get_solver
from diffsolve.problems import StableDiffusion

from ..palette import COLOURS, MARKERS
from ..report import as_json
from .distances import Estimate
from .quality_run import Exact, QualityCell, Run, is_model, source_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE = ("dpmpp_2m", 200)
SPREAD = 0.06  # how far apart, in octaves of evaluations, the solvers' points of one budget stand at most
DASHES = ("-", "--", ":", "-.")
MEASURES = {
    "frechet_data": "Frechet distance to the data's pictures",
    "precision": "precision: the share of samples that are like real pictures",
    "recall": "recall: the share of real pictures that samples are like",
    "frechet_reference": "Frechet distance to the reference's pictures",
    "wasserstein_data": "sliced W2 to true samples",
    "wasserstein_reference": "sliced W2 to the reference's samples",
    "paired": "relative distance to the reference from the same noise, median",
    "psnr": "PSNR to the reference's picture from the same noise, median, dB",
}


HIGHER = ("psnr", "precision", "recall")  # what is better where it is higher


@dataclass(frozen=True)
class QualityReport:
    """All cells, and what they are read against.

    reference: the reference solver's own cell. reference_error: the paired distance between it and half as many steps,
    which is what the paired distances can be trusted to. floors: what as many perfect samples would show: pictures
    drawn from the training set itself, or two independent true sets.
    """

    problem: str
    schedule: str
    count: int
    seed: int
    guidance: float | None
    budgets: tuple[int, ...]
    cells: tuple[QualityCell, ...]
    reference: QualityCell
    reference_error: Estimate
    floors: Mapping[str, Estimate]

    @property
    def passed(self) -> bool:
        """Every cell that its budget pays for is finite, and no solver raised.

        That the reference is nearest to the data is not asked: where the model errs, an inexact solver may be nearer.
        """
        return not any(cell.status in ("diverged", "failed") for cell in self.cells)

    @property
    def measures(self) -> list[str]:
        return [m for m in MEASURES if any(m in cell.measures for cell in (*self.cells, self.reference))]

    def best(self, measure: str, budget: int) -> QualityCell | None:
        """The cell of that budget which is nearest by that measure."""
        sign = -1 if measure in HIGHER else 1
        found = [c for c in self.cells if c.budget == budget and measure in c.measures]
        return min(found, key=lambda c: sign * c.measures[measure].value, default=None)

    @property
    def notes(self) -> list[str]:
        """Where quality and accuracy part: the nearest at each budget, and what is nearer to the data than the flow."""
        notes, data = [], next((m for m in self.measures if m.endswith("_data")), None)
        for budget in self.budgets:
            flow, near = self.best("paired", budget), self.best(data, budget) if data else None
            if flow and near and data:
                ties = [c for c in self.cells if c.budget == budget and c is not near and data in c.measures
                        and not near.measures[data].below(c.measures[data])]  # fmt: skip
                apart = f" (not told apart from {', '.join(c.solver for c in ties)})" if ties else ""
                notes.append(f"{budget} evaluations: nearest to the flow {flow.solver}, the data {near.solver}{apart}")
        if data and data in self.reference.measures:
            own = self.reference.measures[data]
            nearer = [c for c in self.cells if data in c.measures and c.measures[data].below(own)]
            notes += [f"{c.solver} at {c.budget} is nearer to the data than the reference is" for c in nearer]
        return notes

    def to_json(self) -> str:
        """The report as JSON; what is not a number is null."""
        data = {**asdict(self), "passed": self.passed, "notes": self.notes, "titles": MEASURES}
        return as_json(data)

    def plot(self) -> Figure:
        """Each measure against evaluations, with its intervals; the reference grey, the floor dotted."""
        return _plot(self)

    def __str__(self) -> str:
        own = self.reference
        guided = "" if self.guidance is None else f", guidance {self.guidance:g}"
        head = [
            f"quality of {self.count} samples of {self.problem}, {self.schedule} grid{guided}: "
            f"{'passed' if self.passed else 'FAILED'}",
            f"reference: {own.solver}, {own.steps} steps, within {self.reference_error} of half as many",
            *(f"{m} = {MEASURES[m]}" for m in self.measures),
        ]
        rows = [["solver", "NFE", *self.measures], *(self._row(c.solver, c) for c in self.cells)]
        rows.append(self._row("(reference)", own))
        rows.append(["(perfect samples)", "", *(str(self.floors.get(m, "")) for m in self.measures)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*head, *table, *self.notes])

    def _row(self, name: str, cell: QualityCell) -> list[str]:
        if cell.status != "ok":
            return [name, str(cell.budget), f"{cell.status}: {cell.note}"[:70], *[""] * (len(self.measures) - 1)]
        return [name, str(cell.nfe), *(str(cell.measures.get(m, "")) for m in self.measures)]


def sample_quality(
    solvers: Sequence[str | Solver],
    schedule: object = "karras",
    budgets: Sequence[int] = (5, 10, 20, 50),
    problem: str | StableDiffusion | ProbabilityFlow = "emoji",
    count: int = 2000,
    *,
    seed: int = 0,
    batch: int = 64,
    reference: tuple[str | Solver, int] = REFERENCE,
    guidance: float | None = None,
    prompts: Sequence[str] | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> QualityReport:
    """Draw `count` samples with every solver at every budget of evaluations, and measure them against data and flow.

    solvers: names (with options) or Solvers; a stochastic one has no paired distance. problem: a model's name or a
    StableDiffusion ("emoji" comes with diffsolve), or "fashion" (all ten classes in turn, against the test pictures of
    Fashion-MNIST, which neither network has seen) or a Fashion, or a flow that knows its data, such as a
    GaussianMixture. reference: (solver, steps) of what stands
    for the exact flow; the report says how far it is from half as many steps (the default is within 3e-5 of 1,000 steps
    of Heun on the embedded model, at a tenth of their cost). guidance, prompts, device: of a model's name or a
    StableDiffusion; by default 4 (1 of "fashion"), the names of the training pictures in a seeded order, over and
    over, each its own picture's.
    progress: a bar; by default on a terminal only. Batches of the reference and every cell are kept in the cache folder
    ($DIFFSOLVE_CACHE), so that the call can be stopped and called again.

    Raises ProblemError for a problem without known data, SolverError and GridError for names that do not exist.
    """
    from tqdm.auto import tqdm

    chosen = [get_solver(s) for s in solvers]
    rule, name = get_schedule(schedule)
    source = source_of(problem, count, batch, seed, guidance, prompts, device)
    reference_solver, steps = get_solver(reference[0]), reference[1]
    total = len(source.batches) * (len(chosen) * len(budgets) + 1) + 2
    with tqdm(total=total, unit="batch", disable=None if progress is None else not progress) as bar:
        run = Run(source, (rule, name or str(rule)), seed, bar)
        exact = Exact(run, reference_solver, steps)
        own, error = exact.cell(), exact.error()
        cells = tuple(run.cell(solver, budget, exact) for solver in chosen for budget in budgets)
    guided = getattr(source.batches[0][1], "guidance", None) if is_model(source) else None
    return QualityReport(source.name, run.rule[1], count, seed, guided, tuple(budgets), cells, own, error,
                         run.floors())  # fmt: skip


def _plot(report: QualityReport) -> Figure:
    """A panel a measure: its value against evaluations, bars for 95 %, the reference grey, perfect samples dotted."""
    from matplotlib.figure import Figure

    measures = report.measures
    columns = min(len(measures), 3)
    rows = math.ceil(len(measures) / columns)
    figure = Figure(figsize=(4.6 * columns + 1.8, 3.9 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(measures) :]:
        axis.remove()
    for axis, measure in zip(axes, measures, strict=False):
        _panel(axis, report, measure)
    found = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    solvers = [name for name in dict.fromkeys(c.solver for c in report.cells) if name in found]
    named = {name: found[name] for name in (*solvers, *(f for f in found if f not in solvers))}
    figure.legend(named.values(), named.keys(), fontsize=9, frameon=False, loc="outside right upper")
    guided = "" if report.guidance is None else f", guidance {report.guidance:g}"
    figure.suptitle(f"{report.count} samples of {report.problem}, {report.schedule} grid{guided}; bars: 95 % intervals",
                    fontsize=11)  # fmt: skip
    return figure


def _panel(axis: Axes, report: QualityReport, measure: str) -> None:
    from matplotlib.ticker import NullLocator

    names = list(dict.fromkeys(c.solver for c in report.cells))
    shown: list[float] = []
    for place, name in enumerate(names):
        cells = sorted((c for c in report.cells if c.solver == name and measure in c.measures), key=lambda c: c.nfe)
        if not cells:
            continue
        found = [c.measures[measure] for c in cells]
        aside = 2 ** (SPREAD * (2 * place / max(len(names) - 1, 1) - 1))
        shown += [e.value for e in found]
        axis.errorbar(
            [c.nfe * aside for c in cells], [e.value for e in found],
            yerr=[[max(e.value - e.low, 0) for e in found], [max(e.high - e.value, 0) for e in found]],
            color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)],
            ls=DASHES[place // len(COLOURS) % len(DASHES)], ms=4.5, lw=1.2, elinewidth=1, capsize=2, label=name,
        )  # fmt: skip
    if measure in report.reference.measures:
        own = report.reference
        shown += _level(axis, own.measures[measure], f"reference: {own.solver}, {own.steps} steps", "-", 0.15)
    if measure in report.floors:
        shown += _level(axis, report.floors[measure], "as many perfect samples", ":", 0.0)
    if measure == "paired" and report.reference_error.value > 0:
        shown += _level(axis, report.reference_error, "the reference at half its steps", "--", 0.0)
    positive = [v for v in shown if v > 0]
    if measure not in HIGHER and positive:
        axis.set_yscale("log")
        axis.set_ylim(min(positive) / 1.6, max(positive) * 1.6)
    axis.set_xscale("log", base=2)
    axis.set_xticks(report.budgets, [str(b) for b in report.budgets])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("evaluations (NFE)")
    axis.set_title(MEASURES[measure].replace(", median", "\nmedian", 1), fontsize=9, loc="left")
    axis.grid(alpha=0.25)


def _level(axis: Axes, level: Estimate, label: str, dashes: str, shade: float) -> list[float]:
    axis.axhline(level.value, color="0.45", lw=1, ls=dashes, zorder=0, label=label)
    if shade:
        axis.axhspan(level.low, level.high, color="0.45", alpha=shade, lw=0, zorder=0)
    return [level.value]
