"""Guidance told from a second evaluation within the step."""

from __future__ import annotations

from diffsolve import Field, Past, Solver, SolverError, Span, Step, combine
from diffsolve.field import Vector
from diffsolve.validate import above_zero, at_least, between


class RectifiedCFG(Solver):
    """Euler's step by the conditional estimate, and guidance from where that leads (Saini et al. 2025, Algorithm 1).

    guidance: the problem's own scale, by which the conditional estimate is told from the guided one. strength: what the
    guidance from there is multiplied by, times (1 - t)^decay; by default guidance - 1, so that short steps follow the
    guided flow. place: how far into the step it is asked for. Without guidance it is Euler's method. Raises SolverError
    for numbers that can't be, and for a guided problem whose scale is not told.
    """

    order, order_as_started, stages = None, None, 2

    def __init__(self, guidance: float | None, strength: float | None, decay: float, place: float) -> None:
        self.guidance = None if guidance is None else above_zero(guidance, "guidance")
        self.strength = None if strength is None else at_least(strength, "strength")
        self.decay, self.place = at_least(decay, "decay"), between(place, "place", 1e-6, 1)

    # C_0 = N'_0 + (N_0 - N'_0)/w, N' without guidance, w its scale;  y_c = y_0 + c h (C_0 + L y_0)
    # y_1 = y_0 + h (C_0 + L y_0 + a (N_c - N'_c)/w), a = strength (1 - t_0)^decay, t = sigma/(1 + sigma)
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        start, h, inner = f.evaluate(y, span.start), span.h, span.start + self.place * span.h
        plain, scale = start.unconditional, self.guidance or 1.0
        if plain is not None and self.guidance is None:
            raise SolverError(f"{self!r} needs guidance=, the scale that the problem was made with")
        conditional = start.value if plain is None else combine((1 / scale, start.value), (1 - 1 / scale, plain))
        slope = combine((1.0, conditional), (f.form.linear, y)) if f.form.linear else conditional
        there = f.evaluate(combine((1.0, y), (self.place * h, slope)), inner)
        free = there.unconditional
        if free is None:
            return Step(combine((1.0, y), (h, slope)), past=past)
        strength = (scale - 1 if self.strength is None else self.strength) / scale
        by = h * strength / (1 + f.form.sigma(span.start)) ** self.decay
        return Step(combine((1.0, y), (h, slope), (by, there.value), (-by, free)), past=past)

    def evaluations(self, span: Span, known: int) -> int:
        return 2
