"""Problems whose noise is given, so that a peer's run can be repeated, and what k-diffusion made of its own."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_cases import STEPS
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import GaussianMixture

K_DIFFUSION = Path(__file__).parent / "data" / "k_diffusion_stochastic.npz"  # made by make_k_diffusion_stochastic.py


class GivenNoise(GaussianMixture):
    """A mixture whose draws are given: draws[i, 0] over the whole of step i, draws[i, 1] over a part or a revisit."""

    draws: Tensor
    sigmas: list[float]

    def field(self, *args: Any) -> Any:
        field = super().field(*args)

        def draw(span: ds.Span) -> Tensor:
            whole = math.isclose(field.sigma(span.end), self.sigmas[span.index + 1], rel_tol=1e-9)
            return self.draws[span.index, 0 if whole and not span.visit else 1]

        field.draw = draw  # type: ignore[method-assign]
        return field


def gap(a: Tensor, b: Tensor) -> float:
    """Relative RMS of a - b."""
    return float((a - b).double().norm() / b.double().norm())


@cache
def k_diffusion() -> dict[str, Tensor]:
    with np.load(K_DIFFUSION) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def as_stored() -> GivenNoise:
    """The problem of k-diffusion's runs."""
    stored = k_diffusion()
    problem = GivenNoise(stored["means"], stored["stds"], stored["weights"], "edm")
    problem.draws, problem.sigmas = stored["draws"], stored["sigmas"].tolist()
    return problem


def ours(solver: str | ds.Solver, **options: Any) -> Tensor:
    """The same run by `solver`."""
    stored = k_diffusion()
    return ds.solve(as_stored(), solver, stored["sigmas"], x=stored["x"], **options).x


def mixture(process: Any = "sd", batch: int = 6) -> tuple[GivenNoise, Tensor]:
    """A problem with draws for STEPS steps, and a unit start."""
    means = ds.normals(1, range(5), 3, (8,), torch.float64, "cpu")
    problem = GivenNoise(means, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), [3, 2, 1, 1, 2], process)
    problem.draws = ds.normals(2, range(2 * STEPS * batch), 4, (8,), torch.float64, "cpu").view(STEPS, 2, batch, 8)
    return problem, problem.prior(batch, seed=0, sigma=1.0)
