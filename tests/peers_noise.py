"""diffusers' stochastic schedulers, given the same draws, and the rows that are the same; see peers.py."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.deprecated import KarrasVeScheduler, ScoreSdeVpScheduler
from peers import Comparison, Given, N, Pair, Scheduler, compare, in_float64
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import Inpaint
from diffsolve.program import State, fixed_step_loop

CONTINUOUS = ds.ContinuousVP()


class FromSampler(Scheduler):
    """DPMSolverSDEScheduler asks a Brownian tree; here, as k-diffusion's noise_sampler, the draws."""

    def theirs(self, problem: Given, scheduler: Any, visited: list[float], grid: Any, *rest: Any) -> Tensor:
        def sampler(start: Tensor, end: Tensor) -> Tensor:
            step = int(np.abs(grid.sigmas - float(start)).argmin())
            return problem.draws[step, 0 if math.isclose(grid.sigmas[step + 1], float(end), rel_tol=1e-9) else 1]

        scheduler.noise_sampler = sampler
        return super().theirs(problem, scheduler, visited, grid, *rest)


def sa_solver(predictor: int, corrector: int, tau: float) -> Comparison:
    def constant(_: Any) -> Tensor:
        return torch.tensor(tau, dtype=torch.float64)

    return compare(
        "sa_solver", "SASolverScheduler", f"orders {predictor} and {corrector}, tau = {tau}",
        f"sa_solver(predictor={predictor}, corrector={corrector}, simple_order_2=True, lower_final=True)",
        config={"predictor_order": predictor, "corrector_order": corrector, "tau_func": constant},
        options={"eta": tau * tau},
    )  # fmt: skip


def sa_solver_between(predictor: int, corrector: int, first: int, last: int) -> Comparison:
    """tau = 1 from timestep `first` to `last` alone: diffusers' own default is from 200 to 800."""

    def between(t: Any) -> Tensor:
        return torch.tensor(float(first <= t <= last), dtype=torch.float64)

    low, high = (ds.VP().sigma(t) for t in (first, last))
    return compare(
        "sa_solver", "SASolverScheduler", f"orders {predictor} and {corrector}, tau = 1 from {first} to {last}",
        f"sa_solver(predictor={predictor}, corrector={corrector}, simple_order_2=True, lower_final=True, "
        f"s_tmin={low!r}, s_tmax={high!r})",
        config={"predictor_order": predictor, "corrector_order": corrector, "tau_func": between},
    )  # fmt: skip


def dpmsolver(order: int, kind: str, solver: str) -> Comparison:
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": order, "solver_type": kind}
    name = "DPMSolverMultistepScheduler"
    return compare(solver.split("(")[0], name, f"sde-dpmsolver++, order {order}, {kind}", solver, config=config)


def edm_dpmsolver() -> Comparison:
    config = {"algorithm_type": "sde-dpmsolver++", "sigma_min": 0.03, "sigma_max": 14.0}
    return compare("dpmpp_2m_sde", "EDMDPMSolverMultistepScheduler", "sde-dpmsolver++", config=config, process="edm")


def ddpm(variance: str) -> Comparison:
    config = {"variance_type": variance, "clip_sample": False}
    return compare("ddpm", "DDPMScheduler", variance, f"ddpm(variance={variance})", config=config)


def tcd(gamma: float) -> Comparison:
    def prepare(scheduler: Any) -> None:
        scheduler.set_timesteps(timesteps=[999, 700, 400, 100], original_inference_steps=1000)

    own = {"config": {"set_alpha_to_one": False}, "prepare": prepare, "given": {"eta": gamma}}
    return compare("tcd", "TCDScheduler", f"gamma = {gamma}", f"tcd(gamma={gamma})", **own)


