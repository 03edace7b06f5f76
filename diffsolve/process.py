"""Forward processes x_t = alpha_t x_0 + sigma_t eps, seen in VE coordinates: y = x_t/alpha_t, sigma = sigma_t/alpha_t.

A process is three maps in float64 on the host, for numbers and for numpy arrays alike: `sigma(t)`, its inverse
`t(sigma)`, and `alpha(sigma)`. t is what the network is given (c_noise), in the units it was trained with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .deprecated import adopt_former, former_attribute
from .errors import ProblemError
from .register import Owner, Register, instance

F = TypeVar("F", float, NDArray[np.float64])


class Process(ABC):
    """A noising process. `t_min` and `t_max` bound the trained range; `sigma_min`, `sigma_max` follow from them."""

    t_min: float
    t_max: float

    @abstractmethod
    def sigma(self, t: F) -> F:
        """Noise level sigma = sigma_t/alpha_t at time t."""

    @abstractmethod
    def t(self, sigma: F) -> F:
        """Time at which the noise level is `sigma`: the inverse of `sigma`."""

    @abstractmethod
    def alpha(self, sigma: F) -> F:
        """The signal's factor alpha_t at noise level `sigma`; x_t = alpha y."""

    def c_noise(self, sigma: F) -> F:
        """What the network is given as its noise level: the time, unless the process says otherwise."""
        return self.t(sigma)

    told = former_attribute("told", "c_noise")

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        adopt_former(cls, {"told": "c_noise"})

    @abstractmethod
    def sigma_rate(self, t: float) -> float:
        """d sigma/dt at time t, for the `time` form."""

    def log_alpha_rate(self, sigma: float) -> float:
        """d log(alpha)/d sigma; 0 where alpha is 1."""
        return 0.0

    @cached_property
    def sigma_min(self) -> float:
        return self.sigma(self.t_min)

    @cached_property
    def sigma_max(self) -> float:
        return self.sigma(self.t_max)


def register_process(name: str, process: Process) -> None:
    """Give a process a name. Raises ProblemError where it is taken."""
    PROCESSES.add(name, process, Owner.calling())


PROCESSES = Register[Process](
    "process", "diffsolve.processes", ProblemError, lambda _, found, __: instance(found, Process, ProblemError)
)
"""name -> process."""


def as_process(process: str | Process) -> Process:
    """A Process, or the named one: "sd", "ddpm", "cosine", "vp", "ve", "edm", "flow". Raises ProblemError."""
    return process if isinstance(process, Process) else PROCESSES.find(process)
