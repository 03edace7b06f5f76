"""k-diffusion's samplers, whose outputs make_k_diffusion_reference.py keeps, and the rows that are the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from peers import Comparison, Given, N, Pair
from torch import Tensor

import diffsolve as ds
from diffsolve.solvers import Churn, ExponentialRungeKutta, RungeKutta, tableaux
from diffsolve.solvers.schedules import PolyExponential

FILE = Path(__file__).parent / "data" / "k_diffusion.npz"
CHURN = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 10.0, "s_noise": 1.003}
OWN_STEPS = ("sample_dpm_fast", "sample_dpm_adaptive")  # they are told where to start and to end


@cache
def stored() -> dict[str, Tensor]:
    with np.load(FILE) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@dataclass(frozen=True)
class Sampler:
    """One of k-diffusion's functions and its options, and the solver that is the same: a Comparison's `run`."""

    name: str
    given: dict[str, Any]
    solver: Any
    final: str = "denoise"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.given.items())])

    def grid(self, problem: Given) -> ds.Grid:
        if self.name == "sample_dpm_fast":
            return ds.make_grid(PolyExponential(), self.given["n"] // 3 + 1, problem.process, final="none")
        return ds.make_grid(ds.Karras(), N, problem.process, final=self.final)  # type: ignore[arg-type]

    def __call__(self, problem: Given) -> Pair:
        solver = self.solver() if callable(self.solver) else self.solver
        grid = self.grid(problem)
        y = problem.unit * grid.sigmas[0]
        if self.name == "sample_dpm_adaptive":
            ours = ds.solve(problem, solver, x=y, final="none").x
        else:
            ours = problem.solve(solver, grid, y, **self.options).x
        return ours, stored()[f"{problem.name} {self.key}"]

    def theirs(self, problem: Given, sampling: Any) -> Tensor:
        """Their function's output; `sampling` is k-diffusion's module."""
        grid = self.grid(problem)
        sigmas, given, in_turn = grid.sigmas, dict(self.given), iter(problem.draws[:, 0])

        def noise(start: Tensor, end: Tensor) -> Tensor:
            step = int(np.abs(sigmas - float(start)).argmin())
            return problem.draws[step, int(abs(sigmas[step + 1] - float(end)) > 1e-9)]

        def model(y: Tensor, sigma: Tensor) -> Tensor:
            return problem.denoise(y, float(sigma[0]))

        if self.name.endswith(("ancestral", "sde", "fast")):
            given["noise_sampler"] = noise
        where = (sigmas[-1], sigmas[0]) if self.name == "sample_dpm_fast" else (torch.from_numpy(sigmas.copy()),)
        if self.name == "sample_dpm_adaptive":
            where = problem.span[::-1]
        with patch.object(torch, "randn_like", lambda *_: next(in_turn)):  # those with churn have no noise_sampler
            run = getattr(sampling, self.name)
            end: Tensor = run(model, problem.unit * sigmas[0], *map(_plain, where), disable=True, **given)
        return end


def _plain(value: Any) -> Any:
    return value if isinstance(value, Tensor) else float(value)


def compare(row: str, name: str, solver: Any = None, *, alias: str = "", **rest: Any) -> Comparison:
    own = {key: rest.pop(key) for key in ("final", "options") if key in rest}
    sampler = Sampler(f"sample_{name}", rest, solver or row, **own)
    peer = alias or sampler.name
    label = "" if alias else ", ".join(f"{key} = {value}" for key, value in rest.items())
    return Comparison(row, peer, label, sampler)


def churned(method: Any, form: str) -> Any:
    def build() -> ds.Solver:
        wrapped = Churn(method(), *CHURN.values())
        wrapped.form = form
        return wrapped

    return build


def stochastic() -> Iterator[Comparison]:
    for eta in (1.0, 0.5):
        own: dict[str, Any] = {"options": {"eta": eta}, "eta": eta}
        for row in ("euler_ancestral", "ddim_eta", "ddpm") if eta == 1 else ("ddim_eta",):
            yield compare(row, "euler_ancestral", **own)
        yield compare("dpm2_ancestral", "dpm_2_ancestral", **own)
        yield compare("dpmpp_2s_ancestral", "dpmpp_2s_ancestral", **own)
        yield compare("dpmpp_2m_sde", "dpmpp_2m_sde", **own)
        yield compare("dpmpp_2m_sde", "dpmpp_2m_sde", "dpmpp_2m_sde(solver_type=heun)", **own, solver_type="heun")
        yield compare("dpmpp_3m_sde", "dpmpp_3m_sde", **own)
    yield compare("dpmpp_3m_published", "dpmpp_3m_sde", eta=0.0, alias="sample_dpmpp_3m_sde(eta=0)")
    yield compare("dpmpp_sde", "dpmpp_sde")
    yield compare("dpmpp_sde", "dpmpp_sde", "dpmpp_sde(r=0.4)", r=0.4)


K_DIFFUSION = [
    compare("euler", "euler"), compare("heun", "heun"), compare("dpm2", "dpm_2"), compare("dpmpp_2m", "dpmpp_2m"),
    compare("lms", "lms", final="step"), compare("lms", "lms", "lms(order=2)", final="step", order=2),
    compare("euler", "euler", churned(lambda: RungeKutta(tableaux.EULER), "sigma"), **CHURN),
    compare("edm_stochastic", "heun", "edm_stochastic(churn=4.0, s_tmin=0.05, s_tmax=10.0, s_noise=1.003)", **CHURN),
    compare("dpm2", "dpm_2", churned(lambda: ExponentialRungeKutta(tableaux.dpm_2()), "noise"), **CHURN),
    *stochastic(),
    *(compare("dpm_fast", "dpm_fast", f"dpm_fast(remainder={n % 3})", n=n) for n in (9, 10, 11)),
    compare("dpm_fast", "dpm_fast", "dpm_fast(remainder=1, eta=0.7)", n=10, eta=0.7),
    compare("dpm_adaptive", "dpm_adaptive"),
    compare("dpm_adaptive", "dpm_adaptive", "dpm_adaptive(order=2)", order=2),
]  # fmt: skip
