"""What a diffusers scheduler's config says, in this project's words: what the network is, and where the steps go."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import diffusers
import numpy as np

from ...errors import GridError, ModelError, SolverError, did_you_mean
from ...grid import Grid, Nodes, Schedule
from ...prediction import Prediction, Scaling
from ...process import Process
from ...register import points
from ...registry import get_schedule
from ...validate import above_zero, between, choice, finite, whole
from .calls import Clip, Nature
from .plan import Recipe

Config = Mapping[str, Any]
OWN = ("solver", "schedule", "final", "eta", "config_of")
SPACINGS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta",
            "use_lu_lambdas": "lambda"}  # fmt: skip
_NEAR = 0.01  # relative: published nodes are printed with few digits


def adopted(config: Config, keys: list[str], named: str | None = None) -> dict[str, Any]:
    """Another scheduler's config with what its class takes where it says nothing, and the class's name beside it.

    keys: those that are read here. named: the class, where it is told. A config that was DiffsolveScheduler's before is
    handed back as it is. Raises ModelError where it can't be told whose it is.
    """
    name = named or config.get("_class_name") or _class_by_keys(config)
    if "config_of" in config:
        return {**config, "_class_name": config["config_of"]}  # so that what is left of its keys is no surprise
    if not isinstance(name, str) or name == "DiffsolveScheduler":
        return dict(config)
    kind = getattr(diffusers, name, None)
    told = {key: value for key, value in config.items() if key not in OWN and key != "_use_default_values"}
    for key, default in _defaults(kind).items():
        if key in keys and key not in OWN:
            told.setdefault(key, default)
    if "beta_schedule" in told:
        told.setdefault("timestep_spacing", "linspace")  # classes that have no say in it
    return told | {"config_of": name, "_class_name": name}


def _defaults(kind: object) -> dict[str, Any]:
    """The parameters of a class with their defaults."""
    named = inspect.signature(kind).parameters.items() if callable(kind) else ()
    return {key: p.default for key, p in named if p.kind is not p.VAR_KEYWORD}


def _class_by_keys(config: Config) -> str | None:
    """The diffusers class that takes the config's keys and no other: of a scheduler that was never saved or loaded."""
    own = {key for key in config if not key.startswith("_")}
    kinds = [getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")]
    alike = [kind.__name__ for kind in kinds if _defaults(kind).keys() == own]
    if len(alike) == 1:
        return str(alike[0])
    readings: dict[tuple[Process, str], str] = {}
    for name in alike:
        with suppress(ModelError):
            process, prediction = _reader()({**config, "_class_name": name, "use_dynamic_shifting": False})
            readings.setdefault((process, prediction.name), name)
    if len(readings) > 1:
        raise ModelError(
            f"the config has no _class_name, and {' and '.join(readings.values())} would read it differently; "
            "pass config_of=, the class's name"
        )
    return next(iter(readings.values()), None)


@cache
def _reader() -> Any:
    """`read_scheduler_config`, which is of the problems' room: (config) -> (process, prediction)."""
    known = points("diffsolve.configs")
    if "diffusers" not in known:
        raise ModelError("diffsolve.configs names no reader of diffusers' configs; install diffsolve again")
    return known["diffusers"].open(ModelError)


def check_known(given: Iterable[str], keys: Iterable[str]) -> None:
    """Raise SolverError for a parameter that is none of `keys`, which diffusers would leave out and go on."""
    known = sorted(set(keys) - {"self"})
    for key in sorted(set(given) - set(known) - _LOADING):
        if key in ("quality", "rtol", "atol", "controller", "nfe"):
            raise SolverError(
                f"{key} is for steps that are chosen as it goes, and a scheduler lists them ahead; "
                f"call diffsolve.interop.diffusers.run(pipe, solver=..., {key}=..., **what the pipeline takes)"
            )
        raise SolverError(f"DiffsolveScheduler has no parameter {key!r} (a solver's and a schedule's options go into "
                          f"the name, as in 'lms(order=3)'){did_you_mean(key, known)}")


# what diffusers' loaders hand on beside a config
_LOADING = {
    "cache_dir", "device_map", "dtype", "force_download", "local_files_only", "low_cpu_mem_usage", "proxies",
    "quantization_config", "revision", "subfolder", "token", "torch_dtype", "trust_remote_code", "use_safetensors",
    "variant",
}  # fmt: skip


def check(config: Config) -> None:
    """Raise ModelError for a config of no process here, GridError or SolverError for a schedule or final of no name."""
    nature_of(config)
    if isinstance(config["schedule"], str):
        made(config["schedule"])
    if config["final"] is not None:
        choice(config["final"], "final", ("denoise", "step", "none"))


def nature_of(config: Config) -> Nature:
    """What the network is. A shift that goes with the picture's size is left out, `shifted` puts it in.

    Raises ModelError for what is of no process here, or can't be honoured.
    """
    told = {k: v for k, v in config.items() if v is not None and k not in OWN and not k.startswith("_")}
    told["_class_name"] = config.get("config_of") or "DDPMScheduler"
    told["use_dynamic_shifting"] = False
    frozen = {k: tuple(np.asarray(v).tolist()) if k == "trained_betas" else v for k, v in told.items()}
    try:
        return _nature(tuple(sorted(frozen.items())))
    except TypeError:  # of a value that can't be hashed, which has its message there
        return _nature.__wrapped__(tuple(told.items()))


@lru_cache(maxsize=64)
def _nature(items: tuple[tuple[str, Any], ...]) -> Nature:
    config = dict(items)
    process, prediction = _reader()(config)
    return Nature(process, prediction, config.get("variance_type") in ("learned", "learned_range"), _clip(config))


def _clip(config: Config) -> Clip | None:
    if config.get("thresholding"):
        ratio = between(config.get("dynamic_thresholding_ratio", 0.995), "dynamic_thresholding_ratio", 0, 1, ModelError)
        return Clip(above_zero(config.get("sample_max_value", 1.0), "sample_max_value", ModelError), ratio)
    if config.get("clip_sample"):
        return Clip(above_zero(config.get("clip_sample_range", 1.0), "clip_sample_range", ModelError))
    return None


def shifted(nature: Nature, config: Config, mu: float | None) -> Nature:
    """The same with the shift of `mu`, where it goes with the picture's size. Raises GridError where it is missing."""
    if not config.get("use_dynamic_shifting"):
        return nature
    given = finite(mu)
    if given is None:
        raise GridError(
            f"the config says use_dynamic_shifting, so set_timesteps needs mu=, which pipelines work out of the "
            f"picture's size, got {mu!r}; or pass use_dynamic_shifting=False and shift= to from_config"
        )
    linear = config.get("time_shift_type") == "linear"
    shift = above_zero(given if linear else float(np.exp(min(given, 50.0))), "the shift of mu", GridError)
    return nature._replace(process=replace(nature.process, shift=shift))  # type: ignore[type-var]


def schedule_of(config: Config, nature: Nature) -> str | Schedule:
    """Where the steps go: `schedule`, or what the config it was taken from says."""
    asked = config.get("schedule")
    rule: str | Schedule | None = asked
    if asked is None:
        rule = next((name for key, name in SPACINGS.items() if config.get(key)), None)
    if rule is None and config.get("sigma_schedule") is not None:
        rule = config["sigma_schedule"]
    if rule is None and nature.flow:
        rule = "sgm_uniform" if config.get("use_flow_sigmas") else "linspace"
    if rule is None:
        spacing = config.get("timestep_spacing")
        rule = f"leading(offset={config.get('steps_offset', 1)})" if spacing == "leading" else spacing or "karras"
    terminal = config.get("shift_terminal")
    return Stretched(made(rule), terminal) if terminal and nature.flow else rule


def made(rule: str | Schedule) -> Schedule:
    """The schedule of a name."""
    found = get_schedule(rule)[0]
    if not isinstance(found, Schedule):
        raise GridError(f"schedule {rule!r} places no noise levels; take one such as 'karras'")
    return found


@dataclass(frozen=True)
class Even(Schedule):
    """A flow's times evenly spaced from `first` down, with 0 as the next of them: first (1 - i/n)."""

    first: float = 1.0
    zero_last = True

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        times = self.first * (1 - np.arange(count) / max(count - 1, 1))
        return np.asarray(process.sigma(np.clip(times, process.t_min, process.t_max)))


def _stretched(nodes: Nodes, terminal: float) -> Nodes:
    """Noise levels whose times are stretched so that the last is `terminal`; one alone stays."""
    signal = 1 / (1 + nodes)  # 1 - t
    if len(nodes) > 1:
        signal = signal * ((1 - terminal) / signal[-1])
    return np.asarray(np.minimum((1 - signal) / signal, nodes[0]))  # pure noise stays that


@dataclass(frozen=True)
class Stretched(Schedule):
    """A flow's times of `inside`, stretched towards 0 so that the last above it is `terminal`."""

    inside: Schedule
    terminal: float

    @property
    def zero_last(self) -> bool:  # type: ignore[override]
        return self.inside.zero_last

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        nodes = self.inside.nodes(count, low, high, process)
        whole = count - self.zero_last
        return _stretched(nodes, self.terminal) if whole == count else np.append(
            _stretched(nodes[:whole], self.terminal), low * 0.5)


@dataclass(frozen=True)
class Distilled(Schedule):
    """Evenly chosen of the `original` times that a latent consistency model was distilled at, of `strength` of them.

    As LCMScheduler takes them. Raises GridError for more than there are.
    """

    original: int
    strength: float = 1.0

    def __post_init__(self) -> None:
        whole(self.original, "original_inference_steps", GridError)

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        skip, last = round(process.t_max + 1) // self.original, int(self.original * self.strength)
        times = (np.arange(1, last + 1) * skip - 1)[::-1]
        if count > len(times) or not skip:
            raise GridError(f"there are {len(times)} times to choose {count} of; raise original_inference_steps")
        places = np.floor(np.linspace(0, len(times), count, endpoint=False)).astype(int)
        return np.asarray(process.sigma(times[places].astype(np.float64)))


def bound(value: Any, process: Process) -> float | None:
    """`sigma_min` or `sigma_max` of a config, within the trained range; None where it says nothing.

    Of a flow it is a time, as its sigmas are.
    """
    if value is None:
        return None
    level = float(value)
    if hasattr(process, "shift"):
        level = level / (1 - level) if level < 1 else process.sigma_max
    return float(np.clip(level, process.sigma_min, process.sigma_max))


def with_timesteps(recipe: Recipe, times: object) -> Recipe:
    """A recipe over the nodes at which the network is told `times`."""
    nodes = levels(_listed(times, "timesteps"), recipe.nature)
    grid = _grid(tuple(nodes.tolist()), recipe.final)
    return recipe._replace(schedule=grid, nfe=None, sigma_min=None, sigma_max=None)


def with_sigmas(recipe: Recipe, sigmas: object, timesteps: object, asked: bool) -> Recipe:
    """A recipe over listed noise levels, or a flow's times, which are shifted here.

    timesteps: what the network is told at them, where that is another thing. asked: whether the recipe's schedule was
    asked for, so that of a flow's times the ends are read alone.
    """
    given, nature = _listed(sigmas, "sigmas"), recipe.nature
    to_zero = bool(given[-1] == 0) and len(given) > 1
    given, process = given[: len(given) - to_zero], nature.process
    if not nature.flow:
        near = np.clip(given, process.sigma_min, process.sigma_max)
        nodes = np.where(np.abs(near - given) <= _NEAR * given, near, given)
        grid = _grid(tuple(nodes.tolist()), recipe.final if to_zero else "none")
        return recipe._replace(schedule=grid, nfe=None, sigma_min=None, sigma_max=None)
    if not ((given > 0) & (given <= 1)).all():
        raise GridError(f"sigmas of a flow are its times, above 0 and at most 1, got {given.tolist()}")
    nodes = process.sigma(np.clip(given, process.t_min, process.t_max))
    if timesteps is not None:
        recipe = recipe._replace(nature=_told_apart(nature, nodes, _listed(timesteps, "timesteps")))
    if asked:
        return recipe._replace(nfe=len(given), sigma_min=float(nodes[-1]), sigma_max=float(nodes[0]))
    terminal = recipe.schedule.terminal if isinstance(recipe.schedule, Stretched) else None
    if np.allclose(given, 1 - np.arange(len(given)) / len(given), rtol=0, atol=1e-5):  # as pipelines make them
        rule = Even() if terminal is None else Stretched(Even(), terminal)
        return recipe._replace(schedule=rule, nfe=len(given))
    if terminal is not None:
        nodes = _stretched(nodes, terminal)
    return recipe._replace(schedule=_grid(tuple(nodes.tolist()), recipe.final), nfe=None)


def _listed(values: object, what: str) -> Nodes:
    try:
        given = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, np.float64)
    except (TypeError, ValueError) as error:
        raise GridError(f"{what} must be a list of numbers, got {values!r}") from error
    if given.ndim != 1 or not len(given) or not np.isfinite(given).all():
        raise GridError(f"{what} must be a flat list of finite numbers, got {values!r}")
    if not (np.diff(given) < 0).all():
        bad = int(np.argmax(np.diff(given) >= 0))
        raise GridError(f"{what} must fall from each to the next; {given[bad]:g} is followed by {given[bad + 1]:g}")
    return given


