"""The rows of ComfyUI's samplers: its own functions' results with the same noise, and what each claims besides."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from peers import TOLERANCE
from peers_comfyui import CASES, Case, problem, stored, unit
from stubs import gap, mixture

import diffsolve as ds
from diffsolve.solvers import Adams, Ancestral, Leapfrog, MovedCFGpp

NAMES = [
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2",
    "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm",
    "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2",
    "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2", "exp_heun_2_x0", "exp_heun_2_x0_sde",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_the_results_are_comfyuis_own(case: Case) -> None:
    assert gap(case.ours(), stored()[case.key]) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "changed"),
    [("res_multistep_ancestral", "res_multistep_ancestral(published=False)"),
     ("dpmpp_2s_ancestral_cfg_pp", "dpmpp_2s_ancestral_cfg_pp(published=False)"), ("heunpp2", "heun"),
     ("res_multistep_cfg_pp", "res_2m"), ("dpm_2_ancestral_RF", "ddim_eta(rule=flow)"),
     ("sa_solver_pece", "sa_solver_pece(predictor=3, corrector=3)")],
)  # fmt: skip
def test_it_sees_a_small_difference(name: str, changed: str) -> None:
    case = next(case for case in CASES if case.name == name)
    assert gap(replace(case, row=changed).ours(), stored()[case.key]) > 1e-4


def test_every_name_of_its_menu_is_known() -> None:
    for name in NAMES:
        entry = ds.find_solver(name)
        assert name in [entry.name, *(part for alias in entry.aliases.values() for part in alias.split(", "))], name


@pytest.mark.parametrize(
    ("row", "same"),
    [("exp_heun_2_x0", "res_2s(c2=1)"), ("exp_heun_2_x0(solver_type=phi_1)", "dpmpp_2s(r=1.0)"),
     ("dpmpp_2m_sde_heun", "dpmpp_2m_sde(solver_type=heun)"), ("unipc_bh1", "unipc(variant=bh1)"),
     ("euler_ancestral_rf", "ddim_eta(rule=flow)"), ("dpmpp_2s_ancestral_rf", "dpmpp_2s_ancestral(rule=flow)"),
     ("exp_heun_2_x0_sde(solver_type=phi_1)", "dpmpp_sde(r=1.0)"), ("bdia(gamma=0)", "ddim"),
     ("cab(theta=0)", "lms(order=2)"), ("cab(order=3, theta=0)", "lms(order=3)")],
)  # fmt: skip
def test_rows_that_are_others(row: str, same: str) -> None:
    a, b = (ds.solve(mixture(), solver, n=9, batch=2, seed=1).x for solver in (row, same))
    assert gap(a, b) < 1e-12


@pytest.mark.parametrize(
    ("row", "plain"),
    [("res_multistep_cfg_pp", "res_2m"), ("gradient_estimation_cfg_pp", "gradient_estimation"),
     ("dpmpp_2s_ancestral_cfg_pp", "dpmpp_2s_ancestral"),
     ("res_multistep_ancestral_cfg_pp", "res_multistep_ancestral")],
)  # fmt: skip
def test_without_guidance_cfg_pp_is_the_solver_inside(row: str, plain: str) -> None:
    free, x = problem().unguided, 14 * unit()
    assert gap(ds.solve(free, row, n=9, x=x, seed=2).x, ds.solve(free, plain, n=9, x=x, seed=2).x) < 1e-12


def test_cfg_pp_of_one_evaluation_is_both_rules() -> None:
    """Exponential Euler moved by guidance is CFG++'s end, in the form whose N is D."""
    x = 14 * unit()
    moved = MovedCFGpp(Adams(1).with_changes(form="data"), plain=False)
    assert gap(ds.solve(problem(), moved, n=9, x=x).x, ds.solve(problem(), "euler_cfg_pp", n=9, x=x).x) < 1e-12


def test_a_history_lies_where_it_was_made_unless_it_is_published() -> None:
    """With the nodes as they are, the step down is of order 2 in the slope of D, however much noise follows."""
    inside = Adams(2).with_changes(form="data")
    for published, gone in ((False, 2.0), (True, 3.0)):  # how far from the next step the last evaluation counts
        wrapped, seen = Ancestral(inside, lambda f, span: f.form.sigma(span.start + 2.0 * span.h), published), []
        field: Any = mixture().field(wrapped, torch.zeros(2, 2), (0, 1), 0, None)
        span = ds.Span(0.0, 1.5)
        seen = wrapped.step(field, torch.ones(2, 2, dtype=torch.float64), span, ()).past
        assert 1.5 - seen[-1][0] == pytest.approx(1.5 * (gone - 1.0) if published else 1.5)


# Reversible methods


@pytest.mark.parametrize("solver", [Leapfrog(), Leapfrog(1.0), Leapfrog(0.7)], ids=["o_belm", "bdia", "bdia 0.7"])
@pytest.mark.parametrize("form", ["sigma", "data", "noise"])
def test_two_states_give_the_one_before(solver: Leapfrog, form: str) -> None:
    from diffsolve.program import spans_of

    method, flow = solver.with_changes(form=form), mixture()
    run = ds.start(flow, method, "karras", 12, batch=2, save="all", final="none")
    for _ in run:
        pass
    trajectory: Any = run.solution.trajectory
    field = run.field
    spans = spans_of(run.solution.grid, field.form)
    states = [field.form.to_form(x, node) for x, node in zip(trajectory, run.solution.nodes, strict=True)]
    newer, now = states[-1], states[-2]
    for before, span in reversed(list(pairwise(spans))):
        # u_1 is linear in u_-1: what it is without, and by how much that is multiplied
        zero, one = (method.step(field, now, span, ((before.start, now * factor),)).y for factor in (0.0, 1.0))
        newer, now = now, (newer - zero) / ((one - zero) / now)
    assert gap(now, states[0]) < 1e-7


