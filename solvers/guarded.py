"""A predictor-corrector that looks out for instability, a sample at a time: what guidance does to a step too long."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffsolve import Field, Past, Solver, SolverError, Span, Step, combine, scalars
from diffsolve.field import Vector, same
from diffsolve.scalars import Scalar
from diffsolve.validate import between, whole

from .adams import Nodes
from .damped import damped
from .evidence import EarlyShare, GapShare, Share
from .predictor_corrector import PredictorCorrector
from .quadrature import exact

TILT, LONG, SLOPE, FAR = 0.6, 1.6, 0.375, 2.5
GAP_LONG, GAP_EARLY, GAP_SMOOTH = 1.1, 0.5, 80


class Pair(PredictorCorrector):
    """The damped pair in the noise form, whose tilt goes where noise is far above the data's scale, or the step long.

    eps falls with sigma below the data's own scale and stays above it: weights that have it fall there are wrong by as
    much as the state is large. Over a step of h in lambda, after one of h_1, the tilt is

        0.6 e^{-m_4/fade^4}/(1 + sigma_0 sigma_1/level^2 m_power),  m_p = (h^p + h_1^p)/2.

    reach, long: see `damped`.
    """

    def __init__(self, order: int, reach: float, long: float, level: float, power: int, fade: float) -> None:
        super().__init__(order - 1, order, hold="denoised")
        self.reach, self.long, self.level, self.power, self.fade = reach, long, level, power, fade

    def weights(self, linear: Scalar, span: Span, nodes: Sequence[Scalar]) -> list[Scalar]:
        past = [node for node in nodes if node != span.end]
        before = span.start - past[-2] if len(past) > 1 else span.h

        def mean(power: int) -> Scalar:
            return (span.h**power + before**power) / 2

        above = scalars.exp(-span.start - span.end) / self.level**2 * mean(self.power)
        tilt = TILT * scalars.exp(-mean(4) / self.fade**4) / (1 + above)
        rule = damped(tilt, self.reach, trust=0.67, long=self.long, steep=8.0)
        return rule(linear, span.h, [node - span.start for node in nodes])

    def less(self, f: Field, nodes: Nodes) -> tuple[Scalar, ...]:
        """The weights by which the end of the step to the newest of `nodes` differs from that of Euler's; kept."""
        if (found := self._kept.get(key := (f.form, nodes))) is not None and type(nodes[-1]) is float:
            return found
        before, read = Span(nodes[-2], nodes[-1]), min(self.depth, len(nodes) - 1)
        weights = self.weigh(f, before, nodes[-1 - read : -1])
        weights[-1] = weights[-1] - exact(f.form.linear, before.h, [0.0 * before.h])[0]
        found = (*[0.0] * (len(nodes) - 1 - read), *weights, 0.0)
        if type(nodes[-1]) is float:
            self._kept[key] = found
        return found


