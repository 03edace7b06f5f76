"""What ComfyUI's nodes need: a function for its KSAMPLER from any row, its SIGMAS from any schedule, an error report.

It imports nothing of ComfyUI: the model that a sampler is given there tells what it is, by its `model_sampling`. eps, v
and EDM models have sigmas and states as k-diffusion has them. Those of a flow model are its time t and
x_t = (1 - t) x_0 + t eps: here sigma = t/(1 - t) and y = x_t/(1 - t), as everywhere in diffsolve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from .. import ProbabilityFlow
from ..errors import DiffsolveError, GridError, SolverError
from ..grid import make_grid
from ..process import F, Process, as_process
from ..register import parse
from ..registry import SCHEDULES, SolverEntry, find_solver, get_schedule, list_schedules, list_solvers
from ..solver import Solver, Span
from ..tape import trial
from ..validate import choice
from .k_diffusion import Callback, Sampler, sampler
from .k_problem import Model, NoiseSampler

_FIRST = 1e-6  # how far from t = 1, where sigma is infinite, a run of a flow model begins
_FIRST_LOG = 1e-4  # the same in log sigma, as ComfyUI's own methods in it do
_LOG_FORMS = ("noise", "data", "sde", "sde_noise", "er_sde")
_ON_FLOWS = {
    "euler_ancestral": "euler_ancestral_rf", "ddim_eta": "euler_ancestral_rf", "ddpm": "euler_ancestral_rf",
    "dpm2_ancestral": "dpm2_ancestral_rf", "dpmpp_2s_ancestral": "dpmpp_2s_ancestral_rf",
}  # fmt: skip


class ModelSampling(Protocol):
    """ComfyUI's `model_sampling`: the noise levels that a model was trained on, and what its states are."""

    sigma_min: Tensor
    sigma_max: Tensor

    def percent_to_sigma(self, percent: float, /) -> float: ...


def sampling_of(model: object) -> ModelSampling:
    """The model_sampling of a model as a sampler is given it, or of a MODEL. Raises GridError where it has none."""
    seen = model
    for _ in range(4):
        found = getattr(seen, "model_sampling", None)
        if found is not None:
            return cast(ModelSampling, found)
        seen = getattr(seen, "inner_model", None)
    get = getattr(model, "get_model_object", None)
    if callable(get):
        return cast(ModelSampling, get("model_sampling"))
    raise GridError(f"{type(model).__name__} has no model_sampling, as ComfyUI's models have")


def is_flow(sampling: ModelSampling) -> bool:
    """Whether its sigmas are the times of a straight path (ComfyUI's CONST)."""
    return any(kind.__name__ == "CONST" for kind in type(sampling).__mro__)


def function_of(solver: str, flow: Literal["sigma", "t"] = "sigma", **options: object) -> Sampler:
    """The function that KSAMPLER calls: any row, with its options, on the model that it is given.

    On a flow model a method written for sigma is taken in t, as ComfyUI takes it, and ancestral noise is by t (its *_RF
    functions); the others are in their own form. flow="t" takes t for sigma in every form, as ComfyUI does: dpmpp_2m in
    log t rather than log t/(1 - t); of methods without noise. Guidance is taken apart for the cfg_pp rows. Noise is
    keyed by the seed of the node. options: see `diffsolve.interop.k_diffusion.sampler`. Raises SolverError.
    """
    name, own = parse(solver)
    row, given = find_solver(name), {"flow": flow, **own, **options}
    as_t = choice(given.pop("flow"), "flow", ("sigma", "t")) == "t"
    if as_t and row.solver.stochastic:
        raise SolverError(f"{name} adds noise, which is another in t; leave flow='t' out")
    plain, (on_flow, form) = sampler(name, **given), _on_flow(row, given)

    def sample(
        model: Model, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, object] | None = None,
        callback: Callback | None = None, disable: bool | None = None, **more: object,
    ) -> Tensor:  # fmt: skip
        sampling, total = sampling_of(model), max(len(sigmas) - 1, 1)
        told = None if callback is None else _Shared(callback, total)
        seen = dict(extra_args or {})
        if "CFG++" in row.tags:
            model, seen = _taken_apart(model, seen)
        if as_t or not is_flow(sampling):
            return plain(_Ranged(model, sampling), x, sigmas, seen, told, disable, **more)
        most = 1 - _FIRST
        if form in _LOG_FORMS:
            most = min(float(sampling.percent_to_sigma(_FIRST_LOG)), most)
        return _in_time(on_flow, model, sampling, most, x, sigmas, seen, told, disable, **more)

    sample.__name__ = sample.__qualname__ = f"sample_{row.name}"
    return sample


