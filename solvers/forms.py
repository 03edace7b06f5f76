"""The forms of the flow and of its reverse SDE; see `diffsolve.form`."""

from __future__ import annotations

import math

from diffsolve import Process, SolverError
from diffsolve.field import Vector
from diffsolve.form import Form, PlainForm, StochasticForm, register_form


class UnscaledForm(Form):
    """u = y, so that there is nothing to convert."""

    def scale(self, sigma: float) -> float:
        return 1.0

    def to_form(self, x: Vector, node: float) -> Vector:
        return x

    def from_form(self, u: Vector, node: float) -> Vector:
        return u


@register_form
class SigmaForm(UnscaledForm, PlainForm):
    """u = y, s = sigma, L = 0, N = eps: Euler = DDIM, Heun, Runge-Kutta, LMS, PLMS."""

    name = "sigma"

    def weights(self, sigma: float) -> tuple[float, float]:
        return 1 / sigma, -1 / sigma


class LogForm(Form):
    """s = lambda = -log sigma."""

    finite_at_zero = False

    def variable(self, sigma: float) -> float:
        return -math.log(sigma) if sigma > 0 else math.inf

    def sigma(self, s: float) -> float:
        return math.exp(-s)


@register_form
class NoiseForm(LogForm):
    """u = y/sigma, s = lambda = -log sigma, L = 1, N = -eps: DPM-Solver, DPM2."""

    name = "noise"
    linear = 1.0

    def scale(self, sigma: float) -> float:
        return 1 / sigma

    def weights(self, sigma: float) -> tuple[float, float]:
        return -1.0, 1 / sigma


@register_form
class DataForm(UnscaledForm, LogForm):
    """u = y, s = lambda, L = -1, N = D: DPM-Solver++."""

    name = "data"
    linear = -1.0

    def weights(self, sigma: float) -> tuple[float, float]:
        return 0.0, 1.0


@register_form
class AngleForm(Form):
    """u = y/sqrt(1 + sigma^2), s = phi = atan sigma, L = 0, N = v: Adams in the angle."""

    name = "v"

    def variable(self, sigma: float) -> float:
        return math.atan(sigma)

    def sigma(self, s: float) -> float:
        return math.tan(s)

    def scale(self, sigma: float) -> float:
        return 1 / math.sqrt(1 + sigma * sigma)

    def weights(self, sigma: float) -> tuple[float, float]:
        return 1 / sigma, -math.sqrt(1 + sigma * sigma) / sigma


@register_form
class FlowForm(Form):
    """u = y/(1 + sigma), s = sigma/(1 + sigma), L = 0, N = velocity eps - D: the straight path's own time."""

    name = "flow"

    def variable(self, sigma: float) -> float:
        return sigma / (1 + sigma)

    def sigma(self, s: float) -> float:
        return s / (1 - s)

    def scale(self, sigma: float) -> float:
        return 1 / (1 + sigma)

    def weights(self, sigma: float) -> tuple[float, float]:
        return (1 + sigma) / sigma, -(1 + sigma) / sigma


@register_form
class TimeForm(Form):
    """u = x_t = alpha y, s = t of the process, L = 0, N = dx_t/dt = sigma' (alpha'/alpha x_t + alpha eps).

    As smooth as sigma(t): on a discrete process, where sigma is linear between timesteps, no method has its order here.
    """

    name = "time"
    finite_at_zero = False

    def variable(self, sigma: float) -> float:
        return self.process.t(sigma) if sigma > 0 else math.inf

    def sigma(self, s: float) -> float:
        if s < min(0.0, self.process.t_min):  # a table would be read at its end
            raise SolverError(
                f"the step asks for the network at t = {s:g}, before the process begins: a stage of it lies beyond its "
                "end; keep its nodes inside of the step, or take form='noise' or 'data'"
            )
        return self.process.sigma(s)

    def scale(self, sigma: float) -> float:
        return self.process.alpha(sigma)

    def weights(self, sigma: float) -> tuple[float, float]:
        rate = self.process.sigma_rate(self.process.t(sigma))
        return rate * (self.process.log_alpha_rate(sigma) + 1 / sigma), -rate * self.process.alpha(sigma) / sigma


