"""Solvers made of other solvers: noise put into the steps of a method of the flow, guidance split in two.

With eta = 0 each is the solver inside, and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from diffsolve import (
    EvaluationCache,
    Field,
    FieldView,
    Noise,
    Past,
    Process,
    Renoise,
    Solver,
    SolverError,
    Span,
    Step,
    combine,
)
from diffsolve.field import Evaluation, Vector
from diffsolve.grid import steps_of
from diffsolve.scalars import exp
from diffsolve.validate import at_least, at_most, between, choice, whole

Down = Callable[[Field, Span], float]
"""The noise level that a step goes down to before noise takes it up to that of the span's end."""


def ddim(f: Field, span: Span) -> float:
    """DDIM's share of noise (Song et al. 2021, eq. 16; k-diffusion's get_ancestral_step): all of DDPM's at eta = 1."""
    high, low = f.form.sigma(span.start), f.form.sigma(span.end)
    return low * math.sqrt(max(0.0, 1 - f.eta**2 + (f.eta * low / high) ** 2))


def flow(f: Field, span: Span) -> float:
    """Straight in the flow's time t = sigma/(1 + sigma): t_end (1 + eta (t_end/t_start - 1)) (ComfyUI's *_RF)."""
    high, low = (sigma / (1 + sigma) for sigma in (f.form.sigma(span.start), f.form.sigma(span.end)))
    t = low * max(0.0, 1 + f.eta * (low / high - 1))
    return t / (1 - t)


def lcm(f: Field, span: Span) -> float:
    """All the way at eta = 1 (Song et al. 2023, Algorithm 1; Luo et al. 2023, Algorithm 3)."""
    return f.form.sigma(span.end) * math.sqrt(max(0.0, 1 - f.eta**2))


def cps(f: Field, span: Span) -> float:
    """To cos(eta pi/2) of the noise, the rest of which is drawn anew (Wang & Yu 2025, arXiv 2509.05952), eta to 1."""
    return f.form.sigma(span.end) * math.cos(at_most(f.eta, "flow_cps's eta", 1.0) * math.pi / 2)


def tcd(gamma: float) -> Down:
    """To the process's time (1 - eta gamma) t_end (Zheng et al. 2024, arXiv 2402.19159, Algorithm 4)."""
    share = between(gamma, "gamma", 0, 1)

    def down(f: Field, span: Span) -> float:
        form = f.form
        return form.sigma(form.variable_at_time(max(0.0, 1 - f.eta * share) * form.time(span.end)))

    return down


RULES: dict[str, Down] = {"ddim": ddim, "flow": flow, "lcm": lcm, "cps": cps}


class Wrapped(Solver):
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
        self.solver, self.order, self.order_as_started = solver, solver.order, solver.order_as_started
        self.stages, self.history, self.traceable = solver.stages, solver.history, solver.traceable
        self.steps_to_zero, self.scale_free = solver.steps_to_zero, solver.scale_free
        self.guidance_range = solver.guidance_range or self.guidance_range

    # y_1 = the step of `solver` from y_0
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        return self.solver.step(f, y, span, past)

    def evaluations(self, span: Span, known: int) -> int | None:
        return self.solver.evaluations(span, known)

    def check_flow(self, f: Field) -> None:
        if f.form.stochastic:
            raise SolverError(f"{self!r} adds its noise to a method of the flow; take a form without, such as 'sigma'")