def _on_flow(row: SolverEntry, given: dict[str, object]) -> tuple[Sampler, str | None]:
    """The row on a flow model, and its form."""
    if row.name in _ON_FLOWS and not given.get("rule"):
        row = find_solver(_ON_FLOWS[row.name])
    elif row.form == "sigma" and "form" not in given:
        given = {**given, "form": "flow"}
    return sampler(row.name, **given), str(given.get("form", row.form))


class _Ranged:
    """A model with the range that it was trained on, which its noise is placed by."""

    def __init__(self, model: Model, sampling: ModelSampling) -> None:
        self.model, self.sigma_min, self.sigma_max = model, float(sampling.sigma_min), float(sampling.sigma_max)

    def __call__(self, x: Tensor, sigma: Tensor, **given: object) -> Tensor | tuple[Tensor, Tensor]:
        return self.model(x, sigma, **given)


class _Straight:
    """A flow model as a denoiser in VE coordinates: D(y, sigma) = D(y/(1 + sigma), t = sigma/(1 + sigma))."""

    def __init__(self, model: Model, sampling: ModelSampling) -> None:
        low, high = float(sampling.sigma_min), min(float(sampling.sigma_max), 1 - _FIRST)
        self.model, self.sigma_min, self.sigma_max = model, low / (1 - low), high / (1 - high)

    def __call__(self, y: Tensor, sigma: Tensor, **given: object) -> Tensor | tuple[Tensor, Tensor]:
        level = sigma.reshape(-1, *[1] * (y.ndim - 1))
        return self.model(y / (1 + level), sigma / (1 + sigma), **given)


def _in_time(
    run: Sampler, model: Model, sampling: ModelSampling, most: float, x: Tensor, sigmas: Tensor,
    given: Mapping[str, object], told: Callback | None, disable: bool | None, **more: object,
) -> Tensor:  # fmt: skip
    """A run over times t of a flow model, none above `most`, from x_t to x_t."""
    times = torch.as_tensor(sigmas).double()
    if len(times) < 2:
        return x.clone()
    if (times > 1).any() or (times < 0).any():
        raise GridError(f"the sigmas of a flow model are times from 1 to 0, got {times.tolist()}")
    times = times.clamp(max=most)
    levels, wide = times / (1 - times), x.double() if x.dtype == torch.float64 else x.float()

    def seen(info: dict[str, object]) -> None:
        y, at, hat = (cast(Tensor, info[key]) for key in ("x", "sigma", "sigma_hat"))
        back = {"x": y / (1 + float(hat)), "sigma": at / (1 + at), "sigma_hat": hat / (1 + hat)}
        told({**info, **back})  # type: ignore[misc]

    asked = cast("NoiseSampler | None", more.get("noise_sampler"))
    if asked is not None:  # by times
        more = {**more, "noise_sampler": lambda start, end: asked(start / (1 + start), end / (1 + end))}
    y = wide / (1 - float(times[0]))
    straight = _Straight(_cast(model, x.dtype), sampling)
    end = run(straight, y, levels, given, None if told is None else seen, disable, **more)
    return (end * (1 - float(times[-1]))).to(x.dtype)


def _cast(model: Model, dtype: torch.dtype) -> Model:
    """The model called in the state's dtype, where the state is kept in a wider one."""
    if dtype in (torch.float32, torch.float64):
        return model
    return lambda x, sigma, **given: cast(Tensor, model(x.to(dtype), sigma.to(dtype), **given)).to(x.dtype)


