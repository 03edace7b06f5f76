"""What a diffusers scheduler's config says of the network: the process it was trained on, and what it predicts.

Where the steps go (`timestep_spacing`, `use_karras_sigmas`, `shift_terminal`, ...) is a schedule's matter and how they
are taken a solver's: neither is read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffsolve import EDM, PREDICTIONS, VP, ModelError, Prediction, ProblemError, Process, RectifiedFlow
from diffsolve.errors import did_you_mean
from diffsolve.prediction import Scaling
from diffsolve.validate import above_zero, between, choice, finite, whole

from .predictions import edm

WHERE = "scheduler config: "
Config = Mapping[str, Any]
Nature = tuple[Process, Prediction]

_LINEAR, _LATENT, _SCALED = ("linear", 1e-4, 0.02), ("linear", 0.00085, 0.012), ("scaled_linear", 0.00085, 0.012)
_COSINE = ("squaredcos_cap_v2", 1e-4, 0.02)
_BY_BETAS = {  # the betas that each class takes where its config names none
    **dict.fromkeys(
        ("DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep",
         "DPMSolverMultistepInverse", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "LMSDiscrete",
         "PNDM", "RePaint", "SASolver", "UniPCMultistep"), _LINEAR),
    **dict.fromkeys(("DPMSolverSDE", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"), _LATENT),
    **dict.fromkeys(("CogVideoXDDIM", "CogVideoXDPM", "LCM", "TCD"), _SCALED),
    "UnCLIP": _COSINE,
}  # fmt: skip
_FLOWS = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM", "LTXEulerAncestralRF")
_EDMS = ("EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep")
_BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_BY_SIGMA = "says not what its network is given of sigma; {}"
_CONSISTENCY = "is of a consistency model, which names the end of a flow and has no flow to integrate"
_CODES = "is of discrete codes, which have no noise level; see DiscreteProblem"
_REFUSED = {
    "KarrasVe": _BY_SIGMA.format("its process is EDM(0.02, 100), its network gives D = y + sigma raw"),
    "ScoreSdeVp": _BY_SIGMA.format("its process is ContinuousVP(), its network predicts eps"),
    "IPNDM": "is of alpha = cos(pi t/2), for which there is no process here",
    "DDPMWuerstchen": "is of a cosine of its own, for which there is no process here",
    **dict.fromkeys(("CMStochasticIterative", "ConsistencyDecoder", "SCM"), _CONSISTENCY),
    **dict.fromkeys(("Amused", "BlockRefinement", "DiscreteDDIM", "EntropyBound", "VQDiffusion"), _CODES),
    "Helios": "is of a pyramid of sizes, each with a flow of its own",
    "FlowMapEulerDiscrete": "is of a network that is told two times",
}
_REMEDY = "pass process=, such as EDM(), and prediction=, such as 'eps', as the network was trained"


def read_scheduler_config(config: Config, tokens: int | None = None) -> Nature:
    """(process, prediction) of the network that a diffusers scheduler's config belongs to, by its `_class_name`.

    config: scheduler_config.json as a dict, or `scheduler.config`; without a `_class_name` it must name its betas.
    tokens: of the picture in the network, which a flow's `use_dynamic_shifting` makes its shift from. Raises ModelError
    where a class or a value is unknown, or is of no process here.
    """
    if not isinstance(config, Mapping):
        raise ModelError(f"{WHERE}expected a dict, got {type(config).__name__}")
    name = _class_of(config)
    try:
        if name in _FLOWS:
            return _flow(config, "shift", tokens)
        if name in _EDMS:
            return _edm(config, name)
        if name == "ScoreSdeVe":
            return _score(config)
        if _flag(config, "use_flow_sigmas"):
            return _flow(config, "flow_shift", tokens)
        return _variance_preserving(config, name)
    except ProblemError as error:
        raise ModelError(f"{WHERE}{error}") from error


def _class_of(config: Config) -> str:
    given = config.get("_class_name")
    if given is None and any(config.get(key) is not None for key in ("beta_schedule", "trained_betas")):
        return "DDPM"
    if given is None:
        raise ModelError(f"{WHERE}it has no _class_name, nor a beta_schedule, so it may be of any process; {_REMEDY}")
    known = (*_BY_BETAS, *_FLOWS, *_EDMS, "ScoreSdeVe")
    name = given.removeprefix("Flax").removesuffix("Scheduler") if isinstance(given, str) else given
    if isinstance(name, str) and name in known:
        return name
    if isinstance(name, str) and name in _REFUSED:
        raise ModelError(f"{WHERE}{given} {_REFUSED[name]}; {_REMEDY}")
    near = did_you_mean(given, [f"{k}Scheduler" for k in known])
    raise ModelError(f"{WHERE}_class_name is {given!r}, of no process known here{near.partition('; choose')[0]}; "
                     f"{_REMEDY}")


def _variance_preserving(config: Config, name: str) -> Nature:
    schedule, start, end = _BY_BETAS[name]
    shift = _positive(config, "snr_shift_scale", 3.0) if name.startswith("CogVideoX") else 1.0
    zero = _flag(config, "rescale_betas_zero_snr")
    steps, betas = _count(config, "num_train_timesteps", 1000), _trained_betas(config)
    start, end = _share(config, "beta_start", start), _share(config, "beta_end", end)
    if betas is None:
        schedule = config.get("beta_schedule", schedule)
        if schedule == "sigmoid" and name in ("DDPM", "DDPMParallel", "RePaint"):
            betas = tuple(1 / (1 + np.exp(-np.linspace(-6, 6, steps))) * (end - start) + start)
        elif schedule == "exp" and name == "HeunDiscrete":  # alpha^2 = exp(-12 t), as of Shap-E
            betas = (min(-math.expm1(-12 / steps), 0.999),) * steps
        elif not isinstance(schedule, str) or schedule not in _BETA_SCHEDULES:
            raise ModelError(f"{WHERE}beta_schedule is {schedule!r}, expected one of {', '.join(_BETA_SCHEDULES)}; "
                             "give the table itself as trained_betas")
    if betas is None:
        process = VP(_BETA_SCHEDULES[schedule], start, end, steps, zero_snr=zero, snr_shift=shift)
    else:
        process = VP(steps=len(betas), betas=betas, zero_snr=zero, snr_shift=shift)
    prediction = PREDICTIONS[_prediction(config, "epsilon", _PREDICTIONS)]
    low, high = process.sigma_min, process.sigma_max  # betas that give no sigmas are found here
    kinds = ("discrete", "continuous")
    kind = choice(config.get("timestep_type", "discrete"), f"{WHERE}timestep_type", kinds, ModelError)
    if kind == "discrete" or prediction.name != "v":
        return process, prediction
    return _edm_process(_positive(config, "sigma_min", low), _positive(config, "sigma_max", high)), _v_of_edm(1.0)


def _flow(config: Config, shift: str, tokens: int | None) -> Nature:
    """x_t = (1 - t) x_0 + t eps, the network given t num_train_timesteps."""
    names = {"flow_prediction": "flow", "epsilon": "eps", "sample": "x0"}  # v is of the variance-preserving alone
    prediction = PREDICTIONS[_prediction(config, "flow_prediction" if shift == "shift" else "epsilon", names)]
    scale, factor = _count(config, "num_train_timesteps", 1000, 1), _positive(config, shift, 1.0)
    if _flag(config, "use_dynamic_shifting"):
        factor = _dynamic_shift(config, tokens)
    process = RectifiedFlow(shift=factor, scale=float(scale))
    return process, _from_noise(prediction) if _flag(config, "invert_sigmas") else prediction


def _from_noise(prediction: Prediction) -> Prediction:
    """Of a network that is told 1 - t, the time from noise to data, and whose velocity is by that (Mochi's)."""

    def scaling(s: Any, p: Process) -> Scaling[Any]:
        k = prediction.scaling(s, p)
        end = p.scale  # type: ignore[attr-defined]
        return replace(k, c_out=-k.c_out if prediction.name == "flow" else k.c_out, c_noise=end - k.c_noise)

    return Prediction(f"{prediction.name}_from_noise", scaling)


def _dynamic_shift(config: Config, tokens: int | None) -> float:
    """The shift that goes with the picture's size: exp(mu), or mu, which is linear in the tokens."""
    low, high = _number(config, "base_shift", 0.5), _number(config, "max_shift", 1.15)
    few, many = _count(config, "base_image_seq_len", 256), _count(config, "max_image_seq_len", 4096)
    kind = choice(config.get("time_shift_type", "exponential"), f"{WHERE}time_shift_type", ("exponential", "linear"),
                  ModelError)
    if tokens is None:
        law = "exp(mu)" if kind == "exponential" else "mu"
        raise ModelError(
            f"{WHERE}use_dynamic_shifting is true: the shift is {law} with mu from {low:g} (base_shift) at {few} "
            f"tokens to {high:g} (max_shift) at {many}; pass tokens=, the picture's, or process=RectifiedFlow(shift, "
            "scale=1000)")
    if few == many:
        raise ModelError(f"{WHERE}base_image_seq_len and max_image_seq_len are both {few}; expected two numbers")
    mu = low + (high - low) * (whole(tokens, "tokens", ModelError) - few) / (many - few)
    if kind == "linear":
        return above_zero(mu, f"{WHERE}the shift at {tokens} tokens", ModelError)
    return math.exp(between(mu, f"{WHERE}the logarithm of the shift at {tokens} tokens", -50, 50, ModelError))


def _edm(config: Config, name: str) -> Nature:
    cosine = name.startswith("Cosine")  # Stable Audio's: its network is given atan(sigma)
    span = _positive(config, "sigma_min", 0.3 if cosine else 0.002), _positive(
        config, "sigma_max", 500.0 if cosine else 80.0)
    data = _positive(config, "sigma_data", 1.0 if cosine else 0.5)
    told = _prediction(config, "v_prediction" if cosine else "epsilon", {"epsilon": "eps", "v_prediction": "v"})
    plain = PREDICTIONS["edm"] if data == 0.5 else edm(data)
    prediction = _v_of_edm(data) if told == "v" else plain
    return _edm_process(*span), _with_arctangent(prediction) if cosine else prediction


def _score(config: Config) -> Nature:
    """The network gives the score at (y, sigma): D = y + sigma^2 raw."""
    span = _positive(config, "sigma_min", 0.01), _positive(config, "sigma_max", 1348.0)

    def scaling(s: Any, p: Process) -> Scaling[Any]:
        return Scaling(1.0, s * s, p.alpha(s), p.c_noise(s))

    return _edm_process(*span), Prediction("score", scaling)


def _edm_process(low: float, high: float) -> EDM:
    if not low < high:
        raise ModelError(f"{WHERE}sigma_min is {low:g} and sigma_max {high:g}; expected sigma_min < sigma_max")
    return EDM(low, high)


def _v_of_edm(sigma_data: float) -> Prediction:
    """EDM's network with the sign of v: D = c_skip y - c_out raw."""
    plain = edm(sigma_data)

    def scaling(s: object, p: Process) -> Scaling[Any]:
        k = plain.scaling(s, p)
        return replace(k, c_out=-k.c_out)

    return Prediction("edm_v", scaling)


def _with_arctangent(prediction: Prediction) -> Prediction:
    def scaling(s: Any, p: Process) -> Scaling[Any]:
        noise = np.arctan(s) * (2 / math.pi)
        return replace(prediction.scaling(s, p), c_noise=float(noise) if isinstance(s, float) else noise)

    return Prediction(f"{prediction.name}_atan", scaling)


def _prediction(config: Config, default: str, names: Mapping[str, str]) -> str:
    told = config.get("prediction_type", default)
    if isinstance(told, str) and told in names:
        return names[told]
    raise ModelError(f"{WHERE}prediction_type is {told!r}, expected one of {', '.join(names)}; {_REMEDY}")


def _trained_betas(config: Config) -> tuple[float, ...] | None:
    betas = config.get("trained_betas")
    if betas is None:
        return None
    listed = betas.tolist() if isinstance(betas, np.ndarray) else betas
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not 2 <= len(listed) <= MOST_STEPS:
        raise ModelError(f"{WHERE}trained_betas is {str(betas)[:40]!r}, expected a list of 2 to {MOST_STEPS} numbers")
    for i, beta in enumerate(listed):
        number = finite(beta)
        if number is None or not 0 < number < 1:
            raise ModelError(f"{WHERE}trained_betas[{i}] is {beta!r}, expected a number above 0 and below 1")
    return tuple(map(float, listed))


MOST_STEPS = 10**6


def _count(config: Config, key: str, default: int, least: int = 2) -> int:
    return whole(config.get(key, default), f"{WHERE}{key}", ModelError, least, MOST_STEPS)


def _number(config: Config, key: str, default: float) -> float:
    return between(config.get(key, default), f"{WHERE}{key}", -1e6, 1e6, ModelError)


def _positive(config: Config, key: str, default: float) -> float:
    given = config.get(key)
    return between(default if given is None else given, f"{WHERE}{key}", 1e-6, 1e6, ModelError)


def _share(config: Config, key: str, default: float) -> float:
    number = finite(config.get(key, default))
    if number is None or not 0 < number < 1:
        raise ModelError(f"{WHERE}{key} must be a number above 0 and below 1, got {config.get(key)!r}")
    return number


def _flag(config: Config, key: str) -> bool:
    given = config.get(key)
    if given is not None and not isinstance(given, bool):
        raise ModelError(f"{WHERE}{key} must be true or false, got {given!r}")
    return bool(given)