class Ancestral(Wrapped):
    """A step of `solver` from sigma to sigma_down, then noise up to the end: variance sigma_end^2 - sigma_down^2.

    solver: of the flow, in a form of the flow. rule: "ddim", "flow", "lcm", or a function of (f, span) that gives
    sigma_down, such as `tcd(gamma)`. published: of a multistep method, each step's evaluation counts as if it lay as
    far before the next step as this one went, down to sigma_down (ComfyUI's res_multistep_ancestral); else it lies
    where it was made. Raises SolverError for a rule that does not exist, and in a step that is to end at sigma = 0 in a
    form, or by a method, that can't.
    """

    of_flow = True

    def __init__(self, solver: Solver, rule: str | Down = "ddim", published: bool = False) -> None:
        super().__init__(solver)
        self.published = published
        self.down = rule if callable(rule) else RULES[choice(rule, "an ancestral step's rule, if no function,", RULES)]

    # y_down = the solver's step from y_0 to sigma_down
    # y_1 = scale(sigma_1)/scale(sigma_down) y_down + scale(sigma_1) sqrt(sigma_1^2 - sigma_down^2) z
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        if not f.eta or span.last:
            return self.solver.step(f, y, span, past)
        self.check_flow(f)
        low, down = f.form.sigma(span.end), self.down(f, span)
        if down == 0 and not (f.form.finite_at_zero and (self.solver.stages == 1 or self.solver.steps_to_zero)):
            raise SolverError(
                f"at eta = {f.eta:g} {self!r} goes down to sigma = 0; "
                "take a form that can: 'sigma', 'v' or 'flow', and one evaluation a step; or a lower eta"
            )
        end = f.form.variable(down)
        step = self.solver.step(f, y, replace(span, end=end), past)
        up = f.form.scale(low) * math.sqrt(max(0.0, low * low - down * down))
        back = f.form.rescale(end, span.end)
        noisy = combine((back, step.y), (up, f.normal(span)))
        known = step.past
        if self.published and known:
            known = (*known[:-1], (known[-1][0] + span.end - end, known[-1][1]))
        if step.error is None:
            return Step(noisy, past=known)
        return Step(noisy, back * step.error, known, mean=back * step.y)


class AncestralStages(Solver):
    """Two stages, each a step of the data form to sigma_down and noise up to its end, by DDIM's rule.

    At eta = 1 it is exponential Runge-Kutta on the reverse SDE (dpmpp_sde), which shares its noise out otherwise in
    between. r: the inner stage's place in lambda. Raises SolverError in another form.
    """

    order, stages, stochastic = 2, 2, True

    def __init__(self, r: float) -> None:
        self.r, self.form = r, "data"  # its own, whatever the row's is

    # to(s, D) = sigma_down/sigma_0 y_0 + (1 - sigma_down/sigma_0) D + sqrt(sigma^2 - sigma_down^2) z over (s_0, s)
    # D_0 = f(y_0, s_0),  D_r = f(to(s_0 + r h, D_0), s_0 + r h),  y_1 = to(s_1, (1 - 1/(2r)) D_0 + 1/(2r) D_r)
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        if f.form.name != "data":
            raise SolverError(f"{self!r} is written for the form 'data'; leave form out")

        def to(end: float, *terms: tuple[float, Vector]) -> Vector:
            part = replace(span, end=end)
            low, down = f.form.sigma(end), ddim(f, part)
            keep, up = down / f.form.sigma(span.start), math.sqrt(max(0.0, low * low - down * down))
            noise = [(up, f.normal(part))] if f.eta else []
            return combine((keep, y), *(((1 - keep) * share, value) for share, value in terms), *noise)

        first, inner, share = f(y, span.start), span.start + self.r * span.h, 1 / (2 * self.r)
        second = f(to(inner, (1.0, first)), inner)
        return Step(to(span.end, (1 - share, first), (share, second)), past=past)

    def evaluations(self, span: Span, known: int) -> int:
        return 2


class Churn(Wrapped):
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
        self.churn, self.s_noise = at_least(churn, "churn", infinite=True), at_least(s_noise, "s_noise")
        self.s_tmin, self.s_tmax = at_least(s_tmin, "s_tmin"), at_least(s_tmax, "s_tmax", infinite=True)
        if self.s_tmin > self.s_tmax:
            raise SolverError(f"s_tmin = {s_tmin:g} is above s_tmax = {s_tmax:g}")

    # raised = scale(S)/scale(sigma) y_0 + scale(S) s_noise sqrt(S^2 - sigma^2) z, S = (1 + gamma) sigma
    # y_1 = the solver's step from `raised`, at S
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        sigma, gamma = f.form.sigma(span.start), min(f.eta * self.churn / span.count, math.sqrt(2) - 1)
        if not gamma or span.last or not self.s_tmin <= sigma <= self.s_tmax:
            return self.solver.step(f, y, span, past)
        self.check_flow(f)
        start = f.form.variable(sigma * (1 + gamma))
        up = f.form.scale(f.form.sigma(start)) * self.s_noise * sigma * math.sqrt(gamma * (2 + gamma))
        raised = combine((f.form.rescale(span.start, start), y), (up, f.normal(span)))
        return self.solver.step(f, raised, replace(span, start=start), past)