class Guarded(Solver):
    """Damped exponential Adams-Bashforth-Moulton, PEC, from the fourth step on with a share w of each sample (`Share`):

        u_c = u_p + w sum_j c_j N_j,   u_1 = w Adams(u_c) + (1 - w) Euler(u_c).

    Under guidance the correction starts from where the step before would have ended with w = 1: it mends a false alarm.
    Where an evaluation tells the gap that guidance makes, see `split`.
    Without guidance a step of more than 1.6 in lambda goes by the newest two D instead of Adams (`lengthened`).
    On a smooth problem w is 1 once the steps are short, since residuals then keep their direction: the order is that of
    the pair. guided: whether there is guidance; None for what the field says of itself. It decides how long a step may
    be at a high order, and what is no sign of anything: without guidance eps reacts to the state by at most 1/sigma.
    order: of the pair without guidance; with it the pair's is one less, and that is what is claimed.
    memory: of the alarm 1 - w, the share that goes on to the next step.
    """

    def __init__(self, order: int = 5, guided: bool | None = None, memory: float = 0.75) -> None:
        whole(order, "order", SolverError, least=3, most=8)
        self.free = Pair(order, reach=2.0, long=math.inf, level=2.83, power=10, fade=math.inf)
        self.held = Pair(order - 1, reach=1.5, long=2.2, level=16.0, power=0, fade=1.2)
        self.whole = Pair(order, reach=1.5, long=2.2, level=16.0, power=0, fade=1.2)
        self.steady = Pair(3, reach=1.5, long=2.2, level=16.0, power=0, fade=1.2)
        self.guided, self.share = guided, Share(between(memory, "memory", 0, 1))
        longer = 1 - 0.4 * (1 - memory)
        self.gap_share, self.early = GapShare(longer), EarlyShare(longer)
        self.scale_free = False
        self.order, self.order_as_started, self.history = order - 1, min(order - 1, 3), order - 1

    # u_c = u_p + w sum_j (w^AM_j - w^AB_j) N_j,  N_0 = N(u_p) + dN/du (u_c - u_p)
    # under guidance w sum_j (w^AM_j - w^AB_j + (1 - w') (w^AB_j - w^E_j)) N_j, w' and w^E those of the step before
    # u_1 = e^{L h} u_c + w sum_j w_j N_j + (1 - w) h phi_1(L h) N_0
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        guided = f.guided if self.guided is None else self.guided
        if guided and f.guided:
            return self.split(f, y, span, past)
        pair = self.held if guided else self.free
        before, known = self.parted(past)
        value = f(y, span.start)
        known = (*known, (span.start, value))
        nodes = tuple([node for node, _ in known])
        keep, noise, weights, change = pair.numbers(f, span, nodes)
        told = ((span.start, combine((1 / f.form.scale(f.form.sigma(span.start)), y))), (span.start, value), *before)
        seen = self.residuals(f, span, told, guided)
        corrected, share = y, None
        if any(change):
            last, aimed = before[6][1] if len(before) == 7 else None, y
            if guided and last is not None:
                high = combine((1.0, y), *[(c, v) for c, (_, v) in zip(pair.less(f, nodes), known, strict=True) if c])
                aimed, _ = f.blend(high, y, (), same, last)
            corrected = moved = combine((1.0, aimed), *[(c, v) for c, (_, v) in zip(change, known, strict=True) if c])
            if len(seen) == 5:
                corrected, share = f.blend(y, moved, seen, self.share, last)
            slope = f.form.dN_du(span.start)
            known = (*known[:-1], (span.start, combine((1.0, value), (slope, corrected), (-slope, y))))
        (level,) = exact(f.form.linear, span.h, [0.0 * span.h])
        added: tuple[tuple[Scalar, Vector], ...] = ()
        if not guided:
            weights, added = self.lengthened(f, span, told, weights, level)
        following = pair.total(f, corrected, span, keep, noise, weights, known)
        if added:
            following = combine((1.0, following), *added)
        if share is not None:
            euler = pair.total(f, corrected, span, keep, noise, [level], known[-1:])
            following, share = f.blend(euler, following, (), same, share)
        kept: Past = told[:4]
        if len(seen) > 2:
            kept = (*kept, *((before[2][0], v) for v in (*seen[:2], *([] if share is None else [share]))))
        return Step(following, past=(*kept, *known[-self.history :]))

    def split(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        """The step where the gap is known: N = N_u + N_g, of which N_u is without guidance and not stiff.

            u_c = u_p + (1 - (1 - w)^2) (m + sum_j c'_j N_j) + w^2 sum_j (c_j - c'_j) N_j
            u_1 = w^2 Adams(u_c) + 2 w (1 - w) Adams_2(u_c) + (1 - w)^2 (Adams_2 of N_u, Euler of N_g)(u_c)

        c' is the correction of order 3: an alarm lets go of that order last, since it bears more than the whole pair. m
        is what the step before left of the two. w is e^{-(h/1.1)^8} of what `gap_share` says; until there is evidence,
        of `early`: guidance shows when it is too late, and what is left to it then costs little.
        """
        found = f.evaluate(y, span.start)
        value, free = found.value, found.unconditional
        gap = combine((1.0, value), (-1.0, free))
        before, known = self.parted(past)
        old, missed = before[-1:], before[-2:-1] if len(before) > 3 else ()
        before, known = before[: len(before) - len(old) - len(missed)], (*known, (span.start, value))
        before, last = (before[:-1], before[-1][1]) if len(before) % 2 else (before, None)
        nodes = tuple([node for node, _ in known])
        keep, noise, weights, change = self.whole.numbers(f, span, nodes)
        _, _, two, fewer = self.steady.numbers(f, span, nodes)
        two = two[-2:]
        told = ((span.start, combine((1 / f.form.scale(f.form.sigma(span.start)), y))), (span.start, gap), *before)
        seen = self.residuals(f, span, told, True)
        most = scalars.exp(-((span.h / GAP_LONG) ** 8)) if any(change) else 1.0
        corrected, share = y, None
        if any(change):
            middle, high = (
                combine((1.0, y), *[(most, v) for _, v in missed], *[(most * c, v) for c, (_, v) in parts if c])
                for parts in (zip(of, known, strict=True) for of in (fewer, change))
            )
            if len(seen) == 5:
                _, share = f.blend(y, middle, (*seen[:2], *seen[3:]), self.gap_share, last)
            else:
                sigmas = f.form.sigma(span.start) * f.form.sigma(span.end)
                part = combine((self.trusted(span.h, sigmas) ** 0.5, y))
                _, share = f.blend(y, middle, (part, y), self.early, last)
            corrected, _ = self.curve(f, y, middle, high, share)
            slope = f.form.dN_du(span.start)
            value, free = (combine((1.0, v), (slope, corrected), (-slope, y)) for v in (value, free))
            known = (*known[:-1], (span.start, value))
        (level,) = exact(f.form.linear, span.h, [0.0 * span.h])
        high = following = self.whole.total(f, corrected, span, keep, noise, weights, known)
        if share is not None:
            read = (*old, (span.start, free), (span.start, gap))
            low = self.whole.total(f, corrected, span, keep, noise, [*two, level], read)
            middle = self.whole.total(f, corrected, span, keep, noise, two, known[-2:])
            middle, high = (combine((1 - most, low), (most, v)) for v in (middle, high))
            following, high = self.curve(f, low, middle, high, share)
        kept: Past = told[:4]
        if len(seen) > 2:
            kept = (*kept, *((before[2][0], v) for v in seen[:2]))
        if share is not None:
            kept = (*kept, (before[0][0], share))
        if old:
            kept = (*kept, (span.start, combine((1.0, high), (-1.0, following))))
        return Step(following, past=(*kept, (span.start, free), *known[-self.history :]))

    @staticmethod
    def curve(f: Field, low: Vector, middle: Vector, high: Vector, share: Vector) -> tuple[Vector, Vector]:
        """(1 - w)^2 low + 2 w (1 - w) middle + w^2 high, and middle + w^2 (high - middle)."""
        lower, _ = f.blend(low, middle, (), same, share)
        upper, _ = f.blend(middle, high, (), same, share)
        return f.blend(lower, upper, (), same, share)[0], f.blend(middle, upper, (), same, share)[0]

    @staticmethod
    def trusted(h: Scalar, sigmas: Scalar) -> Scalar:
        """Before evidence: 1 - (1 - e^{-(h/0.5)^8})/(1 + (sigma_0 sigma_1/80)^4); far above the data all is smooth."""
        return 1 - (1 - scalars.exp(-((h / GAP_EARLY) ** 8))) / (1 + (sigmas / GAP_SMOOTH) ** 4)

    def evaluations(self, span: Span, known: int) -> int:
        return 1

    def parted(self, past: Past) -> tuple[Past, Past]:
        """(y and N of the two states before as they were predicted, r_y, h r_eps, share), and the evaluations."""
        first = len(past) - 1
        while 0 < first > len(past) - self.history and _between(past, first):
            first -= 1
        return past[: max(first, 0)], past[max(first, 0) :]

    @staticmethod
    def lengthened(
        f: Field, span: Span, told: Past, weights: Sequence[Scalar], level: Scalar
    ) -> tuple[Sequence[Scalar], tuple[tuple[Scalar, Vector], ...]]:
        """The weights, and what is added: by 1 - e^{-(h/long)^8} the step goes by the line through two D in lambda.

        In y that is DDIM's step and (1 - sigma_1/sigma_0) c h/h_1 (D_0 - D_1), of D as they were evaluated; c is 1/2
        in DPM-Solver++ 2M, here 3/8 e^{-(h/(2.5 h_1))^8}: a line is not followed far beyond where it was seen. A tenth
        of `long` away from it nothing is left of that, and nothing is done.
        """
        if len(told) < 4 or (isinstance(span.h, float) and abs(span.h) < 0.2 * LONG):
            return weights, ()
        form, ((now, y), (_, value), (one, y_1), (_, value_1)) = f.form, told[:4]
        share = 1 - scalars.exp(-((span.h / LONG) ** 8))
        sigma, after = form.sigma(now), form.sigma(span.end)
        far = span.h / (now - one)
        part = share * SLOPE * far * scalars.exp(-((far / FAR) ** 8)) * (1 - after / sigma) * form.scale(after)
        (state, denoised), (state_1, denoised_1) = form.weights(sigma), form.weights(form.sigma(one))
        weights = [(1 - share) * w for w in weights]
        weights[-1] = weights[-1] + share * level
        # D = (N - state u)/denoised, u = scale y
        whole, whole_1 = state * form.scale(sigma), state_1 * form.scale(form.sigma(one))
        new = (part / denoised, value), (-part * whole / denoised, y)
        return weights, (*new, (-part / denoised_1, value_1), (part * whole_1 / denoised_1, y_1))

    @staticmethod
    def residuals(f: Field, span: Span, told: Past, guided: bool) -> tuple[Vector, ...]:
        """(r_y, h r_eps, h d eps, and the first two of the step before), as far as they are known."""
        if len(told) < 6:
            return ()
        form, (now, one, two) = f.form, [told[i][0] for i in (0, 2, 4)]
        sigma, nearer, farther = form.sigma(now), form.sigma(one), form.sigma(two)
        ahead, q = sigma - form.sigma(span.end), (sigma - nearer) / (nearer - farther)
        eps = [ahead * form.deps_dN(node) for node in (now, one, two)]
        parts = (1.0, -1 - q, q)
        r_y = combine(*((c, told[2 * i][1]) for i, c in enumerate(parts)))
        r_eps = combine(*((c * a, told[2 * i + 1][1]) for i, (c, a) in enumerate(zip(parts, eps, strict=True))))
        if ahead > 0 and not guided:
            r_eps = combine((1.0, r_eps), (-ahead / sigma, r_y))
        change = combine((eps[0], told[1][1]), (-eps[1], told[3][1]))
        return (r_y, r_eps, change, *(v for _, v in told[6:8]))


def _between(past: Past, i: int) -> bool:
    """Whether the pair before pair i of a history is the evaluation before it, nodes being in order."""
    return bool((past[i][0] - past[i - 1][0]) * (past[-1][0] - past[i - 1][0]) > 0)
