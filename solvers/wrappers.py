"""Solvers made of other solvers: noise put into the steps of a method of the flow, guidance split in two.

With eta = 0 each is the solver inside, and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from diffsolve import FORMS, Field, FieldView, Past, Solver, SolverError, Span, Step, combine

Down = Callable[[Field, Span], float]
"""The noise level that a step goes down to before noise takes it up to that of the span's end."""


def ddim(f: Field, span: Span) -> float:
    """DDIM's share of noise (Song et al. 2021, eq. 16; k-diffusion's get_ancestral_step): all of DDPM's at eta = 1."""
    high, low = f.sigma(span.start), f.sigma(span.end)
    return low * math.sqrt(max(0.0, 1 - f.eta**2 + (f.eta * low / high) ** 2))


def flow(f: Field, span: Span) -> float:
    """Straight in the flow's time t = sigma/(1 + sigma): t_end (1 + eta (t_end/t_start - 1)) (ComfyUI's *_RF)."""
    high, low = (sigma / (1 + sigma) for sigma in (f.sigma(span.start), f.sigma(span.end)))
    t = low * max(0.0, 1 + f.eta * (low / high - 1))
    return t / (1 - t)


def lcm(f: Field, span: Span) -> float:
    """All the way at eta = 1 (Song et al. 2023, Algorithm 1; Luo et al. 2023, Algorithm 3)."""
    return f.sigma(span.end) * math.sqrt(max(0.0, 1 - f.eta**2))


def tcd(gamma: float) -> Down:
    """To the process's time (1 - eta gamma) t_end (Zheng et al. 2024, arXiv 2402.19159, Algorithm 4)."""
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 <= gamma <= 1:
        raise SolverError(f"gamma must be a number from 0 to 1, got {gamma!r}")

    def down(f: Field, span: Span) -> float:
        return f.sigma(f.at_time(max(0.0, 1 - f.eta * gamma) * f.time(span.end)))

    return down


RULES: dict[str, Down] = {"ddim": ddim, "flow": flow, "lcm": lcm}


class _Wrapped(Solver):
    """What a solver inside declares, declared again, its form too.

    Raises SolverError for what is no solver, and where `of_flow` for one that adds noise itself.
    """

    stochastic, of_flow = True, False

    def __init__(self, solver: Solver) -> None:
        kind = type(self).__name__
        if not isinstance(solver, Solver):
            raise SolverError(f"{kind} takes a Solver, such as get_solver('heun'), got {solver!r}")
        if self.of_flow and solver.stochastic:
            raise SolverError(f"{kind} takes a solver of the flow, and {solver!r} adds noise of its own")
        if solver.name or solver.form != Solver.form:  # else it is a bare method, in the form of the row it is part of
            self.form = solver.form
        self.solver, self.order, self.started = solver, solver.order, solver.started
        self.stages, self.history, self.traceable = solver.stages, solver.history, solver.traceable
        self.steps_to_zero = solver.steps_to_zero

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        return self.solver.step(f, y, span, past)

    def check_flow(self) -> None:
        if self.form in FORMS and FORMS[self.form].stochastic:
            raise SolverError(f"{self!r} adds its noise to a method of the flow; take a form without, such as 'sigma'")


class Ancestral(_Wrapped):
    """A step of `solver` from sigma to sigma_down, then noise up to the end: variance sigma_end^2 - sigma_down^2.

    solver: of the flow, in a form of the flow. rule: "ddim", "flow", "lcm", or a function of (f, span) that gives
    sigma_down, such as `tcd(gamma)`. Raises SolverError for a rule that does not exist, and in a step that is to end
    at sigma = 0 in a form, or by a method, that can't.
    """

    of_flow = True

    def __init__(self, solver: Solver, rule: str | Down = "ddim") -> None:
        super().__init__(solver)
        if not (rule in RULES if isinstance(rule, str) else callable(rule)):
            raise SolverError(f"an ancestral step's rule is one of {', '.join(RULES)} or a function, got {rule!r}")
        self.down = RULES[rule] if isinstance(rule, str) else rule

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        if not f.eta or span.last:
            return self.solver.step(f, y, span, past)
        self.check_flow()
        low, down = f.sigma(span.end), self.down(f, span)
        if down == 0 and not (f.finite_at_zero and (self.solver.stages == 1 or self.solver.steps_to_zero)):
            raise SolverError(
                f"at eta = {f.eta:g} {self!r} goes down to sigma = 0; "
                "take a form that can: 'sigma', 'v' or 'flow', and one evaluation a step; or a lower eta"
            )
        end = f.variable(down)
        step = self.solver.step(f, y, replace(span, end=end), past)
        up = f.scale(span.end) * math.sqrt(max(0.0, low * low - down * down))
        back = f.rescale(end, span.end)
        noisy = combine((back, step.y), (up, f.draw(span)))
        if step.error is None:
            return Step(noisy, past=step.past)
        return Step(noisy, back * step.error, step.past, mean=back * step.y)


