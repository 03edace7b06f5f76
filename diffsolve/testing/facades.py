"""Checks of a solver where people work: as a function of k-diffusion's kind and as a diffusers scheduler."""

from __future__ import annotations

import warnings
from copy import copy
from unittest import SkipTest

import torch
from torch import Tensor

from .. import ProbabilityFlow
from ..errors import SolverError
from ..integrate import solve, start
from ..problems.processes import VP
from ..solver import Solver
from .needs import of_solvers
from .world import gap, mixture, numbers

SIGMAS = [9.0, 4.0, 1.5, 0.6, 0.2, 0.08, 0.0]
CALLS = 15
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@of_solvers("steps")
def check_k_diffusion(solver: Solver) -> None:
    """`interop.k_diffusion.sampler(solver)` does what `solve` does, and leaves x as it is."""
    from ..interop import k_diffusion

    inner = mixture()

    def model(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        denoised: Tensor = inner.denoise(x, float(sigma[0]))
        return denoised

    x = numbers(2, 2, stream=-5) * SIGMAS[0]
    given = x.clone()
    function = k_diffusion.sampler(solver.with_changes(name=""))  # some names mean another method there
    found = function(model, x, torch.tensor(SIGMAS, dtype=torch.float64), disable=True, seed=5)
    problem = k_diffusion.KDiffusionProblem(model, 0.08, 9.0, (2,), dtype=torch.float64)
    assert torch.equal(x, given), "x was changed"
    assert torch.equal(found, solve(problem, solver, SIGMAS, x=x, seed=5).x)


def _network(x: Tensor, t: Tensor) -> Tensor:
    """eps of the mixture, as Stable Diffusion's network is called."""
    sigma = float(VP().sigma(float(t[0])))
    y = x.double() * (1 + sigma * sigma) ** 0.5
    denoised: Tensor = mixture().denoise(y, sigma)
    eps: Tensor = (y - denoised) / sigma
    return eps.to(x.dtype)


@of_solvers("steps")
def check_scheduler(solver: Solver) -> None:
    """`DiffsolveScheduler` in the loop of a diffusers pipeline does what `solve` does."""
    from ..interop.diffusers.scheduler import DiffsolveScheduler
    from ..interop.diffusers.session import seeds_of

    scheduler = DiffsolveScheduler(solver=solver, schedule="karras", **SD)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that guidance can't be taken apart there: here is none
            scheduler.set_timesteps(CALLS)
    except SolverError as error:
        raise SkipTest(f"a pipeline is told its calls before: {error}") from error
    flow = ProbabilityFlow(_network, VP(), "eps", shape=(2,), dtype=torch.float64)
    seeds = seeds_of(torch.Generator().manual_seed(0), 2)
    begin = numbers(2, 2, stream=-5) * flow.process.sigma_max
    x = next(copy(start(flow, solver, "karras", nfe=CALLS, x=begin, batch=seeds)).calls()).x
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        raw = _network(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(raw, t, x, generator=generator, return_dict=False)[0]
    whole = solve(flow, solver, "karras", nfe=CALLS, x=begin, batch=seeds)
    assert len(scheduler.timesteps) == whole.nfe <= CALLS
    assert gap(x, whole.x) < 1e-5, "a pipeline's loop ends elsewhere"
