"""Heun++: slopes at the next nodes of the grid, weighed by their noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from diffsolve import Field, Past, Renoise, Solver, Span, Step, combine
from diffsolve.field import Vector

from .runge_kutta import drift


@dataclass(frozen=True)
class Ahead(Span):
    """A span that knows where the run began and where the step after it ends."""

    first: float = 0.0
    after: float = 0.0


class HeunPlusPlus(Solver):
    """The mean of slopes at this node and the next two, the weight of a later one sigma/(3 sigma_first) (ComfyUI).

    The step before the last has two slopes and weights sigma/(2 sigma_first), the last is Euler's, and so is one that
    is taken alone, with no grid around it. What the weights leave of 1 is the first slope's. Of order 1: they are no
    quadrature.
    """

    order, order_as_started, stages = 1, 1, 3

    def plan(self, spans: Sequence[Span], f: Field) -> Sequence[Span | Renoise]:
        ends = [*(span.end for span in spans[1:]), spans[-1].end]  # that of the last is not read
        names = [field.name for field in fields(Span) if field.init]
        return [Ahead(**{name: getattr(span, name) for name in names}, first=spans[0].start, after=after)
                for span, after in zip(spans, ends, strict=True)]  # fmt: skip

    def evaluations(self, span: Span, known: int) -> int:
        return min(3, span.count - span.index) if isinstance(span, Ahead) else 1

    # k_1 = F(y_0, s_0),  k_2 = F(y_0 + h k_1, s_1),  k_3 = F(y_0 + h k_1 + h_2 k_2, s_2), s_2 where the next ends
    # y_1 = y_0 + h (w_1 k_1 + w_2 k_2 + w_3 k_3), w_j = sigma_j/(m sigma_first) of m slopes, w_1 the rest of 1
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        s, at, slopes = span.start, y, [drift(f, y, span.start)]
        weights: list[float] = []
        count = self.evaluations(span, 0)
        if isinstance(span, Ahead):
            for node in (span.end, span.after)[: count - 1]:
                at = combine((1.0, at), (node - s, slopes[-1]))
                slopes.append(drift(f, at, node))
                low, high = f.form.sigma(node), f.form.sigma(span.first)
                weights.append((low / high if low < high else 1.0) / count)
                s = node
        weights = [1 - sum(weights), *weights]
        return Step(combine((1.0, y), *((span.h * w, k) for w, k in zip(weights, slopes, strict=True))), past=past)
