"""Faults of azula and skrample, where they are installed, beside the same methods here, which are tried everywhere.

azula 0.11.1, and skrample 0.7.0, which is for Python 3.12 and later.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import peers_skrample as skrample
import pytest
import torch
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import GaussianMixture
from diffsolve.registry import get_schedule

HIGH, LOW = skrample.ENDS
MIXTURE = GaussianMixture(
    torch.tensor(skrample.MEANS, dtype=torch.float64)[:, None], [0.5, 0.5], [skrample.WIDTH] * 2, ds.EDM(LOW, HIGH),
    dtype=torch.float64,
)  # fmt: skip
START = torch.tensor([[skrample.START], [-3.0]], dtype=torch.float64)


def grid(n: int) -> ds.Grid:
    return ds.make_grid(get_schedule("exponential")[0], n, MIXTURE.process, final="none")


@cache
def exact() -> Tensor:
    return ds.solve(MIXTURE, "rk4", grid(1000), x=START).x


def ours(solver: str, n: int) -> float:
    return float((ds.solve(MIXTURE, solver, grid(n), x=START).x - exact()).abs().max())


def slope(errors: list[float]) -> float:
    return math.log2(errors[0] / errors[1])


class AzulaModel:
    """Its denoiser of x = y/sqrt(1 + sigma^2), with sigma for the time."""

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return (1 + t * t).rsqrt(), t * (1 + t * t).rsqrt()

    def __call__(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(mean=MIXTURE.denoise(x * math.hypot(1, float(t)), float(t)))


@pytest.mark.parametrize("order", [2, 3])
def test_fault_3_an_adams_method_that_is_of_order_1(order: int) -> None:
    """Its step rescales by a root of alpha at its end and sigma at its start. In the same variable, an angle, ours."""
    assert slope([ours(f"lms(order={order}, form=v)", n) for n in (40, 80)]) > order - 0.2
    sample = pytest.importorskip("azula.sample")

    def theirs(kind: str, n: int) -> float:
        nodes = torch.from_numpy(grid(n).nodes.copy())
        sampler = type(kind, (getattr(sample, kind),), {"timesteps": nodes})(AzulaModel(), order=order, silent=True)
        return float((sampler(START / math.hypot(1, HIGH)) * math.hypot(1, LOW) - exact()).abs().max())

    assert slope([theirs("REABSampler", n) for n in (40, 80)]) < 1.1
    assert slope([theirs("xEABSampler", n) for n in (40, 80)]) > order - 0.6, "others of theirs are what they are said"


CASES: list[tuple[str, int, Any]] = [
    ("unipc(order=2, form=noise)", 3, lambda: skrample.unipc(2)),
    ("unipc(order=3, form=noise)", 4, lambda: skrample.unipc(3)),
    ("rk4", 4, lambda: skrample.runge_kutta("RK4", "Kutta")),
    ("dopri5", 5, lambda: skrample.runge_kutta("RKE5", "DormandPrince")),
    ("dopri8", 8, lambda: skrample.runge_kutta("RKZ", "CV8")),
]


@pytest.mark.parametrize(("solver", "order", "made"), CASES, ids=[case[0] for case in CASES])
def test_fault_5_methods_of_high_order_that_are_of_order_2(solver: str, order: int, made: Any) -> None:
    steps = (10, 20) if order > 4 else (40, 80)
    assert slope([ours(solver, n) for n in steps]) > min(order - 0.8, 5)
    pytest.importorskip("skrample.sampling.structured")
    errors = [abs(skrample.end(made(), n) - float(exact()[0])) for n in (40, 80)]
    assert slope(errors) < 2.3
