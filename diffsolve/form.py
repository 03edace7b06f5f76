"""The forms of the flow: one ODE (or SDE) written in several variables, u' = L u + N with a constant scalar L.

y and sigma are VE coordinates, D the denoiser; N = on_state u + on_denoised D at each noise level. See `FORMS`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from .errors import SolverError, did_you_mean, finite
from .process import Process


class Form(ABC):
    """u = scale(sigma) y as a function of s = variable(sigma); s grows or falls monotonically along a solve."""

    name: str
    linear: float = 0.0
    finite_at_zero = True  # whether s and u have a limit at sigma = 0, so that a step may end there

    @abstractmethod
    def variable(self, sigma: float) -> float: ...

    @abstractmethod
    def sigma(self, s: float) -> float: ...

    @abstractmethod
    def scale(self, sigma: float) -> float: ...

    @abstractmethod
    def weights(self, sigma: float) -> tuple[float, float]:
        """(on_state, on_denoised) of N."""

    def noise(self, start: float, end: float) -> float:
        """Standard deviation, in u, of the noise that a step from s = start to s = end adds."""
        return 0.0

    def clock(self, s: float) -> float:
        """The variance that the form's Brownian path has run up to s; needed where `noise` is not 0."""
        raise SolverError(f"the {self.name} form is an ODE and has no noise; stochastic solvers use the 'sde' form")


class SigmaForm(Form):
    """u = y, s = sigma, L = 0, N = eps: Euler = DDIM, Heun, Runge-Kutta, LMS, PLMS."""

    name = "sigma"

    def variable(self, sigma: float) -> float:
        return sigma

    def sigma(self, s: float) -> float:
        return s

    def scale(self, sigma: float) -> float:
        return 1.0

    def weights(self, sigma: float) -> tuple[float, float]:
        return 1 / sigma, -1 / sigma


class _LogForm(Form):
    finite_at_zero = False

    def variable(self, sigma: float) -> float:
        return -math.log(sigma)

    def sigma(self, s: float) -> float:
        return math.exp(-s)


class NoiseForm(_LogForm):
    """u = y/sigma, s = lambda = -log sigma, L = 1, N = -eps: DPM-Solver, DPM2."""

    name = "noise"
    linear = 1.0

    def scale(self, sigma: float) -> float:
        return 1 / sigma

    def weights(self, sigma: float) -> tuple[float, float]:
        return -1.0, 1 / sigma


class DataForm(_LogForm):
    """u = y, s = lambda, L = -1, N = D: DPM-Solver++."""

    name = "data"
    linear = -1.0

    def scale(self, sigma: float) -> float:
        return 1.0

    def weights(self, sigma: float) -> tuple[float, float]:
        return 0.0, 1.0


class SDEForm(_LogForm):
    """u = y, s = lambda, L = -(1 + eta), N = (1 + eta) D, plus the noise of an Ornstein-Uhlenbeck process.

    The reverse SDE (Song et al. 2021, eq. 6) at eta = 1, the flow at eta = 0. Over a step of length h in lambda the
    exact noise is sigma_end sqrt(1 - e^{-2 eta h}) z (SDE-DPM-Solver++, Lu et al. 2022b, eq. 17).
    """

    name = "sde"

    def __init__(self, eta: float = 1.0) -> None:
        given = finite(eta)
        if given is None or not 0 <= given <= 50:  # beyond it the clock leaves float64's range
            raise SolverError(
                f"eta must be a finite number of at least 0, got {eta!r}; 0 is the ODE, 1 the reverse SDE, 50 the most"
            )
        self.eta = given
        self.linear = -(1 + given)

    def scale(self, sigma: float) -> float:
        return 1.0

    def weights(self, sigma: float) -> tuple[float, float]:
        return 0.0, 1 + self.eta

    def noise(self, start: float, end: float) -> float:
        return self.sigma(end) * math.sqrt(-math.expm1(-2 * self.eta * (end - start)))

    def clock(self, s: float) -> float:
        # int e^{eta s} sqrt(2 eta) dW: y's noise is e^{-(1 + eta) s} times its increment
        return math.exp(2 * self.eta * s)


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


class TimeForm(Form):
    """u = x_t = alpha y, s = t of the process, L = 0, N = dx_t/dt = sigma' (alpha'/alpha x_t + alpha eps).

    As smooth as sigma(t): on a discrete process, where sigma is linear between timesteps, no method has its order here.
    """

    name = "time"
    finite_at_zero = False

    def __init__(self, process: Process) -> None:
        self.process = process

    def variable(self, sigma: float) -> float:
        return self.process.t(sigma)

    def sigma(self, s: float) -> float:
        return self.process.sigma(s)

    def scale(self, sigma: float) -> float:
        return self.process.alpha(sigma)

    def weights(self, sigma: float) -> tuple[float, float]:
        rate = self.process.sigma_rate(self.process.t(sigma))
        return rate * (self.process.log_alpha_rate(sigma) + 1 / sigma), -rate * self.process.alpha(sigma) / sigma


FORMS: dict[str, type[Form]] = {
    f.name: f for f in (SigmaForm, NoiseForm, DataForm, SDEForm, AngleForm, FlowForm, TimeForm)
}


def as_form(name: str, process: Process, eta: float | None = None) -> Form:
    """The named form; `eta` is read by "sde" only. Raises SolverError for an unknown name."""
    if not isinstance(name, str) or name not in FORMS:
        raise SolverError(f"unknown form {name!r}{did_you_mean(name, FORMS)}")
    if name == "sde":
        return SDEForm(1.0 if eta is None else eta)
    if name == "time":
        return TimeForm(process)
    return FORMS[name]()
