"""The runner of the checks: all of them at once, or one pytest case for each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from unittest import SkipTest

from ..errors import DiffsolveError, SolverError, did_you_mean
from ..problem import Problem
from ..process import Process, as_process
from ..registry import get_schedule, get_solver
from ..solver import Solver
from . import equations, facades, others, runs, steps
from .needs import CHECKS, Check, unmet

if TYPE_CHECKING:
    import pytest

Kind = Literal["solver", "schedule", "process", "problem"]
Test = TypeVar("Test", bound=Callable[..., object])
_FIND: dict[Kind, Callable[[Any], object]] = {"solver": get_solver, "schedule": get_schedule, "process": as_process}
_MODULES = (runs, steps, equations, facades, others)  # where the checks are


class ChecksFailed(AssertionError):  # noqa: N818
    """Some checks failed; `results` has all of them."""

    def __init__(self, text: str, results: list[Result]) -> None:
        super().__init__(text)
        self.results = results


@dataclass(frozen=True)
class Result:
    """What became of a check. reason: why it was left out, or was expected to fail."""

    check: str
    status: Literal["passed", "failed", "expected", "skipped"]
    error: BaseException | None = None
    reason: str = ""


def checks_of(kind: Kind = "solver") -> list[Check]:
    """The checks of a kind of thing: functions of one, which raise where it fails, SkipTest where it is not asked."""
    return list(CHECKS[kind])


def check_solver(
    solver: str | Solver, *, expected_failed_checks: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "warn"] | None = "raise",
) -> list[Result]:  # fmt: skip
    """Every check on a solver: a name, one with options ("lms(order=3)"), or a Solver. Some ten seconds.

    expected_failed_checks: check -> reason; one that passes nevertheless is a failure. on_fail: raise ChecksFailed,
    which names all that failed, warn of them, or None. Raises SolverError for an unknown name.
    """
    return _all("solver", solver, expected_failed_checks, on_fail)


def check_schedule(
    schedule: object, *, expected_failed_checks: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "warn"] | None = "raise",
) -> list[Result]:  # fmt: skip
    """Every check on a schedule, a name or a Schedule; see `check_solver`."""
    return _all("schedule", schedule, expected_failed_checks, on_fail)


def check_process(
    process: str | Process, *, expected_failed_checks: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "warn"] | None = "raise",
) -> list[Result]:  # fmt: skip
    """Every check on a process, a name or a Process; see `check_solver`."""
    return _all("process", process, expected_failed_checks, on_fail)


def check_problem(
    problem: Problem, *, expected_failed_checks: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "warn"] | None = "raise",
) -> list[Result]:  # fmt: skip
    """Every check on a problem; see `check_solver`."""
    return _all("problem", problem, expected_failed_checks, on_fail)


def _all(kind: Kind, thing: object, expected: Mapping[str, str] | None, on_fail: str | None) -> list[Result]:
    if not __debug__:
        raise SolverError("the checks are assertions, which python -O and PYTHONOPTIMIZE leave out; run without them")
    expected = _known(expected or {}, kind)
    find = _FIND.get(kind)
    if find is not None:
        find(thing)  # an unknown name is no failure of a check
    results = [_one(check, thing, expected.get(check.__name__)) for check in CHECKS[kind]]
    failed = [result for result in results if result.status == "failed"]
    if failed and on_fail:
        text = "\n".join([f"{_title(thing)}: {len(failed)} of {len(results)} checks failed", *_told(failed)])
        if on_fail == "raise":
            raise ChecksFailed(text, results) from failed[0].error
        warnings.warn(text, stacklevel=3)
    return results


def _told(failed: list[Result]) -> list[str]:
    """A line for each fault: checks that fail by one and the same are named together."""
    faults: dict[str, list[str]] = {}
    for r in failed:
        faults.setdefault(f"{type(r.error).__name__}: {r.error}" if r.error else r.reason, []).append(r.check)
    return [f"  {', '.join(checks)}: {fault}" for fault, checks in faults.items()]


def _one(check: Check, thing: object, reason: str | None) -> Result:
    name = check.__name__
    try:
        check(thing)
    except SkipTest as skip:
        return Result(name, "skipped", reason=str(skip))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Result(name, "failed" if reason is None else "expected", error, reason or "")
    if reason is None:
        return Result(name, "passed")
    return Result(name, "failed", reason=f"was expected to fail ({reason}), and passes: take it out")


def _known(expected: Mapping[str, str], kind: Kind) -> Mapping[str, str]:
    names = [check.__name__ for check in CHECKS[kind]]
    for name, reason in expected.items():
        if name not in names:
            raise DiffsolveError(f"there is no check {name!r} of a {kind}{did_you_mean(name, names)}")
        if not (isinstance(reason, str) and reason.strip()):
            raise DiffsolveError(f"{name} is expected to fail: say why, got {reason!r}")
    return expected


def _asked(kind: Kind, thing: object) -> list[Check]:
    if kind != "solver":
        return CHECKS[kind]
    method = get_solver(thing)  # type: ignore[arg-type]
    return [check for check in CHECKS[kind] if not unmet(method, check.needs)]  # type: ignore[attr-defined]


def _title(thing: object) -> str:
    return thing if isinstance(thing, str) else getattr(thing, "name", "") or type(thing).__name__


def parametrize_with_checks(
    things: Iterable[object],
    *,
    kind: Kind = "solver",
    expected_failed_checks: Mapping[str, str] | Callable[[object], Mapping[str, str]] | None = None,
    marks: Callable[[str, str], Collection[pytest.MarkDecorator]] | None = None,
) -> Callable[[Test], Test]:
    """Decorate a test function of (solver, check), or (schedule, check), ..., with a case for each thing and check.

    Checks that are not asked of a solver, those of the ODE of a stochastic one, are left out.

    expected_failed_checks: check -> reason, or a function of the thing that tells them; they are marked xfail, and one
    that passes fails. marks: (thing's name, check's name) -> pytest marks of the case.
    """
    import pytest

    cases = []
    for thing in things:
        given = expected_failed_checks(thing) if callable(expected_failed_checks) else expected_failed_checks
        expected, title = _known(given or {}, kind), _title(thing)
        for check in _asked(kind, thing):
            chosen = [] if marks is None else list(marks(title, check.__name__))
            if check.__name__ in expected:
                chosen.append(pytest.mark.xfail(reason=expected[check.__name__], strict=True))
            name = f"{title}-{check.__name__.removeprefix('check_')}"
            cases.append(pytest.param(thing, check, marks=chosen, id=name))
    return pytest.mark.parametrize((kind, "check"), cases)
