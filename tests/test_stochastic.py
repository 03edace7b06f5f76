"""The stochastic rows against their peers, with the same noise: k-diffusion's functions and diffusers' schedulers."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.deprecated import KarrasVeScheduler, ScoreSdeVpScheduler
from given_noise import GivenNoise, as_stored, gap, k_diffusion, mixture, ours
from parity_cases import BETAS, ROUNDED, STEPS
from scipy.integrate import quad
from torch import Tensor

import diffsolve as ds
from diffsolve.solvers import Adams, Churn, ExponentialRungeKutta, RungeKutta, tableaux

CHURN = (4.0, 0.05, 10.0, 1.003)


def churned(solver: ds.Solver, form: str = "sigma") -> ds.Solver:
    wrapped = Churn(solver, *CHURN)
    wrapped.form = form
    return wrapped


SAMPLERS = [
    ("euler_ancestral", "euler_ancestral", 1.0), ("euler_ancestral", "ddim_eta", 1.0),
    ("euler_ancestral", "ddim_eta", 0.5), ("euler_ancestral", "ddpm", 1.0),
    ("dpm_2_ancestral", "dpm2_ancestral", 1.0), ("dpm_2_ancestral", "dpm2_ancestral", 0.5),
    ("dpmpp_2s_ancestral", "dpmpp_2s_ancestral", 1.0), ("dpmpp_2s_ancestral", "dpmpp_2s_ancestral", 0.5),
    ("dpmpp_2m_sde", "dpmpp_2m_sde", 1.0), ("dpmpp_2m_sde", "dpmpp_2m_sde", 0.5),
    ("dpmpp_2m_sde heun", "dpmpp_2m_sde(solver_type=heun)", 1.0),
    ("dpmpp_2m_sde heun", "dpmpp_2m_sde(solver_type=heun)", 0.5),
    ("dpmpp_3m_sde", "dpmpp_3m_sde", 1.0), ("dpmpp_3m_sde", "dpmpp_3m_sde", 0.5),
    ("dpmpp_sde", "dpmpp_sde", 1.0), ("dpmpp_sde r", "dpmpp_sde(r=0.4)", 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("theirs", "solver", "eta"), SAMPLERS)
def test_k_diffusion(theirs: str, solver: str, eta: float) -> None:
    assert gap(ours(solver, eta=eta), k_diffusion()[f"{theirs} {eta}"]) < 1e-12


@pytest.mark.parametrize(
    ("theirs", "solver"),
    [("euler churn", churned(RungeKutta(tableaux.EULER))),
     ("heun churn", "edm_stochastic(churn=4.0, s_tmin=0.05, s_tmax=10.0, s_noise=1.003)"),
     ("dpm_2 churn", churned(ExponentialRungeKutta(tableaux.dpm_2()), "noise"))],
)  # fmt: skip
def test_k_diffusion_with_churn(theirs: str, solver: str | ds.Solver) -> None:
    assert gap(ours(solver), k_diffusion()[theirs]) < 1e-12


@pytest.mark.parametrize(
    ("theirs", "solver"),
    [("euler_ancestral 0.5", "euler_ancestral"),  # the OU process's share of noise for the ancestral one
     ("euler_ancestral 1.0", "ddpm(variance=fixed_large)"), ("dpmpp_3m_sde 1.0", "dpmpp_3m_sde(mended=True)"),
     ("dpmpp_2m_sde 1.0", "dpmpp_2m_sde(solver_type=heun)"), ("dpmpp_sde r 1.0", "dpmpp_sde"),
     ("heun churn", "edm_stochastic(churn=4.0, s_tmin=0.05, s_tmax=10.0)")],
)  # fmt: skip
def test_parity_sees_a_small_difference(theirs: str, solver: str) -> None:
    eta = float(theirs.split()[-1]) if theirs[-1].isdigit() else 1.0
    assert gap(ours(solver, eta=eta), k_diffusion()[theirs]) > 1e-4


def er_sde(order: int) -> Tensor:
    """ER-SDE-Solver as the paper's code and ComfyUI write it, with quadrature in place of their sums."""
    def phi(sigma: float) -> float:
        return sigma * (math.exp(sigma**0.3) + 10)

    problem, nodes, x = as_stored(), k_diffusion()["sigmas"].tolist(), k_diffusion()["x"]
    known: list[tuple[float, Tensor, Any]] = []
    for i, (s, t) in enumerate(pairwise(nodes[:-1])):
        r, value, slope = phi(t) / phi(s), problem.denoise(x, s), None
        x = r * x + (1 - r) * value
        if known and order > 1:
            slope = (value - known[-1][1]) / (s - known[-1][0])
            x = x + (t - s + quad(lambda u: 1 / phi(u), t, s, epsabs=1e-13)[0] * phi(t)) * slope
        if slope is not None and known[-1][2] is not None and order > 2:
            bend = (slope - known[-1][2]) / ((s - known[-2][0]) / 2)
            first = quad(lambda u, s=s: (u - s) / phi(u), t, s, epsabs=1e-13)[0]
            x = x + ((t - s) ** 2 / 2 + first * phi(t)) * bend
        known.append((s, value, slope))
        x = x + math.sqrt(t * t - (s * r) ** 2) * k_diffusion()["draws"][i, 0]
    return problem.denoise(x, nodes[-2])


