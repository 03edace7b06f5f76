"""What diffusers' schedulers trip over, and what a DiffsolveScheduler of the same config does there."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from peer_faults import VERSION
from scheduler_loop import SD, gap, loop, network_of, problem, scheduler, started

import diffsolve as ds
from diffsolve.interop import k_diffusion
from diffsolve.interop.diffusers import DiffsolveScheduler

pytestmark = [
    pytest.mark.skipif(diffusers.__version__ != VERSION, reason=f"of diffusers {VERSION}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of numpy, in their constructors
]
# "Align your steps" for Stable Diffusion (Sabour et al. 2024), as users bring it.
AYS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0292, 0.0]


def schedulers() -> list[Any]:
    known = (getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler"))
    return [kind for kind in known if isinstance(kind, type) and "set_timesteps" in dir(kind)
            and "alphas" not in kind.__name__]  # fmt: skip


def told(kind: Any, name: str) -> bool:
    return name in inspect.signature(kind.set_timesteps).parameters


def test_a_schedule_of_ones_own_is_taken_by_few_of_theirs() -> None:
    theirs = [kind for kind in schedulers() if kind is not DiffsolveScheduler]
    assert sum(told(kind, "sigmas") for kind in theirs) < len(theirs) / 2
    assert sum(told(kind, "timesteps") for kind in theirs) < len(theirs) / 2
    assert all(told(DiffsolveScheduler, name) for name in ("sigmas", "timesteps", "mu"))


@pytest.mark.parametrize(
    "solver", ["ddim", "heun", "dpmpp_2m", "unipc", "deis", "lms", "dpmpp_sde", "sa_solver", "pndm"]
)
def test_a_schedule_of_ones_own_is_taken_by_every_solver(solver: str) -> None:
    made, flow, network = scheduler("sd", solver), problem("sd"), network_of("sd")
    made.set_timesteps(sigmas=AYS)
    grid = made._now.clock.plan.grid
    y = started() * float(grid.nodes[0])
    x = y / (1 + float(grid.nodes[0]) ** 2) ** 0.5
    ours = loop(made, network, x, generator=torch.Generator().manual_seed(0))
    assert ours.isfinite().all()
    assert grid.sigmas.tolist() == pytest.approx(AYS, rel=1e-3)
    if not ds.get_solver(solver).stochastic:
        assert gap(ours, ds.solve(flow, solver, grid, x=y).x) < 1e-6
    by_time = scheduler("sd", solver)
    by_time.set_timesteps(timesteps=[999, 850, 640, 400, 180, 40])
    assert loop(by_time, network, x, generator=torch.Generator().manual_seed(0)).isfinite().all()


@pytest.mark.slow
def test_more_steps_than_times_of_a_cosine() -> None:
    config = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    theirs = diffusers.DEISMultistepScheduler(**config)
    network = network_of("sd")
    theirs.set_timesteps(1500)
    with pytest.raises(IndexError):
        loop(theirs, network, started())
    ours = DiffsolveScheduler.from_config(theirs.config, solver="dpmpp_2m")
    ours.set_timesteps(1500)
    assert loop(ours, network, started()).isfinite().all()
    assert len(ours.timesteps) == 1500


def test_one_step() -> None:
    config = SD | {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
    theirs, network = diffusers.UniPCMultistepScheduler(**config), network_of("sd")
    theirs.set_timesteps(1)
    assert torch.equal(loop(theirs, network, started()), started()), "it has not moved"
    for solver in ("unipc", "dpmpp_2m", "dpmpp_3m_sde", "dpmpp_2m_sde"):
        ours = DiffsolveScheduler.from_config(SD | {"use_karras_sigmas": True}, solver=solver)
        ours.set_timesteps(1)
        end = loop(ours, network, started(), generator=torch.Generator().manual_seed(0))
        assert gap(end, started()) > 0.1
        assert end.isfinite().all()


@pytest.mark.parametrize("name", ["sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde"])
def test_one_step_of_k_diffusions(name: str) -> None:
    """Theirs reads h of a step that was not made, and raises UnboundLocalError."""
    flow = problem("sd")
    sample = getattr(k_diffusion, name)
    end = sample(lambda x, s: flow.denoise(x, float(s[0])), started() * 10, torch.tensor([10.0, 0.0]), disable=True)
    assert gap(end, flow.denoise(started() * 10, 10.0)) < 1e-12


def test_a_call_made_twice() -> None:
    """A pipeline that asks again for the same time (retries, a preview) moves theirs on."""
    x, answer = started(), started() * 0.5
    for made, moves in ((diffusers.EulerDiscreteScheduler(**SD), True), (scheduler("sd", "euler"), False)):
        made.set_timesteps(5)
        made.scale_model_input(x, made.timesteps[0])
        first, second = (made.step(answer, made.timesteps[0], x, return_dict=False)[0] for _ in range(2))
        assert torch.equal(first, second) is not moves
