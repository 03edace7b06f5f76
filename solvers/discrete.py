"""Ancestral sampling of codes: VQ-Diffusion, with truncation and purity."""

from __future__ import annotations

import math
from typing import Protocol, cast

from diffsolve import Field, Past, Solver, SolverError, Span, Step
from diffsolve.field import Vector
from diffsolve.validate import above_zero, between

NEARLY_NONE = math.exp(-70)  # not 0: where nothing is ever replaced, what a place shows is all that it can have been


class Codes(Protocol):
    """The field of a problem of codes: p(x_0 | x_t) at a call, and what is drawn with it; see problems.discrete."""

    def __call__(self, u: Vector, s: float, /) -> Vector: ...

    def posterior(self, x: Vector, p: Vector, span: Span) -> Vector: ...

    def choose(self, p: Vector, span: Span) -> Vector: ...

    def clocks(self, p: Vector, span: Span, stream: int = 0) -> Vector: ...

    def is_masked(self, x: Vector) -> Vector: ...

    def masked_share(self, s: float) -> float: ...


class AncestralJumps(Solver):
    """x_s drawn from sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t), each place by itself (Gu et al. 2022, eq. 11).

    truncation: of p(x_0 | x_t) at each place, the likeliest classes that make up this share are kept, one at the least
    (their sec. 5.1; diffusers' truncation_rate). purity: None, or a weight r >= 0 (Tang et al. 2022, sec. 3.3): a
    place's purity is its largest p(x_0 | x_t); of the masked places as many are unmasked as the process would, chosen
    in proportion to purity, with x_0 drawn from p^(1 + r purity); codes that are no mask stay. Raises SolverError.
    """

    form = None
    traceable = False
    stochastic = True

    def __init__(self, truncation: float = 1.0, purity: float | None = None) -> None:
        self.truncation = above_zero(between(truncation, "truncation", 0, 1), "truncation")
        self.purity = None if purity is None else between(purity, "purity, where it is not None,", 0, 1000)

    # p = p(x_0 | y);  y_1 ~ sum over x_0 of q(y_1 | y, x_0) p(x_0), each place by itself
    # purity r: x_0 ~ (p/max p)^{1 + r max p} where the mask is lifted first of clocks/max p, y elsewhere
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        codes = cast(Codes, f)
        p = codes(y, span.start)
        if self.truncation < 1:
            p = truncated(p, self.truncation)
        if self.purity is None:
            return Step(codes.choose(codes.posterior(y, p, span), span))
        if not codes.masked_share(span.start):
            raise SolverError("purity chooses which masks to lift, and this process masks nothing; leave purity out")
        purity = p.amax(1, keepdim=True)
        drawn = codes.choose((p / purity) ** (1 + self.purity * purity), span)
        masked = codes.is_masked(y)
        keep = (masked[0].numel() * codes.masked_share(span.end)) // 1
        waiting = codes.clocks(purity, span, 1) / purity
        rank = waiting.squeeze(1).masked_fill(~masked, float("inf")).flatten(1).argsort(1).argsort(1).view_as(y)
        count = (masked.flatten(1).sum(1) - keep).clamp(min=0).reshape(-1, *[1] * (y.ndim - 1))
        return Step(y.where(~masked | (rank >= count), drawn))

    def evaluations(self, span: Span, known: int) -> int:
        return 1


def truncated(p: Vector, share: float) -> Vector:
    """p (B, K, ...) with next to nothing left of all but each place's likeliest classes, that make up `share`."""
    ranked, order = p.sort(1, descending=True)
    above = ranked.cumsum(1).roll(1, 1)
    above[:, 0] = 0
    return p.scatter(1, order, ranked.masked_fill(above >= share, NEARLY_NONE))
