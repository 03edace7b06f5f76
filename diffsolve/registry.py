"""Names: solvers, schedules and problems, registered here or found through entry points, looked up with did-you-mean.

The kernel knows no concrete solver: the built-in ones come through the entry point group `diffsolve.solvers`, as any
plugin's do. An entry point names either a module whose import registers solvers, or a Solver class or factory.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import Any, TypeVar

from .deprecated import former_claims
from .errors import DiffsolveError, GridError, ProblemError, SolverError, did_you_mean
from .forms import FORMS
from .problem import Uniform
from .solver import Solver
from .validate import whole

Factory = Callable[..., Solver]
T = TypeVar("T", bound=Factory)
ScheduleFactory = TypeVar("ScheduleFactory", bound=Callable[..., Any])


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

    def build(self, **options: Any) -> Solver:
        """A new solver of this row; `form` may be set for every row of a flow, other options are the factory's own."""
        asked, own = options.pop("form", None), self.claims["form"]
        if asked is not None and (own is None or asked not in FORMS):
            raise SolverError(f"unknown form {asked!r} for {self.name}{did_you_mean(asked, FORMS if own else ())}")
        made = _make(self.factory, options, self.name, SolverError, "form")
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
        )  # fmt: skip


_solvers: dict[str, SolverEntry] = {}
_aliases: dict[str, str] = {}


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
) -> Callable[[T], T]:
    """Decorate a Solver class, or a function that returns a Solver, to give it a name everywhere.

    order: claimed order with an exact start, None for what is no integrator; order_as_started: as started from one
    state (default: the same). strong, weak: claimed orders of a stochastic solver on the reverse SDE. form: see FORMS,
    None for a method of a problem whose states are not of a flow. aliases: peer -> its name there. Registering a name
    again replaces it (a notebook cell that is run twice); a name that another module holds is refused.
    """
    order_as_started, order = former_claims(former, order_as_started, order)
    if not re.fullmatch(r"[a-z][a-z0-9_.:\-]*", name):
        raise SolverError(f"a solver's name is lower-case letters, digits and _.:-, got {name!r}")
    if form is not None and form not in FORMS:
        raise SolverError(f"unknown form {form!r} for {name}{did_you_mean(form, FORMS)}")
    for claim in (order, order_as_started):
        if claim is not None:
            whole(claim, f"the order of {name}")

    def keep(factory: T) -> T:
        held = _solvers.get(name)
        if held is not None and held.factory.__module__ != factory.__module__:
            raise SolverError(f"the solver name {name!r} is taken by {held.factory.__module__}; choose another")
        claims = _claims(
            order=order, order_as_started=order_as_started, form=form, stages=stages, stochastic=stochastic,
            source=source, strong=strong, weak=weak,
        )  # fmt: skip
        entry = SolverEntry(name, factory, claims, dict(aliases or {}), tags, note)
        _solvers[name] = entry
        named_solver.cache_clear()
        for alias in entry.aliases.values():
            for part in alias.split(", "):
                _aliases.setdefault(_key(part), name)
        return factory

    return keep


def _claims(**given: Any) -> dict[str, Any]:
    """What a row says of its solver, with what it leaves out."""
    claims = {"order_as_started": None, "stages": None, "stochastic": False, "strong": None, "weak": None} | given
    if claims["order_as_started"] is None:
        claims["order_as_started"] = claims["order"]
    return claims


def library_entry(name: str, factory: Factory, **claims: Any) -> SolverEntry:
    """The row of another library's method, for what an entry point of `diffsolve.libraries` hands back."""
    return SolverEntry(name, factory, _claims(**claims), tags=("library",))


def _key(name: str) -> str:
    """Names compared as people type them: case, blanks and hyphens do not count."""
    return re.sub(r"[\s\-_]+", "_", name.strip().lower()).replace("++", "pp")


