"""The zoo of predictions: eps, v, x0, the flow's velocity, EDM's raw network. See `diffsolve.prediction`."""

from __future__ import annotations

import math

import numpy as np

from diffsolve import Prediction, Process
from diffsolve.prediction import F, Scaling, register_prediction


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


for _prediction in (
    Prediction("eps", _eps), Prediction("v", _v), Prediction("x0", _x0), Prediction("flow", _flow), edm(),
):  # fmt: skip
    register_prediction(_prediction)
