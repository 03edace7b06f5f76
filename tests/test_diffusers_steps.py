"""DiffsolveScheduler's grids, and what a step does beside its arithmetic: it copies, waits for nothing, casts."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from scheduler_loop import SD, gap, loop, network_of, problem, scheduler, started
from stubs import slow
from test_diffusers_runs import N, planned
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import diffsolve as ds


def test_the_grid_tiles() -> None:
    """A step ends where the next begins, at every count, in every spacing."""
    for spacing in ("leading", "linspace", "trailing"):
        for n in (3, 13, 31):
            made = scheduler("sd", "euler", schedule=None, timestep_spacing=spacing)
            made.set_timesteps(n)
            assert len(made.timesteps) == n
            assert all(a > b for a, b in pairwise(made.sigmas.tolist()))


@pytest.mark.parametrize("n", [1, 2, 3, 100, slow(999), slow(1000)])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_as_many_steps_as_are_asked_for(spacing: str, n: int) -> None:
    made = scheduler("sd", "dpmpp_2m", schedule=None, timestep_spacing=spacing)
    made.set_timesteps(n)
    assert len(made.timesteps) == n
    if n < 100:
        assert loop(made, network_of("sd"), started()).isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_3m", "unipc", "heun", "deis"])
@pytest.mark.parametrize("final", ["denoise", "none"])
def test_grids_of_a_cosine_process_and_of_one_step(solver: str, final: str) -> None:
    """Where theirs gives NaN or an index error: cosine betas on karras, one step, an end at sigma_min."""
    for n in (1, 2, 21):
        made = scheduler("sd", solver, beta_schedule="squaredcos_cap_v2", final=final)
        made.set_timesteps(n + (final == "none" and n == 1))
        assert loop(made, lambda x, t: x * 0.5, started()).isfinite().all()


def test_times_and_levels_are_one_thing() -> None:
    """Under a shift, the time that the network is told is that of the noise level, at each call."""
    made = scheduler("flow", "rk4", schedule=None)
    made.set_timesteps(13)
    assert torch.allclose(made.timesteps / 1000, made.sigmas[:-1], rtol=1e-5)
    sample, noise = started(), -started()
    for t, sigma in zip(made.timesteps, made.sigmas, strict=False):
        assert gap(made.scale_noise(sample, t, noise), (1 - sigma) * sample + sigma * noise) < 1e-5


def test_the_contract_of_an_engine_that_copies_a_scheduler_for_each_request() -> None:
    """vLLM-Omni's: found by entry point, a deep copy a request, one answer a call, requests interleaved."""
    from importlib.metadata import entry_points

    (point,) = [p for p in entry_points(group="vllm_omni.schedulers") if p.name == "diffsolve"]
    own, network = point.load()(solver="dpmpp_2m", schedule="karras", **SD), network_of("sd")
    requests = []
    for scale in (1, 2):
        made = copy.deepcopy(own)
        made.set_timesteps(num_inference_steps=9, device="cpu")
        requests.append([made, started() * scale])
    for i in range(9):
        for request in requests:
            made, x = request
            t = made.timesteps[i]
            request[1] = made.step(network(x, t.expand(2)), t, x, return_dict=False)[0]
    for scale, (_, x) in enumerate(requests, 1):
        assert gap(x, loop(planned("sd", "dpmpp_2m", 9), network, started() * scale)) < 1e-12


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("EulerDiscreteScheduler", "euler"), ("DPMSolverMultistepScheduler", "dpmpp_2m"),
     ("LMSDiscreteScheduler", "lms"), ("UniPCMultistepScheduler", "unipc")],
)  # fmt: skip
def test_a_scheduler_of_theirs_is_a_solver(theirs: str, ours: str) -> None:
    flow = problem("sd")
    x = started() * flow.process.sigma_max
    left, right = (ds.solve(flow, name, "karras", 20, x=x) for name in (f"diffusers:{theirs}", ours))
    assert left.nfe == right.nfe == 20
    assert gap(left.x, right.x) < 0.02
    with pytest.raises(ds.SolverError, match="did you mean 'EulerDiscreteScheduler'"):
        ds.get_solver("diffusers:EulerDiskreteScheduler")


class Watching(TorchDispatchMode):
    """What an accelerator would be asked: numbers that are read back, and tensors in float64, which some have not."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs, self.wide = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.syncs += func.__name__.startswith(("_local_scalar_dense", "nonzero", "equal", "is_nonzero"))
        self.wide += isinstance(out, Tensor) and out.dtype == torch.float64
        return out


def watched(made: Any, x: Tensor, answer: Tensor, **given: Any) -> Watching:
    with Watching() as seen:
        for t in made.timesteps:
            x = made.step(answer, t, x, **given, return_dict=False)[0]
    return seen


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "unipc", "rk4", "damped_abm", "lms"])
def test_a_step_waits_for_no_device_and_needs_no_float64(solver: str) -> None:
    made, x = planned("sd", solver), started().float()
    seen = watched(made, x, x)
    assert (seen.syncs, seen.wide) == (0, 0)
    noisy = planned("sd", "euler_ancestral")
    assert watched(noisy, x, x, generator=torch.Generator().manual_seed(0)).syncs <= 2, "a seed a sample, once"


def test_diffusers_waits_in_each_step() -> None:
    theirs, x = diffusers.DDIMScheduler(**SD), started().float()
    theirs.set_timesteps(N)
    assert watched(theirs, x, x).syncs >= N


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_is_added_in_float32_whatever_the_latents_are(dtype: torch.dtype) -> None:
    """In the middle of bfloat16's resolution too: the tables are not rounded with the model."""
    made, x, noise = planned("sd", "euler"), started(), -started()
    for t in (752.0, 750.0, 3.0):
        exact = made.add_noise(x, noise, torch.tensor([t]))
        low = made.add_noise(x.to(dtype), noise.to(dtype), torch.tensor([t]))
        assert low.dtype == dtype
        assert gap(low.double(), exact) < 2 * torch.finfo(dtype).eps
    assert made.timesteps.dtype == torch.float32
