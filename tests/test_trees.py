"""Rooted trees and power series: what the proofs of order are made of."""

from __future__ import annotations

import math
import random
from fractions import Fraction as Q

import mpmath
import numpy as np
import pytest

from diffsolve import scalars
from diffsolve.validation.orders.series import Series, rational
from diffsolve.validation.orders.trees import T, density, elementary_weights, is_tall, name, order, symmetry, trees


def test_tree_counts() -> None:
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    assert all(len(set(trees(n))) == len(trees(n)) and {order(t) for t in trees(n)} == {n} for n in range(1, 9))


def test_the_one_node_tree() -> None:
    assert (T, name(T), order(T), density(T), symmetry(T)) == ((), "t", 1, 1, 1)


def test_tree_functions() -> None:
    four = {name(t): (density(t), symmetry(t)) for t in trees(4)}
    assert four == {"[t,t,t]": (4, 6), "[t,[t]]": (8, 1), "[[t,t]]": (12, 2), "[[[t]]]": (24, 1)}
    for n in range(1, 9):  # labelled trees with growing labels: (n - 1)! of them
        assert sum(Q(math.factorial(n), density(t) * symmetry(t)) for t in trees(n)) == math.factorial(n - 1)
    assert [sum(map(is_tall, trees(n))) for n in range(1, 6)] == [1] * 5


def test_coloured_leaves() -> None:
    assert [len(trees(n, ("s",))) for n in range(1, 5)] == [1, 2, 5, 13]
    assert [name(t) for t in trees(3, ("s",))] == ["[t,t]", "[t,s]", "[s,s]", "[[t]]", "[[s]]"]


def test_elementary_weights_of_a_collocation_method() -> None:
    """Gauss' two-stage method has order 4, so that sqrt(3) enters and implicit tableaux work too."""
    root = math.sqrt(3) / 6
    a = ((0.25, 0.25 - root), (0.25 + root, 0.25))
    for n in range(1, 6):
        weights = elementary_weights(trees(n), (0.5 - root, 0.5 + root), a, (0.5, 0.5))
        gaps = [abs(w - 1 / density(t)) for w, t in zip(weights, trees(n), strict=True)]
        assert max(gaps) < 1e-15 if n < 5 else max(gaps) > 1e-3


# Scalars


def test_series_arithmetic() -> None:
    h = Series.variable(12)
    assert 1 / (1 - h) * (1 - h) == 1
    assert (2 + h).log().exp() == 2 + h
    assert (4 + h).sqrt() ** 2 == 4 + h
    assert (h.exp() - 1) / h == scalars.phi(1, h)
    assert scalars.phi(4, h)[3] == Q(1, math.factorial(7))
    assert (h**3 / h**5).low == -2
    assert rational(1 / 3) == Q(1, 3)
    assert isinstance(rational(math.pi), float)


def test_exact_series_are_the_sums_and_products_of_their_fractions() -> None:
    drawn = random.Random(0)

    def made() -> Series:
        c = [Q(drawn.randint(-9, 9), drawn.randint(1, 12)) for _ in range(drawn.randint(1, 6))]
        return Series(drawn.randint(-2, 3), [Q(drawn.choice((-3, 1, 5)), 7), *c])

    for _ in range(200):
        a, b, k = made(), made(), Q(drawn.choice((-5, 2, 3)), 4)
        both = range(min(a.low, b.low), min(a.end, b.end))
        assert [(a + b)[n] for n in both] == [a[n] + b[n] for n in both]
        many = min(a.end - a.low, b.end - b.low)
        assert (a * b).c == [sum(a.c[i] * b.c[n - i] for i in range(n + 1)) for n in range(many)]
        assert ((a / b) * b).c == a.c[:many]
        assert ((a * k).c, (a / k).c, (-a).c) == ([x * k for x in a.c], [x / k for x in a.c], [-x for x in a.c])
        assert a.cut(a.end - 1).c == a.c[:-1]
        small = a * Series.variable(9) ** 3
        assert small.exp() * (-small).exp() == 1
        slope, value = [Q(0)] * small.end, small.exp()  # exp(a)' = a' exp(a)
        for n in range(1, small.end):
            slope[n] = sum(j * small[j] * value[n - j] for j in range(1, n + 1))
        assert [n * value[n] for n in range(small.end)] == slope
        assert all(type(x) is Q for x in value.c)


def test_series_keeps_track_of_what_it_knows() -> None:
    h = Series.variable(6)
    assert ((h.exp() - 1 - h) / h**2).end == 4
    with pytest.raises(IndexError, match="is not known"):
        h.exp()[6]
    with pytest.raises(ValueError, match="log"):
        h.log()
    with pytest.raises(TypeError):
        math.exp(h)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        bool(h < 1)  # type: ignore[operator]


@pytest.mark.parametrize("z", [-700.0, -60.0, -5.0, -1.01, -1.0, -0.99, -1e-9, 0.0, 0.3, 0.99])
def test_phi_of_floats(z: float) -> None:
    """phi_k(z) = 1F1(1; k + 1; z)/k!."""
    for k in range(6):
        wanted = float(mpmath.hyp1f1(1, k + 1, z) / mpmath.factorial(k)) if k else math.exp(z)
        assert scalars.phi(k, z) == pytest.approx(wanted, rel=2e-12, abs=1e-300)
        assert scalars.phi(k, np.array([z]))[0] == scalars.phi(k, z)
