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

    numerators: of the coefficients over `denominator`, in lowest terms, so that sums and products are of integers;
    None where a coefficient is a float.
    """

    __slots__ = ("_c", "denominator", "end", "low", "numerators")
    __array_ufunc__ = None  # numpy scalars leave the arithmetic to this class

    def __init__(self, low: int, c: Sequence[Coefficient]) -> None:
        skip = 0
        while skip < len(c) and is_zero(c[skip]):
            skip += 1
        left = c[skip:]
        self.low, self.end = low + skip, low + len(c)
        self._c: list[Coefficient] | None = list(left)
        self.numerators: list[int] | None = None
        self.denominator = 1
        if all(isinstance(x, Fraction) for x in left):
            self.denominator = d = math.lcm(*[x.denominator for x in left])  # type: ignore[union-attr]
            self.numerators = [x.numerator * (d // x.denominator) for x in left]  # type: ignore[union-attr]

    @classmethod
    def over(cls, denominator: int, low: int, numerators: list[int]) -> Series:
        """The exact series numerators/denominator, beginning with h^low; denominator is not 0."""
        made = cls.__new__(cls)
        made.low, made.end, made._c = low, low + len(numerators), None
        if numerators and not numerators[0]:
            skip = next((n for n, x in enumerate(numerators) if x), len(numerators))
            made.low, numerators = low + skip, numerators[skip:]
        common = math.gcd(denominator, *numerators) if denominator > 0 else -math.gcd(denominator, *numerators)
        made.denominator = denominator // common
        made.numerators = numerators if common == 1 else [x // common for x in numerators]
        return made

    @property
    def c(self) -> list[Coefficient]:
        if self._c is None:
            self._c = [Fraction(x, self.denominator) for x in self.numerators or ()]
        return self._c

    @classmethod
    def constant(cls, x: object, end: int) -> Series:
        return cls(0, [rational(x), *[ZERO] * (end - 1)] if end > 0 else [])

    @classmethod
    def variable(cls, end: int) -> Series:
        """h itself."""
        return cls(1, [Fraction(1), *[ZERO] * (end - 2)])

    def __getitem__(self, power: int) -> Coefficient:
        if power >= self.end:
            raise IndexError(f"h^{power} is not known: O(h^{self.end})")
        return self.c[power - self.low] if power >= self.low else ZERO

    def cut(self, end: int) -> Series:
        """The same with no power from h^end on."""
        if end >= self.end:
            return self
        low, count = min(self.low, end), max(end - self.low, 0)
        if self.numerators is None:
            return Series(low, self.c[:count])
        return Series.over(self.denominator, low, self.numerators[:count])

    def __bool__(self) -> bool:
        return self.end > self.low

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and not self - other

    __hash__ = None  # type: ignore[assignment]

    def __neg__(self) -> Series:
        return self * -1

    def __add__(self, other: object) -> Series:
        if not isinstance(other, Series):
            if not isinstance(other, Number):
                return NotImplemented
            other = Series.constant(other, max(self.end, 0))
        first, second = (self, other) if self.low <= other.low else (other, self)
        end = min(self.end, other.end)  # at least first.low
        if first.numerators is not None and second.numerators is not None:
            common = math.lcm(first.denominator, second.denominator)
            one, two = common // first.denominator, common // second.denominator
            whole = [x * one for x in first.numerators[: end - first.low]]
            for n, x in enumerate(second.numerators[: max(end - second.low, 0)], second.low - first.low):
                whole[n] += x * two
            return Series.over(common, first.low, whole)
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
            if factor == 1:
                return self
            if self.numerators is None or not isinstance(factor, Fraction):
                return Series(self.low, [x * factor if x else x for x in self.c])
            p, q = factor.numerator, factor.denominator
            return Series.over(self.denominator * q, self.low, [x * p for x in self.numerators])
        many = min(self.end - self.low, other.end - other.low)
        if self.numerators is not None and other.numerators is not None:
            a, b = self.numerators, other.numerators
            whole = [sum(map(operator.mul, a[: n + 1], b[n::-1])) for n in range(many)]
            return Series.over(self.denominator * other.denominator, self.low + other.low, whole)
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
            if isinstance(factor, Fraction) and factor:
                return self * (1 / factor)
            return Series(self.low, [x / factor if x else x for x in self.c])
        if not other:
            raise ZeroDivisionError("a step divides by what is 0 for every h")
        if self.numerators is not None and other.numerators is not None:
            return self._over(self.numerators, other, other.numerators)
        quotient: list[Coefficient] = []
        for n in range(min(len(self.c), len(other.c))):
            known = sum((other.c[k] * quotient[n - k] for k in range(1, n + 1) if other.c[k]), ZERO)
            quotient.append((self.c[n] - known) / other.c[0])
        return Series(self.low - other.low, quotient)

    def _over(self, a: list[int], other: Series, b: list[int]) -> Series:
        """self / other, a and b their numerators: the n-th of a/b is r_n/b_0^(n + 1)."""
        many, first, r = min(len(a), len(b)), b[0], list[int]()
        for n in range(many):
            r.append(a[n] * first**n - sum(b[k] * first ** (k - 1) * r[n - k] for k in range(1, n + 1) if b[k]))
        whole = [x * first ** (many - 1 - n) * other.denominator for n, x in enumerate(r)]
        return Series.over(first**many * self.denominator, self.low - other.low, whole)

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
        if self.numerators is not None and self.low > 0:
            return self._exp(self.numerators)
        value = [_exact(math.exp, self[0], 0, 1)]
        slopes = [(k, k * self[k]) for k in range(1, self.end) if self[k]]
        for n in range(1, self.end):
            value.append(sum((slope * value[n - k] for k, slope in slopes if k <= n), ZERO) / n)
        return Series(0, value)

    def _exp(self, a: list[int]) -> Series:
        """exp of what is 0 at h = 0, a its numerators: its n-th coefficient is v_n/(n! d^n)."""
        d, v = self.denominator, [1]
        slopes = [(k, k * x * d ** (k - 1)) for k, x in enumerate(a, self.low) if x]
        for n in range(1, self.end):
            v.append(sum(slope * math.perm(n - 1, k - 1) * v[n - k] for k, slope in slopes if k <= n))
        last = self.end - 1
        whole = [x * math.perm(last, last - n) * d ** (last - n) for n, x in enumerate(v)]
        return Series.over(math.factorial(last) * d**last, 0, whole)

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
