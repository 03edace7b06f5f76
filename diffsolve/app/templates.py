"""The files that `diffsolve new-solver` and its kin write; @word@ is filled in."""

from __future__ import annotations

PYPROJECT = """
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "@name@"
version = "0.1.0"
description = "A @kind@ for diffsolve."
requires-python = ">=3.11"
dependencies = ["diffsolve"]

[project.entry-points."diffsolve.@group@"]
@module@ = "@point@"

[tool.setuptools]
py-modules = ["@module@"]
"""

SOLVER = '''
"""A solver: Ralston's method of two stages, with an estimate of its error.

The equation is u' = F(u, s) = L u + N(u, s) in the variable s of a form; L is 0 in "sigma", "v" and "flow".

    k1 = F(u, s)
    k2 = F(u + 2/3 h k1, s + 2/3 h)
    u(s + h) = u + h (k1 + 3 k2)/4             order 2
    u(s + h) - (u + h k1) = 3/4 h (k2 - k1)    what Euler's method is off by
"""

import diffsolve as ds


@ds.register_solver("@module@", order=2, form="sigma", source="Ralston 1962")
class @class@(ds.Solver):
    stages = 2  # evaluations of the network a step

    def evaluations(self, span: ds.Span, known: int) -> int:
        return 2

    def step(self, f: ds.Field, u, span: ds.Span, past: ds.Past) -> ds.Step:
        """From u at span.start to span.end: sums of states and evaluations, which f(u, s) alone makes."""
        h, L = span.h, f.form.linear
        k1 = f(u, span.start) + L * u
        middle = u + 2 / 3 * h * k1
        k2 = f(middle, span.start + 2 / 3 * h) + L * middle
        return ds.Step(u + h / 4 * (k1 + 3 * k2), error=3 / 4 * h * (k2 - k1))
'''

SCHEDULE = '''
"""A schedule: level k of 0 to n is sigma_k = high (low/high)^((k/n)^power), so at power 1 log sigma is even."""

from dataclasses import dataclass

import numpy as np

import diffsolve as ds
from diffsolve.registry import register_schedule


@register_schedule("@module@", source="this package")
@dataclass(frozen=True)
class @class@(ds.Schedule):
    """power: above 0; large ones put more steps where noise is high."""

    power: float = 1.2

    def __post_init__(self) -> None:
        self.check_above_zero(power=self.power)

    def nodes(self, count: int, low: float, high: float, process: ds.Process) -> np.ndarray:
        """`count` falling levels, float64, the first `high` and the last `low`."""
        share = np.linspace(0, 1, count) ** self.power
        nodes = high * (low / high) ** share
        nodes[0], nodes[-1] = (high, low) if count > 1 else (high, high)
        return nodes
'''

PROCESS = '''
"""A process: x_t = cos(t pi/2) x_0 + sin(t pi/2) eps, t in (0, 1): variance-preserving, even in the angle.

    sigma(t) = sigma_t/alpha_t = tan(t pi/2)    alpha = cos(atan sigma) = 1/sqrt(1 + sigma^2)
"""

import math

import numpy as np

import diffsolve as ds
from diffsolve.process import register_process


class @class@(ds.Process):
    """Each map takes a float or a float64 array, and hands back the same."""

    t_min, t_max = 0.01, 0.99

    def sigma(self, t):
        """Noise over signal at time t."""
        return np.tan(t * math.pi / 2) if isinstance(t, np.ndarray) else math.tan(t * math.pi / 2)

    def t(self, sigma):
        """The inverse of sigma(t)."""
        return (np.arctan(sigma) if isinstance(sigma, np.ndarray) else math.atan(sigma)) * 2 / math.pi

    def alpha(self, sigma):
        """What the signal is multiplied by."""
        return (1 + sigma * sigma) ** -0.5

    def sigma_rate(self, t: float) -> float:
        """d sigma/dt."""
        return math.pi / 2 * (1 + math.tan(t * math.pi / 2) ** 2)

    def log_alpha_rate(self, sigma: float) -> float:
        """d log(alpha)/d sigma."""
        return -sigma / (1 + sigma * sigma)


register_process("@module@", @class@())
'''

PROBLEM = '''
"""A problem: data at the corners of a cube, where the best denoiser is known: E[x_0 | y] = tanh(y/sigma^2).

Each coordinate is 1 or -1 with equal odds, and y = x_0 + sigma eps.
"""

import torch
from torch import Tensor

import diffsolve as ds
from diffsolve.denoiser import per_sample


class @class@(ds.ProbabilityFlow):
    """dimension: of the cube. process: a name, such as "sd", "edm" or "flow"."""

    def __init__(self, dimension: int = 2, process: str = "edm") -> None:
        super().__init__(process=process, shape=(dimension,), dtype=torch.float64)

    def denoise(self, y: Tensor, sigma: float | Tensor) -> Tensor:
        """E[x_0 | y] of y (B, dimension), at one level or one for each sample (B,)."""
        level = per_sample(sigma, y)  # (B, 1) where there are several
        return torch.tanh(y / level**2)
'''

MODULES = {"solver": SOLVER, "schedule": SCHEDULE, "process": PROCESS, "problem": PROBLEM}
"""kind -> the module that has it."""

_BY_NAME = """
from diffsolve.testing import check_@kind@


def test_@module@():
    check_@kind@("@module@")
"""
TESTS = dict.fromkeys(("solver", "schedule", "process"), _BY_NAME)
"""kind -> its test."""
TESTS["problem"] = """
from diffsolve.registry import get_problem
from diffsolve.testing import check_problem


def test_@module@():
    check_problem(get_problem("@module@")())
"""
