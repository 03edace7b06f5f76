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
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import Any, TypeVar

from . import grid as _grid
from .errors import DiffsolveError, GridError, ProblemError, SolverError, did_you_mean
from .form import CODES, FORMS
from .problem import Uniform
from .solver import Solver

Factory = Callable[..., Solver]
T = TypeVar("T", bound=Factory)


@dataclass(frozen=True)
class SolverEntry:
    """One row of the catalogue.

    order: with an exact start; started: as started from one state; of a stochastic row at eta = 0, where it solves the
    flow. 0: no integrator, what it computes does not converge to the flow. strong, weak: orders on the reverse SDE, 0
    where none is claimed. stages: evaluations a step. aliases: by peer.
    """

    name: str
    factory: Factory
    order: int
    started: int
    stages: int
    form: str
    stochastic: bool
    source: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    note: str = ""
    strong: float = 0
    weak: float = 0

    def build(self, **options: Any) -> Solver:
        """A new solver of this row; `form` may be set for every row, other options are the factory's own."""
        asked = options.pop("form", None)
        form = asked or self.form
        known = FORMS if self.form in FORMS else (self.form,)
        if form not in known:
            raise SolverError(f"unknown form {form!r} for {self.name}{did_you_mean(form, known)}")
        solver = _make(self.factory, options, self.name, SolverError, "form")
        if not isinstance(solver, Solver):
            raise SolverError(f"{self.name} built a {type(solver).__name__}, expected a diffsolve.Solver")
        given = "".join(f"{k}={v}, " for k, v in options.items())
        if form != self.form:
            given += f"form={form}, "
        if asked is None:
            form = vars(solver).get("form", form)  # a wrapper has that of the solver inside
        solver.name = f"{self.name}({given[:-2]})" if given else self.name
        solver.form, solver.source = form, self.source
        solver.order = (solver.order or self.order) if self.order else 0
        solver.started = solver.started or (self.started if solver.order == self.order else solver.order)
        solver.started = min(solver.started, solver.order)
        solver.stages = max(solver.stages, self.stages) if not options else solver.stages
        solver.stochastic = solver.stochastic or self.stochastic or (form in FORMS and FORMS[form].stochastic)
        return solver


_solvers: dict[str, SolverEntry] = {}
_aliases: dict[str, str] = {}


