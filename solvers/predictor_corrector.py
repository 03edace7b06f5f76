"""(Exponential) Adams-Bashforth-Moulton pairs that evaluate once a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from diffsolve import Field, FieldView, Past, SolverError, Span, Step, combine
from diffsolve.field import Vector
from diffsolve.form import StochasticForm
from diffsolve.scalars import Scalar
from diffsolve.validate import at_least, choice, whole

from .adams import Adams, Coordinate, Nodes, Start
from .quadrature import Rule

Hold = Literal["value", "denoised"]
Interval = tuple[float, float]
ALL_THE_WAY = 0.0, math.inf


class Still(FieldView):
    """The field with its noise taken out: its form at eta = 0."""

    def __init__(self, f: Field, form: StochasticForm) -> None:
        super().__init__(f)
        self.form, self.eta = type(form)(form.process, 0.0, form.upward), 0.0


def interval(s_tmin: float, s_tmax: float) -> Interval:
    """The two noise levels. Raises SolverError for what is below 0, and where they are the other way round."""
    low, high = at_least(s_tmin, "s_tmin"), at_least(s_tmax, "s_tmax", infinite=True)
    if low > high:
        raise SolverError(f"s_tmin = {low:g} is above s_tmax = {high:g}; expected s_tmin <= s_tmax")
    return low, high


class PredictorCorrector(Adams):
    """Predict by Adams of order `predictor`, evaluate there (N_i), correct by Adams-Moulton of order `corrector`: PEC.

    Both start from the same corrected state, so the correction is a sum of evaluations that are known: before step i
    u_i becomes u_i + sum_j (w^AM_j - w^AB_j) N_j, with the weights over the interval before. The step is handed the
    prediction, and hands the next prediction back; the last one is not corrected. Noise cancels in the correction.

    hold: what the history keeps of an evaluation when its state is corrected: its "value" N_i, or the "denoised" state
    D_i, with N_i as it is at the corrected state. The latter is steadier where D hardly depends on the state.

    The order is that of the corrector, which may be one above the predictor's; 3 as started, since the first two
    steps are Euler's, mended by the trapezoid rule. quadrature, coordinate, lower_final: see Adams.

    noisy: the noise levels between which the noise of a stochastic form is added; a step that starts outside of them is
    one of the flow, eta = 0, of which the evaluations before are read all the same.
    (Hairer, Norsett & Wanner I, sec. III.1; Zhao et al. 2023, arXiv 2302.04867, Algorithms 5 to 8.)
    """

    def __init__(
        self,
        predictor: int = 3,
        corrector: int = 3,
        *,
        hold: Hold = "value",
        quadrature: str | Rule = "exact",
        start: Start = "euler",
        coordinate: Coordinate = "variable",
        lower_final: bool = False,
        noisy: Interval = ALL_THE_WAY,
    ) -> None:
        super().__init__(
            predictor, quadrature=quadrature, start=start, coordinate=coordinate, lower_final=lower_final
        )
        self.noisy, self.still_steps, self.scale_free = noisy, noisy != ALL_THE_WAY, noisy == ALL_THE_WAY
        self.hold = choice(hold, "hold", get_args(Hold))
        what = "a corrector's order, at most one above its predictor's,"
        corrector = whole(corrector, what, most=predictor + 1)
        if self.begin:
            raise SolverError("a predictor-corrector starts by Euler's step, which it corrects; leave start out")
        self.corrector, self.history = corrector, predictor
        if self.order is not None:
            self.order = min(corrector, self.order + 1, 2 if lower_final else 12)
            self.order_as_started = min(self.order, 3)

    # N_0 = f(y_0, s_0) at the prediction y_0, which becomes y_c = y_0 + sum_j (w^AM_j - w^AB_j) N_j, the weights
    # being those of the step before;  y_1 = e^{L h} y_c + sum_j w_j N_j + noise_std z
    # hold = "denoised": N_0 is then N_0 + dN/du (y_c - y_0)
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        known = (*self.kept(past), (span.start, f(y, span.start)))
        keep, noise, weights, change = self.numbers(f, span, tuple([node for node, _ in known]))
        if self.hold == "denoised" and any(change):
            moved = combine(*[(c, v) for c, (_, v) in zip(change, known, strict=True) if c])
            known = (*known[:-1], (span.start, combine((1.0, known[-1][1]), (f.form.dN_du(span.start), moved))))
            y = combine((1.0, y), (1.0, moved))
        return Step(self.total(f, y, span, keep, noise, weights, known), past=self.kept(known))

    def compute(self, f: Field, span: Span, nodes: Nodes) -> tuple[Scalar, ...]:
        """The same, with the weights of the correction, which are in the others where the state is not moved first."""
        change, read = self.correction(f, span, nodes), min(self.points_read(span), len(nodes))
        seen, share = self.seen(f, span.start)
        keep, noise, weights = super().compute(seen, span, nodes[-read:])
        weights = [0.0] * (len(nodes) - read) + [w * share for w in weights]
        if self.hold == "value" or not any(change):
            weights = [w + keep * c for w, c in zip(weights, change, strict=True)]
        return keep, noise, weights, change

    def correction(self, f: Field, span: Span, nodes: Sequence[Scalar]) -> list[Scalar]:
        """The weights of the evaluations at `nodes` in the correction of the state at the newest of them."""
        change: list[Scalar] = [0.0] * len(nodes)
        if len(nodes) > 1:
            before, done = Span(nodes[-2], nodes[-1]), min(self.points_read(span, 1), len(nodes) - 1)
            seen, share = self.seen(f, before.start)
            moulton = min(self.corrector, done + 1)
            for first, sign, part in ((-done - 1, -1, nodes[-done - 1 : -1]), (-moulton, 1, nodes[-moulton:])):
                for j, w in enumerate(self.weigh(seen, before, part), len(nodes) + first):
                    change[j] = change[j] + sign * share * w
        return change

    def seen(self, f: Field, start: Scalar) -> tuple[Field, Scalar]:
        """The field that a step from `start` sees, and its N over that of f. Raises SolverError where they differ."""
        form = f.form
        if self.noisy == ALL_THE_WAY or not (isinstance(form, StochasticForm) and form.eta):
            return f, 1
        sigma, (low, high) = form.sigma(start), self.noisy
        if low * (1 - 1e-9) <= sigma <= high * (1 + 1e-9):
            return f, 1
        still = Still(f, form)
        (on_state, on_denoised), (whole_state, whole_denoised) = still.form.weights(sigma), form.weights(sigma)
        share = on_denoised / whole_denoised
        if abs(on_state - share * whole_state) > 1e-9 * abs(on_state):
            raise SolverError(
                f"noise between two levels alone is for a form whose N is a multiple of the flow's, and {form.name!r} "
                "is none; take 'sde', 'sde_noise' or 'sde_sigma', or leave s_tmin and s_tmax out"
            )
        return still, share


class TwiceEvaluated(PredictorCorrector):
    """The same pair with its state evaluated anew after the correction: PECE, two evaluations a step.

    The step predicts, evaluates at its end, corrects there, and hands the corrected state on; the next one evaluates
    that. Its error estimate is the change that the correction made. lower_final: both orders fall to 1 over the steps
    before the one to sigma = 0, the corrector's to its own value alone (ComfyUI's). (Hairer, Norsett & Wanner I,
    sec. III.1.)
    """

    steps_to_zero = False

    def __init__(
        self, predictor: int = 3, corrector: int = 3, *, quadrature: str | Rule = "exact", lower_final: bool = False,
        noisy: Interval = ALL_THE_WAY,
    ) -> None:  # fmt: skip
        super().__init__(predictor, corrector, quadrature=quadrature, lower_final=lower_final, noisy=noisy)
        self.stages, self.history = 2, predictor - 1

    # y_p = e^{L h} y_0 + sum_j w^AB_j N_j + noise_std z,  N_p = f(y_p, s_1)
    # y_1 = y_p + sum_j (w^AM_j - w^AB_j) N_j + w^AM_p N_p
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        known = (*self.kept(past), (span.start, f(y, span.start)))
        keep, noise, weights, change = self.numbers(f, span, tuple([node for node, _ in known]))
        predicted = self.total(f, y, span, keep, noise, weights, known)
        values = [*(value for _, value in known), f(predicted, span.end)]
        error = combine(*((c, value) for c, value in zip(change, values, strict=True) if c))
        return Step(combine((1.0, predicted), (1.0, error)), error if span.adaptive else None, self.kept(known))

    def compute(self, f: Field, span: Span, nodes: Nodes) -> tuple[Scalar, ...]:
        """(e^{L h}, the deviation of the noise, the predictor's weights, what the corrector's differ by, N_p's too)."""
        left = max(1, span.count - span.index - 1) if self.lower_final else self.depth + 1
        read, (seen, share) = min(self.depth, left, len(nodes)), self.seen(f, span.start)
        keep, noise, weights = Adams.compute(self, seen, span, nodes[-read:])
        weights = [0.0] * (len(nodes) - read) + [w * share for w in weights]
        moulton, all_nodes = min(self.corrector, read + 1, left), (*nodes, span.end)
        corrected = [w * share for w in self.weigh(seen, span, all_nodes[-moulton:])]
        corrected = [0.0] * (len(all_nodes) - moulton) + corrected
        return keep, noise, weights, [c - w for c, w in zip(corrected, (*weights, 0.0), strict=True)]

    def evaluations(self, span: Span, known: int) -> int:
        return 2
