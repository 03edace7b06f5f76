"""Solvers, schedules and problems by name: what is registered here or found through entry points.

The kernel knows no concrete solver: the built-in ones come through the entry point group `diffsolve.solvers`, as any
plugin's do, see `diffsolve.register`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .deprecated import former_claims
from .errors import GridError, ProblemError, SolverError, did_you_mean
from .form import FORMS
from .grid import Schedule, Tabulated, explicit
from .problem import Problem, Uniform
from .register import F, Owner, Register, instance, key, make, parse, points
from .solver import Solver
from .validate import text_of, whole

Factory = Callable[..., Solver]


@dataclass(frozen=True)
class SolverEntry:
    """One row of the catalogue: how to make a solver, what is claimed of it, and its names elsewhere, by peer.

    claims: order, order_as_started, strong, weak, form, stages, stochastic, source, as far as the row says more than
    the solver itself. `solver` is the row's own, without options; it knows the rest.
    """

    name: str
    factory: Factory
    claims: Mapping[str, Any]
    aliases: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    note: str = ""

    @cached_property
    def solver(self) -> Solver:
        """The solver of this row, without options."""
        return self.build()

    def __getattr__(self, name: str) -> Any:
        """order, order_as_started, strong, weak, form, stages, stochastic, source: the solver's."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.solver, name)

    def build(self, **options: object) -> Solver:
        """A new solver of this row; `form` may be set for every row of a flow, other options are the factory's own."""
        asked, own = options.pop("form", None), self.claims["form"]
        if asked is not None and (own is None or not isinstance(asked, str) or asked not in FORMS):
            raise SolverError(f"unknown form {asked!r} for {self.name}{did_you_mean(asked, FORMS if own else ())}")
        made = make(self.factory, options, self.name, SolverError, "form")
        if not isinstance(made, Solver):
            raise SolverError(f"{self.name} built a {type(made).__name__}, expected a diffsolve.Solver")
        # a wrapper has the form of the solver inside
        form = asked or (vars(made).get("form", own) if own else None)
        shown = options if asked in (None, own) else options | {"form": asked}
        given = ", ".join(f"{k}={v}" for k, v in shown.items())
        claims = dict(self.claims)
        order = None if claims["order"] is None else made.order or claims["order"]
        as_started = made.order_as_started or (claims["order_as_started"] if order == claims["order"] else order)
        stages = made.stages if options or not claims["stages"] else max(made.stages or 0, claims["stages"])
        return made.with_changes(
            name=f"{self.name}({given})" if given else self.name, form=form, source=claims["source"], order=order,
            order_as_started=None if order is None else min(as_started or order, order), stages=stages,
            stochastic=made.stochastic or claims["stochastic"] or (form is not None and FORMS[form].stochastic),
            strong=claims["strong"], weak=claims["weak"],
            adaptive_form=made.adaptive_form if asked is None and form == made.form else None,
        )  # fmt: skip


def register_solver(
    name: str,
    *,
    order: int | None,
    form: str | None = "sigma",
    source: str,
    order_as_started: int | None = None,
    stages: int | None = None,
    stochastic: bool = False,
    aliases: Mapping[str, str] | None = None,
    tags: tuple[str, ...] = (),
    note: str = "",
    strong: float | None = None,
    weak: float | None = None,
    **former: Any,
) -> Callable[[F], F]:
    """Decorate a Solver class, or a function that returns a Solver, to give it a name everywhere.

    order: claimed order with an exact start, None for what is no integrator; order_as_started: as started from one
    state (default: the same). strong, weak: claimed orders of a stochastic solver on the reverse SDE. form: see FORMS,
    None for a method of a problem whose states are not of a flow. aliases: peer -> its name there. Registering a name
    again replaces it (a notebook cell that is run twice); a name that another module holds is refused.
    """
    order_as_started, order = former_claims(former, order_as_started, order)
    owner = Owner.calling()
    if form is not None and form not in FORMS:
        raise SolverError(f"unknown form {form!r} for {name}{did_you_mean(form, FORMS)}")
    for claim in (order, order_as_started):
        if claim is not None:
            whole(claim, f"the order of {name}")

    claims = _claims(
        order=order, order_as_started=order_as_started, form=form, stages=stages, stochastic=stochastic,
        source=source, strong=strong, weak=weak,
    )  # fmt: skip
    known, labels = dict(aliases or {}), tags if isinstance(tags, tuple | list) else (tags,)
    for text in (source, note, *known, *known.values(), *labels):
        if not isinstance(text, str):
            raise SolverError(f"source, note, tags and aliases of {name} are texts, got {text!r}")

    def entry(made: Factory) -> SolverEntry:
        row = SolverEntry(name, made, claims, known, tuple(labels), note)
        if owner.package != "diffsolve":  # here, where it is the plugin's own affair, not in every list of rows
            _ = row.solver
        return row

    return SOLVERS.decorator(name, owner, known, entry)


