"""Other libraries' solvers on our problems, at equal cost, where they are installed; see `PEERS`.

Each is driven through its own public loop on the same denoiser, from sigma_max, and stopped at sigma_min. The last step
to 0, which diffusers and k-diffusion append, is left out, and with it what they do for its sake (`lower_order_final`).
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from diffsolve import SolverError, get_schedule

from ..problems import Case

Denoise = Callable[[Tensor, float], Tensor]
Options = dict[str, object]


@dataclass(frozen=True)
class Method:
    """A peer's method. calls: evaluations a step. run: (denoise, case, schedule, steps) -> the state at the case's end.

    tolerances: of an adaptive method, which takes one of them in place of `steps` and places its own.
    """

    name: str
    calls: int
    run: Callable[..., Tensor]
    schedules: tuple[str, ...] | None = None  # None: any
    tolerances: Sequence[float] = ()


class OtherEndsError(Exception):
    """A grid does not run from the case's start to its end."""


def check_ends(nodes: Sequence[float] | np.ndarray, case: Case) -> None:
    if not all(math.isclose(a, b, rel_tol=1e-4) for a, b in ((nodes[0], case.start), (nodes[-1], case.end))):
        raise OtherEndsError(f"its grid runs from {nodes[0]:g} to {nodes[-1]:g}, not {case.start:g} to {case.end:g}")


def methods(peer: str) -> list[Method]:
    """A peer's methods; empty where it can't be imported. Raises SolverError for a name that is no peer's."""
    if peer not in PEERS:
        raise SolverError(f"unknown peer {peer!r}; choose from {', '.join(PEERS)}")
    try:
        importlib.import_module(peer)
        return PEERS[peer]()
    except ImportError:
        return []


