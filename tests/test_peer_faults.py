"""What the comparisons with the peers have to go around: each fault of peer_faults.py, shown."""

from __future__ import annotations

import importlib
import math
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated import RePaintPipeline
from diffusers.schedulers.deprecated import KarrasVeScheduler, ScoreSdeVpScheduler
from parity_cases import BETAS, OWN, distance
from peer_faults import FAULTS, VERSION, Fault
from peers import Given, N, in_float64, said
from peers_flow import KARRAS, TO_THE_LEAST
from peers_flow import bounded as from_below_1
from stubs import slow
from torch import Tensor

import diffsolve as ds
from diffsolve.solvers import Adams

pytestmark = pytest.mark.skipif(diffusers.__version__ != VERSION, reason=f"of diffusers {VERSION}")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{Path(f.file).stem}:{f.line}")
def test_it_is_where_it_is_said_to_be(fault: Fault) -> None:
    module, _, test = fault.shown.partition(".py::")
    assert callable(getattr(importlib.import_module(module), test))
    if fault.file.startswith("k_diffusion"):
        return
    lines = (Path(diffusers.__file__).parent / fault.file).read_text(encoding="utf-8").splitlines()
    assert fault.code in lines[fault.line - 1]


def made(name: str, n: int = N, **config: Any) -> Any:
    scheduler = getattr(diffusers, name)(**(BETAS | config))
    scheduler.set_timesteps(n)
    return scheduler


def states(scheduler: Any) -> list[Tensor]:
    """Its own run: x after each call."""
    problem = Given("mixture")
    x = problem.unit
    out = [x]
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        eps = problem.eps(x * math.hypot(1, sigma), sigma)
        out.append(x := scheduler.step(eps, t, x, return_dict=False)[0])
    return out


def test_the_third_order_of_sde_dpmsolver_has_a_wrong_sign() -> None:
    scheduler = made("DPMSolverMultistepScheduler", 20, algorithm_type="sde-dpmsolver++", solver_order=3)
    scheduler._step_index, nodes = 9, -torch.log(scheduler.sigmas[7:11].double())
    values = [torch.full((1, 1), v, dtype=torch.float64) for v in (0.3, 0.1, 0.4)]
    zero = torch.zeros_like(values[0])
    theirs = scheduler.multistep_dpm_solver_third_order_update(values, sample=zero, noise=zero)
    alpha = 1 / math.hypot(1, float(scheduler.sigmas[10]))
    span = ds.Span(float(nodes[2]), float(nodes[3]))
    weights = Adams(3, quadrature="third_halved").weights(-2.0, span, nodes[:3].tolist())
    right = alpha * 2 * sum(w * v for w, v in zip(weights, values, strict=True))
    l2, l1, l0, end = nodes.tolist()
    slopes = (0.4 - 0.1) / (l0 - l1), (0.1 - 0.3) / (l1 - l2)
    second = (slopes[0] - slopes[1]) / (l0 - l2) * (end - l0) ** 2
    assert float(theirs - right) == pytest.approx(-alpha * second, rel=1e-4), "-0.5 in place of +0.5 of D2"


@pytest.mark.parametrize(
    ("name", "config"),
    [("UniPCMultistepScheduler", {"solver_order": 3, "lower_order_final": False, **TO_THE_LEAST}),
     ("DPMSolverMultistepScheduler", {"solver_order": 3, "lower_order_final": False, **TO_THE_LEAST}),
     ("DEISMultistepScheduler", {"lower_order_final": False, **KARRAS})],
)  # fmt: skip
def test_a_step_of_no_length(name: str, config: dict[str, Any]) -> None:
    scheduler = made(name, **config)
    assert float(scheduler.sigmas[-1]) == pytest.approx(float(scheduler.sigmas[-2]), rel=1e-6)
    *_, before, last = states(scheduler)
    assert before.isfinite().all()
    if name.startswith("DEIS"):
        assert distance(last, before) < 1e-6
    else:
        assert not last.isfinite().all()


@pytest.mark.parametrize("config", [{"solver_type": "bh1"}, {"predict_x0": False}], ids=str)
def test_no_step_to_zero(config: dict[str, Any]) -> None:
    *_, before, last = states(made("UniPCMultistepScheduler", **config, **KARRAS))
    assert before.isfinite().all()
    assert not last.isfinite().all()


@pytest.mark.parametrize(
    "name",
    ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "EDMEulerScheduler",
     "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"],
)  # fmt: skip
def test_the_state_is_cast(name: str) -> None:
    """One step of a scheduler whose tables are in float64, with and without a wide float32."""
    kind, problem = getattr(diffusers, name), Given("mixture", "edm" if name.startswith("EDM") else "sd")
    config = {} if name.startswith(("EDM", "Flow")) else BETAS
    with in_float64(kind):
        scheduler = kind(**config)
        from_below_1(scheduler) if name.startswith("Flow") else scheduler.set_timesteps(N)
        scheduler.is_scale_input_called = True
    results, x = [], problem.unit / 3
    for wide in (True, False):
        with in_float64(kind, problem.draws[:, 0], wide):
            output, again = said(problem, scheduler, x, 2.0), deepcopy(scheduler)
            results.append(again.step(output, again.timesteps[0], x, return_dict=False)[0])
    assert 1e-9 < distance(results[1], results[0]) < 1e-6


