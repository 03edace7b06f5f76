"""The warm-up of PNDM."""

from __future__ import annotations

from typing import Any

from diffsolve import Field, Past, Solver, Span, Step, combine, scalars


class PseudoRungeKutta(Solver):
    """Kutta's method of order 4 whose inner stages stand at the middle of the step's times, and whose stages are
    reached by DDIM's step (Liu et al. 2022, arXiv 2202.09778, eq. 11 and 13).

    Of order 4 where the form's variable is even in time, and of order 2 elsewhere.
    """

    order, stages = 4, 4

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        def to(s: float, *shares: tuple[float, Any]) -> Any:
            h = s - span.start
            weight = h * scalars.phi(1, f.linear * h)
            return combine((scalars.exp(f.linear * h), y), *((weight * share, value) for share, value in shares))

        middle = f.at_time((f.time(span.start) + f.time(span.end)) / 2)
        k1 = f(y, span.start)
        k2 = f(to(middle, (1.0, k1)), middle)
        k3 = f(to(middle, (1.0, k2)), middle)
        k4 = f(to(span.end, (1.0, k3)), span.end)
        return Step(to(span.end, (1 / 6, k1), (1 / 3, k2), (1 / 3, k3), (1 / 6, k4)), past=past)