@lru_cache(maxsize=1)
def _load_plugins() -> None:
    for point in entry_points(group="diffsolve.solvers"):
        try:
            found = point.load()
            if callable(found) and found not in [entry.factory for entry in _solvers.values()]:
                _register_found(point.name, found, point.value)
        except Exception as error:  # one broken plugin must not take the others with it
            warnings.warn(f"the solver plugin {point.value!r} could not be loaded: {error!r}", stacklevel=3)


def _register_found(name: str, factory: Factory, value: str) -> None:
    """A row for an entry point that names a Solver class or factory which has not registered itself."""
    solver = factory()
    if not isinstance(solver, Solver):
        raise SolverError(f"{value} made a {type(solver).__name__}, expected a diffsolve.Solver")
    register_solver(
        name, order=solver.order, order_as_started=solver.order_as_started, stages=solver.stages, form=solver.form,
        stochastic=solver.stochastic, source=solver.source or value,
    )(factory)  # fmt: skip


def solver_entries() -> Iterator[SolverEntry]:
    """Every row of the catalogue, plugins included, by name."""
    _load_plugins()
    yield from (_solvers[name] for name in sorted(_solvers))


def list_solvers(tags: str | tuple[str, ...] = ()) -> list[SolverEntry]:
    """The rows that carry all of `tags` (a comma-separated string or a tuple); all rows by default."""
    wanted = tuple(t for t in tags.split(",") if t) if isinstance(tags, str) else tags
    return [e for e in solver_entries() if all(t.strip() in (*e.tags, e.form) for t in wanted)]


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """`"lms(order=3)"` as ("lms", {"order": 3}); values are Python literals or bare words."""
    match = re.fullmatch(r"\s*([^()]+?)\s*(?:\((.*)\))?\s*", text, flags=re.DOTALL)
    if match is None:
        raise SolverError(f"can't read {text!r}; expected a name, or a name with options such as 'lms(order=3)'")
    options: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in (match[2] or "").split(","))):
        key, equals, value = part.partition("=")
        if not (equals and key.strip().isidentifier() and value.strip()):
            raise SolverError(f"can't read the option {part!r} in {text!r}; expected key=value")
        if key.strip() in options:
            raise SolverError(f"the option {key.strip()!r} stands twice in {text!r}; leave one of them out")
        try:
            options[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last three: of deep nesting
            options[key.strip()] = value.strip()
    return match[1], options


def _make(
    factory: Callable[..., Any], options: dict[str, Any], what: str, error: type[DiffsolveError], *others: str
) -> Any:
    """factory(**options), with `error` where it does not take them. others: options that were dealt with before."""
    known = signature(factory).parameters
    if not any(p.kind is Parameter.VAR_KEYWORD for p in known.values()):
        for key in options:
            if key not in known:
                raise error(f"{what} has no option {key!r}{did_you_mean(key, [*known, *others])}")
    for key, value in options.items():
        if key in known and known[key].annotation in (bool, "bool") and not isinstance(value, bool):
            raise error(f"{what} has {key}=True or {key}=False, got {value!r}")
    try:
        return factory(**options)
    except DiffsolveError:
        raise
    except (TypeError, ValueError, ArithmeticError) as failure:
        raise error(f"{what} can't be built with {options}: {failure}") from failure


def find_solver(name: str) -> SolverEntry:
    """The row of a canonical name or of a peer's name for it, or of another library's method, "torchdiffeq:dopri5".

    Raises SolverError with the nearest right name.
    """
    _load_plugins()
    library, colon, method = name.partition(":")
    if colon and name not in _solvers:
        return _library(library.strip().lower())(method.strip())
    canonical = name if name in _solvers else _aliases.get(_key(name), _key(name))
    if canonical not in _solvers:
        method, _, schedule = _key(name).rpartition("_")
        if schedule in _schedules and (_aliases.get(method, method) in _solvers):  # as A1111 once named its pairs
            found = _aliases.get(method, method)
            raise SolverError(f"{name!r} is a solver and a schedule; take solver={found!r}, schedule={schedule!r}")
        raise SolverError(f"unknown solver {name!r}{did_you_mean(name, _solvers)}")
    return _solvers[canonical]


def _library(name: str) -> Callable[[str], SolverEntry]:
    """method -> row, of a library that an entry point of the group `diffsolve.libraries` names."""
    points = {point.name: point for point in entry_points(group="diffsolve.libraries")}
    if name not in points:
        raise SolverError(f"unknown library {name!r}{did_you_mean(name, points)}")
    if find_spec(name) is None:
        raise SolverError(f"{name} is not installed; pip install {name}")
    found: Callable[[str], SolverEntry] = points[name].load()
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


@lru_cache(maxsize=128)
def named_solver(name: str) -> Solver:
    """The same, made once for a name: for whoever hands it to nobody, since a solver can be changed."""
    return get_solver(name)


@dataclass(frozen=True)
class ScheduleEntry:
    """A named schedule: how to make it, its names elsewhere, and where it comes from."""

    name: str
    factory: Callable[..., Any]
    aliases: Mapping[str, str]
    source: str


_schedules: dict[str, ScheduleEntry] = {}


def register_schedule(
    name: str, *, source: str, aliases: Mapping[str, str] | None = None
) -> Callable[[ScheduleFactory], ScheduleFactory]:
    """Decorate a Schedule class, or a function that returns one, to give it a name. aliases: peer -> its name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise GridError(f"a schedule's name is lower-case letters, digits and _, got {name!r}")

    def keep(factory: ScheduleFactory) -> ScheduleFactory:
        held = _schedules.get(name)
        if held is not None and held.factory.__module__ != factory.__module__:
            raise GridError(f"the schedule name {name!r} is taken by {held.factory.__module__}; choose another")
        named_schedule.cache_clear()
        _schedules[name] = ScheduleEntry(name, factory, dict(aliases or {}), source)
        return factory

    return keep


def list_schedules() -> list[ScheduleEntry]:
    """Every named schedule, by name."""
    _load_plugins()
    return [_schedules[name] for name in sorted(_schedules)]


def get_schedule(schedule: Any) -> tuple[Any, str]:
    """(schedule object, name) from a name such as "karras" or "karras(rho=5)"; anything else is handed back as it is.

    Raises GridError with the nearest right name.
    """
    return named_schedule(schedule) if isinstance(schedule, str) else (schedule, "")


@lru_cache(maxsize=128)
def named_schedule(schedule: str) -> tuple[Any, str]:
    """The schedule of a name, made once."""
    _load_plugins()
    name, options = parse(schedule)
    peers = {_key(alias): e.name for e in _schedules.values() for alias in e.aliases.values()}
    canonical = name if name in _schedules else peers.get(_key(name), _key(name))
    if canonical not in _schedules:
        raise GridError(f"unknown schedule {name!r}{did_you_mean(name, _schedules)}")
    made = _make(_schedules[canonical].factory, options, f"schedule {canonical!r}", GridError)
    return made, canonical + schedule[schedule.index("(") :].strip() if options else canonical


register_schedule("uniform", source="evenly spaced times of an ODE problem")(Uniform)


def list_problems() -> list[str]:
    """Names of the problems that are installed (entry point group `diffsolve.problems`)."""
    return sorted({point.name for point in entry_points(group="diffsolve.problems")})


def get_problem(name: str) -> Any:
    """The problem class that `name` stands for. Raises ProblemError with the nearest right name."""
    for point in entry_points(group="diffsolve.problems"):
        if point.name == _key(name):
            try:
                return point.load()
            except Exception as error:
                raise ProblemError(f"the problem {name!r} ({point.value}) could not be loaded: {error!r}") from error
    raise ProblemError(f"unknown problem {name!r}{did_you_mean(name, list_problems())}")
