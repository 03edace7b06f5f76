"""Frechet distance to real pictures by solver and number of calls, in the form of the papers' FID tables.

The network is `Fashion`, which has not seen the 10,000 test pictures that its samples are measured against; nor has the
classifier whose features are compared. The figures are this classifier's: to be compared with each other alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from diffsolve.errors import ProblemError, did_you_mean
from diffsolve.problems import Fashion

from .quality import MEASURES, QualityReport, sample_quality
from .quality_run import QualityCell

BUDGETS = (5, 8, 10, 15, 20, 30)
OURS = ("euler", "heun", "lms", "dpmpp_2m", "unipc", "damped_abm", "guarded_abm")
PEERS = ("diffusers:DPMSolverMultistepScheduler", "diffusers:UniPCMultistepScheduler")
REFERENCE = ("dpmpp_2m", 60)


@dataclass(frozen=True)
class Section:
    """One table: what is asked of the network, and the rows, each (solver, schedule)."""

    key: str
    title: str
    rows: tuple[tuple[str, str], ...]
    guidance: float = 1.0
    process: str = "edm"
    budgets: tuple[int, ...] = BUDGETS


def _on(schedule: str, solvers: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((solver, schedule) for solver in solvers)


CHURNS = tuple(f"edm_stochastic(churn={churn}, s_tmin=0.05, s_tmax=50)" for churn in (0, 5, 20, 60))
SCHEDULES = ("karras", "lambda", "linspace", "quadratic", "karras(rho=3)")
SECTIONS = (
    Section("unguided", "Unguided, Karras's grid", _on("karras", (*OURS, *PEERS))),
    Section("flow", "The flow-matched form, evenly in its time", _on("linspace", OURS[:1] + OURS[3:]), process="flow"),
    Section("guided", "Guidance 2, Karras's grid", _on("karras", (*OURS, *PEERS)), guidance=2.0),
    Section("guided4", "Guidance 4, Karras's grid", _on("karras", OURS), guidance=4.0),
    Section("schedules", "Schedules, unguided", tuple(
        (solver, schedule) for solver in ("euler", "dpmpp_2m", "guarded_abm") for schedule in SCHEDULES),
        budgets=(5, 10, 20)),
    Section("churn", "Noise on the way, unguided, Karras's grid", _on(
        "karras", ("heun", *CHURNS, "euler_ancestral", "dpmpp_2m_sde")), budgets=(10, 15, 20, 30)),
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A section with the reports of its schedules."""

    section: Section
    reports: tuple[QualityReport, ...]

    @property
    def rows(self) -> Iterator[tuple[str, str, list[QualityCell]]]:
        """(solver, schedule, its cells), as the section lists them."""
        for schedule, report in zip(_schedules(self.section), self.reports, strict=True):
            solvers = [solver for solver, own in self.section.rows if own == schedule]
            width = len(self.section.budgets)
            for i, solver in enumerate(solvers):
                yield solver, schedule, list(report.cells[width * i : width * (i + 1)])


def _schedules(section: Section) -> list[str]:
    return list(dict.fromkeys(schedule for _, schedule in section.rows))


def quality_tables(
    only: Sequence[str] = (), count: int = 1000, *, solvers: Sequence[str] = (), budgets: Sequence[int] = (),
    seed: int = 0, batch: int = 100, progress: bool | None = None,
    done: Callable[[list[Made]], None] = lambda made: None,
) -> list[Made]:  # fmt: skip
    """The sections (some by their keys), each of so many samples a cell, all ten classes alike. Kept: a rerun goes on.

    solvers, budgets: in place of a section's own (solvers on each of its schedules). done: called after each section
    with those there are. Raises ProblemError for a key that does not exist.
    """
    known = {section.key: _asked(section, solvers, budgets) for section in SECTIONS}
    for key in only:
        if key not in known:
            raise ProblemError(f"unknown section {key!r}{did_you_mean(key, known)}")
    made: list[Made] = []
    for section in [known[key] for key in only] or known.values():
        problem = Fashion(list(range(len(Fashion.CLASSES))), section.guidance, process=section.process)
        reports = tuple(
            sample_quality([solver for solver, own in section.rows if own == schedule], schedule, section.budgets,
                           problem, count, seed=seed, batch=batch, reference=REFERENCE, progress=progress)
            for schedule in _schedules(section))  # fmt: skip
        made.append(Made(section, reports))
        done(made)
    return made


def _asked(section: Section, solvers: Sequence[str], budgets: Sequence[int]) -> Section:
    rows = tuple((solver, schedule) for solver in solvers for schedule in _schedules(section))
    return replace(section, rows=rows or section.rows, budgets=tuple(budgets) or section.budgets)


def to_markdown(made: Sequence[Made]) -> str:
    """The page, without its stamp."""
    count = made[0].reports[0].count
    floor = made[0].reports[0].floors
    head = [
        "# Sample quality on Fashion-MNIST\n",
        f"{count} samples a cell, all ten classes alike, seed {made[0].reports[0].seed}; features of the classifier "
        "that ships, against the mean and covariance of all 10,000 test pictures, which neither network has seen. "
        "NFE counts the calls a sample (a guided call asks the network twice). Bold: not told apart from the best of "
        "its column (95 % intervals of the samples). These distances can be compared with each other, at equal counts, "
        "and with no published FID.\n",
        f"As many real training pictures, none shown to the classifier: Frechet distance **{floor['frechet_data']}**, "
        f"precision {floor['precision']}, recall {floor['recall']}.\n",
    ]
    return "\n".join([*head, *(line for each in made for line in _section(each))]) + "\n"


def _section(made: Made) -> Iterator[str]:
    yield f"## {made.section.title}\n"
    own = made.reports[0].reference
    found = {measure: str(own.measures[measure]) for measure in ("frechet_data", "precision", "recall")}
    yield (f"The flow itself ({own.solver}, {own.steps} steps): Frechet distance {found['frechet_data']}, precision "
           f"{found['precision']}, recall {found['recall']}.\n")  # fmt: skip
    yield from _table(made, "frechet_data", MEASURES["frechet_data"])
    yield from _table(made, "precision", "Precision / recall", "recall")


def _table(made: Made, measure: str, title: str, beside: str = "") -> Iterator[str]:
    """A row a solver, a column a number of calls."""
    rows = list(made.rows)
    columns = [[cells[i] for *_, cells in rows] for i in range(len(made.section.budgets))]
    several = len(_schedules(made.section)) > 1
    yield f"{title}, NFE at most:\n"
    yield f"| solver |{' schedule |' if several else ''} " + " | ".join(map(str, made.section.budgets)) + " |"
    yield f"|---|{'---|' if several else ''}" + "---:|" * len(made.section.budgets)
    for solver, schedule, cells in rows:
        texts = [_text(cell, column, measure, beside) for cell, column in zip(cells, columns, strict=True)]
        yield f"| `{solver}` |{f' {schedule} |' if several else ''} " + " | ".join(texts) + " |"
    yield ""


def _text(cell: QualityCell, column: Sequence[QualityCell], measure: str, beside: str) -> str:
    if cell.status != "ok":
        return cell.status
    own = cell.measures[measure]
    if beside:
        return f"{own.value:.2f} / {cell.measures[beside].value:.2f}"
    best = min((c.measures[measure] for c in column if c.status == "ok"), key=lambda e: e.value)
    shown = f"{own.value:.3g}"
    return shown if best.below(own) else f"**{shown}**"
