"""What a scheduler's config says of a network: equal to what diffusers makes of it, or refused by the class's name."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import re
from pathlib import Path
from typing import Any

import diffusers.schedulers
import numpy as np
import pytest
import torch
from models import linked_copy, replace, shipped_folder
from stubs import slow

import diffsolve as ds
from diffsolve import EDM, VP, ModelError, RectifiedFlow
from diffsolve.problems import StableDiffusion, read_scheduler_config
from diffsolve.problems.predictions import edm

SCHEDULERS = {
    name: value
    for info in pkgutil.walk_packages(diffusers.schedulers.__path__, "diffusers.schedulers.")
    if info.name.rpartition(".")[2].startswith("scheduling_") and "flax" not in info.name
    for name, value in vars(importlib.import_module(info.name)).items()
    if inspect.isclass(value) and name.endswith("Scheduler") and value.__module__ == info.name
}
BY_BETAS = re.findall(
    r"\w+",
    "CogVideoXDDIM CogVideoXDPM DDIM DDIMInverse DDIMParallel DDPM DDPMParallel DEISMultistep DPMSolverMultistep "
    "DPMSolverMultistepInverse DPMSolverSDE DPMSolverSinglestep EulerAncestralDiscrete EulerDiscrete HeunDiscrete "
    "KDPM2Discrete KDPM2AncestralDiscrete LCM LMSDiscrete PNDM RePaint SASolver TCD UnCLIP UniPCMultistep",
)
FLOWS = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM", "LTXEulerAncestralRF")
EDMS = ("EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep")
READ = {f"{name}Scheduler" for name in (*BY_BETAS, *FLOWS, *EDMS, "ScoreSdeVe")}


def read(name: str, **config: Any) -> tuple[ds.Process, ds.Prediction]:
    return read_scheduler_config({"_class_name": f"{name}Scheduler", **config})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return linked_copy(shipped_folder(), tmp_path / "model")


def say(folder: Path, **config: Any) -> Path:
    """The folder with a scheduler's config of these values alone."""
    replace(folder / "scheduler" / "scheduler_config.json", config)
    return folder


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_class_of_diffusers_is_read_or_refused_by_its_name(name: str) -> None:
    if name in READ:
        process, prediction = read_scheduler_config({"_class_name": name})
        assert process.sigma_min < process.sigma_max
        assert isinstance(prediction, ds.Prediction)
        return
    with pytest.raises(ModelError, match=rf"{name}.*pass process=.* and prediction="):
        read_scheduler_config({"_class_name": name})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, at what two of them do
@pytest.mark.parametrize("name", [slow(n) if n.startswith("KDPM2") else n for n in BY_BETAS])
@pytest.mark.parametrize("schedule", [None, "linear", "scaled_linear", "squaredcos_cap_v2", "exp", "sigmoid"])
def test_the_sigmas_are_diffusers_own(name: str, schedule: str | None) -> None:
    if name == "UnCLIP" and schedule is not None:
        return
    if {"exp": name != "HeunDiscrete", "sigmoid": name not in ("DDPM", "DDPMParallel", "RePaint")}.get(str(schedule)):
        with pytest.raises(ModelError, match=f"beta_schedule is '{schedule}', expected one of"):
            read(name, beta_schedule=schedule)
        return
    given = {} if schedule is None else {"beta_schedule": schedule}
    theirs = SCHEDULERS[f"{name}Scheduler"](**given).alphas_cumprod.double().numpy()
    process, prediction = read(name, **given)
    assert isinstance(process, VP)
    assert prediction.name == "eps"
    np.testing.assert_allclose(process.table, np.sqrt((1 - theirs) / theirs), rtol=5e-5)


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "LCM", "CogVideoXDDIM"])
def test_zero_snr_is_diffusers_own_but_for_the_last(name: str) -> None:
    given = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True}
    theirs = SCHEDULERS[f"{name}Scheduler"](**given).alphas_cumprod.double().numpy()[:-1]
    process, _ = read(name, **given)
    assert isinstance(process, VP)
    np.testing.assert_allclose(process.table[:-1], np.sqrt((1 - theirs) / theirs), rtol=5e-5)
    assert process.sigma_max == pytest.approx(math.sqrt(1 / 4.8973451890853435e-08 - 1), rel=1e-9)


