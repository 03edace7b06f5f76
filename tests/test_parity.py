"""Same network, same noise, same grid: the final latents of diffusers' pipeline and k-diffusion's samplers are ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import parity_cases as parity
import pytest
import torch
from parity_cases import CASES, Case
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import GaussianMixture

K_DIFFUSION = Path(__file__).parent / "data" / "k_diffusion.npz"  # made by make_k_diffusion_reference.py
BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def loaded(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return parity.load(request.param)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # numpy's, about KDPM2DiscreteScheduler
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_pipeline(case: Case, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, pipeline = loaded
    problem = model(parity.PROMPT, guidance=parity.GUIDANCE)
    noise = parity.unit_noise(problem, 2)
    latents, nfe = parity.ours(case, problem, noise)
    gap = parity.distance(latents, parity.theirs(case, pipeline, noise))
    print(f"{case.name}: {gap:.1e}")
    assert nfe == len(case.build().timesteps)
    assert gap < parity.TOLERANCE


def mixture(process: str = "sd") -> GaussianMixture:
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), [3, 2, 1, 1, 2], process)


@pytest.mark.parametrize("case", [c for c in CASES if not c.tells], ids=lambda c: c.name)
def test_scheduler_in_float64(case: Case) -> None:
    problem = mixture()
    noise = parity.unit_noise(problem, 6)
    gap = parity.distance(parity.ours(case, problem, noise)[0], parity.theirs_in_float64(case, problem, noise))
    print(f"{case.name}: {gap:.1e}")
    assert gap < (1e-9 if case.float64 else 2e-6)


@pytest.mark.parametrize(
    ("name", "other"),
    [("LMS", parity.named(ds.Linspace(), "denoise", "lms")),  # the last step alone
     ("PNDM", parity.times([*parity.LEADING, 0.0], "none", "lms")),  # exact weights for an even grid's
     ("DDIM", parity.times(parity.LEADING, "denoise", "ddim")),  # the end alone
     ("DPM++ 2S", lambda p: [parity.Leg(e.solver.split("(")[0], e.grid, e.variable) for e in parity.in_pairs(p)])],
)  # fmt: skip
def test_float64_parity_sees_a_small_difference(name: str, other: Any) -> None:
    case, problem = BY_NAME[name], mixture()
    noise = parity.unit_noise(problem, 6)
    changed = Case(case.name, case.scheduler, case.config, other, case.unit)
    gap = parity.distance(parity.ours(changed, problem, noise)[0], parity.theirs_in_float64(case, problem, noise))
    assert gap > 1e-5


class GivenNoise(GaussianMixture):
    """A mixture whose reverse SDE is driven by the draws it is given, one for each step."""

    draws: Tensor

    def field(self, *args: Any) -> Any:
        field = super().field(*args)
        field.draw = lambda span: self.draws[span.index]  # type: ignore[method-assign]
        return field


@pytest.mark.parametrize("sampler", ["euler", "heun", "lms", "dpm_2", "dpmpp_2m", "euler_ancestral"])
def test_k_diffusion(sampler: str) -> None:
    with np.load(K_DIFFUSION) as stored:
        given = {name: torch.from_numpy(stored[name]) for name in stored.files}
    problem = GivenNoise(given["means"], given["stds"], given["weights"], "edm")
    problem.draws = given["draws"]
    final = "step" if sampler == "lms" else "denoise"  # sample_lms goes to 0 by its own multistep
    name = {"dpm_2": "dpm2"}.get(sampler, sampler)
    x = ds.solve(problem, name, given["sigmas"], x=given["x"], final=final).x
    gap = parity.distance(x, given[sampler])
    print(f"{sampler}: {gap:.1e}")
    assert gap < 1e-12
