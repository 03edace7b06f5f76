"""Checks of numbers and choices: what they accept comes back as it is to be used, the rest raises the error given."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import TypeVar

from .errors import DiffsolveError, SolverError, did_you_mean

Kind = type[DiffsolveError]
N = TypeVar("N", int, float)


def finite(value: object) -> float | None:
    """`value` as a float, or None where it is not one finite real number."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # of a whole number
        return None
    return number if math.isfinite(number) else None


def index(value: object) -> int | None:
    """`value` as an integer, or None where it is none, or yes or no."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # of tensors
        return None


def whole(value: object, what: str, error: Kind = SolverError, least: int = 1, most: int | None = None) -> int:
    """`value` as an integer from `least` to `most`; `error` names what it is and what was given."""
    number = index(value)
    if number is None or number < least or (most is not None and number > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise error(f"{what} must be a whole number {span}, got {value!r}")
    return number


def at_most(number: N, what: str, most: float, error: Kind = SolverError) -> N:
    """A number that is no more than `most`."""
    if number > most:
        raise error(f"{what} must be at most {most:g}, got {number!r}")
    return number


def at_least(
    value: object, what: str, error: Kind = SolverError, least: float = 0.0, infinite: bool = False
) -> float:
    """`value` as a float of at least `least`: finite, or else infinity where that is meant."""
    if infinite and isinstance(value, float) and value == math.inf:
        return math.inf
    number = finite(value)
    if number is None or number < least:
        raise error(f"{what} must be a finite number of at least {least:g}, got {value!r}")
    return number


def above_zero(value: object, what: str, error: Kind = SolverError, infinite: bool = False) -> float:
    """`value` as a float above 0: finite, or else infinity where that is meant."""
    if infinite and isinstance(value, float) and value == math.inf:
        return math.inf
    number = finite(value)
    if number is None or number <= 0:
        raise error(f"{what} must be a finite number above 0, got {value!r}")
    return number


def between(value: object, what: str, low: float, high: float, error: Kind = SolverError) -> float:
    """`value` as a float from `low` to `high`."""
    number = finite(value)
    if number is None or not low <= number <= high:
        raise error(f"{what} must be a number from {low:g} to {high:g}, got {value!r}")
    return number


def is_interval(value: object) -> bool:
    """Whether it is (low, high) with 0 <= low < high, which may be infinite."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(end, Real) for end in value):
        return False
    return bool(0 <= value[0] < value[1])


def flag(value: object, what: str, error: Kind = SolverError) -> bool:
    """`value` as yes or no."""
    try:
        return bool(value)
    except (TypeError, ValueError, RuntimeError):  # of arrays
        raise error(f"{what} must be True or False, got {value!r}") from None


def choice(value: object, what: str, choices: Iterable[str], error: Kind = SolverError) -> str:
    """`value` where it is one of the names, else an error with the nearest of them."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        near = did_you_mean(value, known).partition("; choose")[0]
        raise error(f"{what} must be one of {', '.join(map(repr, known))}, got {value!r}{near}")
    return value
