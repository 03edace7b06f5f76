"""A plan's structure, compiled once: another run of as many steps puts its numbers into it.

While a plan is compiled on `Traced` numbers, every product, sum and quotient of them is written down, and every answer
to whether one is 0 or 1, which is all that the compiler asks. Played again on the numbers of another tape of the same
structure, a level of the arithmetic at a time, they give the same plan to the bit, if those answers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

import numpy as np
from numpy.typing import NDArray

from .instructions import NEAR_ONE, Meaning

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]


def added(a: float, b: float) -> float:
    """a + b, and 0 where they cancel but for rounding: else a plan's structure would hang on the last digit."""
    if type(a) is Traced or type(b) is Traced:
        return a + b
    total = a + b
    return 0.0 if abs(total) < NEAR_ONE * abs(a) else total


def _added(a: Numbers, b: Numbers) -> Numbers:
    total = a + b
    total[np.abs(total) < NEAR_ONE * np.abs(a)] = 0.0
    return total


_KINDS: tuple[Callable[[Numbers, Numbers], Numbers], ...] = np.multiply, _added, np.divide


class Traced(float):
    """A number whose arithmetic is written down."""

    book: Book
    index: int

    def __mul__(self, other: float) -> Traced:
        return self.book.made(0, self, other)

    def __rmul__(self, other: float) -> Traced:
        return self.book.made(0, other, self)

    def __add__(self, other: float) -> Traced:
        return self.book.made(1, self, other)

    def __radd__(self, other: float) -> Traced:
        return self.book.made(1, other, self)

    def __truediv__(self, other: float) -> Traced:
        return self.book.made(2, self, other)

    def __rtruediv__(self, other: float) -> Traced:
        return self.book.made(2, other, self)

    def __bool__(self) -> bool:
        answer = float(self) != 0
        self.book.zeros[self.index] = answer
        return answer

    def near_one(self) -> bool:
        """Whether it is 1 but for rounding."""
        answer = abs(float(self) - 1) < NEAR_ONE
        self.book.ones[self.index] = answer
        return answer


class Book:
    """What is written down: leaves in the order in which they were given, then one line of arithmetic a number."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.lines: dict[int, tuple[int, int, int]] = {}  # of a number: kind, and of which two
        self.constants: dict[float, int] = {}
        self.zeros: dict[int, bool] = {}
        self.ones: dict[int, bool] = {}
        self.tables: list[int] = []  # which numbers stand in the tables of all passes, in order
        self.leaves: list[int] = []

    def _number(self, value: float) -> Traced:
        made = Traced(value)
        made.book, made.index = self, len(self.values)
        self.values.append(value)
        return made

    def leaf(self, value: SupportsFloat) -> Traced:
        made = self._number(float(value))
        self.leaves.append(made.index)
        return made

    def index(self, value: float) -> int:
        if isinstance(value, Traced):
            return value.index
        if value not in self.constants:
            self.constants[value] = self._number(float(value)).index
        return self.constants[value]

    def made(self, kind: int, a: float, b: float) -> Traced:
        neutral = 1.0 if kind == 0 else 0.0
        if kind < 2 and type(a) is float and a == neutral:
            return b  # type: ignore[return-value]
        if kind < 2 and type(b) is float and b == neutral:
            return a  # type: ignore[return-value]
        x, y = float(a), float(b)
        first, second = self.index(a), self.index(b)
        made = self._number(x * y if kind == 0 else added(x, y) if kind == 1 else x / y)
        self.lines[made.index] = kind, first, second
        return made

    def meaning(self, of: Meaning) -> Meaning:
        """The same of leaves."""
        numbers = (self.leaf(value) for value in numbers_of(of))
        given, u_share, raw_share, skip, out = numbers
        return Meaning(given, of.folded, u_share, raw_share, skip, out, of.told, of.network, of.sigma)


def numbers_of(meaning: Meaning) -> tuple[float, float, float, float, float]:
    """What of a meaning goes into coefficients."""
    return meaning.given, meaning.u_share, meaning.raw_share, meaning.skip, meaning.out


@dataclass(frozen=True)
class Arithmetic:
    """A book, ready to be played again: constants, levels of (kind, which, and which, where to), questions, tables."""

    size: int
    constants: tuple[Indices, Numbers]
    leaves: Indices
    levels: list[tuple[Callable[[Numbers, Numbers], Numbers], Indices, Indices, Indices]]
    zeros: tuple[Indices, NDArray[np.bool_]]
    ones: tuple[Indices, NDArray[np.bool_]]
    tables: Indices

    @classmethod
    def of(cls, book: Book) -> Arithmetic:
        depth = [0] * len(book.values)
        groups: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for out, (kind, a, b) in book.lines.items():  # made in order, so a number's parts stand before it
            depth[out] = 1 + max(depth[a], depth[b])
            groups.setdefault((depth[out], kind), []).append((a, b, out))
        levels = []
        for level, kind in sorted(groups):
            first, second, to = (np.array(column, np.int64) for column in zip(*groups[level, kind], strict=True))
            levels.append((_KINDS[kind], first, second, to))
        zeros, ones = (
            (np.array(list(asked), np.int64), np.array(list(asked.values()), np.bool_))
            for asked in (book.zeros, book.ones)
        )
        constants = np.array(list(book.constants.values()), np.int64), np.array(list(book.constants), np.float64)
        leaves, tables = (np.array(which, np.int64) for which in (book.leaves, book.tables))
        return cls(len(book.values), constants, leaves, levels, zeros, ones, tables)

    def played(self, leaves: Sequence[float]) -> Numbers | None:
        """The tables of all passes, one after the other; None where an answer is another one."""
        values = np.empty(self.size)
        where, constants = self.constants
        values[where], values[self.leaves] = constants, leaves
        for kind, a, b, out in self.levels:
            values[out] = kind(values[a], values[b])
        asked, answers = self.zeros
        if not np.array_equal(values[asked] != 0, answers):
            return None
        asked, answers = self.ones
        if not np.array_equal(np.abs(values[asked] - 1) < NEAR_ONE, answers):
            return None
        return values[self.tables]
