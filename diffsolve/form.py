"""The forms of the flow: one ODE (or SDE) written in several variables, u' = L u + N with a constant scalar L.

y and sigma are VE coordinates, D the denoiser; N = on_state u + on_denoised D at each noise level. See `FORMS`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from .errors import SolverError, did_you_mean, finite
from .process import Process


class Form(ABC):
    """u = scale(sigma) y as a function of s = variable(sigma); s grows or falls monotonically along a solve."""

    name: str
    linear: float = 0.0
    stochastic = False
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
        """The variance that the Brownian path of a solve in this form has run up to s; it grows along the solve.

        An ODE form has noise only where a solver adds some of its own: its clock is that of the reverse SDE.
        """
        return 1 / self.sigma(s) ** 2

    def diffusion(self, s: float) -> float:
        """g of the form's SDE du = (L u + N) ds + g dW."""
        return 0.0


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


class StochasticForm(Form):
    """A form of the reverse SDE (Song et al. 2021, eq. 6) with `eta` times its noise; eta = 0 is the flow."""

    stochastic = True

    def __init__(self, eta: float = 1.0) -> None:
        self.eta = self.checked(eta)

    @staticmethod
    def checked(eta: Any) -> float:
        """eta as a float. Raises SolverError for what is none, below 0, or above 50."""
        given = finite(eta)
        if given is None or not 0 <= given <= 50:  # beyond it the clock leaves float64's range
            raise SolverError(
                f"eta must be a finite number of at least 0, got {eta!r}; 0 is the ODE, 1 the reverse SDE, 50 the most"
            )
        return given

    @abstractmethod
    def diffusion(self, s: float) -> float: ...


class SDEForm(StochasticForm, _LogForm):
    """u = y, s = lambda, L = -(1 + eta), N = (1 + eta) D, plus the noise of an Ornstein-Uhlenbeck process.

    Over a step of length h in lambda the exact noise is sigma_end sqrt(1 - e^{-2 eta h}) z (SDE-DPM-Solver++, Lu et al.
    2022b, eq. 17).
    """

    name = "sde"

    def __init__(self, eta: float = 1.0) -> None:
        super().__init__(eta)
        self.linear = -(1 + self.eta)

    def scale(self, sigma: float) -> float:
        return 1.0

    def weights(self, sigma: float) -> tuple[float, float]:
        return 0.0, 1 + self.eta

    def noise(self, start: float, end: float) -> float:
        return self.sigma(end) * math.sqrt(-math.expm1(-2 * self.eta * (end - start)))

    def clock(self, s: float) -> float:
        # int e^{eta s} sqrt(2 eta) dW: y's noise is e^{-(1 + eta) s} times its increment
        return math.exp(2 * self.eta * s)

    def diffusion(self, s: float) -> float:
        return self.sigma(s) * math.sqrt(2 * self.eta)


class SDENoiseForm(StochasticForm, _LogForm):
    """u = y/sigma, s = lambda, L = 1, N = -(1 + eta) eps, plus noise: SEEDS (Gonzalez et al. 2023, eq. 12)."""

    name = "sde_noise"
    linear = 1.0

    def scale(self, sigma: float) -> float:
        return 1 / sigma

    def weights(self, sigma: float) -> tuple[float, float]:
        return -(1 + self.eta), (1 + self.eta) / sigma

    def noise(self, start: float, end: float) -> float:
        return math.sqrt(self.eta * math.expm1(2 * (end - start)))

    def clock(self, s: float) -> float:
        return -math.exp(-2 * s)  # u's noise is e^s times the increment of int e^{-s} dW

    def diffusion(self, s: float) -> float:
        return math.sqrt(2 * self.eta)


class SDESigmaForm(StochasticForm):
    """u = y, s = sigma^2, L = 0, N = (1 + eta)/(2 sigma) eps: the reverse diffusion of Song et al. 2021, appendix E."""

    name = "sde_sigma"

    def variable(self, sigma: float) -> float:
        return sigma * sigma

    def sigma(self, s: float) -> float:
        return math.sqrt(s)

    def scale(self, sigma: float) -> float:
        return 1.0

    def weights(self, sigma: float) -> tuple[float, float]:
        rate = (1 + self.eta) / (2 * sigma * sigma)
        return rate, -rate

    def noise(self, start: float, end: float) -> float:
        return math.sqrt(self.eta * (start - end))

    def clock(self, s: float) -> float:
        return -s

    def diffusion(self, s: float) -> float:
        return math.sqrt(self.eta)


