"""diffusers' own pipeline in float32 and the same runs said to `ds.solve`; in float64 it is peers.py that compares.

A scheduler's grid, rounding and last step are its own. Each case writes them out as explicit grids ("legs", where the
method changes on the way) and tells the network the same timesteps, so that what is left to compare is the method.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import torch
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import StableDiffusion
from diffsolve.problems.stable_diffusion import EMBEDDED
from diffsolve.solvers.schedules import Leading, Linspace, PolyExponential

MODEL = Path(os.environ.get("DIFFSOLVE_PARITY_MODEL", EMBEDDED))  # any Stable Diffusion folder serves
PROMPT, GUIDANCE, STEPS = "red apple", 4.0, 20
TOLERANCE = 1e-4  # relative RMS of the final latents, float32
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ROUNDED = np.linspace(0, 999, STEPS + 1).round()[:0:-1].tolist()  # 999, 949, ..., 50: the DPM-Solver schedulers'


@dataclass(frozen=True)
class Leg:
    """One call of `solve`: most cases are one, a scheduler that changes its method on the way is several."""

    solver: str
    grid: ds.Grid
    form: str | None = None


@dataclass(frozen=True)
class Case:
    """`legs` of a process: what the scheduler does. unit: what the unit noise is, x_T ("vp") or y/sigma ("ve").

    tells: the network is told other timesteps than t(sigma), and ours is told the same. note: what of the scheduler the
    legs had to follow.
    """

    name: str
    scheduler: str
    config: dict[str, Any]
    legs: Callable[[ds.Process], list[Leg]]
    unit: Literal["vp", "ve"] = "vp"
    tells: bool = False
    note: str = ""

    def build(self) -> Any:
        """The scheduler, its timesteps set."""
        scheduler = getattr(diffusers, self.scheduler)(**BETAS, **self.config)
        scheduler.set_timesteps(STEPS)
        return scheduler


def times(t: list[float], final: str, solver: str) -> Callable[[ds.Process], list[Leg]]:
    return lambda p: [Leg(solver, ds.make_grid(ds.Timesteps(t), len(t), p, final=final))]


def named(schedule: ds.Schedule, final: str, solver: str) -> Callable[[ds.Process], list[Leg]]:
    return lambda p: [Leg(solver, ds.make_grid(schedule, STEPS, p, final=final))]


def in_pairs(process: ds.Process) -> list[Leg]:
    """Singlestep, order 2, default grid: node 2k+1 is the inner stage of the step from 2k to 2k+2, wherever it lies."""
    s = [process.sigma(t) for t in ROUNDED]
    legs = []
    for a, m, b in zip(s[0:-2:2], s[1:-2:2], s[2::2], strict=True):
        r = math.log(a / m) / math.log(a / b)
        legs.append(Leg(f"dpm_solver_2(r={r!r})", ds.Grid([a, b]), "data"))
    return [*legs, Leg("euler", ds.Grid(s[-2:], final="denoise"))]


def in_pairs_of_equal_length(process: ds.Process) -> list[Leg]:
    """The same on a grid uniform in lambda, where the inner stage is the midpoint: DPM-Solver-2 as published."""
    s = ds.make_grid(PolyExponential(), STEPS - 1, process, final="none").nodes
    return [Leg("dpm_solver_2", ds.Grid(s[::2])), Leg("dpm_solver_2(r=1.0)", ds.Grid(s[-2:]))]


LEADING = [float(t) for t in range(951, 0, -50)]
OWN = {"timestep_spacing": "leading", "steps_offset": 1}  # what Stable Diffusion's own scheduler_config.json says
CASES = [
    Case("DDIM", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, **OWN},
         times([*LEADING, 0.0], "none", "ddim"),
         note="integer timesteps 951, 901, ..., 1; set_alpha_to_one=False ends at t = 0, not at sigma = 0"),
    Case("DDIM trailing", "DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"},
         times([float(t) for t in range(999, 0, -50)], "denoise", "ddim"), note="integer timesteps 999, 949, ..., 49"),
    Case("Euler", "EulerDiscreteScheduler", {}, named(Linspace(), "denoise", "euler"), "ve",
         note="casts the state to float32"),
    Case("Euler leading", "EulerDiscreteScheduler", OWN, named(Leading(), "denoise", "euler"),
         note="what `from_config` makes of Stable Diffusion's own config; casts the state to float32"),
    Case("Euler Karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True},
         named(ds.Karras(), "denoise", "euler"), "ve", tells=True,
         note="finds t(sigma) by a line in log sigma; ours is linear in sigma"),
    Case("Heun", "HeunDiscreteScheduler", {}, named(Linspace(), "denoise", "heun"), "ve"),
    Case("DPM2", "KDPM2DiscreteScheduler", {}, named(Linspace(), "denoise", "dpm2"), "ve", tells=True,
         note="finds the inner stage's t(sigma) by a line in log sigma"),
    Case("LMS", "LMSDiscreteScheduler", {}, named(Linspace(), "step", "lms"), "ve",
         note="its last step, to sigma = 0, is the multistep one"),
    Case("PNDM", "PNDMScheduler", {"skip_prk_steps": True, **OWN}, times([*LEADING, 0.0], "none", "plms"),
         note="integer timesteps 951, 901, 901, 851, ..., 1; set_alpha_to_one=False ends at t = 0"),
    Case("DPM++ 2M", "DPMSolverMultistepScheduler", {}, times(ROUNDED, "denoise", "dpmpp_2m"),
         note="rounds its timesteps to 999, 949, ..., 50; casts the state to float32"),
    Case("DPM++ 2M Karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True},
         named(ds.Karras(), "denoise", "dpmpp_2m"), tells=True,
         note="tells the network t(sigma) rounded to an integer; casts the state to float32"),
    Case("DPM++ 2S", "DPMSolverSinglestepScheduler", {"lower_order_final": True}, in_pairs,
         note="order 2: every other node is an inner stage, the last two steps are Euler's"),
    Case("DPM-Solver-2", "DPMSolverSinglestepScheduler",
         {"algorithm_type": "dpmsolver", "use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"},
         in_pairs_of_equal_length, tells=True,
         note="cuts t(sigma) to an integer; its last node repeats, so the last inner stage is the step's end (r = 1)"),
]  # fmt: skip


@dataclass(frozen=True)
class TellsTimesteps(ds.VP):
    """A process whose network is told, at the noise levels that a scheduler visits, that scheduler's timesteps."""

    sigmas: tuple[float, ...] = ()
    timesteps: tuple[float, ...] = ()

    def c_noise(self, sigma: Any) -> Any:
        gaps = np.abs(np.log(np.asarray(self.sigmas) / sigma))
        assert gaps.min() < 1e-5, f"the scheduler never visits sigma = {sigma}"
        return self.timesteps[int(gaps.argmin())]