def _claims(**given: object) -> dict[str, Any]:
    """What a row says of its solver, with what it leaves out."""
    claims = {"order_as_started": None, "stages": None, "stochastic": False, "strong": None, "weak": None} | given
    if claims["order_as_started"] is None:
        claims["order_as_started"] = claims["order"]
    return claims


def library_entry(name: str, factory: Factory, **claims: object) -> SolverEntry:
    """The row of another library's method, for what an entry point of `diffsolve.libraries` hands back."""
    return SolverEntry(name, factory, _claims(**claims), tags=("library",))


def _solver_row(name: str, found: object, owner: Owner) -> SolverEntry | None:
    """A row for an entry point that names a Solver class or a function that makes one, and has not registered it."""
    if any(entry.factory is found for entry in SOLVERS.entries.values()):
        return None
    solver: Solver = instance(found, Solver, SolverError)
    if solver.order is None and not any("order" in vars(c) for c in (solver, *type(solver).__mro__) if c is not Solver):
        raise SolverError(f"{type(solver).__name__} says no order: let it have `order = 2`, or None if it has none")
    claims = _claims(
        order=solver.order, order_as_started=solver.order_as_started, stages=solver.stages, form=solver.form,
        stochastic=solver.stochastic, source=solver.source or owner.module,
    )  # fmt: skip
    return SolverEntry(name, found if callable(found) else lambda: copy(solver), claims)


SOLVERS = Register[SolverEntry]("solver", "diffsolve.solvers", SolverError, _solver_row, ".:-")
"""The rows of the catalogue."""


def solver_entries() -> Iterator[SolverEntry]:
    """Every row of the catalogue, plugins included, by name."""
    yield from (SOLVERS[name] for name in sorted(SOLVERS))


def list_solvers(tags: str | tuple[str, ...] = ()) -> list[SolverEntry]:
    """The rows that carry all of `tags` (a comma-separated string or a tuple); all rows by default."""
    wanted = tuple(t for t in tags.split(",") if t) if isinstance(tags, str) else tags
    if not isinstance(wanted, list | tuple | set) or not all(isinstance(tag, str) for tag in wanted):
        raise SolverError(f"tags are names, such as ('multistep',) or 'multistep,embedded', got {tags!r}")
    return [e for e in solver_entries() if all(t.strip() in (*e.tags, e.form) for t in wanted)]


def find_solver(name: str) -> SolverEntry:
    """The row of a canonical name or of a peer's name for it, or of another library's method, "torchdiffeq:dopri5".

    Raises SolverError with the nearest right name.
    """
    if not isinstance(name, str):
        return SOLVERS.find(name)
    library, colon, method = name.partition(":")
    if colon and SOLVERS.canonical(name) is None:
        return _library(library.strip().lower())(method.strip())
    found, schedule = SOLVERS.canonical(name), key(name).rpartition("_")[2]
    if found is None and SCHEDULES.canonical(schedule):  # as A1111 once named its pairs
        solver = SOLVERS.canonical(key(name).removesuffix(f"_{schedule}"))
        if solver is not None:
            raise SolverError(f"{name!r} is a solver and a schedule; take solver={solver!r}, schedule={schedule!r}")
    return SOLVERS.find(name)


def _library(name: str) -> Callable[[str], SolverEntry]:
    """method -> row, of a library that an entry point of the group `diffsolve.libraries` names."""
    known = points("diffsolve.libraries")
    if name not in known:
        raise SolverError(f"unknown library {name!r}{did_you_mean(name, known)}")
    if find_spec(name) is None:
        raise SolverError(f"{name} is not installed; pip install {name}")
    found: Callable[[str], SolverEntry] = known[name].open(SolverError)
    return found


def get_solver(solver: str | Solver) -> Solver:
    """A Solver from its name, a name with options, or itself. Raises SolverError."""
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, type) and issubclass(solver, Solver):
        raise SolverError(f"pass a solver object, {solver.__name__}(), not the class")
    if not isinstance(solver, str):
        raise SolverError(f"a solver is a name or a diffsolve.Solver, got {type(solver).__name__}")
    name, options = parse(solver)
    return find_solver(name).build(**options)


named_solver = SOLVERS.cached(get_solver)
"""The same of a name, made once: for whoever hands it to nobody, since a solver can be changed."""


@dataclass(frozen=True)
class ScheduleEntry:
    """A named schedule: how to make it, its names elsewhere, and where it comes from."""

    name: str
    factory: Callable[..., object]
    aliases: Mapping[str, str]
    source: str