@pytest.mark.parametrize("name", ["DEISMultistepScheduler", slow("SASolverScheduler")])
def test_weights_that_cancel(name: str) -> None:
    """The distance of its float32 tables' run from the same in float64 grows with the number of steps."""
    gaps = []
    for n in (10, 100):
        config: dict[str, Any] = {"use_karras_sigmas": True}
        if name.startswith("SA"):
            config |= {"predictor_order": 3, "corrector_order": 4, "tau_func": lambda _: torch.tensor(0.0)}
        kind = getattr(diffusers, name)
        with in_float64(kind, iter(lambda: torch.zeros(3, 8, dtype=torch.float64), None)):
            right = states(made(name, n, **config))[-2]
        gaps.append(distance(states(made(name, n, **config))[-2], right))
    assert gaps[1] > 20 * gaps[0]


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_a_step_that_ends_elsewhere(spacing: str) -> None:
    scheduler = made("DDIMScheduler", 13, timestep_spacing=spacing, clip_sample=False)
    x, out = torch.ones(1), torch.zeros(1)  # with eps = 0 a step multiplies by the ratio of the alphas
    missed = 0
    for now, then in pairwise(scheduler.timesteps.tolist()):
        alpha = scheduler.alphas_cumprod[[then, now]].sqrt()
        end = scheduler.step(out, now, x).prev_sample
        missed += not math.isclose(float(end), float(alpha[0] / alpha[1]), rel_tol=1e-6)
    assert missed > 10


def test_half_steps_that_are_not_halves() -> None:
    for n, even in ((10, True), (8, False)):
        scheduler = made("PNDMScheduler", n, **OWN)
        first, half, _, end = scheduler.prk_timesteps[:4].tolist()
        assert (first - half == half - end) == even


def test_a_start_at_infinity() -> None:
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(N)
    assert float(scheduler.alphas[0]) < 1e-3


def test_a_schedule_of_squares() -> None:
    scheduler = KarrasVeScheduler()
    scheduler.set_timesteps(N)
    ends = scheduler.config.sigma_min**2, scheduler.config.sigma_max**2
    assert sorted(scheduler.schedule[[0, -1]].tolist()) == pytest.approx(ends)


def test_steps_of_another_length_than_their_spacing() -> None:
    scheduler = ScoreSdeVpScheduler()
    scheduler.set_timesteps(N)
    t, one = scheduler.timesteps[0], torch.ones(1, dtype=torch.float64)
    _, mean = scheduler.step_pred(0 * one, one, t, torch.Generator())  # with eps = 0, 1 + beta/2 dt
    spacing = float(scheduler.timesteps[0] - scheduler.timesteps[1])
    assert float(mean - 1) / (20.0 / 2) == pytest.approx(1 / N)
    assert spacing == pytest.approx(0.999 / (N - 1))


def test_a_sample_that_knows_its_batch() -> None:
    scheduler = diffusers.ScoreSdeVeScheduler()
    scheduler.set_timesteps(N)
    x = torch.tensor([[1.0, 2.0], [30.0, 40.0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.schedulers.scheduling_sde_ve.randn_tensor", lambda shape, **_: torch.ones(shape))
        whole, alone = (scheduler.step_correct(-y, y, return_dict=False)[0][0] for y in (x, x[:1]))
    assert distance(whole, alone) > 1e-2


def test_jumps_that_are_a_level_too_low() -> None:
    """The timesteps at which the pipeline denoises, and those of the authors' loop over the same schedule."""
    seen: list[int] = []

    class Network(torch.nn.Module):
        dtype, device = torch.float32, torch.device("cpu")

        def forward(self, x: Tensor, t: Tensor) -> Any:
            seen.append(int(t))
            return SimpleNamespace(sample=x)

    scheduler = diffusers.RePaintScheduler(num_train_timesteps=10)
    pipeline = RePaintPipeline(Network(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    picture = torch.zeros(1, 3, 8, 8)
    pipeline(picture, picture[:, :1], 10, jump_length=2, jump_n_sample=2, output_type="np")
    planned = [*scheduler.timesteps.tolist(), -1]
    authors = [t for t, to in pairwise(planned) if to < t]
    assert seen[:3] == [9, 8, 7]
    assert authors != seen
    lows = [[a for a, b in pairwise([*run, -1]) if b > a] for run in (authors, seen)]
    assert (np.array(lows[0]) - np.array(lows[1]) == 1).all(), "the last call before each jump"
