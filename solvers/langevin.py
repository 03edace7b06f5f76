"""Predictor-corrector sampling: Langevin steps at each noise level, before a step of the predictor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffsolve import Field, Past, Solver, SolverError, Span, Step

from .wrappers import _Wrapped


class Langevin(_Wrapped):
    """`corrections` Langevin steps at the start of each step of `solver` (Song et al. 2021, Algorithms 2 and 4).

    y += e g + sqrt(2 e) z with the score g = -eps/sigma and e = 2 (eta snr |z|/|g|)^2, norms of one sample; the paper's
    code takes their means over the batch. It isn't linear, so it isn't traced, and it is written for a form in which N
    is a multiple of eps: "sigma" or "sde_sigma". Raises SolverError in another, and for numbers that can't be.
    """

    def __init__(self, solver: Solver, snr: float = 0.16, corrections: int = 1) -> None:
        if isinstance(snr, bool) or not isinstance(snr, int | float) or not snr > 0:
            raise SolverError(f"snr must be a positive number, got {snr!r}")
        if isinstance(corrections, bool) or not isinstance(corrections, int) or corrections < 0:
            raise SolverError(f"corrections must be a whole number of at least 0, got {corrections!r}")
        super().__init__(solver)
        self.snr, self.corrections = snr, corrections
        self.stages, self.traceable = solver.stages + corrections, False

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        if self.form not in ("sigma", "sde_sigma"):
            raise SolverError(f"{self!r} takes Langevin steps, which are written for the forms 'sigma' and 'sde_sigma'")
        for count in range(self.corrections if f.eta else 0):
            score = f(y, span.start) * (-f.eps_slope(span.start) / f.sigma(span.start))
            z = f.draw(replace(span, visit=span.visit + count + 1))
            size = 2 * (f.eta * self.snr * _norm(z) / _norm(score)) ** 2
            y = y + size * score + (2 * size) ** 0.5 * z
        return self.solver.step(f, y, span, past)


def _norm(x: Any) -> Any:
    """The norm of each sample, in a shape that multiplies x."""
    return x.reshape(len(x), -1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
