"""No row gets worse as its steps grow: in float64 down to rounding, in float32 down to a floor that it keeps."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from stubs import DETERMINISTIC, ENTRIES, mixture

import diffsolve as ds

NS = (40, 120, 360)
INTEGRATORS = [entry.name for entry in ENTRIES if entry.order]
ROUNDING, FLOOR = 1e-11, 2e-6  # relative: where float64 and float32 may stop falling
NOISE = 3.0  # how far above its least error a float32 run may end


@lru_cache
def exact() -> torch.Tensor:
    problem = mixture((2,))
    return ds.solve(problem, "dopri8(form=noise)", "exponential", 500, x=start(), final="none").x


def start() -> torch.Tensor:
    return mixture((2,)).prior(64, seed=2)


def errors(solver: str, dtype: torch.dtype) -> list[float]:
    """Medians over the samples, at sigma_min; stochastic rows at eta = 0, whose end is known."""
    eta = 0.0 if ds.get_solver(solver).stochastic else None
    problem, x = mixture((2,), dtype=dtype), start().to(dtype)
    ends = [ds.solve(problem, solver, "karras", n, x=x, eta=eta, final="none").x for n in NS]
    return [float(((end - exact()).norm(dim=1) / exact().norm(dim=1)).median()) for end in ends]


@pytest.mark.slow
@pytest.mark.parametrize("solver", INTEGRATORS)
def test_more_steps_are_never_worse_in_float64(solver: str) -> None:
    found = errors(solver, torch.float64)
    assert all(fine < max(0.7 * coarse, ROUNDING) for coarse, fine in pairwise(found)), found


@pytest.mark.slow
@pytest.mark.parametrize("solver", [name for name in INTEGRATORS if name in DETERMINISTIC])
def test_more_steps_keep_to_the_floor_in_float32(solver: str) -> None:
    found = errors(solver, torch.float32)
    assert found[-1] < max(NOISE * min(found), FLOOR), found