@register_form
class SDEForm(UnscaledForm, StochasticForm, LogForm):
    """u = y, s = lambda, L = -drift, N = drift D, plus the noise of an Ornstein-Uhlenbeck process; drift = 1 + eta.

    Over a step of length h in lambda the exact noise is sigma_end sqrt(1 - e^{-2 eta h}) z (SDE-DPM-Solver++, Lu et al.
    2022b, eq. 17).
    """

    name = "sde"

    def __init__(self, process: Process, eta: float = 1.0, upward: bool = False) -> None:
        super().__init__(process, eta, upward)
        self.linear = -self.drift

    def weights(self, sigma: float) -> tuple[float, float]:
        return 0.0, self.drift

    def noise_std(self, start: float, end: float) -> float:
        return self.sigma(end) * math.sqrt(-math.expm1(-2 * self.eta * abs(end - start)))

    def variance_at(self, s: float) -> float:
        # int e^{eta s} sqrt(2 eta) dW: y's noise is e^{-(1 + eta) s} times its increment
        return math.exp(2 * self.sense * self.eta * s)

    def diffusion(self, s: float) -> float:
        return self.sigma(s) * math.sqrt(2 * self.eta)


@register_form
class SDENoiseForm(StochasticForm, LogForm):
    """u = y/sigma, s = lambda, L = 1, N = -drift eps, plus noise: SEEDS (Gonzalez et al. 2023, eq. 12)."""

    name = "sde_noise"
    linear = 1.0

    def scale(self, sigma: float) -> float:
        return 1 / sigma

    def weights(self, sigma: float) -> tuple[float, float]:
        return -self.drift, self.drift / sigma

    def noise_std(self, start: float, end: float) -> float:
        return math.sqrt(self.eta * abs(math.expm1(2 * (end - start))))

    def variance_at(self, s: float) -> float:
        return -self.sense * math.exp(-2 * s)  # u's noise is e^s times the increment of int e^{-s} dW

    def diffusion(self, s: float) -> float:
        return math.sqrt(2 * self.eta)


@register_form
class SDESigmaForm(UnscaledForm, StochasticForm):
    """u = y, s = sigma^2, L = 0, N = drift/(2 sigma) eps: the reverse diffusion of Song et al. 2021, appendix E."""

    name = "sde_sigma"

    def variable(self, sigma: float) -> float:
        return sigma * sigma

    def sigma(self, s: float) -> float:
        return math.sqrt(s)

    def weights(self, sigma: float) -> tuple[float, float]:
        rate = self.drift / (2 * sigma * sigma)
        return rate, -rate

    def noise_std(self, start: float, end: float) -> float:
        return math.sqrt(self.eta * abs(start - end))

    def variance_at(self, s: float) -> float:
        return -self.sense * s

    def diffusion(self, s: float) -> float:
        return math.sqrt(self.eta)


@register_form
class SDETimeForm(StochasticForm, TimeForm):
    """u = x_t, s = t of the process, L = 0: the reverse SDE as Song et al. 2021 write it (eq. 6).

    Its noise over a step is Euler-Maruyama's: g at the start.
    """

    name = "sde_time"

    def weights(self, sigma: float) -> tuple[float, float]:
        rate = self.process.sigma_rate(self.process.t(sigma))
        on_eps = rate * self.drift
        return rate * self.process.log_alpha_rate(sigma) + on_eps / sigma, -on_eps * self.process.alpha(sigma) / sigma

    def noise_std(self, start: float, end: float) -> float:
        return self.diffusion(start) * math.sqrt(abs(start - end))

    def variance_at(self, s: float) -> float:
        return -self.sense * s

    def diffusion(self, s: float) -> float:
        sigma = self.sigma(s)
        return self.process.alpha(sigma) * math.sqrt(2 * self.eta * sigma * self.process.sigma_rate(s))


@register_form
class SDEFlowForm(StochasticForm, FlowForm):
    """u = y/(1 + sigma), s = sigma/(1 + sigma), L = 0: the reverse SDE in the straight path's own time.

    g^2 = 2 eta sigma: Flow-GRPO's (Liu et al. 2025, arXiv 2505.05470, eq. 9), whose a is sqrt(2 eta). Its noise over a
    step is Euler-Maruyama's: g at the start.
    """

    name = "sde_flow"

    def weights(self, sigma: float) -> tuple[float, float]:
        on_eps = self.on_eps(sigma) * (1 + sigma)
        return (1 + sigma) * (on_eps / sigma - 1), -on_eps / sigma

    def on_eps(self, sigma: float) -> float:
        """What eps is multiplied by, the flow's own being 1."""
        return self.drift

    def noise_std(self, start: float, end: float) -> float:
        return self.diffusion(start) * math.sqrt(abs(start - end))

    def variance_at(self, s: float) -> float:
        return -self.sense * s

    def diffusion(self, s: float) -> float:
        return math.sqrt(2 * self.eta * self.sigma(s))


@register_form
class EvenSDEFlowForm(SDEFlowForm):
    """The same with noise of one size all the way, g^2 = eta: DanceGRPO's (Xue et al. 2025, arXiv 2505.07818)."""

    name = "sde_flow_even"

    def on_eps(self, sigma: float) -> float:
        return 1 + self.sense * self.eta / (2 * sigma)

    def diffusion(self, s: float) -> float:
        return math.sqrt(self.eta)