class Restart(Wrapped):
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
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise SolverError(f"intervals are pairs (t_min, t_max) of sigma, got {intervals!r}") from error
        ends = [end for interval in self.intervals for end in interval]
        if ends != sorted(set(ends)) or not all(end > 0 for end in ends):
            raise SolverError(f"intervals have 0 < t_min < t_max and don't overlap, got {intervals!r}")
        self.times = at_most(whole(times, "times", least=0), "times", 1000)

    def plan(self, spans: Sequence[Span], f: Field) -> Sequence[Span | Renoise]:
        planned: list[Span | Renoise] = []
        for index, span in enumerate(spans):
            planned.append(span)
            for low, high in self.intervals if f.eta and not span.last else ():
                if not low <= f.form.sigma(span.end) or low <= _after(f, spans, index):
                    continue
                again = [s for s in spans[: index + 1] if f.form.sigma(s.start) <= high]
                steps_of(len(planned) + len(again) * self.times, "the number of steps, all their passes counted,")
                for visit in range(1, self.times + 1) if again else ():
                    planned.append(Renoise(replace(span, start=span.end, end=again[0].start, visit=visit)))
                    planned += [replace(s, visit=visit) for s in again]
        return planned


def _after(f: Field, spans: Sequence[Span], index: int) -> float:
    """The noise level after that of a span's end."""
    following = spans[index + 1 : index + 2]
    return f.form.sigma(following[0].end) if following and not following[0].last else 0.0


class LargeVariance(Wrapped):
    """`solver` in the sde form with DDPM's larger variance (Ho et al. 2020, sec. 3.2: beta_t for beta~_t).

    The noise of a step from sigma = S to s is that of the form times (S/s) alpha(S)/alpha(s).
    """

    def __init__(self, solver: Solver) -> None:
        super().__init__(solver)
        self.steps_to_zero = False  # the ratio has no limit at s = 0

    # y_1 = the solver's step with z (S alpha(S))/(s alpha(s)) for z, from the noise level S down to s
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        return self.solver.step(_Larger(f) if f.eta else f, y, span, past)


class _Larger(FieldView):
    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Vector:
        z = self._f.normal(span, kind)
        if kind is not Noise.INCREMENT:
            return z
        high, low = (self.form.sigma(s) * self.form.alpha(s) for s in (span.start, span.end))
        return z * (high / low)


class Newest(FieldView):
    """A field that keeps its newest evaluation."""

    newest: Evaluation | None = None

    def __call__(self, u: Vector, s: float, /) -> Vector:
        return self.evaluate(u, s).value

    def evaluate(self, u: Vector, s: float, /) -> Evaluation:
        self.newest = found = self._f.evaluate(u, s)
        return found


class LearnedVariance(Wrapped):
    """`solver` in the sde form with the variance that the network tells of (Nichol & Dhariwal 2021, eq. 15).

    For a problem made with learned_range=True; it is DDPM's at eta = 1, so another eta but 0 raises SolverError. Its
    noise is a product of two tensors, so it is not traced.
    """

    def __init__(self, solver: Solver) -> None:
        super().__init__(solver)
        self.traceable = self.steps_to_zero = False  # the smaller variance is 0 at sigma = 0, and has no logarithm

    # y_1 = the solver's step with scale(s) sqrt(v) z for noise_std z, s the noise level at its end,
    # log v = share log(large) + (1 - share) log(small), see posterior_variances, the share told at y_0
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        if f.eta not in (0, 1):
            raise SolverError(f"a learned variance is that of eta = 1, got eta = {f.eta:g}; leave eta out")
        return self.solver.step(_Learned(f) if f.eta else f, y, span, past)


class _Learned(Newest):
    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Vector:
        z = self._f.normal(span, kind)
        if kind is not Noise.INCREMENT:
            return z
        share = None if self.newest is None else self.newest.variance
        if share is None:
            raise SolverError("a learned variance needs a problem made with learned_range=True")
        form, end = self.form, self.form.sigma(span.end)
        small, large = posterior_variances(form.process, form.sigma(span.start), end)
        logs = share * math.log(large / small) + math.log(small)
        return z * (logs / 2).exp() * (form.scale(end) / form.noise_std(span.start, span.end))


