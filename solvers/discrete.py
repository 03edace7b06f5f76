"""Ancestral sampling of codes: VQ-Diffusion, with truncation and purity."""

from __future__ import annotations

import math
from typing import Any

from diffsolve import Past, Solver, SolverError, Span, Step

NEARLY_NONE = math.exp(-70)  # not 0: where nothing is ever replaced, what a place shows is all that it can have been


class AncestralJumps(Solver):
    """x_s drawn from sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t), each place by itself (Gu et al. 2022, eq. 11).

    truncation: of p(x_0 | x_t) at each place, the likeliest classes that make up this share are kept, one at the least
    (their sec. 5.1; diffusers' truncation_rate). purity: None, or a weight r >= 0 (Tang et al. 2022, sec. 3.3): a
    place's purity is its largest p(x_0 | x_t); of the masked places as many are unmasked as the process would, chosen
    in proportion to purity, with x_0 drawn from p^(1 + r purity); codes that are no mask stay. Raises SolverError.
    """

    traceable = False
    stochastic = True

    def __init__(self, truncation: float = 1.0, purity: float | None = None) -> None:
        if isinstance(truncation, bool) or not isinstance(truncation, int | float) or not 0 < truncation <= 1:
            raise SolverError(f"truncation is a share above 0 and at most 1, got {truncation!r}")
        if isinstance(purity, bool) or not (purity is None or (isinstance(purity, int | float) and 0 <= purity < 1e3)):
            raise SolverError(f"purity is a weight of at least 0, or None for none, got {purity!r}")
        self.truncation, self.purity = truncation, purity

    def step(self, f: Any, y: Any, span: Span, past: Past) -> Step:
        p = f(y, span.start)
        if self.truncation < 1:
            p = truncated(p, self.truncation)
        if self.purity is None:
            return Step(f.choose(f.posterior(y, p, span), span))
        if not f.masked_share(span.start):
            raise SolverError("purity chooses which masks to lift, and this process masks nothing; leave purity out")
        purity = p.amax(1, keepdim=True)
        drawn = f.choose((p / purity) ** (1 + self.purity * purity), span)
        masked = f.is_masked(y)
        keep = (masked[0].numel() * f.masked_share(span.end)) // 1
        waiting = f.clocks(purity, span, 1) / purity
        place = waiting.squeeze(1).masked_fill(~masked, float("inf")).flatten(1).argsort(1).argsort(1).view_as(y)
        count = (masked.flatten(1).sum(1) - keep).clamp(min=0).reshape(-1, *[1] * (y.ndim - 1))
        return Step(y.where(~masked | (place >= count), drawn))


def truncated(p: Any, share: float) -> Any:
    """p (B, K, ...) with next to nothing left of all but each place's likeliest classes, that make up `share`."""
    ranked, order = p.sort(1, descending=True)
    above = ranked.cumsum(1).roll(1, 1)
    above[:, 0] = 0
    return p.scatter(1, order, ranked.masked_fill(above >= share, NEARLY_NONE))