def as_told(process: ds.VP, scheduler: Any) -> TellsTimesteps:
    inner = getattr(scheduler, "sigmas_interpol", scheduler.sigmas)  # KDPM2 keeps its inner stages apart
    sigmas = [float((inner if j % 2 else scheduler.sigmas)[j]) for j in range(len(scheduler.timesteps))]
    given = {f.name: getattr(process, f.name) for f in fields(process) if f.init}
    return TellsTimesteps(**given, sigmas=tuple(sigmas), timesteps=tuple(scheduler.timesteps.tolist()))


def told(problem: Any, process: ds.VP) -> Any:
    """The problem with a network that is told the time as `process` says."""
    network = problem.denoiser.denoiser
    halves = ds.NetworkDenoiser(network.network, process, network.prediction)
    return problem.replace(process=process, denoiser=ds.Guided(halves, problem.denoiser.scale))


def ours(case: Case, problem: Any, noise: Tensor) -> tuple[Tensor, int]:
    """x_t at the case's end (data coordinates where sigma ends at 0), and the network calls."""
    process, nfe = problem.process, 0
    if case.tells:
        problem = told(problem, as_told(process, case.build()))
    legs = case.legs(process)
    first, last = float(legs[0].grid.sigmas[0]), float(legs[-1].grid.sigmas[-1])
    x = noise * (first if case.unit == "ve" else math.hypot(1, first))
    for leg in legs:
        solution = ds.solve(problem, leg.solver, leg.grid, x=x, form=leg.form)
        x, nfe = solution.x, nfe + solution.nfe
    return x * process.alpha(last), nfe


def theirs(case: Case, pipeline: Any, noise: Tensor) -> Tensor:
    """The final latents of diffusers' own pipeline with the case's scheduler swapped in."""
    pipeline.scheduler = case.build()
    pipeline.set_progress_bar_config(disable=True)
    height, width = (pixels * pipeline.vae_scale_factor for pixels in noise.shape[-2:])
    images = pipeline(
        PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise.clone(), output_type="latent",
        num_images_per_prompt=len(noise), height=height, width=width,
    ).images  # fmt: skip
    return images


def distance(a: Tensor, b: Tensor) -> float:
    """Relative RMS of a - b."""
    return float((a - b).double().norm() / b.double().norm())


def load(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Our model and diffusers' pipeline, both from MODEL."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None).to(device, dtype)
    return StableDiffusion.from_pretrained(MODEL, dtype=dtype, device=device), pipeline


def unit_noise(problem: Any, batch: int) -> Tensor:
    return problem.prior(batch, seed=0, sigma=1.0)
