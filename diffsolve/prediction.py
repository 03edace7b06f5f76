"""What a network predicts, as one row of one table: D = c_skip y + c_out raw, where raw = network(c_in y, c_noise).

Karras et al. 2022, table 1, in VE coordinates: y is the state, sigma the noise level, alpha the process's signal
factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .errors import ProblemError, did_you_mean
from .process import Process


@dataclass(frozen=True)
class Scaling:
    """The four coefficients at one noise level."""

    c_skip: float
    c_out: float
    c_in: float
    c_noise: float


@dataclass(frozen=True)
class Prediction:
    """A named row: (sigma, process) -> Scaling."""

    name: str
    scaling: Callable[[float, Process], Scaling]


def _eps(s: float, p: Process) -> Scaling:
    return Scaling(1.0, -s, p.alpha(s), p.told(s))


def _v(s: float, p: Process) -> Scaling:  # v = alpha eps - sigma_t x_0 (Salimans & Ho 2022), sigma_t = alpha sigma
    alpha = p.alpha(s)
    return Scaling(1 / (1 + s * s), -s / (alpha * (1 + s * s)), alpha, p.told(s))


def _x0(s: float, p: Process) -> Scaling:
    return Scaling(0.0, 1.0, p.alpha(s), p.told(s))


def _flow(s: float, p: Process) -> Scaling:  # velocity eps - x_0 of the straight path
    return Scaling(1 / (1 + s), -s / (1 + s), p.alpha(s), p.told(s))


def edm(sigma_data: float = 0.5) -> Prediction:
    """EDM's raw network F (Karras et al. 2022, eq. 7 and table 1), for data of standard deviation `sigma_data`."""

    def scaling(s: float, p: Process) -> Scaling:
        total = math.hypot(s, sigma_data)
        return Scaling((sigma_data / total) ** 2, s * sigma_data / total, 1 / total, math.log(s) / 4)

    return Prediction("edm", scaling)


PREDICTIONS = {
    "eps": Prediction("eps", _eps),
    "v": Prediction("v", _v),
    "x0": Prediction("x0", _x0),
    "flow": Prediction("flow", _flow),
    "edm": edm(),
}


def as_prediction(prediction: str | Prediction) -> Prediction:
    """A Prediction, or the named one: "eps", "v", "x0", "flow", "edm". Raises ProblemError."""
    if isinstance(prediction, Prediction):
        return prediction
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
        raise ProblemError(f"unknown prediction {prediction!r}{did_you_mean(prediction, PREDICTIONS)}")
    return PREDICTIONS[prediction]
