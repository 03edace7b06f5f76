"""The forms of the reverse SDE, and the table of all forms."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import lru_cache

from .errors import SolverError, did_you_mean
from .form import AngleForm, DataForm, FlowForm, Form, LogForm, NoiseForm, SigmaForm, TimeForm
from .process import Process
from .validate import finite


class StochasticForm(Form):
    """A form of the reverse SDE (Song et al. 2021, eq. 6) with `eta` times its noise; eta = 0 is the flow.

    upward: solved from low noise to high, the SDE of the same marginals run the other way: at eta = 1 the forward
    process itself. `drift` is what the flow's drift is multiplied by: 1 + eta downwards, 1 - eta upwards.
    """

    stochastic = True

    def __init__(self, process: Process, eta: float = 1.0, upward: bool = False) -> None:
        super().__init__(process)
        self.eta = self.checked(eta)
        self.upward, self.sense = upward, -1 if upward else 1
        self.drift = 1 + self.sense * self.eta

    @staticmethod
    def checked(eta: object) -> float:
        """eta as a float. Raises SolverError for what is none, below 0, or outside of 1e-6 to 50 without being 0."""
        given = finite(eta)
        if given is None or not (given == 0 or 1e-6 <= given <= 50):  # beyond, the variance leaves float64's range
            raise SolverError(
                f"eta must be a finite number of at least 0, got {eta!r}; 0 is the ODE, 1 the reverse SDE, 50 the most "
                "and 1e-6 the least above 0"
            )
        return given

    @abstractmethod
    def diffusion(self, s: float) -> float: ...


class SDEForm(StochasticForm, LogForm):
    """u = y, s = lambda, L = -drift, N = drift D, plus the noise of an Ornstein-Uhlenbeck process; drift = 1 + eta.

    Over a step of length h in lambda the exact noise is sigma_end sqrt(1 - e^{-2 eta h}) z (SDE-DPM-Solver++, Lu et al.
    2022b, eq. 17).
    """

    name = "sde"

    def __init__(self, process: Process, eta: float = 1.0, upward: bool = False) -> None:
        super().__init__(process, eta, upward)
        self.linear = -self.drift

    def scale(self, sigma: float) -> float:
        return 1.0

    def weights(self, sigma: float) -> tuple[float, float]:
        return 0.0, self.drift

    def noise_std(self, start: float, end: float) -> float:
        return self.sigma(end) * math.sqrt(-math.expm1(-2 * self.eta * abs(end - start)))

    def variance_at(self, s: float) -> float:
        # int e^{eta s} sqrt(2 eta) dW: y's noise is e^{-(1 + eta) s} times its increment
        return math.exp(2 * self.sense * self.eta * s)

    def diffusion(self, s: float) -> float:
        return self.sigma(s) * math.sqrt(2 * self.eta)


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


class SDESigmaForm(StochasticForm):
    """u = y, s = sigma^2, L = 0, N = drift/(2 sigma) eps: the reverse diffusion of Song et al. 2021, appendix E."""

    name = "sde_sigma"

    def variable(self, sigma: float) -> float:
        return sigma * sigma

    def sigma(self, s: float) -> float:
        return math.sqrt(s)

    def scale(self, sigma: float) -> float:
        return 1.0

    def weights(self, sigma: float) -> tuple[float, float]:
        rate = self.drift / (2 * sigma * sigma)
        return rate, -rate

    def noise_std(self, start: float, end: float) -> float:
        return math.sqrt(self.eta * abs(start - end))

    def variance_at(self, s: float) -> float:
        return -self.sense * s

    def diffusion(self, s: float) -> float:
        return math.sqrt(self.eta)


class ExtendedSDEForm(StochasticForm):
    """u = y, s = -log phi(sigma), L = -1, N = D, plus noise (ER-SDE, Cui et al. 2023, arXiv 2309.06169, eq. 17).

    phi = sigma (e^{sigma^0.3} + 10)^eta: the paper's choice at eta = 1; the flow, in the data form, at eta = 0.
    """

    name = "er_sde"
    linear = -1.0
    finite_at_zero = False

    def __init__(self, process: Process, eta: float = 1.0, upward: bool = False) -> None:
        if upward and eta:
            raise SolverError("the form 'er_sde' has no way up in noise: phi would not grow; take the form 'sde'")
        super().__init__(process, eta, upward)

    def variable(self, sigma: float) -> float:
        return -math.log(sigma) - self.eta * _log_boost(sigma)[0] if sigma > 0 else math.inf

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

    def noise_std(self, start: float, end: float) -> float:
        before, after = self._boost(start), self._boost(end)
        return self.sigma(end) * math.sqrt(-math.expm1(2 * (after - before))) if self.eta else 0.0

    def variance_at(self, s: float) -> float:
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


FORMS: dict[str, type[Form]] = {
    f.name: f
    for f in (
        SigmaForm, NoiseForm, DataForm, AngleForm, FlowForm, TimeForm,
        SDEForm, SDENoiseForm, SDESigmaForm, ExtendedSDEForm, SDETimeForm,
    )
}  # fmt: skip


@lru_cache(maxsize=64)
def as_form(name: str, process: Process, eta: float | None = None, upward: bool = False) -> Form:
    """The named form; the stochastic ones alone read `eta` and `upward`. Raises SolverError for an unknown name.

    Forms are immutable, so one is made once. TypeError: a process that can't be hashed; call `as_form.__wrapped__`.
    """
    if name not in FORMS:
        raise SolverError(f"unknown form {name!r}{did_you_mean(name, FORMS)}")
    kind = FORMS[name]
    if issubclass(kind, StochasticForm):
        return kind(process, 1.0 if eta is None else eta, upward)
    return kind(process)
