"""Truncated power series in the step size h, as the scalars that a step computes with.

A coefficient is a Fraction where it can be, and a float where a step's own constants are irrational.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from numbers import Integral, Number, Rational, Real
from typing import TypeAlias

TINY = 1e-12  # a float coefficient below it is rounding; a Fraction is zero only where it is zero
LARGEST_DENOMINATOR = 10**6

Coefficient: TypeAlias = Fraction | float
ZERO = Fraction(0)


def rational(x: object) -> Coefficient:
    """`x` exactly; a float as the simple fraction that rounds to it (0.333... as 1/3), or else as the float it is."""
    if isinstance(x, Fraction):
        return x
    if isinstance(x, Integral):
        return Fraction(int(x))
    if isinstance(x, Rational):
        return Fraction(int(x.numerator), int(x.denominator))
    if not isinstance(x, Real):
        raise TypeError(f"a step's scalars are real numbers, got {type(x).__name__}")
    near = Fraction(float(x)).limit_denominator(LARGEST_DENOMINATOR)
    return near if float(near) == float(x) else float(x)


def is_zero(x: Coefficient) -> bool:
    return x == 0 or (isinstance(x, float) and abs(x) < TINY)


class Series(Number):
    """c[0] h^low + c[1] h^(low + 1) + ... + O(h^end), with c[0] not 0; `low` may be negative.

    What is left out is kept track of: no result claims more terms than its operands determine.
    """

    __slots__ = ("c", "low")
    __array_ufunc__ = None  # numpy scalars leave the arithmetic to this class

    def __init__(self, low: int, c: Sequence[Coefficient]) -> None:
        skip = 0
        while skip < len(c) and is_zero(c[skip]):
            skip += 1
        self.low, self.c = low + skip, list(c[skip:])

    @classmethod
    def constant(cls, x: object, end: int) -> Series:
        return cls(0, [rational(x), *[ZERO] * (end - 1)] if end > 0 else [])

    @classmethod
    def variable(cls, end: int) -> Series:
        """h itself."""
        return cls(1, [Fraction(1), *[ZERO] * (end - 2)])

    @property
    def end(self) -> int:
        return self.low + len(self.c)

    def __getitem__(self, power: int) -> Coefficient:
        if power >= self.end:
            raise IndexError(f"h^{power} is not known: O(h^{self.end})")
        return self.c[power - self.low] if power >= self.low else ZERO

    def cut(self, end: int) -> Series:
        """The same with no power from h^end on."""
        return self if end >= self.end else Series(min(self.low, end), self.c[: max(end - self.low, 0)])

    def __bool__(self) -> bool:
        return bool(self.c)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and not self - other

    __hash__ = None  # type: ignore[assignment]

    def __neg__(self) -> Series:
        return Series(self.low, [-x for x in self.c])

    def __add__(self, other: object) -> Series:
        if not isinstance(other, Series):
            if not isinstance(other, Number):
                return NotImplemented
            other = Series.constant(other, max(self.end, 0))
        first, second = (self, other) if self.low <= other.low else (other, self)
        end = min(self.end, other.end)  # at least first.low
        total = first.c[: end - first.low]
        for n, y in enumerate(second.c[: max(end - second.low, 0)], second.low - first.low):
            if y:
                total[n] = total[n] + y if total[n] else y
        return Series(first.low, total)

    __radd__ = __add__

    def __sub__(self, other: object) -> Series:
        return self + other * -1 if isinstance(other, Series | Fraction | Real) else NotImplemented

    def __rsub__(self, other: object) -> Series:
        return -self + other

    def __mul__(self, other: object) -> Series:
        if not isinstance(other, Series):
            if not isinstance(other, Number):
                return NotImplemented
            factor = rational(other)
            return self if factor == 1 else Series(self.low, [x * factor if x else x for x in self.c])
        many = min(len(self.c), len(other.c))
        product: list[Coefficient] = [ZERO] * many
        right = [(j, y) for j, y in enumerate(other.c[:many]) if y]
        for i, x in enumerate(self.c[:many]):
            if x:
                for j, y in right:
                    if i + j >= many:
                        break
                    product[i + j] = product[i + j] + x * y if product[i + j] else x * y
        return Series(self.low + other.low, product)

    __rmul__ = __mul__

    def __truediv__(self, other: object) -> Series:
        if not isinstance(other, Series):
            if not isinstance(other, Number):
                return NotImplemented
            factor = rational(other)
            return Series(self.low, [x / factor if x else x for x in self.c])
        if not other:
            raise ZeroDivisionError("a step divides by what is 0 for every h")
        quotient: list[Coefficient] = []
        for n in range(min(len(self.c), len(other.c))):
            known = sum((other.c[k] * quotient[n - k] for k in range(1, n + 1) if other.c[k]), ZERO)
            quotient.append((self.c[n] - known) / other.c[0])
        return Series(self.low - other.low, quotient)

    def __rtruediv__(self, other: object) -> Series:
        return Series.constant(other, len(self.c)) / self

    def __pow__(self, power: object) -> Series:
        if isinstance(power, Integral):
            if power == 0:
                return Series.constant(1, max(self.end, 1))
            whole = functools.reduce(operator.mul, [self] * abs(int(power)))
            return whole if int(power) > 0 else 1 / whole
        return (power * self.log()).exp()

    def __repr__(self) -> str:
        terms = [f"{x} h^{self.low + n}" for n, x in enumerate(self.c) if x]
        return " + ".join([*terms, f"O(h^{self.end})"])

    # The functions of `diffsolve.scalars`, which calls them by name.

    def exp(self) -> Series:
        if self.low < 0:
            raise ValueError("a step takes exp of what grows without bound as h -> 0")
        if self.end <= 0:
            return Series(0, [])
        value = [_exact(math.exp, self[0], 0, 1)]
        slopes = [(k, k * self[k]) for k in range(1, self.end) if self[k]]
        for n in range(1, self.end):
            value.append(sum((slope * value[n - k] for k, slope in slopes if k <= n), ZERO) / n)
        return Series(0, value)

    def expm1(self) -> Series:
        return self.exp() - 1

    def log(self) -> Series:
        if self.low or not self.c or self.c[0] < 0:
            raise ValueError("a step takes log of what is not positive at h = 0")
        first, c = self.c[0], [x / self.c[0] for x in self.c]
        value = [_exact(math.log, first, 1, 0)]
        for n in range(1, self.end):
            value.append(c[n] - sum((k * value[k] * c[n - k] for k in range(1, n)), ZERO) / n)
        return Series(0, value)

    def sqrt(self) -> Series:
        if self.low % 2 or not self.c or self.c[0] < 0:
            raise ValueError("a step takes the square root of what has none as a series in h")
        value = [_root(self.c[0])]
        for n in range(1, len(self.c)):
            known = sum((value[k] * value[n - k] for k in range(1, n)), ZERO)
            value.append((self.c[n] - known) / (2 * value[0]))
        return Series(self.low // 2, value)


def _exact(function: Callable[[float], float], x: Coefficient, at: int, value: int) -> Coefficient:
    """function(x), a float but for the one rational place where it is rational."""
    return Fraction(value) if x == at else function(float(x))


def _root(x: Coefficient) -> Coefficient:
    if isinstance(x, Fraction):
        root = Fraction(math.isqrt(x.numerator), math.isqrt(x.denominator))
        if root * root == x:
            return root
    return math.sqrt(x)
