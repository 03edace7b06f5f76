"""Sample quality beside order: how far samples are from the data, from the exact flow's, and from each other's.

Order is not quality: a solver may be far from the flow and near to the data, or the reverse, so both are measured.
Frechet distances are taken in the features of a small classifier of emoji, which ships; they can be compared with each
other at equal counts, and with nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import diffsolve as ds

from .distances import Estimate
from .quality_run import Exact, QualityCell, Run, is_model, source_of
from .report import as_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCE = ("dpmpp_2m", 200)
MEASURES = {
    "frechet_data": "Frechet distance to the training pictures",
    "frechet_reference": "Frechet distance to the reference's pictures",
    "wasserstein_data": "sliced W2 to true samples",
    "wasserstein_reference": "sliced W2 to the reference's samples",
    "paired": "relative distance to the reference from the same noise, median",
    "psnr": "PSNR to the reference's picture from the same noise, median, dB",
}


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
        sign = -1 if measure == "psnr" else 1
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
        from .quality_plot import plot_quality

        return plot_quality(self)

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
    solvers: Sequence[str | ds.Solver],
    schedule: Any = "karras",
    budgets: Sequence[int] = (5, 10, 20, 50),
    problem: Any = "emoji",
    count: int = 2000,
    *,
    seed: int = 0,
    batch: int = 64,
    reference: tuple[str | ds.Solver, int] = REFERENCE,
    guidance: float = 4.0,
    prompts: Sequence[str] | None = None,
    device: Any = None,
    progress: bool | None = None,
) -> QualityReport:
    """Draw `count` samples with every solver at every budget of evaluations, and measure them against data and flow.

    solvers: names (with options) or Solvers; a stochastic one has no paired distance. problem: a model's name or a
    StableDiffusion, or a flow that knows its data, such as a GaussianMixture. reference: (solver, steps) of what stands
    for the exact flow; the report says how far it is from half as many steps (the default is within 3e-5 of 1,000 steps
    of Heun on the embedded model, at a tenth of their cost). guidance, prompts, device: of a model;
    by default the names of the training pictures in a seeded order, over and over, each its own picture's.
    progress: a bar; by default on a terminal only. Batches of the reference and every cell are kept in the cache folder
    ($DIFFSOLVE_CACHE), so that the call can be stopped and called again.

    Raises ProblemError for a problem without known data, SolverError and GridError for names that do not exist.
    """
    from tqdm.auto import tqdm

    chosen = [ds.get_solver(s) for s in solvers]
    rule, name = ds.get_schedule(schedule)
    source = source_of(problem, count, batch, seed, guidance, prompts, device)
    reference_solver, steps = ds.get_solver(reference[0]), reference[1]
    total = len(source.batches) * (len(chosen) * len(budgets) + 1) + 2
    with tqdm(total=total, unit="batch", disable=None if progress is None else not progress) as bar:
        run = Run(source, (rule, name or str(rule)), seed, bar)
        exact = Exact(run, reference_solver, steps)
        own, error = exact.cell(), exact.error()
        cells = tuple(run.cell(solver, budget, exact) for solver in chosen for budget in budgets)
    guided = guidance if is_model(source) else None
    return QualityReport(source.name, run.rule[1], count, seed, guided, tuple(budgets), cells, own, error,
                         run.floors())  # fmt: skip