def karras_ve(problem: Given) -> Pair:
    """Its own schedule holds sigma^2, and it divides churn by its own number of steps."""
    with in_float64(KarrasVeScheduler, problem.draws[:, 0]):
        scheduler = KarrasVeScheduler()
        scheduler.set_timesteps(20)
        grid = ds.Grid([2.0 * 0.7**i for i in range(8)])
        x = start = problem.unit * grid.sigmas[0]
        for sigma, end in pairwise(grid.sigmas.tolist()):
            hat, sigma_hat = scheduler.add_noise_to_input(x, sigma)
            score = -problem.eps(hat, sigma_hat)
            ahead, slope = scheduler.step(score, sigma_hat, end, hat, return_dict=False)
            score = -problem.eps(ahead, end)
            x, _ = scheduler.step_correct(score, sigma_hat, end, hat, ahead, slope, return_dict=False)
    options = f"churn={80 * 7 / 20!r}, s_tmin=0.05, s_tmax=50.0, s_noise=1.007"
    return problem.solve(f"edm_stochastic({options})", grid, start).x, x


def score_sde_ve(corrections: int, problem: Given) -> Pair:
    """One sample, since of a batch it takes the mean norms."""
    unit, draws = problem.unit[:1], problem.draws[:, :, :1]
    problem.draws = draws
    order = draws.flip(1).flatten(0, 1) if corrections else draws[:, 0]
    with in_float64(diffusers.ScoreSdeVeScheduler, order):
        scheduler = diffusers.ScoreSdeVeScheduler(sigma_max=14.0, sigma_min=0.03, snr=0.16)
        scheduler.set_timesteps(N)
        scheduler.set_sigmas(N)
        scheduler.discrete_sigmas = torch.linspace(math.log(0.03), math.log(14), N, dtype=torch.float64).exp()
        grid = ds.Grid(scheduler.discrete_sigmas.flip(0).tolist())
        x = start = unit * grid.sigmas[0]
        for t, sigma in zip(scheduler.timesteps, grid.sigmas[:-1].tolist(), strict=False):
            for _ in range(corrections):
                x = scheduler.step_correct(-problem.eps(x, sigma) / sigma, x, return_dict=False)[0]
            x = scheduler.step_pred(-problem.eps(x, sigma) / sigma, t, x, return_dict=False)[0]
    return problem.solve(f"score_sde_ve(corrections={corrections})", grid, start).x, x


def score_sde_vp(t: float, problem: Given) -> Pair:
    """One step at a time: its steps are 1/n long, its timesteps (1 - 0.001)/(n - 1) apart."""
    n, process, z = 20, CONTINUOUS, problem.draws[0, 0]
    with in_float64(ScoreSdeVpScheduler, [z]):
        scheduler = ScoreSdeVpScheduler()
        assert (scheduler.config.beta_min, scheduler.config.beta_max) == (process.beta_min, process.beta_max)
        scheduler.set_timesteps(n)
        grid = ds.Grid([process.sigma(t), process.sigma(t - 1 / n)])
        start, end = (process.alpha(sigma) for sigma in grid.sigmas.tolist())
        eps = problem.eps(problem.unit / start, float(grid.sigmas[0]))
        theirs, _ = scheduler.step_pred(eps, problem.unit, torch.tensor(t, dtype=torch.float64))
    return problem.solve("score_sde_vp", grid, problem.unit / start).x * end, theirs


TEN_STEPS = ds.VP("linear", 0.01, 0.2, 10)
BARS = 1 / (1 + TEN_STEPS.table**2)
BETAS_OF_TEN = 1 - BARS / np.concatenate(([1.0], BARS[:-1]))  # in float64: those that the process's table stands for


