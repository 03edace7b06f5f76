"""Everything at once: every row of the catalogue through every validation, resumable, into one folder and one page."""

from __future__ import annotations

import hashlib
import inspect
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, TypeVar

import diffsolve
from diffsolve import find_solver, get_solver, problems, solvers

from ..cost import error_for_cost
from ..cost.budget import error_budget
from ..cost.precision import work_precision
from ..orders.conditions import validate_conditions
from ..orders.network import FEW, STEPS, network
from ..orders.order import validate_order, within
from ..orders.strong_weak import validate_strong, validate_weak
from ..references import a_mixture
from ..report import JSON, Report, Saved, load, save, write_text
from ..rows import flow_rows
from ..runs import failure
from ..samples.quality import sample_quality
from ..stability.stability import validate_stability
from .page import page, table
from .stamp import content, line

T = TypeVar("T")
R = TypeVar("R")
KINDS = ("conditions", "order", "strong", "weak", "network", "stability", "work-precision", "error", "quality")
QUALITY = ("euler", "heun", "lms", "dpmpp_2m")  # one of each kind: a cell takes minutes of a CPU core
HEADINGS = {
    "conditions": "Order by proof",
    "order": "Order by measurement",
    "strong": "Strong order, along a path",
    "weak": "Weak order, of the distribution",
    "network": "Order on the embedded network",
    "stability": "Stability",
    "work-precision": "Error for cost",
    "error": "Where the error comes from",
    "quality": "Sample quality",
    "likelihood": "Likelihood",
}


@dataclass(frozen=True)
class Task:
    """One report to make: `key` names its files. solver: whose it is, "" where it is of several."""

    key: str
    kind: str
    title: str
    run: Callable[[], Report]
    solver: str = ""


def tasks(kinds: Iterable[str] = KINDS, quick: bool = False) -> Iterator[Task]:
    """What `diffsolve validate all` does, in order; `quick` takes fewer problems, budgets and samples."""
    rows = flow_rows()
    integrators = [row for row in rows if row.order is not None]  # of the others the note says why they claim none
    tame = [row.name for row in rows if not row.stochastic and (row.order or 0) < 7]  # the reference resolves those
    for kind in kinds:
        if kind == "conditions":
            for row in (row for row in integrators if get_solver(row.name).traceable):
                yield Task(f"conditions-{row.name}", kind, row.name, partial(validate_conditions, row.name), row.name)
        elif kind == "order":
            for row in integrators:
                measure = partial(validate_order, row.name, quick=quick)
                yield Task(f"order-{row.name}-as-started", kind, f"{row.name}, as started", measure, row.name)
                if get_solver(row.name).history:
                    exact, title = partial(measure, start="exact"), f"{row.name}, with an exact start"
                    yield Task(f"order-{row.name}-exact-start", kind, title, exact, row.name)
        elif kind in ("strong", "weak"):
            validate = validate_strong if kind == "strong" else validate_weak
            for row in (row for row in rows if getattr(row, kind) is not None):
                yield Task(f"{kind}-{row.name}", kind, row.name, partial(validate, row.name, quick=quick), row.name)
        elif kind == "network" and not quick:
            for row in integrators:
                yield Task(f"network-{row.name}", kind, row.name, partial(_on_the_network, row.name), row.name)
        elif kind == "stability":
            for row in (row for row in rows if get_solver(row.name).traceable):
                yield Task(f"stability-{row.name}", kind, row.name, partial(validate_stability, row.name), row.name)
        elif kind == "work-precision":
            if quick:
                compare = partial(work_precision, budgets=(8, 20), starts=64)
            else:
                field = error_for_cost.field()
                compare = partial(work_precision, field, error_for_cost.SCHEDULES, peers=error_for_cost.PEERS)
            yield Task("work-precision", kind, "five problems", compare)
        elif kind == "error":
            for name in ("euler", "heun", "dpmpp_2m") if quick else tame:
                budget = partial(error_budget, name, "gmm2", starts=16 if quick else 64)
                yield Task(f"error-{name}", kind, f"{name}, 20 Karras steps on a mixture", budget, name)
        elif kind == "quality":
            if quick:
                run = partial(sample_quality, QUALITY, budgets=(5, 20), problem=a_mixture(), count=1000)
            else:
                run = partial(sample_quality, QUALITY, budgets=(5, 10, 20), count=2000, reference=("lms", 60))
            yield Task("quality", kind, "a mixture" if quick else "the embedded model", run)


def _on_the_network(name: str) -> Report:
    # Over so short a range an uneven grid is nearly even, where some methods are better than they claim.
    ns = STEPS if (get_solver(name).order_as_started or 0) < 3 else FEW
    return validate_order(name, network(), ns=ns, above=float("inf"))