class _Shared:
    """A callback that is told of whole steps of the list it was given, also where the steps are the run's own."""

    def __init__(self, callback: Callback, total: int) -> None:
        self.callback, self.total = callback, total

    def __call__(self, info: dict[str, object]) -> None:
        share = info.get("share")
        place = int(cast(int, info["i"])) if share is None else int(float(cast(float, share)) * self.total) - 1
        self.callback({**info, "i": min(max(place, 0), self.total - 1)})


def _taken_apart(model: Model, given: dict[str, object]) -> tuple[Model, dict[str, object]]:
    """The model with its unconditional estimate beside the guided one, by ComfyUI's hook after guidance."""
    free: list[Tensor] = []

    def after(told: Mapping[str, Tensor]) -> Tensor:
        free[:] = [told["uncond_denoised"]]
        return told["denoised"]

    options = dict(cast(Mapping[str, object], given.get("model_options") or {}))
    hooks = cast(Sequence[object], options.get("sampler_post_cfg_function", []))
    options |= {"sampler_post_cfg_function": [*hooks, after], "disable_cfg1_optimization": True}

    def both(x: Tensor, sigma: Tensor, **more: object) -> Tensor | tuple[Tensor, Tensor]:
        denoised = model(x, sigma, **more)
        return (cast(Tensor, denoised), free[0]) if free else denoised

    return both, given | {"model_options": options}


# Schedules


