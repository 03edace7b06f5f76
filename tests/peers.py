"""Every row beside its peer's own function, in float64, on a mixture and on the embedded model: the harness.

A Comparison says how a peer's run is said to `ds.solve`. Lists of them are made in peers_flow.py (diffusers' solvers of
the flow), peers_noise.py (its stochastic ones) and peers_k_diffusion.py, and gathered by `comparisons`; test_parity.py
runs them, benchmarks/parity.py writes docs/parity.md from them. The peer's grid is taken as it is (those of
`ds.make_grid` are compared in test_grid.py), so that what is left to compare is the method.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, pairwise
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
from parity_cases import BETAS, GUIDANCE, PROMPT, distance
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import GaussianMixture, StableDiffusion

PROBLEMS = ("mixture", "embedded")
SMALL = "embedded, 16 by 16"  # k-diffusion's outputs are kept of the others alone
N = 10  # steps
TOLERANCE = 1e-9

Pair = tuple[Tensor, Tensor]


class Sinusoids(torch.nn.Module):
    """The network's time_proj in float64: its own is float32, whose last bit is not the same on every machine."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / half)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.double()[:, None] * self.rates
        return torch.cat([angles.cos(), angles.sin()], 1)


@cache
def denoiser(name: str) -> ds.ProbabilityFlow:
    if name != "mixture":
        size = 16 if name == SMALL else None
        model = StableDiffusion.from_pretrained("emoji", dtype="float64")
        model.unet.time_proj = Sinusoids(model.unet.time_proj.num_channels)
        return model(PROMPT, guidance=GUIDANCE, height=size, width=size)
    means = ds.normals(1, range(5), 3, (8,), torch.float64, "cpu")
    return GaussianMixture(means, [0.1, 0.2, 0.3, 0.4, 0.5], [3, 2, 1, 1, 2])


class Given(ds.ProbabilityFlow):
    """The denoiser of one of PROBLEMS, in a process of the comparison's own, with both sides' start and draws.

    draws[i, 0]: over the whole of step i, draws[i, 1]: over a part of it or on its second visit.
    """

    def __init__(self, name: str, process: str | ds.Process = "sd") -> None:
        self.name, self.inner, batch = name, denoiser(name), 3 if name == "mixture" else 1
        super().__init__(process=process, shape=self.inner.shape, dtype=torch.float64)
        self.unit = ds.normals(0, range(batch), 3, self.shape, torch.float64, "cpu")
        draws = ds.normals(2, range(4 * N * batch), 4, self.shape, torch.float64, "cpu")
        self.draws, self.sigmas = draws.view(2 * N, 2, batch, *self.shape), [1.0]

    def denoise(self, y: Tensor, sigma: float) -> Tensor:
        return self.inner.denoise(y, sigma)

    def draw(self, field: Any, span: ds.Span) -> Tensor:
        whole = math.isclose(field.form.sigma(span.end), self.sigmas[span.index + 1], rel_tol=1e-9)
        return self.draws[span.index, 0 if whole and not span.visit else 1]

    def field(self, *args: Any) -> Any:
        field = super().field(*args)
        field.normal = lambda span, kind=None: self.draw(field, span)  # type: ignore[method-assign]
        return field

    def solve(self, solver: str | ds.Solver, grid: ds.Grid, y: Tensor, **options: Any) -> ds.Solution:
        self.sigmas = grid.sigmas.tolist()
        return ds.solve(self, solver, grid, x=y, **options)


@dataclass(frozen=True)
class Comparison:
    """A row and its peer: run(problem) -> (ours, theirs), of a Given problem."""

    row: str
    peer: str
    label: str
    run: Callable[[Given], Pair]
    process: str | ds.Process = "sd"

    @property
    def name(self) -> str:
        return f"{self.peer} {self.label}".strip()

    def gap(self, problem: str) -> float:
        """The relative RMS of ours from theirs."""
        return distance(*self.run(Given(problem, self.process)))


# diffusers


class Wide:
    """torch or numpy, but for its float32, which is float64."""

    def __init__(self, library: Any) -> None:
        self._library, self.float32 = library, library.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


@contextmanager
def in_float64(kind: type, draws: Iterable[Tensor] = (), wide: bool = True) -> Iterator[None]:
    """A scheduler's module takes its noise from `draws`, in turn, and computes in float64 where it says float32.

    wide=False: it computes in float32 where it says so.
    """
    module, in_turn, dtype = sys.modules[kind.__module__], iter(draws), torch.get_default_dtype()
    with ExitStack() as stack:
        if wide:
            torch.set_default_dtype(torch.float64)
            stack.callback(torch.set_default_dtype, dtype)
        for name, library in (("torch", torch), ("np", np)):
            if wide and hasattr(module, name):
                stack.enter_context(patch.object(module, name, Wide(library)))
        if hasattr(module, "randn_tensor"):
            stack.enter_context(patch.object(module, "randn_tensor", lambda *_, **__: next(in_turn)))
        yield


# What a scheduler calls its sample, in y: of these it is y itself, of flow matching y / (1 + sigma), else alpha y.
EXPLODING = ("Euler", "Heun", "KDPM2", "LMS", "DPMSolverSDE", "EDM")


def kind_of(scheduler: Any) -> str:
    name = type(scheduler).__name__
    return "flow" if name.startswith("FlowMatch") else "ve" if name.startswith(EXPLODING) else "vp"


