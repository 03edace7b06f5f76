"""The weights of multistep methods: int_0^h e^{L (h - s)} N(s) ds from values of N at given nodes.

Each rule takes (linear, h, nodes), nodes relative to the step's start and oldest first, and gives a weight for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from diffsolve import Span, scalars
from diffsolve.scalars import Scalar

Rule = Callable[[Scalar, Scalar, Sequence[Scalar]], list[Scalar]]

_GAUSS = [(float(x + 1) / 2, float(w) / 2) for x, w in zip(*np.polynomial.legendre.leggauss(40), strict=True)]


def exact(linear: Scalar, h: Scalar, nodes: Sequence[Scalar]) -> list[Scalar]:
    """Weights w_j = int_0^h e^{linear (h - s)} l_j(s) ds of exponential Adams methods, in closed form.

    nodes: places of the known values relative to the step's start, in the form's variable, all distinct; l_j is the
    Lagrange polynomial that is 1 at nodes[j]. With linear = 0 these are the Adams weights of that uneven grid.
    (Hochbruck & Ostermann 2010, sec. 2.5.) For any scalar kind.
    """
    # On the unit interval, x = s/h: l_j has coefficients c_m of x^m, and int_0^1 e^{z (1-x)} x^m dx = m! phi_{m+1}(z).
    x = [node / h for node in nodes]
    moments = [math.factorial(m) * scalars.phi(m + 1, linear * h) for m in range(len(x))]
    weights = []
    for j, xj in enumerate(x):
        poly = [1]
        scale = 1
        for i, xi in enumerate(x):
            if i != j:
                raised, kept = [0, *poly], [*(xi * c for c in poly), 0]  # poly times (x - xi)
                poly = [r - k for r, k in zip(raised, kept, strict=True)]
                scale = scale * (xj - xi)
        total = sum((c * m for c, m in zip(poly[1:], moments[1:], strict=False)), poly[0] * moments[0])
        weights.append(h * total / scale)
    return weights


def lagrange(nodes: Sequence[Scalar], at: Scalar) -> list[Scalar]:
    """l_j(at) of the Lagrange polynomials over distinct `nodes`: the weights that extrapolate values to `at`."""
    weights = []
    for j, xj in enumerate(nodes):
        weight = at * 0 + 1
        for i, xi in enumerate(nodes):
            if i != j:
                weight = weight * (at - xi) / (xj - xi)
        weights.append(weight)
    return weights


def uniform(linear: Scalar, h: Scalar, nodes: Sequence[Scalar]) -> list[Scalar]:
    """The exact weights of evenly spaced nodes, whatever the nodes are (PLMS, iPNDM)."""
    return exact(linear, h, [(i - len(nodes) + 1) * h for i in range(len(nodes))])


def midpoint(linear: Scalar, h: Scalar, nodes: Sequence[Scalar]) -> list[Scalar]:
    """N at the step's middle, extrapolated, times h phi_1 (DPM-Solver++ 2M; UniPC's B_2 where it skips its system)."""
    return [h * scalars.phi(1, linear * h) * w for w in lagrange(nodes, h / 2)]


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
    before, after = lagrange(nodes, 0 * h)
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


def corrected(order: int, theta: float) -> Rule:
    """Exact on the newest `order` nodes, and theta h phi_1 of how far the newest value is off the line of those before.

    Three nodes are read; of fewer it is exact (CAB, Roy & Nair 2026, arXiv 2605.16736).
    """

    def rule(linear: Scalar, h: Scalar, nodes: Sequence[Scalar]) -> list[Scalar]:
        if len(nodes) < 3:
            return exact(linear, h, nodes)
        level, ratio = theta * h * scalars.phi(1, linear * h), (nodes[2] - nodes[1]) / (nodes[1] - nodes[0])
        weights = [0.0 * h] * (3 - order) + exact(linear, h, nodes[3 - order :])
        return [w + level * c for w, c in zip(weights, (ratio, -1 - ratio, 1), strict=True)]

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
        basis = lagrange(known, coordinate(span.start + h * x))
        total = [sum_ + factor * value for sum_, value in zip(total, basis, strict=True)]
    return total


RULES: dict[str, tuple[Rule, int]] = {
    "exact": (exact, 12), "uniform": (uniform, 2), "midpoint": (midpoint, 2), "third_halved": (third_halved, 2),
    "bh1": (bh1, 12), "bh2": (bh2, 12),
}  # fmt: skip
"""name -> (rule, the highest order that it can have on a smooth grid)."""
