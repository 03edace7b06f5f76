"""The warm-up of PNDM."""

from __future__ import annotations

from diffsolve import Field, Past, Solver, Span, Step, combine, scalars
from diffsolve.field import Vector


class PseudoRungeKutta(Solver):
    """Kutta's method of order 4 whose inner stages stand at the middle of the step's times, and whose stages are
    reached by DDIM's step (Liu et al. 2022, arXiv 2202.09778, eq. 11 and 13).

    Of order 4 where the form's variable is even in time, and of order 2 elsewhere.
    """

    order, stages = 4, 4

    # to(s, N) = e^{L h} y_0 + h phi_1(L h) N, h = s - s_0; m the middle of the step's times
    # k_1 = f(y_0, s_0), k_2 = f(to(m, k_1), m), k_3 = f(to(m, k_2), m), k_4 = f(to(s_1, k_3), s_1)
    # y_1 = to(s_1, (k_1 + 2 k_2 + 2 k_3 + k_4)/6)
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        form = f.form

        def to(s: float, *shares: tuple[float, Vector]) -> Vector:
            h = s - span.start
            weight = h * scalars.phi(1, form.linear * h)
            return combine((scalars.exp(form.linear * h), y), *((weight * share, value) for share, value in shares))

        middle = form.variable_at_time((form.time(span.start) + form.time(span.end)) / 2)
        k1 = f(y, span.start)
        k2 = f(to(middle, (1.0, k1)), middle)
        k3 = f(to(middle, (1.0, k2)), middle)
        k4 = f(to(span.end, (1.0, k3)), span.end)
        return Step(to(span.end, (1 / 6, k1), (1 / 3, k2), (1 / 3, k3), (1 / 6, k4)), past=past)

    def evaluations(self, span: Span, known: int) -> int:
        return 4