@pytest.mark.parametrize("gamma", [None, 0.0, 0.7, 1.0])
@pytest.mark.parametrize("form", ["data", "noise"])
def test_a_leapfrog_is_exact_where_n_is_constant(form: str, gamma: float | None) -> None:
    """D = c in the data form, eps = c in the noise form: what the step before was short of is then 0."""
    c = torch.tensor([1.5, -0.5], dtype=torch.float64)

    def constant(y: torch.Tensor, sigma: float) -> ds.Output:
        return ds.Output((c if form == "data" else y - sigma * c).expand_as(y))

    flow = ds.ProbabilityFlow(denoiser=constant, process="edm", shape=(2,), dtype=torch.float64)
    x, nodes = 9 * torch.tensor([[1.0, 2.0]], dtype=torch.float64), [9.0, 5.0, 3.0, 1.0, 0.5, 0.2]
    exact = c + (x - c) * 0.2 / 9 if form == "data" else x + (0.2 - 9) * c
    solver = Leapfrog(gamma).with_changes(form=form)
    assert gap(ds.solve(flow, solver, nodes, x=x, final="none").x, exact) < 1e-12


def test_o_belm_is_its_formula_in_the_noise_level() -> None:
    """Wang et al. 2024, eq. 18, in VE coordinates: r^2 y_-1 + (1 - r^2) y_0 + h (1 + r) eps."""
    flow, nodes = mixture(), [9.0, 5.0, 3.0, 1.0, 0.5, 0.2]
    x = flow.prior(2, sigma=9.0)
    before, now = x, x + (nodes[1] - nodes[0]) * flow.eps(x, nodes[0])
    for older, start, end in zip(nodes, nodes[1:], nodes[2:], strict=False):
        r = (end - start) / (start - older)
        before, now = now, r * r * before + (1 - r * r) * now + (end - start) * (1 + r) * flow.eps(now, start)
    assert gap(ds.solve(flow, "o_belm", nodes, x=x, final="none").x, now) < 1e-12


def test_cab_is_its_formula_in_the_noise_level() -> None:
    flow, nodes, theta = mixture(), [9.0, 5.0, 3.0, 1.0, 0.5, 0.2], 0.9
    y, known = flow.prior(2, sigma=9.0), list[Any]()
    x = y
    for i, (start, end) in enumerate(pairwise(nodes)):
        h, eps = end - start, flow.eps(y, start)
        known.append(eps)
        if i == 0:
            y = y + h * eps
            continue
        r = h / (start - nodes[i - 1])
        after = y + h * ((1 + r / 2) * eps - r / 2 * known[-2])
        if i > 1:
            q = (start - nodes[i - 1]) / (nodes[i - 1] - nodes[i - 2])
            after = after + theta * h * (eps - (1 + q) * known[-2] + q * known[-3])
        y = after
    assert gap(ds.solve(flow, "cab", nodes, x=x, final="none").x, y) < 1e-12


def test_pece_estimates_its_error() -> None:
    exact = ds.solve(mixture(), "dopri5", n=300, seed=1).x
    found = ds.solve(mixture(), "sa_solver_pece", rtol=1e-6, atol=1e-6, eta=0.0, seed=1)
    assert found.stats["rejected"] >= 0
    assert gap(found.x, exact) < 1e-4


@pytest.mark.parametrize(
    "name", ["sa_solver", "sa_solver_pece", "sa_solver(form=sde_noise)", "sa_solver(form=sde_sigma)"]
)
def test_noise_between_two_levels(name: str) -> None:
    def end(options: str = "", **more: Any) -> Any:
        solver = (name[:-1] + f", {options})" if "(" in name else f"{name}({options})") if options else name
        return ds.solve(mixture(), solver, "karras", 12, seed=3, batch=2, **more)

    some = end("s_tmin=0.3, s_tmax=6")
    assert torch.equal(end("s_tmin=0, s_tmax=1e4").x, end().x)
    assert gap(end("s_tmin=100, s_tmax=200").x, end(eta=0.0).x) < 1e-12
    assert gap(some.x, end().x) > 1e-2 < gap(some.x, end(eta=0.0).x)
    assert gap(end("s_tmin=0.3, s_tmax=6", execution="tape").x, some.x) < 1e-12
    node = float(some.nodes[4])
    assert gap(end(f"s_tmin={node!r}").x, end(f"s_tmin={node * 0.999!r}").x) < 1e-12, "a node on the bound is within"


@pytest.mark.parametrize(
    ("solver", "message"),
    [("sa_solver(s_tmin=2, s_tmax=1)", "s_tmin = 2 is above s_tmax = 1"), ("sa_solver_pece(s_tmin=-1)", "s_tmin"),
     ("sa_solver(s_tmax=1, form=sde_time)", "take 'sde', 'sde_noise' or 'sde_sigma'")],
)  # fmt: skip
def test_noise_between_levels_that_are_none_is_refused(solver: str, message: str) -> None:
    with pytest.raises(ds.SolverError, match=message):
        ds.solve(mixture(), solver, "karras", 5)
