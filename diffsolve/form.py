"""The forms of the flow: one ODE (or SDE) written in several variables, u' = L u + N with a constant scalar L.

y and sigma are VE coordinates, D the denoiser; N = on_state u + on_denoised D at each noise level. See `forms.FORMS`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

from .errors import SolverError
from .process import Process


class Form(ABC):
    """u = scale(sigma) y as a function of s = variable(sigma); s grows or falls monotonically along a solve.

    All of it is float64 on the host. process: that of the problem, for `time` and `alpha`.
    """

    name: str
    linear: float = 0.0
    stochastic = False
    finite_at_zero = True  # whether s and u have a limit at sigma = 0, so that a step may end there

    def __init__(self, process: Process) -> None:
        self.process = process

    @abstractmethod
    def variable(self, sigma: float) -> float:
        """s at a noise level; infinite at 0 where s has no limit there."""

    @abstractmethod
    def sigma(self, s: float) -> float:
        """The noise level at s."""

    @abstractmethod
    def scale(self, sigma: float) -> float:
        """The factor from y to u at a noise level."""

    @abstractmethod
    def weights(self, sigma: float) -> tuple[float, float]:
        """(on_state, on_denoised) of N."""

    def noise_std(self, start: float, end: float) -> float:
        """Standard deviation, in u, of the noise that a step from s = start to s = end adds; 0 for an ODE."""
        return 0.0

    def renoise_std(self, start: float, end: float) -> float:
        """Standard deviation, in u at `end`, of the noise that takes the state up in noise from `start` to `end`."""
        low, high = self.sigma(start), self.sigma(end)
        return self.scale(high) * math.sqrt(high * high - low * low)

    def variance_at(self, s: float) -> float:
        """The variance that the Brownian path of a solve in this form has run up to s; it grows along the solve.

        An ODE form has noise only where a solver adds some of its own: its variance is that of the reverse SDE.
        """
        return 1 / self.sigma(s) ** 2

    def diffusion(self, s: float) -> float:
        """g of the form's SDE du = (L u + N) ds + g dW; 0 for an ODE."""
        return 0.0

    def time(self, s: float) -> float:
        """The process's time at s."""
        return self.process.t(self.sigma(s))

    def variable_at_time(self, t: float) -> float:
        """s at the process's time t."""
        return self.variable(self.process.sigma(t))

    def alpha(self, s: float) -> float:
        """alpha of the process at s: x_t = alpha y."""
        return self.process.alpha(self.sigma(s))

    def rescale(self, start: float, end: float) -> float:
        """The factor from u at s = start to the u of the same y at s = end."""
        return self.scale(self.sigma(end)) / self.scale(self.sigma(start))

    def dN_du(self, s: float) -> float:
        """d N/d u at s with the denoised state held fast."""
        return self.weights(self.sigma(s))[0]

    def deps_dN(self, s: float) -> float:
        """d eps/d N at s: what a change of N is in the noise estimate eps = (y - D)/sigma."""
        sigma = self.sigma(s)
        on_denoised = self.weights(sigma)[1]
        if on_denoised == 0:
            raise SolverError("upwards at eta = 1 nothing is read of the model, so there is no noise estimate to go by")
        return -1 / (on_denoised * sigma)

    def to_form(self, x: Tensor, node: float) -> Tensor:
        """u for the state x, in VE coordinates at a noise level; at 0 they are one."""
        scale = self.scale(node) if node > 0 else 1.0
        return x if scale == 1 else x * scale

    def from_form(self, u: Tensor, node: float) -> Tensor:
        """The state in VE coordinates for u at a noise level."""
        scale = self.scale(node) if node > 0 else 1.0
        return u if scale == 1 else u / scale


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


class LogForm(Form):
    """s = lambda = -log sigma."""

    finite_at_zero = False

    def variable(self, sigma: float) -> float:
        return -math.log(sigma) if sigma > 0 else math.inf

    def sigma(self, s: float) -> float:
        return math.exp(-s)


class NoiseForm(LogForm):
    """u = y/sigma, s = lambda = -log sigma, L = 1, N = -eps: DPM-Solver, DPM2."""

    name = "noise"
    linear = 1.0

    def scale(self, sigma: float) -> float:
        return 1 / sigma

    def weights(self, sigma: float) -> tuple[float, float]:
        return -1.0, 1 / sigma


class DataForm(LogForm):
    """u = y, s = lambda, L = -1, N = D: DPM-Solver++."""

    name = "data"
    linear = -1.0

    def scale(self, sigma: float) -> float:
        return 1.0

    def weights(self, sigma: float) -> tuple[float, float]:
        return 0.0, 1.0


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

    def variable(self, sigma: float) -> float:
        return self.process.t(sigma) if sigma > 0 else math.inf

    def sigma(self, s: float) -> float:
        return self.process.sigma(s)

    def scale(self, sigma: float) -> float:
        return self.process.alpha(sigma)

    def weights(self, sigma: float) -> tuple[float, float]:
        rate = self.process.sigma_rate(self.process.t(sigma))
        return rate * (self.process.log_alpha_rate(sigma) + 1 / sigma), -rate * self.process.alpha(sigma) / sigma