@pytest.mark.parametrize(
    ("order", "solver"), [(1, "er_sde_1"), (2, "er_sde_2"), (3, "er_sde_3(published=True)")]
)
def test_er_sde(order: int, solver: str) -> None:
    assert gap(ours(solver), er_sde(order)) < 1e-10
    assert gap(ours("er_sde_3"), er_sde(order)) > 1e-4


# A rule for rectified flow


@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_the_flow_rule_is_comfyuis_rf(eta: float) -> None:
    """sample_euler_ancestral_RF, whose sigma is our t and whose x is our y (1 - t)."""
    problem = as_stored()
    times = [sigma / (1 + sigma) for sigma in problem.sigmas[:-1]]
    x = k_diffusion()["x"] * (1 - times[0])
    for i, (s, t) in enumerate(pairwise(times)):
        down = t * (1 + (t / s - 1) * eta)
        x = down / s * x + (1 - down / s) * problem.denoise(x / (1 - s), s / (1 - s))
        share = (1 - t) / (1 - down)
        x = share * x + math.sqrt(t * t - (down * share) ** 2) * k_diffusion()["draws"][i, 0]
    mine = ds.solve(problem, "ddim_eta(rule=flow)", problem.sigmas[:-1], x=k_diffusion()["x"], final="none", eta=eta).x
    assert gap(mine * (1 - times[-1]), x) < 1e-12


# diffusers: its schedulers' own step, in the pipeline's loop around a float64 denoiser


def run(problem: GivenNoise, solver: str, grid: ds.Grid, unit: Tensor, **options: Any) -> Tensor:
    """x_t at the grid's end from x_T = unit (y = sigma unit on a process that explodes)."""
    problem.sigmas = grid.sigmas.tolist()
    first = problem.sigmas[0]
    alpha = problem.process.alpha
    y = ds.solve(problem, solver, grid, x=unit / alpha(first) if alpha(first) != 1 else unit * first, **options).x
    return y * (alpha(problem.sigmas[-1]) if problem.sigmas[-1] else 1.0)


def at_times(t: list[float], process: ds.Process, final: Any) -> ds.Grid:
    return ds.make_grid(ds.Timesteps(t), len(t), process, final=final)


def same_noise(monkeypatch: pytest.MonkeyPatch, scheduler: Any, draws: Tensor) -> None:
    """The scheduler draws `draws` in turn, in the dtype that it asks for."""
    in_turn = iter(draws)

    def randn_tensor(shape: Any, dtype: Any = None, **_: Any) -> Tensor:
        return next(in_turn).to(dtype or draws.dtype)

    monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", randn_tensor)


def scheduled(scheduler: Any, problem: GivenNoise, unit: Tensor, **options: Any) -> Tensor:
    """A variance-preserving scheduler's final sample, its tables in float64."""
    table = torch.from_numpy(problem.process.table)
    scheduler.alphas_cumprod = 1 / (1 + table**2)
    if hasattr(scheduler, "sigmas"):
        visited = [problem.process.sigma(t) for t in scheduler.timesteps.tolist()]
        last = 0.0 if float(scheduler.sigmas[-1]) == 0 else float(table[0])
        scheduler.sigmas = torch.tensor([*visited, last], dtype=torch.float64)
    x = unit
    for t in scheduler.timesteps:
        sigma = problem.process.sigma(float(t))
        eps = problem.eps(x * math.hypot(1, sigma), sigma)
        x = scheduler.step(eps, t, x, return_dict=False, **options)[0]
    return x