@pytest.mark.parametrize("betas", [{}, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}])
def test_zero_snr_gives_the_data_s_own_mean_and_deviation(betas: dict[str, Any]) -> None:
    process, prediction = read("EulerDiscrete", rescale_betas_zero_snr=True, prediction_type="v_prediction", **betas)
    exact = ds.problems.Gaussian(torch.full((4,), 2.0), torch.full((4,), 0.5), process=process)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = process.sigma(float(t[0]))
        alpha = process.alpha(sigma)
        data = exact.denoise(x / alpha, sigma)
        return alpha * (x / alpha - data) / sigma - alpha * sigma * data

    flow = ds.ProbabilityFlow(network, process, prediction, shape=(4,))
    x = ds.solve(flow, solver="heun", schedule="karras", n=200, batch=20000).x
    assert x.mean().item() == pytest.approx(2, abs=0.01)
    assert x.std().item() == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"])
def test_a_flow_is_told_diffusers_times(name: str) -> None:
    process, prediction = read(name, shift=3.0, num_train_timesteps=500)
    assert process == RectifiedFlow(shift=3.0, scale=500)
    assert prediction is ds.PREDICTIONS["flow"]
    theirs = SCHEDULERS[f"{name}Scheduler"](shift=3.0, num_train_timesteps=500)
    sigmas = theirs.sigmas.double().numpy()[1:]  # of x_t = (1 - s) x_0 + s eps; the first is 1
    np.testing.assert_allclose(process.c_noise(sigmas / (1 - sigmas)), theirs.timesteps.double().numpy()[1:], rtol=1e-5)
    np.testing.assert_allclose(process.sigma(np.arange(499, 0, -1) / 500), sigmas / (1 - sigmas), rtol=1e-4)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep", "SASolver", "DEISMultistep"])
def test_a_solver_s_flow_sigmas_are_a_flow(name: str) -> None:
    process, prediction = read(name, use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction")
    assert (process, prediction.name) == (RectifiedFlow(shift=5.0, scale=1000), "flow")
    with pytest.raises(ModelError, match="prediction_type is 'flow_prediction', expected one of epsilon"):
        read(name, prediction_type="flow_prediction")


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_dynamic_shift_is_made_of_the_picture_s_size(kind: str) -> None:
    given = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "time_shift_type": kind}
    with pytest.raises(ModelError, match=r"use_dynamic_shifting .* 0\.5 \(base_shift\) .* 1\.15 \(max.*tokens="):
        read("FlowMatchEulerDiscrete", **given)
    mu = 0.5 + 0.65 * (1024 - 256) / (4096 - 256)
    process, _ = read_scheduler_config({"_class_name": "FlowMatchEulerDiscreteScheduler", **given}, tokens=1024)
    theirs = SCHEDULERS["FlowMatchEulerDiscreteScheduler"](**given)
    theirs.set_timesteps(sigmas=[0.75, 0.25], mu=mu)
    ours = process.c_noise(process.sigma(np.array([0.75, 0.25])))
    np.testing.assert_allclose(ours, theirs.timesteps.numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", EDMS)
@pytest.mark.parametrize("told", ["epsilon", "v_prediction"])
def test_an_edm_network_means_what_diffusers_says(name: str, told: str) -> None:
    given = {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 0.7, "prediction_type": told}
    theirs = SCHEDULERS[f"{name}Scheduler"](**given)
    process, prediction = read(name, **given)
    assert process == EDM(0.01, 50.0)
    y, raw = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double().split(1)
    for sigma in (0.01, 0.7, 50.0):
        k = prediction.scaling(sigma, process)
        torch.testing.assert_close(k.c_in * y, theirs.precondition_inputs(y, sigma))
        torch.testing.assert_close(k.c_skip * y + k.c_out * raw, theirs.precondition_outputs(y, raw, sigma))
        assert k.c_noise == pytest.approx(float(theirs.precondition_noise(sigma)), rel=1e-6)
        many = prediction.scaling(np.array([sigma]), process)
        assert (many.c_skip[0], many.c_out[0], many.c_noise[0]) == pytest.approx((k.c_skip, k.c_out, k.c_noise))


def test_sigmas_of_0_5_are_the_named_prediction() -> None:
    assert read("EDMEuler") == (EDM(), ds.PREDICTIONS["edm"])


def test_continuous_times_are_edm_s() -> None:
    given = {"timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 700.0}
    process, prediction = read("EulerDiscrete", **given)
    assert process == EDM(0.002, 700.0)
    theirs = SCHEDULERS["EulerDiscreteScheduler"](**given, use_karras_sigmas=True)
    theirs.set_timesteps(5)
    y, raw = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).split(1)
    sigma, t = float(theirs.sigmas[2]), theirs.timesteps[2]
    theirs.set_begin_index(2)
    k = prediction.scaling(sigma, process)
    torch.testing.assert_close(k.c_in * y, theirs.scale_model_input(y, t))
    assert k.c_noise == pytest.approx(float(t), rel=1e-5)
    torch.testing.assert_close(k.c_skip * y + k.c_out * raw, theirs.step(raw, t, y).pred_original_sample)


def test_a_score_is_a_score() -> None:
    process, prediction = read("ScoreSdeVe")
    k = prediction.scaling(3.0, process)
    assert (k.c_skip, k.c_out, k.c_in, k.c_noise) == (1.0, 9.0, 1.0, 3.0)  # D = y + sigma^2 score(y, sigma)


@pytest.mark.parametrize(("config", "process", "prediction"), [
    ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, VP(), "eps"),
    ({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}, VP("linear", 1e-4, 0.02), "v"),
    ({"_class_name": "HeunDiscreteScheduler"}, VP("linear", 0.00085, 0.012), "eps"),
    ({"_class_name": "LCMScheduler"}, VP(), "eps"),
    ({"_class_name": "FlaxPNDMScheduler"}, VP("linear", 1e-4, 0.02), "eps"),
    ({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100, "prediction_type": "sample"},
     VP("cosine", 1e-4, 0.02, 100), "x0"),
    ({"trained_betas": [0.1, 0.2]}, VP(steps=2, betas=(0.1, 0.2)), "eps"),
])  # fmt: skip
def test_a_config_gives_the_process(config: dict[str, Any], process: ds.Process, prediction: str) -> None:
    assert read_scheduler_config(config) == (process, ds.PREDICTIONS[prediction])


