"""(Exponential) Adams-Bashforth-Moulton pairs that evaluate once a step."""

from __future__ import annotations

from typing import Any, Literal

from diffsolve import Field, Past, SolverError, Span, Step, combine, scalars

from .adams import Adams

Hold = Literal["value", "denoised"]


class PredictorCorrector(Adams):
    """Predict by Adams of order `predictor`, evaluate there (N_i), correct by Adams-Moulton of order `corrector`: PEC.

    Both start from the same corrected state, so the correction is a sum of evaluations that are known: before step i
    u_i becomes u_i + sum_j (w^AM_j - w^AB_j) N_j, with the weights over the interval before. The step is handed the
    prediction, and hands the next prediction back; the last one is not corrected. Noise cancels in the correction.

    hold: what the history keeps of an evaluation when its state is corrected: its "value" N_i, or the "denoised" state
    D_i, with N_i as it is at the corrected state. The latter is steadier where D hardly depends on the state.

    The order is that of the corrector, which may be one above the predictor's; 3 as started, since the first two
    steps are Euler's, mended by the trapezoid rule. quadrature, coordinate, lower_final: see Adams.
    (Hairer, Norsett & Wanner I, sec. III.1; Zhao et al. 2023, arXiv 2302.04867, Algorithms 5 to 8.)
    """

    def __init__(self, predictor: int = 3, corrector: int = 3, *, hold: Hold = "value", **options: Any) -> None:
        super().__init__(predictor, **options)
        if hold not in ("value", "denoised"):
            raise SolverError(f"hold is 'value' or 'denoised', got {hold!r}")
        self.hold = hold
        if isinstance(corrector, bool) or not isinstance(corrector, int) or not 1 <= corrector <= predictor + 1:
            raise SolverError(
                f"a corrector's order must be a whole number from 1 to {predictor + 1}, one above its predictor's, "
                f"got {corrector!r}"
            )
        if self.begin:
            raise SolverError("a predictor-corrector starts by Euler's step, which it corrects; leave start out")
        self.corrector, self.history = corrector, predictor
        self.order = self.order and min(corrector, self.order + 1, 2 if self.lower_final else 12)
        self.started = min(self.order, 3)

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        known = (*past[max(len(past) - self.history, 0) :], (span.start, f(y, span.start)))
        nodes = [node for node, _ in known]
        change = self.correction(f, span, nodes)
        if self.hold == "denoised" and any(change):
            moved = combine(*((c, v) for c, (_, v) in zip(change, known, strict=True) if c))
            known = (*known[:-1], (span.start, combine((1.0, known[-1][1]), (f.state_slope(span.start), moved))))
            y, change = combine((1.0, y), (1.0, moved)), [0.0] * len(nodes)
        keep = scalars.exp(f.linear * span.h)
        read = min(self.reach(span), len(nodes))
        weights = [0.0] * (len(nodes) - read) + self.weigh(f, span, nodes[-read:])
        total = [w + keep * c for w, c in zip(weights, change, strict=True)]
        return Step(self.advance(f, y, span, total, known), past=known)

    def correction(self, f: Field, span: Span, nodes: list[Any]) -> list[Any]:
        """The weights of the evaluations at `nodes` in the correction of the state at the newest of them."""
        change = [0.0] * len(nodes)
        if len(nodes) > 1:
            before, done = Span(nodes[-2], nodes[-1]), min(self.reach(span, 1), len(nodes) - 1)
            moulton = min(self.corrector, done + 1)
            for first, sign, part in ((-done - 1, -1, nodes[-done - 1 : -1]), (-moulton, 1, nodes[-moulton:])):
                for place, w in enumerate(self.weigh(f, before, part), len(nodes) + first):
                    change[place] = change[place] + sign * w
        return change
