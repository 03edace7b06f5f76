"""Any solver as a diffusers scheduler: the same as solve(), and what diffusers asks of a scheduler."""

from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from scheduler_loop import SD, WORLDS, first_latents, gap, loop, network_of, problem, scheduler, seeded, started
from stubs import ONE_OF_EACH

import diffsolve as ds
from diffsolve.interop.diffusers import DiffsolveScheduler
from diffsolve.problems import read_scheduler_config

THEIRS = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, in their constructors
SOME = ["heun", "dpmpp_2m", "euler_ancestral", "unipc", "rk4", "damped_abm", "edm_stochastic", "score_sde_ve"]
N = 15


@pytest.mark.filterwarnings("ignore:.*reads the network's answer without guidance")
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("solver", ONE_OF_EACH)
def test_a_pipeline_of_it_is_what_solve_does(solver: str, world: str) -> None:
    generator, seeds = seeded()
    made = scheduler(world, solver)
    made.set_timesteps(N)
    flow = problem(world)
    run = ds.start(flow, solver, "karras", nfe=N, x=started() * flow.process.sigma_max, batch=seeds)
    x = first_latents(run)
    if solver not in ("edm_stochastic",):  # which begins with noise of its own
        assert gap(started() * made.init_noise_sigma, x) < 1e-12
    ours = loop(made, network_of(world), x, generator=generator)
    whole = ds.solve(flow, solver, "karras", nfe=N, x=started() * flow.process.sigma_max, batch=seeds)
    assert gap(ours, whole.x) < 1e-7
    assert len(made.timesteps) == made.num_inference_steps == whole.nfe <= N


@pytest.mark.parametrize("n", [1, 2, 3, 13, 100])
@pytest.mark.parametrize("solver", SOME)
def test_steps_are_network_calls(solver: str, n: int) -> None:
    made = scheduler("sd", solver)
    made.set_timesteps(n)
    assert made.order == 1
    assert len(made.timesteps) == len(made.sigmas) - 1 == made.num_inference_steps <= n
    assert made.sigmas[-1] == 0
    assert n == 1 or made.num_inference_steps > n - (made._method().stages or 1)


# diffusers' own contract


@pytest.mark.parametrize("solver", [*SOME, None])
def test_it_is_saved_and_loaded(solver: str | None, tmp_path: Any) -> None:
    made = DiffsolveScheduler(solver=solver, num_train_timesteps=500, **SD)
    made.save_pretrained(tmp_path)
    again = DiffsolveScheduler.from_pretrained(tmp_path)
    assert {**made.config, "_use_default_values": None} == {**again.config, "_use_default_values": None}
    outputs = []
    for one in (made, again):
        one.set_timesteps(N)
        outputs.append(one.step(started(), one.timesteps[0], started(), generator=torch.manual_seed(0)).prev_sample)
    assert torch.equal(*outputs)


def test_a_table_of_betas_is_taken() -> None:
    made = DiffsolveScheduler(trained_betas=np.array([0.1, 0.3]))
    assert made.betas.tolist() == pytest.approx([0.1, 0.3], rel=1e-6)
    again = DiffsolveScheduler.from_config(json.loads(made.to_json_string()))
    assert again.betas.tolist() == made.betas.tolist()
    assert not hasattr(DiffsolveScheduler(**WORLDS["flow"]), "betas")


@THEIRS
def test_compatible_classes_take_its_config_and_hand_it_back() -> None:
    made = DiffsolveScheduler(solver="heun", schedule="karras", **SD)
    assert {kind.__name__ for kind in made.compatibles} >= {"EulerDiscreteScheduler", "UniPCMultistepScheduler"}
    for kind in made.compatibles:
        other = kind.from_config(made.config)
        assert other.config.beta_end == SD["beta_end"]
        again = DiffsolveScheduler.from_config(other.config).config
        assert {key: again[key] for key in made.config if key[0] != "_"} == {
            key: value for key, value in made.config.items() if key[0] != "_"
        }


def test_before_set_timesteps() -> None:
    made, x = scheduler("sd", "heun"), started()
    assert torch.equal(made.scale_model_input(x, 0.0), x)
    assert made.init_noise_sigma == pytest.approx(0.9977, abs=1e-3)
    assert len(made) == len(made.timesteps) == 1000
    noisy = made.add_noise(x, torch.ones_like(x), torch.tensor([999, 0]))
    assert gap(noisy[1], x[1]) < 0.2
    with pytest.raises(ds.SolverError, match="call set_timesteps first"):
        made.step(x, 1, x)