@pytest.mark.parametrize(("config", "message"), [
    ({}, "has no _class_name, nor a beta_schedule.*pass process="),
    ({"_class_name": "EulerDiscretScheduler"}, "'EulerDiscretScheduler'.*did you mean 'EulerDiscreteScheduler'"),
    ({"_class_name": ["EulerDiscreteScheduler"]}, "_class_name is "),
    ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction', expected one of epsilon"),
    ({"prediction_type": []}, r"prediction_type is \[\]"),
    ({"beta_schedule": "laplace"}, "beta_schedule is 'laplace', expected one of linear.*trained_betas"),
    ({"beta_schedule": {}}, r"beta_schedule is \{\}"),
    ({"beta_start": math.nan}, "beta_start must be a number above 0 and below 1, got nan"),
    ({"beta_end": "0.02"}, "beta_end must be .* got '0.02'"),
    ({"beta_start": None}, "beta_start must be .* got None"),
    ({"beta_end": 1e300}, "beta_end must be"),
    ({"beta_end": 0.99}, "betas give sigma = .* at t = .* stay finite"),
    ({"num_train_timesteps": 10**12}, "num_train_timesteps must be a whole number from 2 to 1000000"),
    ({"num_train_timesteps": 1000.5}, "num_train_timesteps must be"),
    ({"num_train_timesteps": True}, "num_train_timesteps must be"),
    ({"trained_betas": [0.1, math.nan]}, r"trained_betas\[1\] is nan"),
    ({"trained_betas": [0.1, "x"]}, r"trained_betas\[1\] is 'x'"),
    ({"trained_betas": 0.1}, "trained_betas is '0.1', expected a list"),
    ({"trained_betas": [0.1]}, "trained_betas is .* expected a list of 2"),
    ({"rescale_betas_zero_snr": "no"}, "rescale_betas_zero_snr must be true or false, got 'no'"),
    ({"timestep_type": 3}, "timestep_type must be one of 'discrete', 'continuous'"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": -1}, "shift must be a number from"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": math.inf}, "shift must be"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": 1}, "invert_sigmas must be true or false"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "prediction_type": "v_prediction"}, "prediction_type is"),
    ({"_class_name": "EDMEulerScheduler", "sigma_min": 90}, "sigma_min is 90 and sigma_max 80"),
    ({"_class_name": "EDMEulerScheduler", "sigma_data": "x"}, "sigma_data must be"),
    ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "prediction_type is 'sample'"),
])  # fmt: skip
def test_what_can_not_be_meant_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_scheduler_config({} if not config else {"_class_name": "DDIMScheduler", **config})


