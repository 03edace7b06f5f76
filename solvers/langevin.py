"""Predictor-corrector sampling: Langevin steps at each noise level, before a step of the predictor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffsolve import Field, Past, Solver, SolverError, Span, Step, combine
from diffsolve.field import Vector, same
from diffsolve.validate import above_zero, at_most, between, whole

from .wrappers import Wrapped


@dataclass(frozen=True)
class Ratio:
    """The rule |a|/|b| of two vectors of a sample."""

    pairs = (0, 0), (1, 1)

    def __call__(self, products: Vector, before: Vector | None) -> Vector:
        return (products[:, 0, 0] / products[:, 1, 1]).sqrt()

    def numbers(self, products: Sequence[float], before: float | None) -> float:
        """The same of one sample's products of `pairs`."""
        a, b = products
        return math.sqrt(a / b) if b else math.sqrt(a) * math.inf


class Langevin(Wrapped):
    """`corrections` Langevin steps at the start of each step of `solver` (Song et al. 2021, Algorithms 2 and 4).

    y += e g + sqrt(2 e) z with the score g = -eps/sigma and e = 2 (eta snr |z|/|g|)^2, norms of one sample; the paper's
    code takes their means over the batch. It is written for a form in which N is a multiple of eps: "sigma" or
    "sde_sigma". Raises SolverError in another, for numbers that can't be, and around another Langevin, whose noise it
    would share.
    """

    def __init__(self, solver: Solver, snr: float = 0.16, corrections: int = 1) -> None:
        self.snr = between(above_zero(snr, "snr"), "snr", 0, 100)
        self.corrections = at_most(whole(corrections, "corrections", least=0), "corrections", 1000)
        super().__init__(solver)
        inside: object = solver
        while isinstance(inside, Wrapped):
            if isinstance(inside, Langevin):
                raise SolverError(f"two Langevin correctors would share their noise; give one of them all the steps: "
                                  f"corrections={self.corrections + inside.corrections}")  # fmt: skip
            inside = inside.solver
        self.stages = self._with_corrections(solver.stages)

    # `corrections` times y <- y + 2 sigma_0 c w (z - c w eps) at y, with w = |z|/|eps| and c = eta snr: e g along
    # g = -eps/sigma_0, where e = 2 (c w sigma_0)^2, and sqrt(2 e) z
    # y_1 = the solver's step from there
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        if self.form not in ("sigma", "sde_sigma"):
            raise SolverError(f"{self!r} takes Langevin steps, which are written for the forms 'sigma' and 'sde_sigma'")
        by, out = f.eta * self.snr, 2 * f.form.sigma(span.start) * f.eta * self.snr
        for count in range(self.corrections if f.eta else 0):
            eps = combine((f.form.deps_dN(span.start), f(y, span.start)))
            visit = -1 - count - self.corrections * span.visit  # what goes back over the span counts upwards
            z = f.normal(replace(span, visit=visit))
            moved, ratio = _blend(f, z, combine((1.0, z), (-by, eps)), (z, eps))
            y, _ = _blend(f, y, combine((1.0, y), (out, moved)), (), ratio)
        return self.solver.step(f, y, span, past)

    def evaluations(self, span: Span, known: int) -> int | None:
        return self._with_corrections(self.solver.evaluations(span, known))

    def noiseless(self) -> Solver:
        return self.solver.noiseless()

    def _with_corrections(self, count: int | None) -> int | None:
        return None if count is None else count + self.corrections


def _blend(
    f: Field, near: Vector, far: Vector, evidence: tuple[Vector, ...], before: Vector | None = None
) -> tuple[Vector, Vector]:
    """`f.blend` by `Ratio`, or by the one of before; of numbers that are no tensors each is a sample."""
    if isinstance(near, float | np.ndarray):
        ratio = abs(evidence[0]) / abs(evidence[1]) if before is None else before
        return near + ratio * (far - near), ratio
    return f.blend(near, far, evidence, Ratio() if before is None else same, before)