@pytest.mark.parametrize("solver", SOME)
def test_step_as_diffusers_tests_it(solver: str) -> None:
    made, x = scheduler("sd", solver), started()
    made.set_timesteps(N)
    t = made.timesteps[0]
    given = {"generator": torch.manual_seed(0)}
    output = made.step(0.1 * x, t, x, **given)
    given = {"generator": torch.manual_seed(0)}
    made.set_timesteps(N)
    plain = made.step(0.1 * x, t, x, return_dict=False, **given)
    assert isinstance(plain, tuple)
    assert len(plain) == 2
    assert all(torch.equal(a, b) for a, b in zip(plain, output.values(), strict=True))
    assert output.pred_original_sample.shape == plain[1].shape == x.shape
    for off in (1, 500.5, torch.tensor(37)):
        made.set_timesteps(N)
        with pytest.warns(UserWarning, match=r"is none of scheduler.timesteps; the step that begins at \d"):
            assert made.step(0.1 * x, off, x).prev_sample.isfinite().all()
    assert made.add_noise(x, x, made.timesteps[5][None]).shape == x.shape


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sample": started().numpy()}, "sample of floats, got torch.float64 and float64"),
        ({"model_output": None}, r"must be tensors, .* got NoneType and torch.float64"),
        ({"sample": started().int()}, "the sample of floats, got torch.float64 and torch.int32"),
        ({"generator": [1] * len(started())}, "a generator is a torch.Generator, got int"),
    ],
    ids=str.split("numpy None int seeds"),
)
def test_what_a_step_is_not_given(given: dict[str, object], message: str) -> None:
    made = scheduler("sd", "euler_ancestral")
    made.set_timesteps(N)
    with pytest.raises(ds.SolverError, match=message):
        made.step(**{"model_output": started(), "timestep": made.timesteps[0], "sample": started()} | given)


@pytest.mark.parametrize("name", ["__init__", "set_timesteps", "step"])
def test_every_parameter_is_named(name: str) -> None:
    parameters = inspect.signature(getattr(DiffsolveScheduler, name)).parameters
    assert not [p for p in parameters.values() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    assert {"set_timesteps": {"timesteps", "sigmas", "mu"}, "step": {"eta", "generator"}}.get(name, set()) <= set(
        parameters)


# configs

KINDS = [name for name in dir(diffusers) if name.endswith("Scheduler") and inspect.isclass(getattr(diffusers, name))]


def config_of(name: str) -> dict[str, Any]:
    try:
        return {**getattr(diffusers, name)().config, "_class_name": name}
    except (AttributeError, TypeError):  # it is deprecated, or asks for more
        return {"_class_name": name}


@THEIRS
@pytest.mark.parametrize("name", [*KINDS, "KarrasVeScheduler", "ScoreSdeVpScheduler"])
def test_every_config_is_taken_over_or_refused_by_name(name: str) -> None:
    config = config_of(name)
    try:
        process, prediction = read_scheduler_config(config)
    except ds.ModelError:
        with pytest.raises(ds.ModelError, match=name):
            DiffsolveScheduler.from_config(config, solver="heun")
        return
    made = DiffsolveScheduler.from_config(config, solver="heun")
    made.set_timesteps(9)
    plan = made._now.clock.plan
    assert plan.recipe.nature.process == process
    assert plan.recipe.nature.prediction.name == prediction.name
    assert made.config.config_of == name


@pytest.mark.parametrize(
    ("name", "config", "schedule"),
    [
        ("DDIMScheduler", {"steps_offset": 1}, "leading"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, "trailing"),
        ("EulerDiscreteScheduler", {}, "linspace"),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "karras"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "lambda"),
        ("UniPCMultistepScheduler", {"use_exponential_sigmas": True}, "exponential"),
        ("UniPCMultistepScheduler", {"use_beta_sigmas": True}, "beta"),
        ("EDMEulerScheduler", {}, "karras"),
        ("EDMEulerScheduler", {"sigma_schedule": "exponential"}, "exponential"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "linspace"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_karras_sigmas": True}, "karras"),
    ],
)
def test_where_the_steps_go_is_taken_over(name: str, config: dict[str, Any], schedule: str) -> None:
    theirs = getattr(diffusers, name)(**config)
    made = DiffsolveScheduler.from_config(theirs.config, solver="euler")
    made.set_timesteps(10)
    process = made._now.clock.plan.recipe.nature.process
    rule = "leading(offset=1)" if schedule == "leading" else schedule
    grid = ds.make_grid(ds.get_schedule(rule)[0], 10, process)
    assert made._now.clock.plan.grid.nodes.tolist() == grid.nodes.tolist()
    theirs.set_timesteps(10)
    reached = theirs.sigmas if hasattr(theirs, "sigmas") else torch.tensor([1.0])
    if name not in ("DDIMScheduler", "UniPCMultistepScheduler") and schedule not in ("beta", "lambda", "karras"):
        assert made.timesteps[0] == pytest.approx(float(theirs.timesteps[0]), rel=2e-3)
        assert len(reached) == len(made.sigmas)
    assert DiffsolveScheduler.from_config(theirs.config, solver="euler", schedule="exponential").config.schedule


@pytest.mark.parametrize(("scale", "inverted"), [(1, False), (500, False), (1000, True), (1, True)])
def test_a_flow_may_be_told_its_time_otherwise(scale: int, inverted: bool) -> None:
    """As ACE-Step and Stable Audio 3 do, times 1, and Mochi, from noise to data."""
    times, way = [1.0, 0.7, 0.5, 0.1], -1 if inverted else 1
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=scale, shift=2.0, invert_sigmas=inverted)
    made = DiffsolveScheduler.from_config(theirs.config, solver="euler")
    for each in (theirs, made):
        each.set_timesteps(sigmas=times)
    assert made.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), abs=2e-4 * scale)
    network, ends = network_of("flow"), []
    for each in (theirs, made):
        x = started()
        for t in each.timesteps:
            time = t.expand(2) / scale if way > 0 else 1 - t.expand(2) / scale
            x = each.step(way * network(x, time.clamp(max=0.9999) * 1000), t, x, return_dict=False)[0]
        ends.append(x)
    assert gap(*ends) < 1e-3
    x = started()
    by_time, one = (each.add_noise(x, 2 * x, made.timesteps[1:2]) for each in (made, pickle.loads(pickle.dumps(made))))
    assert gap(by_time, x * (1 + made.sigmas[1])) < 1e-6
    assert torch.equal(by_time, one)


