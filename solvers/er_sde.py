"""ER-SDE-Solver's third order as it is published."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffsolve import Field, Span

from . import quadrature as rules
from .adams import Adams


class OneSidedAdams(Adams):
    """Adams(3, coordinate="sigma") with D's slope at sigma_0 taken from one side (Cui et al. 2023, Algorithm 3).

    D is D_0 + D[0, 1] (sigma - sigma_0) + D[0, 1, 2] (sigma - sigma_0)^2, where the interpolating polynomial has
    (sigma - sigma_0) (sigma - sigma_1): an error of the size of a second-order method's.
    """

    def __init__(self) -> None:
        super().__init__(3, coordinate="sigma")
        self.order = self.order_as_started = 2

    def weigh(self, f: Field, span: Span, nodes: Sequence[float]) -> list[float]:
        weights = super().weigh(f, span, nodes)
        if len(nodes) < 3:
            return weights
        form = f.form
        sigmas = [form.sigma(node) for node in nodes]
        step = sigmas[-2] - sigmas[-1]
        # step int (sigma - sigma_0)
        change = step * step * rules.in_coordinate(form.linear, span, nodes[-2:], form.sigma)[0]
        shares = [1 / math.prod(x - other for other in sigmas if other is not x) for x in sigmas]
        return [w + change * share for w, share in zip(weights, shares, strict=True)]