def repaint(problem: Given) -> Pair:
    """Jumps of 2 steps, each taken twice, in the authors' loop; our one draw up is the sum of its two, one a step."""
    mask = (torch.arange(problem.unit[0].numel()) % 2).view(1, *problem.shape)
    painted, fresh = Inpaint(problem, problem.draws[-1, 1, :1], mask), iter(problem.draws.flatten(0, 1))
    grid = ds.make_grid(ds.Timesteps([float(t) for t in range(9, -1, -1)]), 10, TEN_STEPS)
    start = problem.unit * grid.sigmas[0]
    solver: Any = ds.get_solver("repaint(jump_length=2, jump_n_sample=2)")
    field: Any = painted.field(solver, start, range(len(start)), 0, None)
    constraint: Any = painted.constraint
    drawn, theirs = {}, []
    program = ds.plan(solver, grid, field)
    for op, *_ in program:
        span, z = op.span, next(fresh)
        if isinstance(op, ds.Renoise):
            first, second = BETAS_OF_TEN[[10 - span.index, 11 - span.index]]
            theirs += [z, next(fresh)]
            z = math.sqrt((1 - second) * first) * z + math.sqrt(second) * theirs[-1]
            z /= math.sqrt(1 - (1 - first) * (1 - second))
        else:
            known = constraint.project(start, op.node, span, 0, range(len(start)))
            own = (known - constraint.known) / max(op.node, 1e-9)
            theirs.append(torch.where(mask == 1, own, z))
        drawn[span] = z
    with in_float64(diffusers.RePaintScheduler, theirs):
        options = {"trained_betas": BETAS_OF_TEN, "num_train_timesteps": 10, "eta": 1.0, "clip_sample": False}
        scheduler = diffusers.RePaintScheduler(**options)
        scheduler.set_timesteps(10, jump_length=2, jump_n_sample=2)
        x = start * TEN_STEPS.alpha(float(grid.sigmas[0]))
        for t, to in pairwise([*scheduler.timesteps.tolist(), -1]):
            if to < t:
                sigma = float(TEN_STEPS.table[t])
                eps = problem.eps(x * math.hypot(1, sigma), sigma)
                x = scheduler.step(eps, t, x, constraint.known, mask).prev_sample
            else:
                x = scheduler.undo_step(x, to)
    field.normal = lambda span, kind=None: drawn[span]  # type: ignore[method-assign]
    *_, ours = fixed_step_loop(solver, field, program, State(program.start, start))
    return ours.u, x


MULTISTEP = ((1, "midpoint", "euler_ancestral"), (2, "midpoint", "dpmpp_2m_sde"),
             (2, "heun", "dpmpp_2m_sde(solver_type=heun)"))  # fmt: skip
SA = [(predictor, corrector, tau) for predictor, corrector in ((1, 1), (2, 2), (3, 3), (3, 4), (2, 1))
      for tau in (1.0, 0.6, 0.0)]
NOISE = [
    *(ddpm(variance) for variance in ("fixed_small", "fixed_large")),
    compare("euler_ancestral", "EulerAncestralDiscreteScheduler"),
    compare("dpm2_ancestral", "KDPM2AncestralDiscreteScheduler"),
    *(dpmsolver(*case) for case in MULTISTEP), edm_dpmsolver(),
    Comparison("dpmpp_sde", "DPMSolverSDEScheduler", "", FromSampler("DPMSolverSDEScheduler", "dpmpp_sde")),
    *(sa_solver(*case) for case in SA),
    *(sa_solver_between(*case) for case in ((2, 2, 200, 800), (3, 4, 200, 800), (3, 3, 500, 950), (1, 1, 0, 400))),
    compare("lcm", "LCMScheduler", n=4, config={"timestep_scaling": 1e6}),  # c_skip = 0, c_out = 1
    *(tcd(gamma) for gamma in (0.0, 0.5, 1.0)),
    Comparison("edm_stochastic", "KarrasVeScheduler", "", karras_ve, "edm"),
    *(Comparison("score_sde_ve", "ScoreSdeVeScheduler", f"{k} corrections", partial(score_sde_ve, k), "edm")
      for k in (0, 1)),
    *(Comparison("score_sde_vp", "ScoreSdeVpScheduler", f"from t = {t}", partial(score_sde_vp, t), CONTINUOUS)
      for t in (0.5, 0.2)),
    Comparison("repaint", "RePaintScheduler", "jumps of 2, twice", repaint, TEN_STEPS),
]  # fmt: skip