def build(name: str, n: int = STEPS, **config: Any) -> Any:
    scheduler = getattr(diffusers, name)(**BETAS, **config)
    scheduler.set_timesteps(n)
    return scheduler


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_scheduler(variance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (problem, unit), scheduler = mixture(), build("DDPMScheduler", variance_type=variance, clip_sample=False)
    same_noise(monkeypatch, scheduler, problem.draws[:, 0])
    theirs = scheduled(scheduler, problem, unit)
    grid = at_times([float(t) for t in scheduler.timesteps], problem.process, "denoise")
    assert gap(run(problem, f"ddpm(variance={variance})", grid, unit), theirs) < 1e-9


@pytest.mark.parametrize(
    ("order", "kind", "solver"),
    [(1, "midpoint", "euler_ancestral"), (2, "midpoint", "dpmpp_2m_sde"),
     (2, "heun", "dpmpp_2m_sde(solver_type=heun)")],
)  # fmt: skip
def test_dpmsolver_multistep_scheduler(order: int, kind: str, solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": order, "solver_type": kind}
    (problem, unit), scheduler = mixture(), build("DPMSolverMultistepScheduler", **config)
    same_noise(monkeypatch, scheduler, problem.draws[:, 0])
    theirs = scheduled(scheduler, problem, unit)
    assert gap(run(problem, solver, at_times(ROUNDED, problem.process, "denoise"), unit), theirs) < 2e-6  # in float32


def test_a_sign_is_wrong_in_the_third_order_of_dpmsolver_multistep_scheduler() -> None:
    scheduler = build("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", solver_order=3)
    scheduler._step_index, nodes = 9, -torch.log(scheduler.sigmas[7:11].double())
    values = [torch.full((1, 1), v, dtype=torch.float64) for v in (0.3, 0.1, 0.4)]
    zero = torch.zeros_like(values[0])
    theirs = scheduler.multistep_dpm_solver_third_order_update(values, sample=zero, noise=zero)
    alpha = 1 / math.hypot(1, float(scheduler.sigmas[10]))
    span = ds.Span(float(nodes[2]), float(nodes[3]))
    weights = Adams(3, quadrature="third_halved").weights(-2.0, span, nodes[:3].tolist())
    right = alpha * 2 * sum(w * v for w, v in zip(weights, values, strict=True))
    l2, l1, l0, end = nodes.tolist()
    slopes = (0.4 - 0.1) / (l0 - l1), (0.1 - 0.3) / (l1 - l2)
    second = (slopes[0] - slopes[1]) / (l0 - l2) * (end - l0) ** 2
    assert float(theirs - right) == pytest.approx(-alpha * second, rel=1e-4), "-0.5 in place of +0.5 of D2"


def test_euler_ancestral_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem, unit), scheduler = mixture(), build("EulerAncestralDiscreteScheduler")
    same_noise(monkeypatch, scheduler, problem.draws[:, 0])
    x = unit * scheduler.sigmas[0]
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        x = scheduler.step(problem.eps(x, float(scheduler.sigmas[i])), t, x, return_dict=False)[0]
    problem.sigmas = scheduler.sigmas.tolist()
    y = ds.solve(problem, "euler_ancestral", problem.sigmas, x=unit * scheduler.sigmas[0]).x
    assert gap(y, x) < 2e-6  # it casts the state to float32


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # numpy's
def test_kdpm2_ancestral_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem, unit), scheduler = mixture(), build("KDPM2AncestralDiscreteScheduler")
    same_noise(monkeypatch, scheduler, problem.draws[:, 0])
    x = unit * scheduler.sigmas[0]
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i] if scheduler.state_in_first_order else scheduler.sigmas_interpol[i - 1]
        x = scheduler.step(problem.eps(x, float(sigma)), t, x, return_dict=False)[0]
    problem.sigmas = list(dict.fromkeys(scheduler.sigmas.tolist()))
    y = ds.solve(problem, "dpm2_ancestral", problem.sigmas, x=unit * scheduler.sigmas[0]).x
    assert gap(y, x) < 1e-5  # tables in float32, and sigma_down by a difference in them


@pytest.mark.parametrize("tau", [1.0, 0.6, 0.0])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (2, 2), (3, 3), (3, 4), (2, 1)])
def test_sa_solver_scheduler(predictor: int, corrector: int, tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"predictor_order": predictor, "corrector_order": corrector}
    scheduler = build("SASolverScheduler", tau_func=lambda _: torch.tensor(tau, dtype=torch.float64), **config)
    problem, unit = mixture()
    same_noise(monkeypatch, scheduler, problem.draws[:, 0])
    theirs = scheduled(scheduler, problem, unit)
    solver = f"sa_solver(predictor={predictor}, corrector={corrector}, simple_order_2=True, lower_final=True)"
    grid = at_times([*ROUNDED, 0.0], problem.process, "none")
    assert gap(run(problem, solver, grid, unit, eta=tau * tau), theirs) < 1e-9