class Churn(_Wrapped):
    """Noise up to sigma_hat = (1 + gamma) sigma, then a step of `solver` from there (Karras et al. 2022, Algorithm 2).

    gamma = min(eta churn/n, sqrt 2 - 1) while s_tmin <= sigma <= s_tmax, n the number of steps, the last one included,
    in which no noise is added. s_noise: the noise's standard deviation. The first sigma_hat lies above the first node;
    set s_tmax where the network must not see it. Raises SolverError for numbers below 0.
    """

    of_flow = True

    def __init__(
        self, solver: Solver, churn: float, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
    ) -> None:
        super().__init__(solver)
        for name, value in {"churn": churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise SolverError(f"{name} must be a number of at least 0, got {value!r}")
        if s_tmin > s_tmax:
            raise SolverError(f"s_tmin = {s_tmin:g} is above s_tmax = {s_tmax:g}")
        self.churn, self.s_tmin, self.s_tmax, self.s_noise = float(churn), s_tmin, s_tmax, s_noise

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        sigma, gamma = f.sigma(span.start), min(f.eta * self.churn / span.count, math.sqrt(2) - 1)
        if not gamma or span.last or not self.s_tmin <= sigma <= self.s_tmax:
            return self.solver.step(f, y, span, past)
        self.check_flow()
        start = f.variable(sigma * (1 + gamma))
        spread = f.scale(start) * self.s_noise * sigma * math.sqrt(gamma * (2 + gamma))
        raised = combine((f.rescale(span.start, start), y), (spread, f.draw(span)))
        return self.solver.step(f, raised, replace(span, start=start), past)


class Restart(_Wrapped):
    """`solver`, and over each interval [t_min, t_max] of sigma again, `times` times (Xu et al. 2023, Algorithm 1).

    On its way down, at the lowest node inside an interval, noise takes the state up to the highest one inside, and the
    steps between them are taken once more. An interval that holds fewer than two nodes is passed once. eta has no say
    beyond 0 and not 0: less noise than the interval is wide would be another noise level. Raises SolverError for
    intervals that are none or overlap.
    """

    def __init__(
        self, solver: Solver, intervals: Sequence[tuple[float, float]] = ((0.1, 2.0),), times: int = 2
    ) -> None:
        super().__init__(solver)
        try:
            self.intervals = sorted((float(low), float(high)) for low, high in intervals)
        except (TypeError, ValueError) as error:
            raise SolverError(f"intervals are pairs (t_min, t_max) of sigma, got {intervals!r}") from error
        ends = [end for interval in self.intervals for end in interval]
        if ends != sorted(set(ends)) or not all(end > 0 for end in ends):
            raise SolverError(f"intervals have 0 < t_min < t_max and don't overlap, got {intervals!r}")
        if isinstance(times, bool) or not isinstance(times, int) or times < 0:
            raise SolverError(f"times must be a whole number of at least 0, got {times!r}")
        self.times = times

    def plan(self, spans: Sequence[Span], f: Field) -> Sequence[Span]:
        planned: list[Span] = []
        for place, span in enumerate(spans):
            planned.append(span)
            for low, high in self.intervals if f.eta and not span.last else ():
                if not low <= f.sigma(span.end) or low <= _after(f, spans, place):
                    continue
                again = [s for s in spans[: place + 1] if f.sigma(s.start) <= high]
                for visit in range(1, self.times + 1) if again else ():
                    planned.append(replace(span, start=span.end, end=again[0].start, up=True, visit=visit))
                    planned += [replace(s, visit=visit) for s in again]
        return planned


def _after(f: Field, spans: Sequence[Span], place: int) -> float:
    """The noise level after that of a span's end."""
    following = spans[place + 1 : place + 2]
    return f.sigma(following[0].end) if following and not following[0].last else 0.0


class LargeVariance(_Wrapped):
    """`solver` in the sde form with DDPM's larger variance (Ho et al. 2020, sec. 3.2: beta_t for beta~_t).

    The noise of a step from sigma = S to s is that of the form times (S/s) alpha(S)/alpha(s).
    """

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        louder: Any = _Louder(f) if f.eta else f
        return self.solver.step(louder, y, span, past)


class LearnedVariance(_Wrapped):
    """`solver` in the sde form with the variance that the network tells of (Nichol & Dhariwal 2021, eq. 15).

    For a problem made with learned_range=True; it is DDPM's at eta = 1, so another eta but 0 raises SolverError.
    """

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        if f.eta not in (0, 1):
            raise SolverError(f"a learned variance is that of eta = 1, got eta = {f.eta:g}; leave eta out")
        told: Any = _Told(f) if f.eta else f
        return self.solver.step(told, y, span, past)


class _Louder(FieldView):
    def noise(self, span: Span) -> float:
        high, low = (self._f.sigma(s) * self._f.alpha(s) for s in (span.start, span.end))
        return self._f.noise(span) * high / low


class _Told(FieldView):
    def noise(self, span: Span) -> float:
        return 1.0

    def draw(self, span: Span) -> Any:
        return self._f.learned(span)


class CFGpp(_Wrapped):
    """`solver` under CFG++: the noise that is left comes from the estimate without guidance (Chung et al. 2024).

    Guided and plain, of one network call, are D, eps and D', eps'. The step is that of `solver` with D, plus
    sigma_end (eps' - eps); what a multistep method remembers is the plain one. Without guidance it is `solver` itself.
    Raises SolverError for a solver of several stages.
    """

    stochastic, of_flow = False, True

    def __init__(self, solver: Solver) -> None:
        super().__init__(solver)
        if solver.stages != 1:
            raise SolverError(f"CFG++ is written for one evaluation a step, {solver!r} makes {solver.stages}")

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        view: Any = _Both(f)
        step = self.solver.step(view, y, span, past)
        guided, plain = view.pair
        if span.last or plain is guided:
            return step
        change = f.scale(span.end) * f.sigma(span.end) * f.eps_slope(span.start)
        kept = ((step.past[-1][0], plain),) if step.past else ()
        return Step(combine((1.0, step.y), (change, plain), (-change, guided)), past=(*step.past[:-1], *kept))


class _Both(FieldView):
    pair: tuple[Any, Any]

    def __call__(self, y: Any, s: float) -> Any:
        self.pair = self._f.both(y, s)
        return self.pair[0]
