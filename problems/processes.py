"""The zoo of processes: discrete and continuous variance-preserving ones, VE, EDM, rectified flows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from diffsolve import ProblemError, Process
from diffsolve.errors import did_you_mean
from diffsolve.process import PROCESSES as PROCESSES
from diffsolve.process import F, register_process
from diffsolve.validate import above_zero, between, flag, whole


def like(reference: Any, value: Any) -> Any:
    """`value` as a float where `reference` was a number, else as a float64 array."""
    return np.asarray(value, np.float64) if np.ndim(reference) else float(value)


MOST_STEPS, FAR = 10**6, 1e12  # noise levels farther from 1 leave what a float32 state can be multiplied by
LAST_ALPHA_BAR = 4.8973451890853435e-08  # what the field puts for 0, so that sigma stays finite


def _check_order(process: Process, low: str, high: str, most: float = FAR) -> None:
    """Raise ProblemError unless 1e-12 <= low < high <= most, of two numbers of a process."""
    kind = type(process).__name__
    least, greatest = (above_zero(getattr(process, name), f"{kind}: {name}", ProblemError) for name in (low, high))
    if not 1e-12 <= least < greatest <= most:
        above = "" if least >= 1e-12 and greatest <= most else f" <= {most:g}"
        near = "" if least >= 1e-12 else "1e-12 <= "
        raise ProblemError(f"{kind}: expected {near}{low} < {high}{above}, got {least:g} and {greatest:g}")


class _VariancePreserving(Process):
    def alpha(self, sigma: F) -> F:
        if isinstance(sigma, float):  # in every network call: numpy's scalars are slow
            return 1 / math.sqrt(1 + sigma * sigma)
        return cast(F, like(sigma, 1 / np.sqrt(1 + np.square(sigma))))

    def log_alpha_rate(self, sigma: float) -> float:
        return -sigma / (1 + sigma * sigma)


def _betas(schedule: str, beta_start: float, beta_end: float, steps: int) -> torch.Tensor:
    if not isinstance(schedule, str):
        raise ProblemError(f"a beta schedule is a name, got {type(schedule).__name__}; pass numbers as betas=")
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, steps, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32) ** 2
    if schedule == "cosine":  # Nichol & Dhariwal 2021, eq. 17
        bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        return torch.from_numpy(np.minimum(1 - bar[1:] / bar[:-1], 0.999)).float()
    names = ("linear", "scaled_linear", "cosine")
    raise ProblemError(f"unknown beta schedule {schedule!r}{did_you_mean(schedule, names)}")


@dataclass(frozen=True)
class VP(_VariancePreserving):
    """The discrete variance-preserving process of DDPM, Stable Diffusion and their like; t runs from 0 to steps - 1.

    schedule: "linear", "scaled_linear" (Stable Diffusion) or "cosine". `betas` overrides all of it with a trained
    table. The table is formed in float32, as it was in training, and read in float64; between timesteps sigma is linear
    in t. snr_shift: every sigma^2 is multiplied by it (CogVideoX: 3). zero_snr: alpha is moved and stretched to end at
    0 (Lin et al. 2024, algorithm 1), or nearly, so that the last sigma is finite: alpha^2 = 4.9e-8 there, sigma = 4519.
    """

    schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    betas: tuple[float, ...] | None = None
    zero_snr: bool = False
    snr_shift: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta_start", "beta_end"):
            between(getattr(self, name), f"VP: {name}", 1e-12, 1 - 1e-6, ProblemError)
        whole(self.steps, "VP: steps", ProblemError, 2, MOST_STEPS)
        above_zero(self.snr_shift, "VP: snr_shift", ProblemError), flag(self.zero_snr, "VP: zero_snr", ProblemError)
        try:
            if self.betas is not None:
                object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ProblemError(f"VP: betas are a list of numbers, got {str(self.betas)[:60]}") from error
        _ = self.table  # made here, so that what can't be one is refused here

    @cached_property
    def table(self) -> NDArray[np.float64]:
        """sigma at t = 0, 1, ..., steps - 1. Raises ProblemError where the betas give no rising finite sigmas."""
        if self.betas is not None:
            betas = torch.tensor(self.betas, dtype=torch.float32)
        else:
            betas = _betas(self.schedule, self.beta_start, self.beta_end, self.steps)
        bar = torch.cumprod(1 - betas, 0).double().numpy()
        bar = bar / (self.snr_shift + (1 - self.snr_shift) * bar)
        if self.zero_snr and len(bar) > 1:
            alpha = np.sqrt(bar)
            bar = ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2
            bar[-1] = LAST_ALPHA_BAR if 0.9 * bar[-2] > LAST_ALPHA_BAR else bar[-2] / 4
        with np.errstate(divide="ignore", invalid="ignore"):
            table = np.asarray(np.sqrt((1 - bar) / bar))
            rising = np.isfinite(table) & (np.diff(table, prepend=0.0) > 0)
        if not rising.all() or len(table) < 2:
            bad = int(np.argmin(rising)) if len(table) else 0
            found = f"sigma = {table[bad]:g} at t = {bad}" if len(table) else "no sigma"
            raise ProblemError(f"the betas give {found}; expected two or more, each above "
                               "0 and below 1, whose sigmas stay finite and rise")
        return table

    @cached_property
    def _steps(self) -> NDArray[np.float64]:
        return np.arange(len(self.table), dtype=np.float64)

    t_min: float = field(default=0.0, init=False)

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return float(len(self.table) - 1)

    def sigma(self, t: F) -> F:
        return cast(F, like(t, np.interp(t, self._steps, self.table)))

    def t(self, sigma: F) -> F:
        return cast(F, like(sigma, np.interp(sigma, self.table, self._steps)))

    def sigma_rate(self, t: float) -> float:
        left = min(int(t), len(self.table) - 2)
        return float(self.table[left + 1] - self.table[left])


_COSINE_RATE = math.pi / 2 / 1.008
_COSINE_SHIFT = 0.008 * _COSINE_RATE


@dataclass(frozen=True)
class ContinuousVP(_VariancePreserving):
    """The variance-preserving SDE with t in [t_min, 1] (Song et al. 2021).

    beta(t) is "linear" from beta_min to beta_max, "scaled_linear" (its square root is), or "cosine" (alpha(t) is a
    cosine; the betas are not used).
    """

    schedule: str = "linear"
    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        names = ("linear", "scaled_linear", "cosine")
        if not isinstance(self.schedule, str) or self.schedule not in names:
            raise ProblemError(f"unknown beta schedule {self.schedule!r}{did_you_mean(self.schedule, names)}")
        _check_order(self, "t_min", "t_max", 1)
        _check_order(self, "beta_min", "beta_max")
        if self.schedule == "cosine" and self.t_max == 1.0:
            object.__setattr__(self, "t_max", 0.9946)  # alpha is 0 at t = 1; the end that DPM-Solver's authors use

    def sigma(self, t: F) -> F:
        if self.schedule == "cosine":
            # alpha = cos a/cos a0, so sigma^2 = (cos^2 a0 - cos^2 a)/cos^2 a, here as the product that does not cancel
            a0, angle = _COSINE_SHIFT, _COSINE_SHIFT + np.asarray(t, np.float64) * _COSINE_RATE
            return cast(F, like(t, np.sqrt(np.sin(angle - a0) * np.sin(angle + a0)) / np.cos(angle)))
        return cast(F, like(t, np.sqrt(np.expm1(self._integral(np.asarray(t, np.float64))))))

    def _integral(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.schedule == "linear":
            return np.asarray(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2)
        a, c = math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)
        return np.asarray(t * (a * a + a * c * t + (c * t) ** 2 / 3))

    def t(self, sigma: F) -> F:
        s = np.asarray(sigma, np.float64)
        if self.schedule == "cosine":
            angle = np.arctan(np.hypot(s, math.sin(_COSINE_SHIFT)) / math.cos(_COSINE_SHIFT))
            return cast(F, like(sigma, (angle - _COSINE_SHIFT) / _COSINE_RATE))
        total = np.log1p(s**2)
        if self.schedule == "linear":  # the quadratic's root in the form that does not cancel
            slope = self.beta_max - self.beta_min
            return cast(F, like(sigma, 2 * total / (self.beta_min + np.sqrt(self.beta_min**2 + 2 * slope * total))))
        a, c = math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)
        root = np.cbrt(a**3 + 3 * c * total)
        return cast(F, like(sigma, 3 * total / (root**2 + root * a + a * a)))

    def sigma_rate(self, t: float) -> float:
        s = self.sigma(t)
        if self.schedule == "cosine":
            return (1 + s * s) / s * math.tan(_COSINE_SHIFT + t * _COSINE_RATE) * _COSINE_RATE
        root = math.sqrt(self.beta_min) + t * (math.sqrt(self.beta_max) - math.sqrt(self.beta_min))
        beta = self.beta_min + t * (self.beta_max - self.beta_min) if self.schedule == "linear" else root**2
        return beta * (1 + s * s) / (2 * s)


@dataclass(frozen=True)
class VE(Process):
    """The variance-exploding SDE: sigma(t) = low (high/low)^t for t in [0, 1], alpha = 1 (Song et al. 2021)."""

    low: float = 0.02
    high: float = 100.0
    t_min: float = field(default=0.0, init=False)
    t_max: float = field(default=1.0, init=False)

    def __post_init__(self) -> None:
        _check_order(self, "low", "high")

    def sigma(self, t: F) -> F:
        return cast(F, like(t, self.low * (self.high / self.low) ** np.asarray(t, np.float64)))

    def t(self, sigma: F) -> F:
        return cast(F, like(sigma, np.log(np.asarray(sigma) / self.low) / math.log(self.high / self.low)))

    def alpha(self, sigma: F) -> F:
        return cast(F, like(sigma, np.ones_like(sigma, np.float64)))

    def sigma_rate(self, t: float) -> float:
        return self.sigma(t) * math.log(self.high / self.low)


@dataclass(frozen=True)
class EDM(Process):
    """sigma(t) = t, alpha = 1 (Karras et al. 2022); its network is told log(sigma)/4, see the `edm` prediction."""

    t_min: float = 0.002
    t_max: float = 80.0

    def __post_init__(self) -> None:
        _check_order(self, "t_min", "t_max")

    def sigma(self, t: F) -> F:
        return t

    def t(self, sigma: F) -> F:
        return sigma

    def alpha(self, sigma: F) -> F:
        return cast(F, like(sigma, np.ones_like(sigma, np.float64)))

    def sigma_rate(self, t: float) -> float:
        return 1.0


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """x_t = (1 - t) x_0 + t eps, so sigma = t/(1 - t) and alpha = 1/(1 + sigma) (Liu et al. 2023, Lipman et al. 2023).

    `shift` moves a grid's nodes to t' = shift t/(1 + (shift - 1) t), which multiplies sigma (Esser et al. 2024,
    eq. 23); t here is the unshifted time. The ends stay inside (0, 1): at t = 1 sigma is infinite. `scale` is what the
    network's time is multiplied by (1000 for SD3 and Flux).
    """

    shift: float = 1.0
    t_min: float = 1e-3
    t_max: float = 1 - 1e-4
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            number = above_zero(getattr(self, name), f"RectifiedFlow: {name}", ProblemError)
            between(number, f"RectifiedFlow: {name}", 1e-6, 1e6, ProblemError)
        _check_order(self, "t_min", "t_max", 1 - 1e-12)

    def sigma(self, t: F) -> F:
        u = np.asarray(t, np.float64)
        return cast(F, like(t, self.shift * u / (1 - u)))

    def t(self, sigma: F) -> F:
        s = np.asarray(sigma, np.float64)
        return cast(F, like(sigma, s / (self.shift + s)))

    def alpha(self, sigma: F) -> F:
        return cast(F, like(sigma, 1 / (1 + np.asarray(sigma))))

    def log_alpha_rate(self, sigma: float) -> float:
        return -1 / (1 + sigma)

    def sigma_rate(self, t: float) -> float:
        return self.shift / (1 - t) ** 2

    def c_noise(self, sigma: F) -> F:
        """The network's time: sigma/(1 + sigma), shift included, times `scale`."""
        s = np.asarray(sigma, np.float64)
        return cast(F, like(sigma, self.scale * s / (1 + s)))


for _name, _process in {
    "sd": VP(), "ddpm": VP("linear", 1e-4, 0.02), "cosine": VP("cosine"), "vp": ContinuousVP(), "ve": VE(),
    "edm": EDM(), "flow": RectifiedFlow(),
}.items():  # fmt: skip
    register_process(_name, _process)
