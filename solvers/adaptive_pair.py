"""An (exponential) Adams-Bashforth-Moulton pair that tells its error, for steps of its own choice."""

from __future__ import annotations

from diffsolve import Field, Past, Span, Step, combine
from diffsolve.field import Vector

from .adams import Adams
from .predictor_corrector import PredictorCorrector
from .quadrature import Rule


class AdaptivePair(PredictorCorrector):
    """Predict, evaluate at the step's end, correct there: PEC, one evaluation an attempt, two in the first.

    What is corrected is handed on, and the evaluation at the prediction stays in the history. The error estimate is the
    change that the correction made, so it is that of the prediction: the order that a controller goes by is the
    corrector's, one above. The order grows from 1 over the first steps, with the history; weights are those of the
    nodes as they are. (Hairer, Norsett & Wanner I, secs. III.1 and III.5.)
    """

    steps_to_zero = False

    def __init__(self, predictor: int = 3, corrector: int = 4, *, quadrature: str | Rule = "exact") -> None:
        super().__init__(predictor, corrector, quadrature=quadrature)
        self.order, self.order_as_started = self.corrector, min(self.corrector, 3)

    # y_p = e^{L h} y_0 + sum_j w^AB_j N_j + noise_std z,  N_p = f(y_p, s_1)
    # y_1 = y_p + error,  error = sum_j (w^AM_j - w^AB_j) N_j + w^AM_p N_p
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        known = self.kept(past) or ((span.start, f(y, span.start)),)
        nodes = tuple([node for node, _ in known])
        keep, noise, weights = Adams.compute(self, f, span, nodes)
        predicted = self.total(f, y, span, keep, noise, weights, known)
        newest = (span.end, f(predicted, span.end))
        read = [*known, newest][-self.corrector :]
        moulton = self.weigh(f, span, [node for node, _ in read])
        change = [*([0.0] * (len(known) + 1 - len(read))), *moulton]
        change = [m - b for m, b in zip(change, (*weights, 0.0), strict=True)]
        terms = [(c, value) for c, (_, value) in zip(change, (*known, newest), strict=True) if c]
        error, past = combine(*terms or [(0.0, newest[1])]), self.kept((*known, newest))
        return Step(combine((1.0, predicted), (1.0, error)), error if span.adaptive else None, past)

    def evaluations(self, span: Span, known: int) -> int:
        return 1 if known else 2