def scale(kind: str, sigma: float) -> float:
    """x / y."""
    return {"ve": 1.0, "vp": 1 / math.hypot(1, sigma), "flow": 1 / (1 + sigma)}[kind]


def said(problem: Given, scheduler: Any, y: Tensor, sigma: float) -> Tensor:
    """What a network of the scheduler's kind predicts."""
    denoised = problem.denoise(y, sigma)
    eps = (y - denoised) / sigma
    if type(scheduler).__name__.startswith("FlowMatch"):
        return eps - denoised
    if type(scheduler).__name__.startswith("EDM"):
        data = scheduler.config.sigma_data
        total = sigma**2 + data**2
        return (denoised - y * data**2 / total) / (sigma * data / math.sqrt(total))
    return eps


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of diffusers and the solver that is the same: a Comparison's `run`.

    config: the scheduler's; ends: of its class, set before its timesteps are; steps: how many of the grid's are
    compared, all by default (theirs is left before its own step of no length); times: the grid's timesteps where they
    are not those that the scheduler visits; final: what we do from the last node, where they go on to sigma = 0;
    given: to its step; options: to `ds.solve`.
    """

    name: str
    solver: Any
    config: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    times: Sequence[float] | None = None
    final: str = "denoise"
    given: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] | None = None
    n: int = N

    def __call__(self, problem: Given) -> Pair:
        with in_float64(getattr(diffusers, self.name), self.noise(problem)):
            scheduler = self.build(problem.process)
            visited, grid = self.levels(scheduler)
            solver = self.solver() if callable(self.solver) else self.solver
            y = problem.unit * visited[0]
            steps = len(grid) if self.steps is None else self.steps
            ours = problem.solve(solver, grid, y, save="all", **self.options).trajectory[steps]
            return ours, self.theirs(problem, scheduler, visited, grid, y, steps)

    def noise(self, problem: Given) -> Iterator[Tensor]:
        return iter(problem.draws[:, 0])

    def build(self, process: ds.Process) -> Any:
        kind = getattr(diffusers, self.name)
        betas = BETAS if self.name.startswith(("Flow", "EDM")) is False else {}
        scheduler = kind(**{**betas, **self.config})
        if hasattr(scheduler, "alphas_cumprod") and hasattr(process, "table"):
            scheduler.alphas_cumprod = torch.from_numpy(1 / (1 + process.table**2))
            if float(getattr(scheduler, "final_alpha_cumprod", 1.0)) < 1:
                scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
        if self.prepare:
            self.prepare(scheduler)
        else:
            scheduler.set_timesteps(self.n)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return scheduler

    def levels(self, scheduler: Any) -> tuple[list[float], ds.Grid]:
        """The noise level of each of its calls, and the grid that they belong to."""
        if hasattr(scheduler, "sigmas"):
            outer = _levels(scheduler)
            inner = getattr(scheduler, "sigmas_interpol", None)
            mids = isinstance(scheduler, diffusers.DPMSolverSDEScheduler)
            visited = []
            for i in range(len(scheduler.timesteps)):
                between = math.sqrt(outer[i - 1] * outer[i]) if mids else None if inner is None else float(
                    inner[i if self.name == "KDPM2DiscreteScheduler" else i - 1])
                visited.append(outer[i] if i % 2 == 0 or between is None else between)
            nodes = [a for a, b in pairwise([*outer, -1.0]) if not math.isclose(a, b, rel_tol=1e-9)]
        else:
            table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().tolist()
            visited = [table[int(t)] for t in scheduler.timesteps]
            nodes = list(dict.fromkeys(visited)) if self.times is None else [table[int(t)] for t in self.times]
            last = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
            nodes.append(0.0 if last == 1 else table[0])
        if nodes[-1] == 0:
            return visited, ds.Grid(nodes[:-1], final=self.final)  # type: ignore[arg-type]
        return visited, ds.Grid(nodes)

    def theirs(
        self, problem: Given, scheduler: Any, visited: list[float], grid: ds.Grid, y: Tensor, steps: int
    ) -> Tensor:
        kind, end = kind_of(scheduler), grid.sigmas[steps]
        x = y * scale(kind, visited[0])
        for i, (t, sigma) in enumerate(zip(scheduler.timesteps, visited, strict=True)):
            if sigma < 0.999 * end or (i + 1 == len(visited) and math.isclose(sigma, end)):
                break
            if hasattr(scheduler, "is_scale_input_called"):
                scheduler.is_scale_input_called = True
            said_ = said(problem, scheduler, x / scale(kind, sigma), sigma)
            x = scheduler.step(said_, t, x, return_dict=False, **self.given)[0]
        return x / scale(kind, end)


def _levels(scheduler: Any) -> list[float]:
    s = scheduler.sigmas.double().tolist()
    return [t / (1 - t) for t in s] if kind_of(scheduler) == "flow" else s


def compare(row: str, name: str, label: str = "", solver: Any = None, **options: Any) -> Comparison:
    """A Comparison with one of diffusers' schedulers; the solver is the row itself unless it is given."""
    process = options.pop("process", "sd")
    return Comparison(row, name, label, Scheduler(name, solver or row, **options), process)


@cache
def comparisons() -> tuple[Comparison, ...]:
    from peers_flow import FLOW
    from peers_k_diffusion import K_DIFFUSION
    from peers_noise import NOISE

    return tuple(chain(FLOW, NOISE, K_DIFFUSION))