def register_schedule(
    name: str, *, source: str, aliases: Mapping[str, str] | None = None
) -> Callable[[F], F]:
    """Decorate a Schedule class, or a function that returns one, to give it a name. aliases: peer -> its name."""
    known = dict(aliases or {})
    return SCHEDULES.decorator(name, Owner.calling(), known, lambda made: ScheduleEntry(name, made, known, source))


def _schedule_row(name: str, found: object, owner: Owner) -> ScheduleEntry | None:
    """A row for an entry point that names a Schedule class or a function that makes one."""
    if any(entry.factory is found for entry in SCHEDULES.entries.values()):
        return None
    made = instance(found, Schedule, GridError)
    return ScheduleEntry(name, found if callable(found) else lambda: made, {}, owner.module)


SCHEDULES = Register[ScheduleEntry]("schedule", "diffsolve.schedules", GridError, _schedule_row)
"""The named schedules."""


GRID_FILE = "diffsolve_grid"
"""What says in a JSON file, by the version that it has, that it is a schedule: the table under "sigmas"."""


def list_schedules() -> list[ScheduleEntry]:
    """Every named schedule, by name."""
    return [SCHEDULES[name] for name in sorted(SCHEDULES)]


def get_schedule(schedule: object) -> tuple[object, str]:
    """(schedule object, name) from a name such as "karras" or "karras(rho=5)", or from the name of a file of
    `diffsolve tune` ("grid.json"); anything else is handed back as it is.

    Raises GridError with the nearest right name.
    """
    if not isinstance(schedule, str):
        return schedule, ""
    return _grid_file(schedule) if schedule.endswith(".json") else named_schedule(schedule)


@SCHEDULES.cached
def named_schedule(schedule: str) -> tuple[object, str]:
    """The schedule of a name, made once, and that name."""
    name, options = parse(schedule)
    entry = SCHEDULES.find(name)
    made = make(entry.factory, options, f"schedule {entry.name!r}", GridError)
    return made, entry.name + schedule[schedule.index("(") :].strip() if options else entry.name


def _grid_file(path: str) -> tuple[Tabulated, str]:
    try:
        told = json.loads(text_of(path))
        if not isinstance(told, dict) or told.get(GRID_FILE) != 1:
            raise GridError(f"it has no {GRID_FILE!r} of 1")
        sigmas = told.get("sigmas")
        if not isinstance(sigmas, list):
            raise GridError(f"its 'sigmas' are {sigmas!r}, expected a list of sigmas")
        return Tabulated(tuple(explicit(sigmas).tolist())), Path(path).name
    except (OSError, ValueError, GridError, TypeError, RecursionError) as error:
        said = getattr(error, "strerror", None) or error
        raise GridError(f"{path} can't be read as a schedule ({said}); give a file of `diffsolve tune`") from error


register_schedule("uniform", source="evenly spaced times of an ODE problem")(Uniform)


@dataclass(frozen=True)
class Choice:
    """What is chosen for a solve, by name, and why, in words; of the schedule None is the problem's own."""

    solver: str
    schedule: str | None
    why: str


Chooser = Callable[..., Choice]
"""(problem, calls, tolerant) -> Choice; tolerant: the steps are to be chosen by their error, and calls are not read.
kind="guided" with None for a problem: guidance is put on outside."""


def register_chooser(name: str) -> Callable[[F], F]:
    """Decorate a Chooser to give it a name that `solve` takes in a solver's place."""
    return CHOOSERS.decorator(name, Owner.calling())


CHOOSERS = Register[Chooser]("chooser", "diffsolve.choosers", SolverError, lambda _, found, __: found)
"""What chooses a solver and a schedule, such as "auto"."""
chooses = CHOOSERS.cached(CHOOSERS.__contains__)
"""Whether a name is one of them."""


def choose(
    problem: Problem, solver: str | Solver | None, schedule: object, n: int, nfe: int | None, tolerant: bool
) -> tuple[str | Solver | None, object, int | None, str]:  # fmt: skip
    """(solver, schedule, nfe, why) of a solve, chosen where `solver` names a chooser; n is then a number of calls."""
    if not (isinstance(solver, str) and chooses(solver)):
        return solver, schedule, nfe, ""
    calls = whole(n if nfe is None else nfe, "nfe")
    found = CHOOSERS[solver](problem, calls, tolerant)
    return found.solver, found.schedule if schedule is None else schedule, nfe if tolerant else calls, found.why


def list_problems() -> list[str]:
    """Names of the problems that are installed (entry point group `diffsolve.problems`)."""
    return sorted(points("diffsolve.problems"))


def get_problem(name: str) -> Any:
    """The problem class that `name` stands for. Raises ProblemError with the nearest right name."""
    known = points("diffsolve.problems")
    if not isinstance(name, str) or key(name) not in known:
        raise ProblemError(f"unknown problem {name!r}{did_you_mean(name, known)}")
    return known[key(name)].open(ProblemError)