class CFGpp(Wrapped):
    """`solver` under CFG++: the noise that is left comes from the estimate without guidance (Chung et al. 2024).

    Guided and plain, of one network call, are D, eps and D', eps'. The step is that of `solver` with D, plus
    sigma_end (eps' - eps); what a multistep method remembers is the plain one. Without guidance it is `solver` itself.
    The paper's scales are from 0 to 1, since what is added does not shrink with the step. Raises SolverError for a
    solver of several stages.
    """

    stochastic, of_flow, guidance_range = False, True, (0.0, 0.6, 2.0)

    def __init__(self, solver: Solver) -> None:
        super().__init__(solver)
        if solver.stages != 1:
            makes = "tells no number" if solver.stages is None else f"makes {solver.stages}"
            raise SolverError(f"CFG++ is written for one evaluation a step, {solver!r} {makes}")

    # y_1 = the solver's y_1 + scale(sigma_1) sigma_1 deps_dN (N' - N), N' the evaluation N without guidance
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        view = Newest(f)
        step = self.solver.step(view, y, span, past)
        plain = None if span.last or view.newest is None else view.newest.unconditional
        if view.newest is None or plain is None:
            return step
        end = f.form.sigma(span.end)
        change = f.form.scale(end) * end * f.form.deps_dN(span.start)
        kept = ((step.past[-1][0], plain),) if step.past else ()
        return Step(
            combine((1.0, step.y), (change, plain), (-change, view.newest.value)), past=(*step.past[:-1], *kept)
        )


class MovedCFGpp(CFGpp):
    """CFG++ for any method: a step of `solver` from where guidance moves the state, u_0 + scale(sigma_0) (D - D').

    The first evaluation of the step is not made anew there. It is the guided one, or with `plain` the one without
    guidance, which a multistep method then remembers; its first step is CFGpp's. published: of several stages, the end
    is moved by the newest D' in place of that of the start, as ComfyUI runs it. Without guidance it is `solver` itself.
    """

    def __init__(self, solver: Solver, plain: bool = True, published: bool = False) -> None:
        Wrapped.__init__(self, solver)
        self.plain, self.published = plain, published

    # y_m = y_0 + m (N' - N), m = scale(sigma_0) sigma_0 deps_dN, N' the evaluation N at y_0 without guidance
    # y_1 = the solver's step from y_m with N (or N') for its evaluation there
    # published: y_1 += e^{L h} m (N'_k - N'), N'_k that of the last evaluation
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        found = f.evaluate(y, span.start)
        view = EvaluationCache(f, ((y, span.start, found),))
        plain = None if span.last else found.unconditional
        if plain is None:
            return self.solver.step(view, y, span, past)
        if self.plain and self.history and not past:
            return super().step(view, y, span, past)
        sigma = f.form.sigma(span.start)
        change = f.form.scale(sigma) * sigma * f.form.deps_dN(span.start)
        moved = combine((1.0, y), (change, plain), (-change, found.value))
        seen = Evaluation(plain) if self.plain else found
        newest = Newest(EvaluationCache(f, ((moved, span.start, seen),)))
        step = self.solver.step(newest, moved, span, past)
        last = newest.newest.unconditional if self.published and newest.newest else None
        if last is None or newest.newest is seen:
            return step
        keep = change * exp(f.form.linear * span.h)
        return replace(step, y=combine((1.0, step.y), (keep, last), (-keep, plain)))


def posterior_variances(process: Process, start: float, end: float) -> tuple[float, float]:
    """(small, large): the variances of DDPM's step from sigma = start down to end, in VE coordinates.

    small is that of q(y_end | y_start, x_0), large that of q(y_start | y_end) in the units of the end: beta~ and beta
    of Ho et al. 2020, section 3.2, over the squared alpha of the end.
    """
    gap = start * start - end * end
    return gap * (end / start) ** 2, gap * (process.alpha(start) / process.alpha(end)) ** 2
