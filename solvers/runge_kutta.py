"""One-step methods from their tableaux: classical and exponential Runge-Kutta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from diffsolve import Field, Past, Solver, Span, Step, combine, scalars
from diffsolve.field import Vector
from diffsolve.scalars import Scalar

from .continuous import continuous_extension
from .tableaux import ExponentialTableau, Tableau, Weights

_HERMITE = 4  # up to this order a cubic through a step's ends is as good as its steps


def drift(f: Field, y: Vector, s: Scalar) -> Vector:
    """All of u' at a state: L u + N."""
    value = f(y, s)
    return combine((1.0, value), (f.form.linear, y)) if f.form.linear else value


class RungeKutta(Solver):
    """y_1 = y_0 + h sum b_i k_i with k_i = F(y_0 + h sum a_ij k_j, s_0 + c_i h), F = L u + N.

    Stages that only the error estimate reads are left out of a fixed step; one of them may be the next step's first.
    """

    adaptive_form = "noise"  # in sigma every step would have to be a share of it

    def __init__(self, tableau: Tableau) -> None:
        self.tableau, self.order = tableau, tableau.order
        self.c = [float(c) for c in tableau.c]
        self.a = [[float(a) for a in row] for row in tableau.a]
        self.b, self.error = [float(b) for b in tableau.b], [float(e) for e in tableau.error]
        self.stages = max(i for i, b in enumerate(self.b) if b) + 1
        self.ends_on_a_stage = [*self.a[-1], 0.0] == self.b and self.c[-1] == 1

    # k_i = F(y_0 + h sum_{j<i} a_ij k_j, s_0 + c_i h),  y_1 = y_0 + h sum_i b_i k_i,  error = h sum_i e_i k_i
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        h = span.h
        slopes: list[Vector] = []
        for c, row in list(zip(self.c, self.a, strict=True))[: None if span.adaptive else self.stages]:
            at = combine((1.0, y), *((h * a, k) for a, k in zip(row, slopes, strict=False) if a)) if any(row) else y
            slopes.append(drift(f, at, span.end if c == 1 else span.start + c * h))
        if span.adaptive and self.ends_on_a_stage:
            end = at
        else:
            end = combine((1.0, y), *((h * b, k) for b, k in zip(self.b, slopes, strict=False) if b))
        if not (span.adaptive and self.error):
            return Step(end, past=past)
        return Step(end, combine(*((h * e, k) for e, k in zip(self.error, slopes, strict=True) if e)), past)

    def evaluations(self, span: Span, known: int) -> int | None:
        return len(self.c) if span.adaptive else self.stages

    def continuous(self) -> Sequence[Sequence[float]] | None:
        return _extended(self.tableau) if (self.order or 0) > _HERMITE else None


@cache
def _extended(tableau: Tableau) -> list[list[float]] | None:
    used = max(i for i, b in enumerate(tableau.b) if b) + 1
    rows = [[float(a) for a in row] for row in tableau.a]
    found = continuous_extension(rows, *([float(x) for x in row[:used]] for row in (tableau.b, tableau.c)))
    return None if found is None else found.tolist()


class GeometricMidpoint(Solver):
    """The midpoint rule with its inner node at the geometric mean of the step's ends (DPM-Solver-2 in any variable).

    At the arithmetic mean where they have none.
    """

    order, order_as_started, stages = 2, 2, 2
    scale_free = False  # the node's place within the step depends on the ratio of its ends

    # y_1 = y_0 + h F(y_0 + (s_m - s_0) F(y_0, s_0), s_m), s_m = sqrt(s_0 s_1)
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        start, product = span.start, span.start * span.end
        none = isinstance(product, float) and product <= 0
        inner = start + span.h / 2 if none else scalars.sqrt(product)
        ahead = combine((1.0, y), (inner - start, drift(f, y, start)))
        return Step(combine((1.0, y), (span.h, drift(f, ahead, inner))), past=past)

    def evaluations(self, span: Span, known: int) -> int:
        return 2


class ExponentialRungeKutta(Solver):
    """u_i = e^{c_i z} u_0 + h sum a_ij(z) N_j, z = L h: the linear part is exact.

    Hochbruck & Ostermann 2010, sec. 2.3. In a form with noise every stage and the end are given that of their part of
    the step: exponential Runge-Kutta for semilinear SDEs (SEEDS, Gonzalez et al. 2023, sec. 4).
    """

    def __init__(self, tableau: ExponentialTableau) -> None:
        self.tableau, self.order, self.stages = tableau, tableau.order, len(tableau.c)
        self.c = [float(c) for c in tableau.c]
        self.a = [_floats(row, c) for row, c in zip(tableau.a, self.c, strict=True)]
        self.b, self.error = _floats(tableau.b, 1.0), _floats(tableau.error, 1.0)

    # y_i = e^{c_i L h} y_0 + h sum_{j<i} a_ij(L h) N_j + noise_std_i z_i,  N_i = f(y_i, s_0 + c_i h);
    # y_1 likewise, with c = 1 and the row b;  error = h sum_j e_j(L h) N_j
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        h, linear = span.h, f.form.linear
        values: list[Vector] = []

        @cache
        def phi(k: int, c: float) -> Scalar:
            return scalars.phi(k, c * linear * h)

        def weighted(row: Row, total: Scalar) -> list[tuple[Scalar, Vector]]:
            weights = [sum(q * phi(k, c) for q, k, c in terms) for terms in row]
            weights[0] = weights[0] if row[0] else total - sum(weights[1:])
            return [(h * w, value) for w, value in zip(weights, values, strict=True) if w]

        def at(c: float, row: Row) -> Vector:
            end = span.end if c == 1 else span.start + c * h
            noise = f.form.noise_std(span.start, end)
            drawn = [(noise, f.normal(span if c == 1 else replace(span, end=end)))] if noise else []
            return combine((phi(0, c), y), *weighted(row, c * phi(1, c)), *drawn)

        for c, row in zip(self.c, self.a, strict=True):
            values.append(f(at(c, row) if c else y, span.start + c * h))
        end = at(1.0, self.b)
        if not (span.adaptive and self.error):
            return Step(end, past=past)
        return Step(end, combine(*weighted(self.error, 0.0)), past)

    def evaluations(self, span: Span, known: int) -> int:
        return len(self.c)


Row = list[list[tuple[float, int, float]]]


def _floats(row: Weights, c: float) -> Row:
    """(coefficient, k, c) of every term, c the row's own where it is not given."""
    return [[(float(q), k, float(*own) if own else c) for q, k, *own in terms] for terms in row]
