"""Same network, same noise, same grid: what diffusers and k-diffusion end with is ours."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import parity_cases as parity
import pytest
import torch
from parity_cases import CASES, Case
from peer_faults import FAULTS
from peers import SMALL, TOLERANCE, Comparison, comparisons, denoiser
from peers_flow import ipndm
from stubs import KINDS

import diffsolve as ds
from diffsolve.problems import StableDiffusion

COMPARED = comparisons()
ELSEWHERE = {"VQDiffusionScheduler": "test_discrete.py::test_a_step_is_diffusers_with_the_same_noise"}  # of codes


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def loaded(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return parity.load(request.param)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # numpy's, about KDPM2DiscreteScheduler
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_pipeline(case: Case, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, pipeline = loaded
    size = 16 if parity.MODEL == parity.EMBEDDED else None  # half its own: what is compared is the method
    problem = model(parity.PROMPT, guidance=parity.GUIDANCE, height=size, width=size)
    noise = parity.unit_noise(problem, 1)
    latents, nfe = parity.ours(case, problem, noise)
    gap = parity.distance(latents, parity.theirs(case, pipeline, noise))
    print(f"{case.name}: {gap:.1e}")
    assert nfe == len(case.build().timesteps)
    assert gap < parity.TOLERANCE


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # numpy's, about np.log of a tensor
@pytest.mark.parametrize("case", COMPARED, ids=lambda c: f"{c.row}-{c.name}")
def test_in_float64(case: Comparison) -> None:
    gap = case.gap("mixture")
    print(f"{case.row}, {case.name}: {gap:.1e}")
    assert gap < TOLERANCE


# Options are as above, and so is a row of the same kind.
ONE_OF_EACH = [case for case in {(case.row, case.peer): case for case in reversed(COMPARED)}.values()
               if case.row in KINDS.values()]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda c: f"{c.row}-{c.name}")
def test_in_float64_on_the_embedded_model(case: Comparison) -> None:
    gap = case.gap("embedded" if case.peer.startswith("sample_") else SMALL)
    print(f"{case.row}, {case.name}: {gap:.1e}")
    assert gap < TOLERANCE


def peers(entry: Any) -> Iterator[str]:
    for place in ("diffusers", "k-diffusion"):
        yield from entry.aliases[place].split(", ") if place in entry.aliases else ()


@pytest.mark.parametrize("row", [e.name for e in ds.list_solvers() if any(peers(e))])
def test_every_name_elsewhere_is_compared(row: str) -> None:
    compared = {case.peer for case in COMPARED if case.row == row}
    for peer in peers(next(e for e in ds.list_solvers() if e.name == row)):
        if peer in ELSEWHERE:
            module, _, test = ELSEWHERE[peer].partition(".py::")
            assert callable(getattr(importlib.import_module(module), test))
        else:
            assert peer in compared, f"{row} is called {peer} elsewhere; add a Comparison to a table of peers_*.py"


def test_the_network_is_the_models_own_but_for_float32() -> None:
    problem = denoiser("embedded")
    own = StableDiffusion.from_pretrained("emoji")(parity.PROMPT, guidance=parity.GUIDANCE)
    y = problem.prior(1)
    assert 1e-9 < parity.distance(problem.denoise(y, 3.0), own.denoise(y.float(), 3.0)) < 1e-5


def test_the_page_is_of_today() -> None:
    page = (Path(__file__).parent.parent / "docs" / "parity.md").read_text(encoding="utf-8")
    for case in COMPARED:
        assert f" `{case.peer}` | {case.label} | " in page, "run benchmarks/parity.py"
    for fault in FAULTS:
        assert f"| `{fault.file}:{fault.line}` | {fault.what} | {fault.followed} | `{fault.shown}` |" in page


def test_names_are_distinct() -> None:
    names = [(case.row, case.name) for case in COMPARED]
    assert len(set(names)) == len(names)
    assert {case.row for case in COMPARED} <= {entry.name for entry in ds.list_solvers()}


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "changed"),
    [("LMSDiscreteScheduler", {"final": "denoise"}),  # the last step alone
     ("LMSDiscreteScheduler", {"solver": "lms(order=3)"}),
     ("PNDMScheduler", {"solver": "lms"}),  # exact weights for an even grid's
     ("DDIMScheduler trailing", {"solver": "lms(order=2)"}),
     ("DPMSolverSinglestepScheduler order 2", {"solver": "dpm_solver_2"}),
     ("DPMSolverMultistepScheduler order 3, heun", {"solver": "dpmpp_3m"}),
     ("DPMSolverMultistepScheduler order 3, midpoint", {"solver": "dpmpp_3m_published"}),  # one step alone
     ("UniPCMultistepScheduler bh2 order 2", {"solver": "unipc(order=3, lower_final=True)"}),
     ("UniPCMultistepScheduler bh2 order 2", {"solver": "unipc(order=2, variant=bh1, lower_final=True)"}),
     ("UniPCMultistepScheduler bh2 order 2", {"solver": "abm(order=3, predictor=2, form=data)"}),
     ("UniPCMultistepScheduler bh2 order 1", {"solver": "abm(order=2, predictor=1, form=data)"}),
     ("UniPCMultistepScheduler bh2 order 3", {"solver": "unipc(order=3)"}),  # the order of the last steps
     ("UniPCMultistepScheduler bh2 order 3", {"solver": "unipc(order=3, corrector=False, lower_final=True)"}),
     ("DDPMScheduler fixed_small", {"solver": "ddpm(variance=fixed_large)"}),
     ("sample_lms", {"final": "denoise"}),
     ("sample_euler_ancestral eta = 0.5", {"solver": "euler_ancestral"}),  # the OU process's share of noise
     ("sample_euler_ancestral eta = 1.0", {"solver": "ddpm(variance=fixed_large)"}),
     ("sample_dpmpp_3m_sde eta = 1.0", {"solver": "dpmpp_3m_sde(mended=True)"}),
     ("sample_dpmpp_2m_sde eta = 1.0", {"solver": "dpmpp_2m_sde(solver_type=heun)"}),
     ("sample_dpmpp_sde r = 0.4", {"solver": "dpmpp_sde"}),
     ("sample_heun s_churn = 4.0, s_tmin = 0.05, s_tmax = 10.0, s_noise = 1.003",
      {"solver": "edm_stochastic(churn=4.0, s_tmin=0.05, s_tmax=10.0)"})],
)  # fmt: skip
def test_it_sees_a_small_difference(name: str, changed: dict[str, Any]) -> None:
    case: Any = next(case for case in COMPARED if case.name == name)
    assert replace(case, run=replace(case.run, **changed)).gap("mixture") > 1e-5


def test_ipndm_is_not_ipndm_v() -> None:
    case = Comparison("ipndm_v", "IPNDMScheduler", "", partial(ipndm, solver="ipndm_v"))
    assert case.gap("mixture") > 1e-3