def _like(reference: object, value: object) -> Any:
    return value if np.ndim(reference) else float(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Tabulated(Process):
    """A model's table of noise levels, log sigma linear between its steps, as ComfyUI reads it; t is a step."""

    levels: tuple[float, ...]

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 0.0

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return len(self.levels) - 1.0

    def sigma(self, t: F) -> F:
        return cast(F, _like(t, np.exp(np.interp(t, np.arange(len(self.levels)), np.log(self.levels)))))

    def t(self, sigma: F) -> F:
        return cast(F, _like(sigma, np.interp(np.log(sigma), np.log(self.levels), np.arange(len(self.levels)))))

    def alpha(self, sigma: F) -> F:
        return cast(F, _like(sigma, 1 / np.sqrt(1 + np.square(sigma))))

    def sigma_rate(self, t: float) -> float:
        low = min(int(t), len(self.levels) - 2)
        return self.sigma(t) * math.log(self.levels[low + 1] / self.levels[low])


def process_of(sampling: ModelSampling) -> Process:
    """The process of a model's noise levels: a flow with its shift, a table of steps, or levels even in log sigma."""
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    if is_flow(sampling):
        middle = float(sampling.percent_to_sigma(0.5))  # shift/(1 + shift) where t' = shift t/(1 + (shift - 1) t)
        shift = middle / (1 - middle)
        first = low / (shift - (shift - 1) * low)
        return replace(as_process("flow"), shift=shift, t_min=first, t_max=1 - _FIRST_LOG)  # type: ignore[type-var]
    table = getattr(sampling, "sigmas", None)
    if table is not None and hasattr(sampling, "num_timesteps"):
        return Tabulated(tuple(float(level) for level in table.double().tolist()))
    return replace(as_process("ve"), low=low, high=high)  # type: ignore[type-var]


def sigmas_of(
    model: object, schedule: str, steps: int, denoise: float = 1.0, shift: float = 1.0, last_step: bool = True
) -> Tensor:
    """SIGMAS of a MODEL (or its model_sampling): `steps` of the schedule, the last one to 0; float32, on the CPU.

    denoise: the share of the way that is gone, as ComfyUI counts it: the last steps of steps/denoise. shift: times
    sigma (t' = shift t/(1 + (shift - 1) t) of a flow). last_step: whether the list ends at 0. Raises GridError.
    """
    sampling = model if hasattr(model, "sigma_min") else sampling_of(model)
    sampling = cast(ModelSampling, sampling)
    if not 0 < denoise <= 1:
        if denoise == 0:
            return torch.zeros(0)
        raise GridError(f"denoise is a share from 0 to 1, got {denoise!r}")
    rule, name = get_schedule(schedule)
    if shift != 1:
        rule = SCHEDULES["shift"].factory(rule, shift)
    process = process_of(sampling)
    total = max(int(steps / denoise), steps)
    grid = make_grid(rule, total, process, final="denoise" if last_step else "none", name=name)
    levels = grid.sigmas
    if is_flow(sampling):
        levels = levels / (1 + levels)
        if math.isclose(float(grid.nodes[0]), process.sigma_max, rel_tol=1e-9):
            levels[0] = float(sampling.sigma_max)
    return torch.tensor(levels[-(steps + 1) :], dtype=torch.float32)


# The error report


def halved(sigmas: Tensor, flow: bool = False) -> Tensor:
    """The list with a level between every two: their geometric mean, of a flow that of t/(1 - t); half before a 0."""
    made: list[float] = []
    for high, low in pairwise(float(level) for level in sigmas.double()):
        if min(low, high) <= 0:
            middle = max(low, high) / 2
        elif flow:
            odds = math.sqrt(math.prod(t / (1 - t) for t in (min(high, 1 - _FIRST_LOG), min(low, 1 - _FIRST_LOG))))
            middle = odds / (1 + odds)
        else:
            middle = math.sqrt(high * low)
        made += [high, middle]
    return torch.tensor([*made, float(sigmas[-1])], dtype=sigmas.dtype)


def error_report(states: Sequence[Tensor | None], finer: Sequence[Tensor | None], sigmas: Tensor) -> str:
    """Where a run is wrong: its states beside those of a run with twice the steps, from the same noise.

    states: at each of `sigmas`, the end included; finer: at each of `halved(sigmas)`. Their relative distance at a node
    is the error up to there, times 1 - 2^-order; what a step adds to it is its own.
    """
    lines = ["  step  sigma               error so far   added here"]
    before, most, worst = 0.0, 0, -1.0
    for i, (start, end) in enumerate(pairwise(sigmas.tolist())):
        x, y = states[i + 1], finer[2 * i + 2]
        if x is None or y is None:
            raise SolverError(f"the sampler told nothing of step {i + 2}, so there is nothing to report")
        error = _distance(x, y)
        added, before = max(error - before, 0.0), error
        if added > worst:
            most, worst = i, added
        lines.append(f"  {i + 1:4d}  {start:8.4g} -> {end:<8.4g}  {error:12.2e}  {added:11.2e}")
    head = f"{len(sigmas) - 1} steps against twice as many: the pictures differ by {before:.2e} (relative RMS)."
    return "\n".join([head, f"The most is added in step {most + 1}: place more steps there.", *lines])


def _distance(x: Tensor, y: Tensor) -> float:
    x = x.to(y.device)
    return float((x.double() - y.double()).norm() / y.double().norm().clamp_min(1e-30))


def solvers_for_menu() -> list[str]:
    """The rows that a menu offers: those of a flow."""
    return [entry.name for entry in list_solvers() if entry.form is not None]


def schedules_for_menu() -> list[str]:
    """The schedules of a flow."""
    return [entry.name for entry in list_schedules() if entry.name not in ("uniform", "shift")]


def is_stochastic(solver: str) -> bool:
    """Whether a row adds noise, and so takes eta."""
    return bool(find_solver(solver).solver.stochastic)


def adaptive_for_menu() -> list[str]:
    """The rows whose steps can be chosen by their error."""
    problem = ProbabilityFlow.from_denoiser(lambda x, _: x, 0.1, 10.0, (1,))
    able = []
    for entry in list_solvers():
        try:
            solver = entry.build()
            field = problem.field(solver, torch.zeros(1, 1), (0,), 0, None)
            if type(solver).plan is Solver.plan and trial(solver, field, Span(field.form.variable(9.0),
                                                          field.form.variable(5.0), adaptive=True))[1]:  # fmt: skip
                able.append(entry.name)
        except (DiffsolveError, AttributeError, TypeError):  # not to be traced, or of no flow
            continue
    return able
