"""What a network predicts, as one row of one table: D = c_skip y + c_out raw, where raw = network(c_in y, c_noise).

Karras et al. 2022, table 1, in VE coordinates: y is the state, sigma the noise level, alpha the process's signal
factor. sigma is a float, or a float64 array of one for each sample; the coefficients are of its kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ProblemError, did_you_mean
from .process import Process

F = TypeVar("F", float, NDArray[np.float64])


@dataclass(frozen=True)
class Scaling(Generic[F]):
    """The four coefficients at one noise level, or arrays (B,) of them."""

    c_skip: F | float
    c_out: F | float
    c_in: F
    c_noise: F


@dataclass(frozen=True)
class Prediction:
    """A named row: (sigma, process) -> Scaling."""

    name: str
    scaling: Callable[..., Scaling[Any]]


def _eps(s: F, p: Process) -> Scaling[F]:
    return Scaling(1.0, -s, p.alpha(s), p.c_noise(s))


def _v(s: F, p: Process) -> Scaling[F]:  # v = alpha eps - sigma_t x_0 (Salimans & Ho 2022), sigma_t = alpha sigma
    alpha = p.alpha(s)
    return Scaling(1 / (1 + s * s), -s / (alpha * (1 + s * s)), alpha, p.c_noise(s))


def _x0(s: F, p: Process) -> Scaling[F]:
    return Scaling(0.0, 1.0, p.alpha(s), p.c_noise(s))


def _flow(s: F, p: Process) -> Scaling[F]:  # velocity eps - x_0 of the straight path
    return Scaling(1 / (1 + s), -s / (1 + s), p.alpha(s), p.c_noise(s))


def edm(sigma_data: float = 0.5) -> Prediction:
    """EDM's raw network F (Karras et al. 2022, eq. 7 and table 1), for data of standard deviation `sigma_data`."""

    def scaling(s: F, p: Process) -> Scaling[F]:
        if isinstance(s, float):
            total, noise = math.hypot(s, sigma_data), math.log(s) / 4
            return Scaling((sigma_data / total) ** 2, s * sigma_data / total, 1 / total, noise)
        totals = np.hypot(s, sigma_data)
        return Scaling((sigma_data / totals) ** 2, s * sigma_data / totals, 1 / totals, np.log(s) / 4)

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
