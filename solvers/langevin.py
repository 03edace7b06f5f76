"""Predictor-corrector sampling: Langevin steps at each noise level, before a step of the predictor."""

from __future__ import annotations

from dataclasses import replace

from diffsolve import Field, Past, Solver, SolverError, Span, Step
from diffsolve.field import Vector
from diffsolve.validate import above_zero, at_most, between, whole

from .wrappers import Wrapped


class Langevin(Wrapped):
    """`corrections` Langevin steps at the start of each step of `solver` (Song et al. 2021, Algorithms 2 and 4).

    y += e g + sqrt(2 e) z with the score g = -eps/sigma and e = 2 (eta snr |z|/|g|)^2, norms of one sample; the paper's
    code takes their means over the batch. It isn't linear, so it isn't traced, and it is written for a form in which N
    is a multiple of eps: "sigma" or "sde_sigma". Raises SolverError in another, for numbers that can't be, and around
    another Langevin, whose noise it would share.
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
        self.stages, self.traceable = self._with_corrections(solver.stages), False

    # `corrections` times y <- y + e g + sqrt(2 e) z, with g = -eps/sigma_0 at y and e = 2 (eta snr |z|/|g|)^2
    # y_1 = the solver's step from there
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        if self.form not in ("sigma", "sde_sigma"):
            raise SolverError(f"{self!r} takes Langevin steps, which are written for the forms 'sigma' and 'sde_sigma'")
        for count in range(self.corrections if f.eta else 0):
            score = f(y, span.start) * (-f.form.deps_dN(span.start) / f.form.sigma(span.start))
            visit = -1 - count - self.corrections * span.visit  # what goes back over the span counts upwards
            z = f.normal(replace(span, visit=visit))
            size = 2 * (f.eta * self.snr * _norm(z) / _norm(score)) ** 2
            y = y + size * score + (2 * size) ** 0.5 * z
        return self.solver.step(f, y, span, past)

    def evaluations(self, span: Span, known: int) -> int | None:
        return self._with_corrections(self.solver.evaluations(span, known))

    def noiseless(self) -> Solver:
        return self.solver.noiseless()

    def _with_corrections(self, count: int | None) -> int | None:
        return None if count is None else count + self.corrections


def _norm(x: Vector) -> Vector:
    """The norm of each sample, in a shape that multiplies x."""
    return x.reshape(len(x), -1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