@lru_cache(maxsize=64)
def _grid(nodes: tuple[float, ...], final: str) -> Grid:
    """The grid of a list, one object for one list."""
    return Grid(np.asarray(nodes), "explicit", final)  # type: ignore[arg-type]


def levels(times: object, nature: Nature) -> Nodes:
    """The noise levels at which the network is told `times`, by bisection in log sigma.

    Raises GridError outside the trained range.
    """
    process, scaling = nature.process, nature.prediction.scaling
    wanted = np.asarray(times, np.float64)
    ends = [float(scaling(sigma, process).c_noise) for sigma in (process.sigma_min, process.sigma_max)]
    if ends[0] > ends[1]:  # told the time from noise to data
        way, ends, wanted = -1, [-ends[0], -ends[1]], -wanted
    else:
        way = 1
    slack = 2e-3 * (ends[1] - ends[0])
    outside = ~((wanted >= ends[0] - slack) & (wanted <= ends[1] + slack))
    if outside.any():
        told = f"[{ends[0] * way:g}, {ends[1] * way:g}], what the network was trained to be told"
        raise GridError(f"timestep {wanted[outside][0] * way:g} is outside {told}")
    low, high = (np.full(wanted.shape, np.log(sigma)) for sigma in (process.sigma_min, process.sigma_max))
    for _ in range(60):
        middle = (low + high) / 2
        above = np.asarray(scaling(np.exp(middle), process).c_noise) * way > wanted
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    found = np.exp((low + high) / 2)
    return np.where(wanted <= ends[0], process.sigma_min, np.where(wanted >= ends[1], process.sigma_max, found))


def _told_apart(nature: Nature, nodes: Nodes, times: Nodes) -> Nature:
    """A nature whose network is told `times` at the nodes, and what lies between them in between."""
    if len(nodes) != len(times):
        raise GridError(f"sigmas has {len(nodes)} numbers and timesteps {len(times)}; expected as many")
    known, told, scale = nodes[::-1] / (1 + nodes[::-1]), times[::-1], nature.prediction.scaling

    def scaling(s: object, process: Process) -> Scaling[Any]:
        t = np.interp(np.asarray(s) / (1 + np.asarray(s)), known, told)
        return replace(scale(s, process), c_noise=float(t) if isinstance(s, float) else t)

    return nature._replace(prediction=Prediction(nature.prediction.name, scaling))
