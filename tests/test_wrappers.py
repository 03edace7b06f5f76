"""What the wrappers do to the solver inside: guidance in two parts, restarts, eta, and what is refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from stubs import gap, mixture
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import GaussianMixture, StableDiffusion
from diffsolve.program import spans_of
from diffsolve.solvers import Adams, Ancestral, CFGpp, Churn, Langevin, RePaint, Restart, RungeKutta, tableaux
from diffsolve.validation import validate_order


def guided() -> tuple[Any, Tensor, list[float]]:
    means = ds.normals(1, range(4), 3, (8,), torch.float64, "cpu")
    problem = GaussianMixture(means, [0.2, 0.3, 0.4, 0.5], labels=[0, 1, 0, 1]).guided(1, 1.5)
    return problem, problem.prior(3), [14.0, 6.0, 3.0, 1.0, 0.4, 0.1]


def cfg_pp(order: int = 1) -> Tensor:
    """As ComfyUI writes it: x = D + sigma_down d(x, D') and its second-order form."""
    problem, x, nodes = guided()
    old, before = None, 0.0
    for s, t in pairwise(nodes):
        d, plain, _ = problem.denoiser(x, s)
        h = math.log(s / t)
        x = t / s * x + d - t / s * plain
        if order == 2 and old is not None:
            x = x - math.expm1(-h) * h / (2 * before) * (d - old)
        old, before = plain, h
    return x


def test_a_call_tells_the_guided_and_the_plain_estimate() -> None:
    problem, x, _ = guided()
    denoised, unconditional, _ = problem.denoiser(x, 2.0)
    assert torch.equal(denoised, problem.denoise(x, 2.0))
    assert torch.equal(unconditional, problem.unguided.denoise(x, 2.0))
    assert gap(denoised, unconditional) > 1e-3


def test_both_estimates_of_a_network_are_one_call_of_it() -> None:
    model = StableDiffusion.from_pretrained("emoji")
    problem, alone = model("red apple", guidance=3.0), model("red apple", guidance=1.0)
    y = problem.prior(2, seed=1)
    guided, plain, _ = problem.denoiser(y, 4.0)
    assert gap(guided, problem.denoise(y, 4.0)) < 1e-6
    assert gap(plain, model("", guidance=1.0).denoise(y, 4.0)) < 1e-5
    assert gap(guided, plain) > 1e-2
    assert alone.denoiser(y, 4.0).unconditional is None
    with pytest.raises(ds.ProblemError, match="the batch is 2, but there are 3 prompts"):
        model(["a", "b", "c"]).denoiser(y, 4.0)


@pytest.mark.parametrize("form", ["sigma", "noise", "data"])  # exponential Euler is DDIM in these three
def test_euler_cfg_pp(form: str) -> None:
    problem, x, nodes = guided()
    mine = ds.solve(problem, "euler_cfg_pp", nodes, x=x, final="none", form=form)
    assert gap(mine.x, cfg_pp()) < 1e-12
    assert mine.nfe == len(nodes) - 1
    taped = ds.solve(problem, "euler_cfg_pp", nodes, x=x, final="none", form=form, execution="tape").x
    assert gap(taped, mine.x) < 1e-12
    noisy = ds.solve(problem, "euler_ancestral_cfg_pp", nodes, x=x, final="none", eta=0.0).x
    assert gap(noisy, mine.x) < 1e-12
    assert gap(ds.solve(problem, "euler", nodes, x=x, final="none").x, mine.x) > 1e-2


@pytest.mark.parametrize("execution", ["eager", "tape"])
def test_dpmpp_2m_cfg_pp(execution: str) -> None:
    problem, x, nodes = guided()
    mine = ds.solve(problem, "dpmpp_2m_cfg_pp", nodes, x=x, final="none", execution=execution).x
    assert gap(mine, cfg_pp(order=2)) < 1e-12


@pytest.mark.parametrize(("name", "plain"), [("euler_cfg_pp", "euler"), ("dpmpp_2m_cfg_pp", "dpmpp_2m")])
def test_without_guidance_cfg_pp_is_the_solver_inside(name: str, plain: str) -> None:
    problem, x = guided()[0].unguided, guided()[1]
    assert gap(ds.solve(problem, name, n=9, x=x).x, ds.solve(problem, plain, n=9, x=x).x) < 1e-14


# Restart


def test_restart_goes_up_and_passes_the_interval_again() -> None:
    problem, nodes = mixture(), [10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05]
    wrapped = Restart(RungeKutta(tableaux.HEUN), [(0.08, 0.3), (0.4, 2.5)], times=2)
    field = problem.field(wrapped, problem.prior(1), (0,), 0, None)
    planned = wrapped.plan(spans_of(ds.Grid(nodes, final="none"), field.form), field)
    passed = [step.span if isinstance(step, ds.Renoise) else step for step in planned]
    way = [(span.start, span.end, span.visit) for span in passed]
    assert way == [
        (10.0, 5.0, 0), (5.0, 2.0, 0), (2.0, 1.0, 0), (1.0, 0.5, 0),
        (0.5, 2.0, 1), (2.0, 1.0, 1), (1.0, 0.5, 1), (0.5, 2.0, 2), (2.0, 1.0, 2), (1.0, 0.5, 2),
        (0.5, 0.2, 0), (0.2, 0.1, 0), (0.1, 0.2, 1), (0.2, 0.1, 1), (0.1, 0.2, 2), (0.2, 0.1, 2), (0.1, 0.05, 0),
    ]  # fmt: skip
    assert [isinstance(step, ds.Renoise) for step in planned] == [span.end > span.start for span in passed]
    still = problem.field(wrapped, problem.prior(1), (0,), 0, 0.0)
    spans = spans_of(ds.Grid(nodes, final="none"), still.form)
    assert list(wrapped.plan(spans, still)) == spans
    sol = ds.solve(GaussianMixture(torch.zeros(1, 2), 1.0), wrapped, nodes, final="none", save="all")
    assert (sol.steps, sol.nfe, len(sol.trajectory)) == (17, 2 * 13, 18)


def test_a_restart_over_an_interval_without_two_nodes_is_none() -> None:
    problem = GaussianMixture(mixture().means, 0.4)
    x = problem.prior(6, sigma=1.0)
    nodes = [10.0, 5.0, 1.0, 0.2, 0.05]
    plain = ds.solve(problem, "heun", nodes, x=10 * x).x
    assert torch.equal(ds.solve(problem, "restart(t_min=0.3, t_max=2.0)", nodes, x=10 * x).x, plain)
    assert gap(ds.solve(problem, "restart(t_min=0.1, t_max=2.0)", nodes, x=10 * x).x, plain) > 1e-3


def test_a_restart_keeps_the_law_of_a_gaussian() -> None:
    """With a denoiser that is right, noise added and taken off again leaves the marginals: variance 0.25 + sigma^2."""
    problem = GaussianMixture(torch.zeros(1, 1), 0.5)
    spread = ds.solve(problem, "restart(times=3)", n=40, batch=4000, final="none").x.std().item()
    assert spread == pytest.approx(math.hypot(0.5, problem.process.sigma_min), rel=0.04)


# eta, and what is refused


WRAPPED = [
    ("ddim_eta", "euler"), ("dpm2_ancestral", "dpm2"), ("dpmpp_2s_ancestral", "dpmpp_2s"), ("edm_stochastic", "heun"),
    ("restart", "heun"), ("lcm", "euler"), ("tcd", "euler"), ("ddpm", "dpmpp_1"),
    ("ddpm(variance=fixed_large)", "dpmpp_1"),
    ("dpmpp_2m_sde", "dpmpp_2m"), ("dpmpp_3m_sde", "dpmpp_3m_published"), ("dpmpp_sde", "dpmpp_2s"),
    ("seeds_1", "dpm_solver_1"), ("seeds_2", "dpm_solver_2"), ("seeds_3", "dpm_solver_3"), ("er_sde_1", "dpmpp_1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "flow"), WRAPPED)
def test_eta_zero_is_the_solver_of_the_flow(name: str, flow: str) -> None:
    problem = GaussianMixture(mixture().means, 0.4)
    x = problem.prior(2)
    still, plain = ds.solve(problem, name, n=9, x=x, eta=0.0), ds.solve(problem, flow, n=9, x=x)
    assert gap(still.x, plain.x) < 1e-12
    assert still.nfe == plain.nfe


def test_score_sde_ve_at_eta_zero_is_eulers_step_in_sigma_squared() -> None:
    problem, nodes = GaussianMixture(mixture().means, 0.4), [10.0, 5.0, 3.0, 1.0]
    x = y = problem.prior(2, sigma=10.0)
    for s, t in pairwise(nodes):
        y = y + (t * t - s * s) / (2 * s) * problem.eps(y, s)
    still = ds.solve(problem, "score_sde_ve", nodes, x=x, final="none", eta=0.0)
    assert gap(still.x, y) < 1e-14
    assert still.nfe == 3, "no corrector"


def test_churn_and_the_larger_variance_scale_with_eta() -> None:
    problem = GaussianMixture(mixture().means, 0.4)
    options = {"n": 9, "x": problem.prior(2)}
    half = ds.solve(problem, "edm_stochastic(churn=1.0)", eta=0.5, **options).x
    assert torch.equal(half, ds.solve(problem, "edm_stochastic(churn=0.5)", **options).x)
    assert torch.equal(ds.solve(problem, "tcd(gamma=0.8)", eta=0.5, **options).x,
                       ds.solve(problem, "tcd(gamma=0.4)", **options).x)  # fmt: skip


def test_there_is_no_churn_outside_its_range_or_on_the_way_to_zero() -> None:
    problem = GaussianMixture(mixture().means, 0.4)
    options = {"n": 9, "x": problem.prior(2)}
    plain = ds.solve(problem, "heun", **options).x
    assert torch.equal(ds.solve(problem, "edm_stochastic(s_tmin=20.0)", **options).x, plain)
    assert torch.equal(ds.solve(problem, "edm_stochastic(s_tmax=0.01)", **options).x, plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: ds.get_solver("ddim_eta(rule=flaw)"), "'lcm', 'cps', got 'flaw'; did you mean 'flow'"),
     (lambda: ds.get_solver("tcd(gamma=1.5)"), "gamma must be a number from 0 to 1, got 1.5"),
     (lambda: ds.get_solver("edm_stochastic(churn=-1)"), "churn must be a finite number of at least 0, got -1"),
     (lambda: ds.get_solver("restart(t_min=2, t_max=1)"), "0 < t_min < t_max"),
     (lambda: ds.get_solver("restart(times=1.5)"), "times must be a whole number of at least 0, got 1.5"),
     (lambda: Restart(Adams(1), [(0.1, 1.0), (0.5, 2.0)]), "don't overlap"),
     (lambda: Restart(Adams(1), 3), "pairs (t_min, t_max)"),
     (lambda: ds.get_solver("score_sde_ve(snr=0)"), "snr must be a finite number above 0, got 0"),
     (lambda: Langevin(Adams(1), corrections=-1), "corrections must be a whole number of at least 0, got -1"),
     (lambda: Langevin(Langevin(Adams(1)), corrections=2), "give one of them all the steps: corrections=3"),
     (lambda: ds.get_solver("dpmpp_2m_sde(solver_type=bh2)"), "one of 'midpoint', 'heun', got 'bh2'"),
     (lambda: CFGpp(RungeKutta(tableaux.HEUN)), "one evaluation a step"),
     (lambda: Churn("heun", 40), "Churn takes a Solver, such as get_solver('heun'), got 'heun'"),  # type: ignore[arg-type]
     (lambda: Ancestral(ds.get_solver("ddpm")), "Ancestral takes a solver of the flow, and <ddpm"),
     (lambda: ds.get_solver("ddim_eta(rule=3)"), "one of 'ddim', 'flow', 'lcm', 'cps', got 3"),
     (lambda: ds.get_solver("edm_stochastic(s_tmin=5, s_tmax=1)"), "s_tmin = 5 is above s_tmax = 1"),
     (lambda: ds.solve(mixture(), "ddim_eta(form=sde)", n=3), "adds its noise to a method of the flow; take a form"),
     (lambda: ds.solve(mixture(), "edm_stochastic(form=sde)", n=3), "adds its noise to a method of the flow"),
     (lambda: ds.solve(mixture(), Ancestral(ds.get_solver("heun"), "lcm"), n=3), "goes down to sigma = 0"),
     (lambda: ds.solve(mixture(), "score_sde_ve(form=data)", n=3), "are written for the forms 'sigma' and 'sde_sigma'"),
     (lambda: ds.solve(mixture(), "ddim", n=3, eta=0.5), "eta belongs to stochastic solvers such as 'ddim_eta'"),
     (lambda: ds.solve(mixture(), "lcm", n=3, form="noise"), "take a form that can: 'sigma', 'v' or 'flow'")],
)  # fmt: skip
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ds.SolverError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("make", [Ancestral, lambda inner: Churn(inner, 40.0), Restart, RePaint, CFGpp])
@pytest.mark.parametrize("name", ["dpmpp_2m", "euler(form=v)"])
def test_a_wrapper_keeps_the_form_of_the_solver_inside(make: Any, name: str) -> None:
    inner = ds.get_solver(name)
    wrapped = make(inner)
    flow = {"eta": 0.0} if wrapped.stochastic else {}
    assert wrapped.form == inner.form
    assert torch.equal(ds.solve(mixture(), wrapped, n=6, **flow).x, ds.solve(mixture(), inner, n=6).x)


def test_a_row_that_is_no_integrator_claims_no_order() -> None:
    rows = [entry for entry in ds.list_solvers() if entry.order is None]
    assert {"lcm", "tcd", "euler_cfg_pp"} <= {entry.name for entry in rows}
    for entry in rows:
        solver = ds.get_solver(entry.name)
        assert (solver.order, solver.order_as_started) == (None, None)
        with pytest.raises(ds.SolverError, match="claims no order"):
            validate_order(entry.name)


def test_lcm_converges_to_another_law() -> None:
    """D = y v/(v + sigma^2) of N(0, v) data: where many steps share a sigma, Var = Var (1 - 2 sigma^2/v) + sigma^2."""
    problem = GaussianMixture(torch.zeros(1, 1), 0.5)
    spread = ds.solve(problem, "lcm", n=200, batch=4000).x.std().item()
    assert spread == pytest.approx(0.5 / math.sqrt(2), rel=0.04)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_correction_is_the_papers_algorithm_4_with_the_steps_noise_scaled_by_eta(eta: float) -> None:
    """e = 2 (eta snr |z|/|g|)^2 of each sample, y + e g + sqrt(2 e) z, twice, and then the solver's step."""
    problem = mixture((3,))
    solver = Langevin(RungeKutta(tableaux.EULER).with_changes(form="sigma"), snr=0.3, corrections=2)
    y = problem.prior(4, sigma=2.0)
    field = problem.field(solver, y, range(4), 0, eta)
    span = ds.Span(2.0, 1.5)
    moved = y
    for visit in (-1, -2):
        score = (problem.denoise(moved, 2.0) - moved) / 4.0
        z = field.normal(replace(span, visit=visit))
        e = 2 * (eta * 0.3 * z.norm(dim=1) / score.norm(dim=1))[:, None] ** 2
        moved = moved + e * score + (2 * e).sqrt() * z
    expected = moved + (1.5 - 2.0) * (moved - problem.denoise(moved, 2.0)) / 2.0
    assert gap(solver.step(field, y, span, ()).y, expected) < 1e-12


def test_churn_reaches_down_to_the_end_unless_told() -> None:
    inner = RungeKutta(tableaux.EULER)
    lows: list[dict[str, float]] = [{}, {"s_tmin": 0.0}, {"s_tmin": 1.0}]
    ends = [ds.solve(mixture(), Churn(inner, 40.0, **low), n=12, seed=1).x for low in lows]
    assert torch.equal(ends[0], ends[1])
    assert gap(ends[2], ends[1]) > 1e-3


@pytest.mark.parametrize("process", ["vp", "flow"])
@pytest.mark.parametrize("form", ["sde", "sde_noise", "sde_sigma", "sde_time", "sde_flow", "sde_flow_even"])
def test_noise_between_two_levels_asks_for_a_form_whose_n_is_the_flows(form: str, process: str) -> None:
    solver = f"sa_solver(s_tmin=0.5, s_tmax=2, form={form})"
    if form in ("sde", "sde_noise", "sde_sigma"):
        assert ds.solve(mixture(process=process), solver, n=5, seed=1).x.isfinite().all()
    else:
        with pytest.raises(ds.SolverError, match="noise between two levels alone is for a form"):
            ds.solve(mixture(process=process), solver, n=5, seed=1)