@pytest.mark.parametrize(("sigma_max", "first"), [(None, 1.0), (1.0, 1.0), (0.5, 0.5)])
def test_the_ends_in_a_flow_s_config_are_times(sigma_max: float | None, first: float) -> None:
    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "sigma_max": sigma_max}
    made = DiffsolveScheduler.from_config(config | {"_class_name": "UniPCMultistepScheduler"}, solver="euler")
    made.set_timesteps(4)
    assert float(made.sigmas[0]) == pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"thresholding": True, "dynamic_thresholding_ratio": 2.0}, "dynamic_thresholding_ratio"),
        ({"clip_sample": True, "clip_sample_range": -1.0}, "clip_sample_range"),
        ({"_class_name": "HeliosScheduler"}, "pyramid of sizes"),
        ({"_class_name": "IPNDMScheduler"}, "IPNDMScheduler"),
        ({"_class_name": "NobodysScheduler"}, "NobodysScheduler"),
        ({"beta_schedule": "wild"}, "wild"),
        ({"prediction_type": "dreams"}, "dreams"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ds.ModelError, match=message):
        DiffsolveScheduler.from_config(config)


@pytest.mark.parametrize(
    ("key", "message"),
    [("quality", r"run\(pipe, solver=..., quality=...,"), ("rtol", "steps that are chosen as it goes"),
     ("shedule", "did you mean 'schedule'"), ("solver_order", "options go into the name")],
)  # fmt: skip
def test_a_parameter_that_there_is_none_of_is_not_left_out_in_silence(key: str, message: str) -> None:
    """As diffusers does, which says so in its log."""
    with pytest.raises(ds.SolverError, match=message):
        DiffsolveScheduler.from_config(SD, solver="heun", **{key: 1})
    assert DiffsolveScheduler.from_config(SD, return_unused_kwargs=True, **{key: 1})[1] == {key: 1}


def test_a_wrong_schedule_is_refused_before_the_pipeline_is_called() -> None:
    with pytest.raises(ds.GridError, match="did you mean 'karras'"):
        DiffsolveScheduler(**SD, schedule="karas")
    with pytest.raises(ds.SolverError, match="final must be one of"):
        DiffsolveScheduler(**SD, final="zero")


