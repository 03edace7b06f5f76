"""The errors that diffsolve raises, and the one helper that suggests the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .solution import Solution


class DiffsolveError(Exception):
    """Base of every error that diffsolve raises. `solution` holds what was computed before it, where anything was."""

    solution: Solution | None = None


Kind = type[DiffsolveError]


class GridError(DiffsolveError, ValueError):
    """A schedule or its nodes can't be used: wrong count, order, range or name."""


class SolverError(DiffsolveError, ValueError):
    """A solver is unknown, wrongly configured, or asked for what it can't do."""


class ProblemError(DiffsolveError, ValueError):
    """A problem, its state or its right-hand side is not what the solve needs (shape, dtype, device, values)."""


class ModelError(DiffsolveError, ValueError):
    """A model's files are missing, broken, refused or of another kind."""


class OutputError(DiffsolveError, OSError):
    """A result can't be written where it was asked for."""


class NonFiniteError(DiffsolveError, ArithmeticError):
    """A state became NaN or infinite; `solution` holds the last finite one."""


class Interrupted(KeyboardInterrupt):
    """The solve was interrupted from the keyboard; `solution` holds the last whole step."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


def did_you_mean(name: object, choices: Iterable[str]) -> str:
    """`"; did you mean 'heun'?"` or the list of choices, to end a message about an unknown name."""
    known = sorted(set(choices))
    close = difflib.get_close_matches(str(name).lower(), [k.lower() for k in known], n=1, cutoff=0.55)
    if close:
        return f"; did you mean {next(k for k in known if k.lower() == close[0])!r}?"
    return f"; choose one of: {', '.join(known)}" if known else ""