def test_lcm_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem, unit), scheduler = mixture(), build("LCMScheduler", 4, timestep_scaling=1e6)  # c_skip = 0, c_out = 1
    same_noise(monkeypatch, scheduler, problem.draws[:, 0])
    theirs = scheduled(scheduler, problem, unit)
    grid = at_times([float(t) for t in scheduler.timesteps], problem.process, "denoise")
    assert gap(run(problem, "lcm", grid, unit), theirs) < 1e-9


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_tcd_scheduler(gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    (problem, unit), scheduler = mixture(), diffusers.TCDScheduler(**BETAS)
    times = [999, 700, 400, 100]
    scheduler.set_timesteps(timesteps=times, original_inference_steps=1000)
    same_noise(monkeypatch, scheduler, problem.draws[:, 0])
    theirs = scheduled(scheduler, problem, unit, eta=gamma)
    grid = at_times([*map(float, times), 0.0], problem.process, "none")
    assert gap(run(problem, f"tcd(gamma={gamma})", grid, unit), theirs) < 1e-9


def test_edm_dpmsolver_multistep_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, unit = mixture("edm")
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(STEPS)
    same_noise(monkeypatch, scheduler, problem.draws[:, 0])
    x = unit * scheduler.sigmas[0]
    for i, t in enumerate(scheduler.timesteps):
        sigma, data = float(scheduler.sigmas[i]), scheduler.config.sigma_data
        total = sigma**2 + data**2
        raw = (problem.denoise(x, sigma) - x * data**2 / total) / (sigma * data / math.sqrt(total))
        x = scheduler.step(raw, t, x, return_dict=False)[0]
    problem.sigmas = scheduler.sigmas.tolist()
    y = ds.solve(problem, "dpmpp_2m_sde", problem.sigmas, x=unit * scheduler.sigmas[0]).x
    assert gap(y, x) < 1e-5  # its tables are float32


def test_karras_ve_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem, unit), scheduler = mixture("edm"), KarrasVeScheduler()
    scheduler.set_timesteps(STEPS)
    same_noise(monkeypatch, scheduler, problem.draws[:, 0])
    problem.sigmas = [2.0 * 0.7**i for i in range(8)]  # its own schedule holds sigma^2
    x = unit * problem.sigmas[0]
    for sigma, end in pairwise(problem.sigmas):
        hat, sigma_hat = scheduler.add_noise_to_input(x, sigma)
        scores = [-problem.eps(hat, sigma_hat)]
        ahead, slope = scheduler.step(scores[0], sigma_hat, end, hat, return_dict=False)
        score = -problem.eps(ahead, end)
        x, _ = scheduler.step_correct(score, sigma_hat, end, hat, ahead, slope, return_dict=False)
    churn = 80 * 7 / STEPS  # it divides by its own number of steps
    options = f"churn={churn!r}, s_tmin=0.05, s_tmax=50.0, s_noise=1.007"
    y = ds.solve(problem, f"edm_stochastic({options})", problem.sigmas, x=unit * problem.sigmas[0], final="none").x
    assert gap(y, x) < 1e-12


@pytest.mark.parametrize("corrections", [0, 1])
def test_score_sde_ve_scheduler(corrections: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, unit = mixture("edm", batch=1)  # of a batch it takes the mean norms
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_max=50.0, snr=0.16)
    scheduler.set_timesteps(12)
    scheduler.set_sigmas(12)
    scheduler.discrete_sigmas = torch.linspace(math.log(0.01), math.log(50), 12, dtype=torch.float64).exp()
    problem.sigmas = scheduler.discrete_sigmas.flip(0).tolist()
    same_noise(monkeypatch, scheduler, problem.draws.flip(1).flatten(0, 1) if corrections else problem.draws[:, 0])
    x = unit * problem.sigmas[0]
    for t, sigma in zip(scheduler.timesteps, problem.sigmas[:-1], strict=False):
        for _ in range(corrections):
            x = scheduler.step_correct(-problem.eps(x, sigma) / sigma, x, return_dict=False)[0]
        x = scheduler.step_pred(-problem.eps(x, sigma) / sigma, t, x, return_dict=False)[0]
    solver = f"score_sde_ve(corrections={corrections})"
    y = ds.solve(problem, solver, problem.sigmas, x=unit * problem.sigmas[0], final="none").x
    assert gap(y, x) < (1e-6 if corrections else 1e-9)  # its corrector's step size is a float32


def test_score_sde_vp_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    process = ds.ContinuousVP()
    (problem, unit), scheduler, n = mixture(process), ScoreSdeVpScheduler(), STEPS
    assert (scheduler.config.beta_min, scheduler.config.beta_max) == (process.beta_min, process.beta_max)
    scheduler.set_timesteps(n)
    for t in (1.0, 0.7, 0.2):  # one step at a time: its steps are 1/n long, its timesteps (1 - 0.001)/(n - 1) apart
        same_noise(monkeypatch, scheduler, problem.draws[:1, 0])
        problem.sigmas = [process.sigma(t), process.sigma(t - 1 / n)]
        start, end = (process.alpha(sigma) for sigma in problem.sigmas)
        eps = problem.eps(unit / start, problem.sigmas[0])
        theirs, _ = scheduler.step_pred(eps, unit, torch.tensor(t, dtype=torch.float64))
        y = ds.solve(problem, "score_sde_vp", problem.sigmas, x=unit / start, final="none").x
        assert gap(y * end, theirs) < 1e-9