@pytest.mark.parametrize(
    ("options", "given", "error", "message"),
    [
        ({"solver": "hein"}, None, ds.SolverError, "did you mean 'heun'"),
        ({"solver": "dpm_adaptive"}, {"num_inference_steps": 5}, ds.SolverError, "interop.diffusers.run"),
        ({"solver": "vq_diffusion"}, {"num_inference_steps": 5}, ds.SolverError, "no method of a flow"),
        ({"schedule": "karas"}, {"num_inference_steps": 5}, ds.GridError, "did you mean 'karras'"),
        ({}, {}, ds.GridError, "num_inference_steps, timesteps or sigmas"),
        ({}, {"num_inference_steps": 0}, ds.GridError, "num_inference_steps"),
        ({}, {"timesteps": [2000, 10]}, ds.GridError, "timestep 2000 is outside"),
        ({}, {"sigmas": [1.0, 5.0]}, ds.GridError, "sigmas must fall from each to the next; 1 is followed by 5"),
        ({"solver": "rk4", "eta": 1.0}, {"num_inference_steps": 9}, ds.SolverError, "eta"),
    ],
)
def test_messages(
    options: dict[str, Any], given: dict[str, Any] | None, error: type[Exception], message: str
) -> None:  # fmt: skip
    with pytest.raises(error, match=message):
        DiffsolveScheduler(**SD, **options).set_timesteps(**(given or {}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "score_sde_ve"])
def test_the_state_stays_in_float32_whatever_the_latents_are(solver: str, dtype: torch.dtype) -> None:
    made, network = scheduler("sd", solver, eta=0.0 if solver == "score_sde_ve" else None), network_of("sd")
    made.set_timesteps(25)
    x = started().to(dtype)
    for t in made.timesteps:
        x = made.step(network(x.double(), t.expand(2)), t, x, return_dict=False)[0]  # a network that does not round
        assert x.dtype == dtype
    exact = scheduler("sd", solver, eta=0.0 if solver == "score_sde_ve" else None)
    exact.set_timesteps(25)
    assert gap(x.double(), loop(exact, network, started().to(dtype).double())) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    "clip",
    [{"clip_sample": True}, {"clip_sample": True, "clip_sample_range": 0.5},
     {"thresholding": True, "dynamic_thresholding_ratio": 0.6, "sample_max_value": 1.5}],
)  # fmt: skip
def test_a_clipped_data_estimate_is_honoured(clip: dict[str, Any]) -> None:
    theirs = diffusers.DDIMScheduler(**({**SD, "clip_sample": False} | clip))
    made = DiffsolveScheduler.from_config(theirs.config, solver="ddim")
    plain = DiffsolveScheduler.from_config(made.config, clip_sample=False, thresholding=False)
    theirs.set_timesteps(10)
    for each in (made, plain):
        each.set_timesteps(timesteps=theirs.timesteps.tolist())
    x, network = started()[..., None], network_of("sd")
    assert made.step(5 * x, made.timesteps[0], x).pred_original_sample.abs().max() <= 1
    by_made, clipped, unclipped = (
        loop(each, lambda x, t: network(x[..., 0], t)[..., None], x, use_clipped_model_output=True)
        for each in (made, theirs, plain)
    )
    assert gap(by_made, clipped) < 1e-5
    assert gap(unclipped, clipped) > 0.1


@pytest.mark.slow
def test_importing_costs_nothing_until_it_is_used() -> None:
    code = (
        "import sys, diffsolve.interop.diffusers as d; print('diffusers' in sys.modules, 'torch' in sys.modules); "
        "d.DiffsolveScheduler; print('diffusers' in sys.modules, hasattr(d, 'SchedulerMixin'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "True"]


def test_a_solver_object_and_a_plugin_are_taken() -> None:
    made = scheduler("sd", None)
    own = DiffsolveScheduler(solver=ds.get_solver("heun"), schedule=ds.Karras(rho=5), **SD)
    for one in (made, own):
        one.set_timesteps(9)
    assert own.config.solver == "heun"
    assert len(pickle.loads(pickle.dumps(own)).timesteps) == 9
    assert own.timesteps[2] != made.timesteps[2]


def test_what_a_pipeline_cannot_hand_on_is_said() -> None:
    with pytest.warns(UserWarning, match="euler_cfg_pp reads the network's answer without guidance"):
        scheduler("sd", "euler_cfg_pp").set_timesteps(5)
