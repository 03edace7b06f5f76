"""What a network predicts, as one row of one table: D = c_skip y + c_out raw, where raw = network(c_in y, c_noise).

Karras et al. 2022, table 1, in VE coordinates: y is the state, sigma the noise level, alpha the process's signal
factor. sigma is a float, or a float64 array of one for each sample; the coefficients are of its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ProblemError
from .register import Owner, Register, instance

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


def register_prediction(prediction: Prediction) -> Prediction:
    """Give a Prediction its name everywhere. Raises ProblemError where it is taken."""
    PREDICTIONS.add(prediction.name, prediction, Owner.calling())
    return prediction


PREDICTIONS = Register[Prediction](
    "prediction", "diffsolve.predictions", ProblemError, lambda _, found, __: instance(found, Prediction, ProblemError)
)
"""name -> what a network predicts."""


def as_prediction(prediction: str | Prediction) -> Prediction:
    """A Prediction, or the named one: "eps", "v", "x0", "flow", "edm". Raises ProblemError."""
    return prediction if isinstance(prediction, Prediction) else PREDICTIONS.find(prediction)
