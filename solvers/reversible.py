"""Methods that an exact way back exists for: the state before is known from the two after it."""

from __future__ import annotations

from diffsolve import Field, Past, Solver, Span, Step, combine, scalars
from diffsolve.field import Vector
from diffsolve.scalars import Scalar
from diffsolve.validate import between


class Leapfrog(Solver):
    """Exponential Euler forward, and a share of how far the step before was from exponential Euler backward.

    gamma: that share (BDIA, Zhang et al. 2023): of order 1, and at 1 of order 2 on a smooth grid. None: as much
    as cancels the second derivative on any grid (O-BELM, Wang et al. 2024); where L is 0 that is the square of
    the ratio of the steps. The first step is Euler's.

    u_2 and u_1 give u_0 back: N at u_1 is all that the step from it reads. Raises SolverError for another gamma.
    """

    history = 1

    def __init__(self, gamma: float | None = None) -> None:
        self.gamma = None if gamma is None else between(gamma, "gamma", 0, 1)
        self.order = self.order_as_started = 2 if self.gamma in (None, 1) else 1

    # y_1 = e^{L h} y_0 + h phi_1(L h) N + g (y_-1 - e^{-L h_p} y_0 + h_p phi_1(-L h_p) N), h_p the step before,
    # g = gamma e^{L (h + h_p)}, or h^2 phi_2(L h) / (h_p^2 phi_2(-L h_p))
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        linear, h = f.form.linear, span.h
        keep, level, terms = scalars.exp(linear * h), h * scalars.phi(1, linear * h), list[tuple[Scalar, Vector]]()
        for node, older in past[-1:]:
            before = span.start - node
            share = self.share(linear, h, before)
            keep = keep - share * scalars.exp(-linear * before)
            level = level + share * before * scalars.phi(1, -linear * before)
            terms = [(share, older)]
        return Step(combine((keep, y), (level, f(y, span.start)), *terms), past=((span.start, y),))

    def share(self, linear: Scalar, h: Scalar, before: Scalar) -> Scalar:
        """g: the weight of what the step before was short of."""
        if self.gamma is not None:
            return self.gamma * scalars.exp(linear * (h + before))
        ratio = h / before
        return ratio * ratio * scalars.phi(2, linear * h) / scalars.phi(2, -linear * before)

    def evaluations(self, span: Span, known: int) -> int:
        return 1
