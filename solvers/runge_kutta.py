"""One-step methods from their tableaux: classical and exponential Runge-Kutta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffsolve import Field, Past, Solver, Span, Step, combine, scalars

from .tableaux import ExponentialTableau, Tableau, Term


class RungeKutta(Solver):
    """y_1 = y_0 + h sum b_i k_i with k_i = F(y_0 + h sum a_ij k_j, s_0 + c_i h), F = L u + N.

    Stages that only the error estimate reads are left out of a fixed step.
    """

    def __init__(self, tableau: Tableau) -> None:
        self.tableau, self.order = tableau, tableau.order
        self.c = [float(c) for c in tableau.c]
        self.a = [[float(a) for a in row] for row in tableau.a]
        self.b, self.error = [float(b) for b in tableau.b], [float(e) for e in tableau.error]
        self.stages = max(i for i, b in enumerate(self.b) if b) + 1

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        h = span.h
        slopes: list[Any] = []
        for c, row in list(zip(self.c, self.a, strict=True))[: None if span.adaptive else self.stages]:
            at = combine((1.0, y), *((h * a, k) for a, k in zip(row, slopes, strict=False) if a)) if any(row) else y
            value = f(at, span.start + c * h)
            slopes.append(combine((1.0, value), (f.linear, at)) if f.linear else value)
        end = combine((1.0, y), *((h * b, k) for b, k in zip(self.b, slopes, strict=False) if b))
        if not (span.adaptive and self.error):
            return Step(end, past=past)
        return Step(end, combine(*((h * e, k) for e, k in zip(self.error, slopes, strict=True) if e)), past)


class ExponentialRungeKutta(Solver):
    """u_i = e^{c_i z} u_0 + h sum a_ij(z) N_j, z = L h: the linear part is exact.

    Hochbruck & Ostermann 2010, sec. 2.3.
    """

    def __init__(self, tableau: ExponentialTableau) -> None:
        self.tableau, self.order, self.stages = tableau, tableau.order, len(tableau.c)

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        h = span.h
        values: list[Any] = []
        for c, row in zip(self.tableau.c, self.tableau.a, strict=True):
            at = self._advance(y, values, row, float(c), f.linear, h) if c else y
            values.append(f(at, span.start + float(c) * h))
        return Step(self._advance(y, values, self.tableau.b, 1.0, f.linear, h), past=past)

    @staticmethod
    def _advance(
        y: Any, values: list[Any], row: Sequence[Sequence[Term]], c: float, linear: float, h: float
    ) -> object:
        z = c * linear * h
        weights = [sum(float(q) * scalars.phi(k, z) for q, k in terms) for terms in row]
        weights[0] = c * scalars.phi(1, z) - sum(weights[1:])
        pairs = ((h * w, value) for w, value in zip(weights, values, strict=True))
        return combine((scalars.exp(z), y), *(pair for pair in pairs if pair[0]))