# diffusers: (class, options, whether its state is x/alpha, as ours, or x). All have Karras' and the exponential grid.
_MULTISTEP = {"lower_order_final": False}
_DIFFUSERS: dict[str, tuple[str, Options, bool]] = {
    "Euler": ("EulerDiscreteScheduler", {}, True),
    "Heun": ("HeunDiscreteScheduler", {}, True),
    "LMS-4": ("LMSDiscreteScheduler", {}, True),
    **{
        f"DPM++ {order}M": ("DPMSolverMultistepScheduler", {**_MULTISTEP, "solver_order": order}, False)
        for order in (2, 3)
    },
    **{
        f"DPM {order}M": (
            "DPMSolverMultistepScheduler",
            {**_MULTISTEP, "solver_order": order, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            False,
        )
        for order in (2, 3)
    },
    **{
        f"UniPC-{order} {kind.upper()}{'' if data else ' eps'}": (
            "UniPCMultistepScheduler",
            {**_MULTISTEP, "solver_order": order, "solver_type": f"bh{kind[1]}", "predict_x0": data},
            False,
        )
        for order in (1, 2, 3)
        for kind in ("b1", "b2")
        for data in (True, False)
    },
    **{f"DEIS-{order}": ("DEISMultistepScheduler", {**_MULTISTEP, "solver_order": order}, False) for order in (2, 3)},
}
_GRIDS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas"}


def _diffusers() -> list[Method]:
    def method(name: str) -> Method:
        kind, options, scaled = _DIFFUSERS[name]
        calls = 2 if name == "Heun" else 1

        def run(denoise: Denoise, case: Case, schedule: str, steps: int) -> Tensor:
            chosen = {**options, _GRIDS[schedule]: True}
            return _run_diffusers(denoise, case, kind, chosen, scaled, steps, steps * calls)

        return Method(name, calls, run, tuple(_GRIDS))

    return [method(name) for name in _DIFFUSERS]


def _run_diffusers(
    denoise: Denoise, case: Case, kind: str, options: Options, scaled: bool, steps: int, calls: int
) -> Tensor:
    diffusers = importlib.import_module("diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options that it means to drop some day
        scheduler = getattr(diffusers, kind)(
            num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **options
        )
        scheduler.set_timesteps(steps + 1)
        scheduler.set_begin_index(0)
        sigmas = scheduler.sigmas.double().tolist()
        check_ends(sigmas[: calls + 1], case)
        x = case.x if scaled else case.x / math.hypot(1, case.start)
        for sigma, t in zip(sigmas[:calls], scheduler.timesteps, strict=False):
            scheduler.scale_model_input(x, t)  # asked for before every step; our denoiser takes x as it is
            y = x if scaled else x * math.hypot(1, sigma)
            x = scheduler.step((y - denoise(y, sigma)) / sigma, t, x).prev_sample
    return x if scaled else x * math.hypot(1, case.end)


def _k_diffusion() -> list[Method]:
    sampling = importlib.import_module("k_diffusion.sampling")

    names = {"euler": 1, "heun": 2, "dpm_2": 2, "lms": 1, "dpmpp_2m": 1, "dpmpp_2s_ancestral": 2}

    def method(name: str, calls: int) -> Method:
        sampler = getattr(sampling, f"sample_{name}")
        options = {"eta": 0.0} if name.endswith("ancestral") else {}

        def run(denoise: Denoise, case: Case, schedule: str, steps: int) -> Tensor:
            nodes = torch.from_numpy(_nodes(case, schedule, steps).copy())
            return sampler(lambda y, s: denoise(y, float(s[0])), case.x, nodes, disable=True, **options)

        return Method(name, calls, run)

    return [method(name, calls) for name, calls in names.items()]


def _torchdiffeq() -> list[Method]:
    odeint = importlib.import_module("torchdiffeq").odeint

    def flow(denoise: Denoise) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda s, y: (y - denoise(y, float(s))) / float(s)

    def fixed(name: str, calls: int) -> Method:
        def run(denoise: Denoise, case: Case, schedule: str, steps: int) -> Tensor:
            nodes = torch.from_numpy(_nodes(case, schedule, steps).copy())
            return odeint(flow(denoise), case.x, nodes, method=name)[-1]

        return Method(name, calls, run)

    def adaptive(denoise: Denoise, case: Case, schedule: str, rtol: float) -> Tensor:
        ends = torch.tensor([case.start, case.end], dtype=torch.float64)
        return odeint(flow(denoise), case.x, ends, method="dopri5", rtol=rtol, atol=rtol)[-1]

    scan = tuple(10.0**-k for k in range(1, 8))
    return [fixed("euler", 1), fixed("midpoint", 2), fixed("heun3", 3), fixed("rk4", 4),
            Method("dopri5", 0, adaptive, ("adaptive",), scan)]  # fmt: skip


class _AzulaModel:
    """Its denoiser of x = y/sqrt(1 + sigma^2), with sigma for the time."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return (1 + t * t).rsqrt(), t * (1 + t * t).rsqrt()

    def __call__(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(mean=self.denoise(x * math.hypot(1, float(t)), float(t)))


def _azula() -> list[Method]:
    sample = importlib.import_module("azula.sample")

    def method(kind: str, order: int) -> Method:
        def run(denoise: Denoise, case: Case, schedule: str, steps: int) -> Tensor:
            nodes = torch.from_numpy(_nodes(case, schedule, steps).copy())
            sampler = type(kind, (getattr(sample, f"{kind}Sampler"),), {"timesteps": nodes})
            x = sampler(_AzulaModel(denoise), order=order, silent=True)(case.x / math.hypot(1, case.start))
            return x * math.hypot(1, case.end)

        return Method(f"{kind}-{order}", 1, run)

    return [method(kind, order) for kind in ("zAB", "vAB", "zEAB", "xEAB") for order in (2, 3, 4)]


def _nodes(case: Case, schedule: str, steps: int) -> np.ndarray:
    rule, name = get_schedule(schedule)
    grid = case.problem.grid(rule, steps, final="none", sigma_min=case.end, sigma_max=case.start, name=name)
    check_ends(grid.nodes, case)
    return grid.nodes


PEERS: dict[str, Callable[[], list[Method]]] = {
    "diffusers": _diffusers, "k_diffusion": _k_diffusion, "torchdiffeq": _torchdiffeq, "azula": _azula,
}  # fmt: skip
