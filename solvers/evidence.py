"""What a sample's own history shows of instability: shares of a high-order step, by inner products of its vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from diffsolve.field import Vector

BEND, TURN, REACTION, FIT = (0.7, 1.0), (0.2, 0.5), (0.2, 0.5), (0.4, 0.7)
GAP_REACTION, GAP_TURN = (0.1, 0.6), (-0.3, 0.0)
TINY = 1e-30
Value = float | Vector
"""A number of one sample, or of each, (B,): tensors of a few numbers cost a fused step more than a pass does."""


class Evidence:
    """A rule of `Field.blend`: a share, of the products of `pairs` of vectors, of which what it was before is a bound.

    memory: the part of 1 - share that goes on to the next step. again: pairs that are also of the step before, and
    which those were there.
    """

    pairs: ClassVar[tuple[tuple[int, int], ...]]
    again: ClassVar[dict[int, int]] = {}

    def __init__(self, memory: float) -> None:
        self.memory = memory

    def share(self, *products: Value) -> Value:
        raise NotImplementedError

    def __call__(self, products: Vector, before: Vector | None) -> Vector:
        share = self.share(*[products[:, i, j] for i, j in self.pairs])
        assert not isinstance(share, float)
        return share if before is None else share.minimum(1 - self.memory * (1 - before))

    def numbers(self, products: Sequence[float], before: float | None) -> float:
        """The same of one sample."""
        share = self.share(*products)
        assert isinstance(share, float)
        return share if before is None else min(share, 1 - self.memory * (1 - before))


class Share(Evidence):
    """The share of the high-order step, of products of (r_y, h r_eps, h d eps, and r_y, h r_eps of the step before).

    r_y and r_eps are how far the newest state and its eps lie off the line, in sigma, through the two before; h is the
    length of the step to come in sigma. Instability shows in four things at once. z = <r_y, h r_eps>/<r_y, r_y>, of
    both steps, nears the bound of a stable step: eps answers to the state as h df/du would have it. The answer has the
    direction of r_y. r_eps turns about from step to step. And it is no smaller than d eps: the line is a worse guess
    than the newest value. A coarse step over a smooth field shows one or two of them.
    """

    pairs = (0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (0, 1), (3, 4), (1, 4)
    again: ClassVar[dict[int, int]] = {3: 0, 4: 1, 6: 5}

    def share(self, *products: Value) -> Value:
        y, e, d, y0, e0, aligned, aligned0, turned = products
        alarm = _rise(_over(aligned + aligned0, y + y0), *REACTION)
        if isinstance(alarm, float) and not alarm:
            return 1.0
        return 1 - (
            alarm
            * _rise(_root(_over(e, d)), *BEND)
            * _rise(_over(aligned, _root(y * e)), *FIT)
            * _rise(_over(-turned, _root(e * e0)), *TURN)
        )


class GapShare(Evidence):
    """The share of the high-order step, of products of (r_y, h r_g, and those of the step before), g the gap's eps.

    The gap alone can answer to the state more than a stable step bears; what is without guidance answers by at most
    1/sigma. So of the four signs two are asked for: z = <r_y, h r_g>/<r_y, r_y>, and that r_g does not go on as it did.
    """

    pairs = (0, 0), (1, 1), (2, 2), (3, 3), (0, 1), (2, 3), (1, 3)

    def share(self, *products: Value) -> Value:
        y, g, y0, g0, aligned, aligned0, turned = products
        alarm = _rise(_over(aligned + aligned0, y + y0), *GAP_REACTION)
        return 1 - alarm * _rise(_over(-turned, _root(g * g0)), *GAP_TURN)


class EarlyShare(Evidence):
    """The share of a step before there is evidence, which (share^{1/2} y, y) tell by their ratio."""

    pairs = (0, 0), (1, 1)

    def share(self, *products: Value) -> Value:
        part, full = products
        return _over(part, full)


def _over(x: Value, y: Value) -> Value:
    return x / (max(y, TINY) if isinstance(y, float) else y.clamp_min(TINY))


def _root(x: Value) -> Value:
    return math.sqrt(x) if isinstance(x, float) else x.sqrt()


def _rise(x: Value, low: float, high: float) -> Value:
    x = (x - low) / (high - low)
    return min(max(x, 0.0), 1.0) if isinstance(x, float) else x.clamp(0, 1)