def register_solver(
    name: str,
    *,
    order: int,
    form: str = "sigma",
    source: str,
    started: int | None = None,
    stages: int | None = None,
    stochastic: bool = False,
    aliases: Mapping[str, str] | None = None,
    tags: tuple[str, ...] = (),
    note: str = "",
    strong: float = 0,
    weak: float = 0,
) -> Callable[[T], T]:
    """Decorate a Solver class, or a function that returns a Solver, to give it a name everywhere.

    order: claimed order with an exact start, 0 for what is no integrator; started: as started (default: the same).
    strong, weak: claimed orders of a stochastic solver on the reverse SDE (0: none). aliases: peer -> its name there.
    Registering a name again replaces it (a notebook cell that is run twice); a name that another module holds is
    refused.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_.:\-]*", name):
        raise SolverError(f"a solver's name is lower-case letters, digits and _.:-, got {name!r}")
    if form not in (*FORMS, CODES):
        raise SolverError(f"unknown form {form!r} for {name}{did_you_mean(form, FORMS)}")
    for claim in (order, order if started is None else started):
        if isinstance(claim, bool) or not isinstance(claim, int) or claim < 0:
            raise SolverError(f"the order of {name} must be a whole number of at least 0, got {claim!r}")

    def keep(factory: T) -> T:
        held = _solvers.get(name)
        if held is not None and held.factory.__module__ != factory.__module__:
            raise SolverError(f"the solver name {name!r} is taken by {held.factory.__module__}; choose another")
        declared = getattr(factory, "stages", 1)
        entry = SolverEntry(
            name, factory, order, order if started is None else started, stages or declared, form,
            stochastic or getattr(factory, "stochastic", False), source, dict(aliases or {}), tags, note,
            strong, weak,
        )
        _solvers[name] = entry
        for alias in entry.aliases.values():
            for part in alias.split(", "):
                _aliases.setdefault(_key(part), name)
        return factory

    return keep


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
        name, order=solver.order or 1, started=solver.started or None, stages=solver.stages, form=solver.form,
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
        try:
            options[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
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
        if schedule in _SCHEDULES and (_aliases.get(method, method) in _solvers):  # as A1111 once named its pairs
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


@dataclass(frozen=True)
class ScheduleEntry:
    """A named schedule: how to make it, its names elsewhere, and where it comes from."""

    name: str
    factory: Callable[..., Any]
    aliases: Mapping[str, str]
    source: str


_SCHEDULES = {
    e.name: e
    for e in (
        ScheduleEntry("karras", _grid.Karras, {"diffusers": "use_karras_sigmas", "k-diffusion": "get_sigmas_karras",
                      "A1111": "Karras"}, "Karras et al. 2022, eq. 5"),
        ScheduleEntry("exponential", _grid.PolyExponential, {"diffusers": "use_exponential_sigmas", "k-diffusion":
                      "get_sigmas_exponential", "A1111": "Exponential", "dpm-solver": "logSNR"},
                      "uniform in lambda = -log sigma; Lu et al. 2022, sec. 3.3"),
        ScheduleEntry("polyexponential", lambda rho=2.0: _grid.PolyExponential(rho),
                      {"k-diffusion": "get_sigmas_polyexponential", "A1111": "Polyexponential"},
                      "k-diffusion; log sigma polynomial, rho = 2"),
        ScheduleEntry("lambda", _grid.PolyExponential, {"diffusers": "use_lu_lambdas"},
                      "uniform in lambda = -log sigma"),
        ScheduleEntry("linspace", _grid.Linspace, {"diffusers": "linspace", "A1111": "Normal", "ComfyUI": "normal"},
                      "uniform in t, both ends"),
        ScheduleEntry("leading", _grid.Leading, {"diffusers": "leading", "A1111": "DDIM", "ComfyUI": "ddim_uniform"},
                      "uniform in t, from below the top; Song et al. 2021"),
        ScheduleEntry("trailing", _grid.Trailing, {"diffusers": "trailing"},
                      "uniform in t, from the top; Lin et al. 2024"),
        ScheduleEntry("quadratic", _grid.Quadratic, {"ddim": "quad"}, "uniform in sqrt t; Song et al. 2021, app. D.2"),
        ScheduleEntry("cosine", _grid.Cosine, {}, "uniform in atan sigma; Nichol & Dhariwal 2021"),
        ScheduleEntry("beta", _grid.Beta, {"A1111": "Beta", "ComfyUI": "beta"},
                      "Beta(0.6, 0.6) quantiles of t; Lee et al. 2024"),
        ScheduleEntry("sgm_uniform", _grid.SgmUniform, {"A1111": "SGM Uniform", "ComfyUI": "sgm_uniform"},
                      "uniform in t, the last of n + 1 left out; Stability's sgm"),
        ScheduleEntry("simple", _grid.Simple, {"A1111": "Simple", "ComfyUI": "simple"},
                      "every (T/n)-th timestep; ComfyUI"),
        ScheduleEntry("ays", _grid.AlignYourSteps, {"diffusers": "AysSchedules", "A1111": "Align Your Steps",
                      "ComfyUI": "AlignYourSteps"}, "Sabour et al. 2024, published tables"),
        ScheduleEntry("uniform", Uniform, {}, "evenly spaced times of an ODE problem"),
    )
}


def list_schedules() -> list[ScheduleEntry]:
    """Every named schedule, by name."""
    return [_SCHEDULES[name] for name in sorted(_SCHEDULES)]


def get_schedule(schedule: Any) -> tuple[Any, str]:
    """(schedule object, name) from a name such as "karras" or "karras(rho=5)"; anything else is handed back as it is.

    Raises GridError with the nearest right name.
    """
    if not isinstance(schedule, str):
        return schedule, ""
    name, options = parse(schedule)
    peers = {_key(alias): e.name for e in _SCHEDULES.values() for alias in e.aliases.values()}
    canonical = name if name in _SCHEDULES else peers.get(_key(name), _key(name))
    if canonical not in _SCHEDULES:
        raise GridError(f"unknown schedule {name!r}{did_you_mean(name, _SCHEDULES)}")
    made = _make(_SCHEDULES[canonical].factory, options, f"schedule {canonical!r}", GridError)
    return made, canonical + schedule[schedule.index("(") :].strip() if options else canonical


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
