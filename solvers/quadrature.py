"""The weights of multistep methods: int_0^h e^{L (h - s)} N(s) ds from values of N at given nodes.

Each rule takes (linear, h, nodes), nodes relative to the step's start and oldest first, and gives a weight for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffsolve import Span, scalars

Scalar = Any
"""A float, or in analysis any number that `diffsolve.scalars` takes: of numpy, sympy, mpmath, a power series."""

Rule = Callable[[Scalar, Scalar, Sequence[Scalar]], list[Scalar]]

exact: Rule = scalars.exponential_weights
"""Those of the interpolating polynomial (Hochbruck & Ostermann 2010, sec. 2.5): any order."""

_GAUSS = [(float(x + 1) / 2, float(w) / 2) for x, w in zip(*np.polynomial.legendre.leggauss(40), strict=True)]


def uniform(linear: Scalar, h: Scalar, nodes: Sequence[Scalar]) -> list[Scalar]:
    """The exact weights of evenly spaced nodes, whatever the nodes are (PLMS, iPNDM)."""
    return exact(linear, h, [(i - len(nodes) + 1) * h for i in range(len(nodes))])


def midpoint(linear: Scalar, h: Scalar, nodes: Sequence[Scalar]) -> list[Scalar]:
    """N at the step's middle, extrapolated, times h phi_1 (DPM-Solver++ 2M; UniPC's B_2 where it skips its system)."""
    return [h * scalars.phi(1, linear * h) * w for w in scalars.lagrange(nodes, h / 2)]


def third_halved(linear: Scalar, h: Scalar, nodes: Sequence[Scalar]) -> list[Scalar]:
    """Exact but for three nodes, where the second difference is multiplied by h phi_3 in place of 2 h phi_3.

    As the third-order multistep DPM-Solver(++) is published and shipped; it costs the third order.
    """
    weights = exact(linear, h, nodes)
    if len(nodes) != 3:
        return weights
    (a, b, c), excess = nodes, h * h * h * scalars.phi(3, linear * h)
    gaps = ((a - b) * (a - c), (b - a) * (b - c), (c - a) * (c - b))
    return [w - excess / gap for w, gap in zip(weights, gaps, strict=True)]


def bh1(linear: Scalar, h: Scalar, nodes: Sequence[Scalar]) -> list[Scalar]:
    """Exact but for two nodes, where the slope is multiplied by h^2/2 in place of h^2 phi_2: UniPC with B(h) = h."""
    if len(nodes) != 2:
        return exact(linear, h, nodes)
    level, slope = h * scalars.phi(1, linear * h), h * h / 2 / (nodes[1] - nodes[0])
    before, after = scalars.lagrange(nodes, 0 * h)
    return [level * before - slope, level * after + slope]


def bh2(linear: Scalar, h: Scalar, nodes: Sequence[Scalar]) -> list[Scalar]:
    """Exact but for two nodes, where it is `midpoint`: UniPC with B(h) = e^h - 1."""
    return midpoint(linear, h, nodes) if len(nodes) == 2 else exact(linear, h, nodes)


def extrapolated(gamma: float) -> Rule:
    """gamma of the newest value and 1 - gamma of the one before, times h phi_1."""

    def rule(linear: Scalar, h: Scalar, nodes: Sequence[Scalar]) -> list[Scalar]:
        level = h * scalars.phi(1, linear * h)
        return [level * share for share in ((1 - gamma, gamma) if len(nodes) == 2 else (1.0,))]

    return rule


def in_coordinate(
    linear: float, span: Span, nodes: Sequence[float], coordinate: Callable[[float], float]
) -> list[float]:
    """The weights over `span` of Lagrange polynomials in coordinate(s) rather than in s, by Gauss-Legendre on 40 nodes.

    nodes: not relative. Right to 1e-13 where `coordinate` is smooth over the step.
    """
    known, h = [coordinate(node) for node in nodes], span.h
    total = [0.0] * len(nodes)
    for x, share in _GAUSS:
        factor = h * share * scalars.exp(linear * h * (1 - x))
        basis = scalars.lagrange(known, coordinate(span.start + h * x))
        total = [sum_ + factor * value for sum_, value in zip(total, basis, strict=True)]
    return total


RULES: dict[str, tuple[Rule, int]] = {
    "exact": (exact, 12), "uniform": (uniform, 2), "midpoint": (midpoint, 2), "third_halved": (third_halved, 2),
    "bh1": (bh1, 12), "bh2": (bh2, 12),
}  # fmt: skip
"""name -> (rule, the highest order that it can have on a smooth grid)."""