class ExtendedSDEForm(StochasticForm):
    """u = y, s = -log phi(sigma), L = -1, N = D, plus noise (ER-SDE, Cui et al. 2023, arXiv 2309.06169, eq. 17).

    phi = sigma (e^{sigma^0.3} + 10)^eta: the paper's choice at eta = 1; the flow, in the data form, at eta = 0.
    """

    name = "er_sde"
    linear = -1.0
    finite_at_zero = False

    def variable(self, sigma: float) -> float:
        return -math.log(sigma) - self.eta * _log_boost(sigma)[0]

    def sigma(self, s: float) -> float:
        log_sigma = -s - self.eta * math.log(11)  # Newton from sigma = 0's own slope; log phi is convex in log sigma
        for _ in range(60):
            value, slope = _log_boost(math.exp(min(log_sigma, 50.0)))
            change = (log_sigma + self.eta * value + s) / (1 + self.eta * slope)
            log_sigma -= change
            if abs(change) <= 1e-15 * max(1.0, abs(log_sigma)):
                break
        return math.exp(log_sigma)

    def scale(self, sigma: float) -> float:
        return 1.0

    def weights(self, sigma: float) -> tuple[float, float]:
        return 0.0, 1.0

    def noise(self, start: float, end: float) -> float:
        before, after = self._boost(start), self._boost(end)
        return self.sigma(end) * math.sqrt(-math.expm1(2 * (after - before))) if self.eta else 0.0

    def clock(self, s: float) -> float:
        return math.exp(-2 * self._boost(s))  # (sigma/phi)^2; y's noise is phi times the increment

    def diffusion(self, s: float) -> float:
        slope = self.eta * _log_boost(self.sigma(s))[1]
        return self.sigma(s) * math.sqrt(2 * slope / (1 + slope))

    def _boost(self, s: float) -> float:
        return self.eta * _log_boost(self.sigma(s))[0]


def _log_boost(sigma: float) -> tuple[float, float]:
    """log(e^{sigma^0.3} + 10) and its derivative in log sigma."""
    power = sigma**0.3
    share = 1 / (1 + 10 * math.exp(-power))
    return power - math.log(share), 0.3 * power * share


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


class SDETimeForm(StochasticForm, TimeForm):
    """u = x_t, s = t of the process, L = 0: the reverse SDE as Song et al. 2021 write it (eq. 6).

    Its noise over a step is Euler-Maruyama's: g at the start.
    """

    name = "sde_time"

    def __init__(self, process: Process, eta: float = 1.0) -> None:
        StochasticForm.__init__(self, eta)
        self.process = process

    def weights(self, sigma: float) -> tuple[float, float]:
        rate = self.process.sigma_rate(self.process.t(sigma))
        on_eps = rate * (1 + self.eta)
        return rate * self.process.log_alpha_rate(sigma) + on_eps / sigma, -on_eps * self.process.alpha(sigma) / sigma

    def noise(self, start: float, end: float) -> float:
        return self.diffusion(start) * math.sqrt(start - end)

    def clock(self, s: float) -> float:
        return -s

    def diffusion(self, s: float) -> float:
        sigma = self.sigma(s)
        return self.process.alpha(sigma) * math.sqrt(2 * self.eta * sigma * self.process.sigma_rate(s))


FORMS: dict[str, type[Form]] = {
    f.name: f
    for f in (
        SigmaForm, NoiseForm, DataForm, AngleForm, FlowForm, TimeForm,
        SDEForm, SDENoiseForm, SDESigmaForm, ExtendedSDEForm, SDETimeForm,
    )
}  # fmt: skip
CODES = "codes"  # the form of a solver of a DiscreteProblem, which is none of a flow


def as_form(name: str, process: Process, eta: float | None = None) -> Form:
    """The named form; `eta` is read by the stochastic ones only. Raises SolverError for an unknown name."""
    if name == CODES:
        raise SolverError("a solver of codes solves a DiscreteProblem; a flow of numbers takes one such as 'dpmpp_2m'")
    if not isinstance(name, str) or name not in FORMS:
        raise SolverError(f"unknown form {name!r}{did_you_mean(name, FORMS)}")
    kind = FORMS[name]
    given: tuple[Any, ...] = (process,) if issubclass(kind, TimeForm) else ()
    if issubclass(kind, StochasticForm):
        given = (*given, 1.0 if eta is None else eta)
    return kind(*given)