HOSTILE = (None, True, "abc", "", -1, 0, 0.5, 1e30, math.nan, math.inf, -math.inf, 10**30, [], [1], {}, {"a": 1})


@pytest.mark.parametrize("name", sorted(READ))
def test_any_value_under_any_key_is_read_or_refused(name: str) -> None:
    keys = inspect.signature(SCHEDULERS[name]).parameters
    for key in (*keys, "_class_name"):
        for value in HOSTILE:
            try:
                process, _ = read_scheduler_config({"_class_name": name, key: value})
            except ModelError as error:
                assert key in str(error) or "the betas give" in str(error)  # noqa: PT017
                continue
            assert 0 < process.sigma_min < process.sigma_max < math.inf, (key, value)


@pytest.mark.parametrize("given", [3, None, "config.json", [("_class_name", "DDIMScheduler")]])
def test_what_is_no_config_is_refused(given: Any) -> None:
    with pytest.raises(ModelError, match="expected a dict, got"):
        read_scheduler_config(given)


@pytest.mark.parametrize(("config", "process", "prediction"), [
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, RectifiedFlow(3.0, scale=1000), "flow"),
    ({"_class_name": "EDMEulerScheduler"}, EDM(), "edm"),
    ({"_class_name": "HeunDiscreteScheduler"}, VP("linear", 0.00085, 0.012), "eps"),
    ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, VP("linear", 1e-4, 0.02, zero_snr=True), "eps"),
])  # fmt: skip
def test_a_folder_is_loaded_as_what_it_says(
    folder: Path, config: dict[str, Any], process: ds.Process, prediction: str
) -> None:
    model = StableDiffusion.from_pretrained(say(folder, **config))
    assert (model.process, model.prediction) == (process, prediction)
    assert ds.solve(model("red apple", guidance=1), solver="euler", n=1).x.isfinite().all()


@pytest.mark.parametrize("name", ["KarrasVe", "ScoreSdeVp", "CMStochasticIterative", "NoSuch"])
def test_a_foreign_folder_is_refused_unless_it_is_said_what_it_is(folder: Path, name: str) -> None:
    say(folder, _class_name=f"{name}Scheduler")
    with pytest.raises(ModelError, match=rf"{folder}: .*{name}Scheduler.*pass process=.*prediction="):
        StableDiffusion.from_pretrained(folder)
    model = StableDiffusion.from_pretrained(folder, process="edm", prediction="x0")
    assert (model.process, model.prediction) == (EDM(), "x0")
    assert repr(model).endswith("predicts x0)")


def test_one_side_may_be_overridden(folder: Path) -> None:
    model = StableDiffusion.from_pretrained(folder, prediction="v")
    assert (model.process, model.prediction) == (VP(), "v")
    other = edm(0.7)
    model = StableDiffusion.from_pretrained(folder, process=VP("cosine"), prediction=other)
    assert (model.process, model.prediction) == (VP("cosine"), other)
    with pytest.raises(ds.ProblemError, match="unknown process 'sdx'"):
        StableDiffusion.from_pretrained("no/where", process="sdx")  # before anything is looked for


def test_the_index_names_the_class_where_the_config_does_not(folder: Path) -> None:
    say(folder, num_train_timesteps=1000)
    index = json.loads((folder / "model_index.json").read_text())
    replace(folder / "model_index.json", {**index, "scheduler": ["diffusers", "FlowMatchHeunDiscreteScheduler"]})
    assert StableDiffusion.from_pretrained(folder).process == RectifiedFlow(scale=1000)
