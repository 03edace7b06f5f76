"""Multistep weights for few evaluations: each part of an extrapolation is trusted as far as the step is short."""

from __future__ import annotations

from collections.abc import Sequence

from diffsolve import scalars
from diffsolve.scalars import Scalar
from diffsolve.validate import above_zero, at_least, between

from .quadrature import Rule, exact


def damped(
    tilt: Scalar = 0.6, reach: float = 1.5, trust: float = 1.0, long: float = 2.5, steep: float = 4.0
) -> Rule:
    """A rule for the noise form, in units of lambda; the order of a predictor-corrector with it is that of `exact`.

    tilt: the weights are exact for e^{-tilt s} times polynomials, once two values are known: below the data's own
    scale eps falls with sigma = e^{-s}, and above it stays. reach: what the third and older values add to the weights
    of the newest two is multiplied by e^{-(h/reach)^2}. trust: likewise what a corrector, which knows the value at the
    step's end, adds to the prediction. Both factors are 1 - O(h^2), so they take two orders more than what they damp.
    long, steep: a longer step can't use the slope of what is known either; by 1 - e^{-(h/long)^steep} it goes by the
    newest value alone, which is DDIM.
    Raises SolverError for what is out of range.
    """
    if isinstance(tilt, (int, float)):  # in analysis a symbol
        tilt = between(tilt, "tilt", 0, 10)
    for name, length in (("reach", reach), ("trust", trust), ("long", long), ("steep", steep)):
        at_least(above_zero(length, name, infinite=True), name, least=1e-3, infinite=True)

    def tilted(linear: Scalar, h: Scalar, nodes: Sequence[Scalar], old: bool) -> list[Scalar]:
        if not (old and tilt):
            return exact(linear, h, nodes)
        weights = exact(linear + tilt, h, nodes)
        return [scalars.exp((node - h) * tilt) * w for node, w in zip(nodes, weights, strict=True)]

    def towards(near: list[Scalar], far: list[Scalar], power: Scalar) -> list[Scalar]:
        share = scalars.exp(-power)
        return [a + share * (b - a) for a, b in zip(near, far, strict=True)]

    def rule(linear: Scalar, h: Scalar, nodes: Sequence[Scalar]) -> list[Scalar]:
        if nodes[-1] == 0:
            one = [0.0] * (len(nodes) - 1) + exact(linear, h, nodes[-1:])
            two = [0.0] * (len(nodes) - 2) + tilted(linear, h, nodes[-2:], len(nodes) > 1)
            all_ = tilted(linear, h, nodes, len(nodes) > 1)
            return towards(towards(one, two, (h / long) ** steep), all_, (h / reach) ** 2)
        wide = tilted(linear, h, nodes, len(nodes) > 2)
        return towards([*rule(linear, h, nodes[:-1]), 0.0], wide, (h / trust) ** 2)

    return rule