def run(
    folder: Path, todo: Iterable[Task], progress: Callable[[Task, Saved], None] | None = None, quick: bool = False
) -> list[Saved]:
    """Make each report that `folder` does not hold yet for this very code; a KeyboardInterrupt keeps those made.

    What a task raises is a finding, not the end of the others; such a report is made again the next time.
    """
    own = fingerprint(quick)
    done = []
    for task in todo:
        saved, mark, began = load(folder, task.key), f"{own}{_of_plugin(task.solver)}", time.perf_counter()
        if saved is None or saved.fingerprint != mark or not (folder / f"{task.key}.png").is_file():
            try:
                report = task.run()
                saved = save(report, folder, task.key, task.kind, task.title, time.perf_counter() - began, mark)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                took, text = round(time.perf_counter() - began, 1), failure(task.solver or task.title, task.kind, error)
                saved = Saved(task.key, task.kind, task.title, False, took, text, {"failed": text})
        done.append(saved)
        if progress is not None:
            progress(task, saved)
    return done


class Spread(Protocol):
    """As `map`."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterable[R]: ...


def mapping(ray: bool) -> Spread:
    """`map`, or the same over a Ray cluster or this machine's cores."""
    spread: Spread = diffsolve.ray.spread if ray else map  # type: ignore[attr-defined]
    return spread


def fingerprint(quick: bool) -> str:
    """A digest of diffsolve's own code: a report made by other code is made again."""
    digest = hashlib.sha256(f"{version('diffsolve')} {quick}".encode())
    rooms = [Path(str(module.__file__)).parent for module in (diffsolve, problems, solvers)]
    for room in (*rooms, Path(__file__).parent.parent):
        for file in sorted(room.rglob("*.py")):
            digest.update(content(file).encode())
    return digest.hexdigest()[:16]


def _of_plugin(solver: str) -> str:
    """What is added to the digest for the source of a solver that is not diffsolve's own."""
    if not solver:
        return ""
    factory = find_solver(solver.partition("(")[0]).factory
    if factory.__module__.startswith("diffsolve."):
        return ""
    try:
        source = Path(str(inspect.getsourcefile(factory))).read_bytes()
    except (OSError, TypeError):  # of a notebook: nobody can tell whether it has changed
        return f"-{time.time()}"
    return f"-{hashlib.sha256(source).hexdigest()[:16]}"


def disagreements(done: Iterable[Saved]) -> list[tuple[str, str]]:
    """(solver, what differs) wherever a row's proof and its claim differ, or its measurement and its proof."""
    found = []
    for name, row in orders(done).items():
        for what in ("exact", "started"):
            claimed, proved, measured = (row.get(f"{what} {kind}") for kind in ("claimed", "proved", "measured"))
            if proved is not None and claimed is not None and proved != claimed:
                found.append((name, f"{what} start: {claimed} claimed, {proved} proved"))
            if proved is not None and measured is not None and not within(measured, proved):
                found.append((name, f"{what} start: {proved} proved, {measured:.2f} measured"))
    return found


def orders(done: Iterable[Saved]) -> dict[str, dict[str, JSON]]:
    """By solver: its orders with an exact start and as started, each claimed, proved and measured where that exists."""
    rows: dict[str, dict[str, JSON]] = {}
    for saved in done:
        data = saved.data
        if "failed" in data:
            continue
        if saved.kind == "conditions":
            rows.setdefault(data["solver"], {}).update({
                "exact claimed": data["claimed"], "exact proved": data["proved"],
                "started claimed": data["started_claimed"], "started proved": data["started_proved"],
            })  # fmt: skip
        elif saved.kind == "order":
            row = rows.setdefault(data["solver"], {})
            row[f"{'exact' if data['start'] == 'exact' else 'started'} measured"] = data["measured"]
    for row in rows.values():
        if row.get("exact claimed") == row.get("started claimed"):
            row.setdefault("exact measured", row.get("started measured"))  # a one-step method has one start
    return rows


def write_page(done: list[Saved], to: Path) -> None:
    """The HTML report of `done`, with the orders side by side and every disagreement and failure listed first."""
    heads = [f"{what} {kind}" for what in ("exact", "started") for kind in ("claimed", "proved", "measured")]
    rows = [[name, *(_cell(row.get(head)) for head in heads)] for name, row in orders(done).items()]
    failed = [(HEADINGS[s.kind], s.title, s.verdict) for s in done if s.passed is not True]
    tables = []
    if rows:
        tables.append(table("Orders: claimed, proved, measured", ["solver", *heads], rows))
        differ = disagreements(done) or [("none", "every proof agrees with the claim and with the measurement")]
        tables.append(table("Disagreements", ["solver", "what differs"], differ))
    tables.append(table("What does not hold", ["kind", "of", "verdict"], failed or [("nothing", "", "")]))
    shown = [Saved(**{**vars(s), "kind": HEADINGS[s.kind]}) for s in done]
    text = (
        f"Made by diffsolve {version('diffsolve')} from {len(done)} reports in "
        f"{sum(s.seconds for s in done):.0f} s. Orders hold with an exact start, and as started from a single state."
    )
    stamp = line("docs/validation.html")
    write_text(to, page(shown, "diffsolve: order and error analysis", text, tables, stamp))


def _cell(value: JSON) -> str:
    whole = value is None or not isinstance(value, float) or value.is_integer()
    return "" if value is None else f"{value:g}" if whole else f"{value:.2f}"


def slug(name: str) -> str:
    """A file's name for a solver's: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
