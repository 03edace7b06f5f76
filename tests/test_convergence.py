"""The rows converge on whole runs, and are the methods that the literature writes down under their names."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import diffsolve as ds
from diffsolve.program import State, fixed_step_loop
from diffsolve.validation import Case
from diffsolve.validation import problems as zoo

FLOW = zoo.mixture().problem
N = 12
RANGE = {"sigma_min": 0.05, "sigma_max": 20.0}


def run(solver: str | ds.Solver, n: int = N, **options: object) -> Tensor:
    return ds.solve(FLOW, solver, n=n, batch=2, **RANGE, **options).x


def grid(n: int = N) -> list[float]:
    """Karras nodes and the 0 they end at."""
    return [*ds.Karras().nodes(n, RANGE["sigma_min"], RANGE["sigma_max"], FLOW.process).tolist(), 0.0]


def start() -> Tensor:
    return FLOW.prior(2, 0, RANGE["sigma_max"])


def same(a: Tensor, b: Tensor) -> None:
    assert float((a - b).norm() / b.norm()) < 1e-12


# Many steps


@cache
def full_range() -> Case:
    """The mixture over all of its trained range."""
    return Case("mixture", FLOW, FLOW.process.sigma_max, 0.02, FLOW.prior(2, 0))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "floor"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_lms_keeps_falling_at_500_and_1000_steps(dtype: torch.dtype, floor: float) -> None:
    case = full_range()
    x = case.x.to(dtype)
    errors = [
        case.error(ds.solve(FLOW, "lms", "karras", n=n, x=x, sigma_min=case.end, final="none", dtype=dtype).x)
        for n in (250, 500, 1000)
    ]
    assert all(fine < max(coarse / 2, floor) for coarse, fine in pairwise(errors)), errors


# The same methods under other names


@pytest.mark.parametrize("name", ["ddim", "dpm_solver_1", "dpmpp_1", "dpmpp_1(form=sde)", "lms(order=1)"])
def test_euler_has_many_names(name: str) -> None:
    same(run(name, eta=0.0 if ds.get_solver(name).stochastic else None), run("euler"))


def test_euler_ancestral_without_noise_is_ddim() -> None:
    same(run("euler_ancestral", eta=0.0), run("ddim"))


def test_euler_ancestral_is_ddpms_posterior_step() -> None:
    x, sigmas = start(), grid()
    field = FLOW.field(ds.get_solver("euler_ancestral"), x, range(2), 0, 1.0)
    bar = [1 / (1 + sigma**2) for sigma in sigmas]
    noisy = math.sqrt(bar[0]) * x
    for i, (old, new) in enumerate(pairwise(bar[:-1])):  # Ho et al. 2020, eq. 6 and 7
        clean = FLOW.denoise(noisy / math.sqrt(old), sigmas[i])
        alpha = old / new
        mean = math.sqrt(new) * (1 - alpha) / (1 - old) * clean + math.sqrt(alpha) * (1 - new) / (1 - old) * noisy
        z = field.normal(ds.Span(-math.log(sigmas[i]), -math.log(sigmas[i + 1])))
        noisy = mean + math.sqrt((1 - new) / (1 - old) * (1 - alpha)) * z
    same(run("euler_ancestral", eta=1.0), FLOW.denoise(noisy / math.sqrt(bar[-2]), sigmas[-2]))


def test_heun_is_edms_algorithm_1() -> None:
    x, t = start(), grid()
    for i in range(N):  # Karras et al. 2022, Algorithm 1 with sigma(t) = t, s(t) = 1
        d = (x - FLOW.denoise(x, t[i])) / t[i]
        guess = x + (t[i + 1] - t[i]) * d
        if t[i + 1] != 0:
            d2 = (guess - FLOW.denoise(guess, t[i + 1])) / t[i + 1]
            guess = x + (t[i + 1] - t[i]) * (d / 2 + d2 / 2)
        x = guess
    same(run("heun"), x)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_is_rho_ab_deis(order: int) -> None:
    from scipy.integrate import quad

    def basis(nodes: list[float], j: int, s: float) -> float:
        return math.prod((s - node) / (nodes[j] - node) for i, node in enumerate(nodes) if i != j)

    x, t, known = start(), grid(), []
    for i in range(N):  # Zhang & Chen 2023, eq. 15 in rho = sigma: polynomials through the last evaluations, integrated
        known = [*known, (t[i], FLOW.eps(x, t[i]))][-order if t[i + 1] else -1 :]
        nodes = [node for node, _ in known]
        for j, (_, value) in enumerate(known):
            weight, _ = quad(lambda s, j=j, nodes=nodes: basis(nodes, j, s), t[i], t[i + 1], epsabs=0, epsrel=1e-13)
            x = x + weight * value
    same(run(f"lms(order={order})"), x)


@pytest.mark.parametrize("name", ["dpm2", "dpm_solver_2", "dpm_solver_2(r=0.5)"])
def test_dpm2_is_the_midpoint_rule_in_log_sigma(name: str) -> None:
    x, t = start(), grid()
    for i in range(N - 1):  # k-diffusion's sample_dpm_2
        middle = math.sqrt(t[i] * t[i + 1])
        guess = x + (middle - t[i]) * FLOW.eps(x, t[i])
        x = x + (t[i + 1] - t[i]) * FLOW.eps(guess, middle)
    same(run(name), FLOW.denoise(x, t[-2]))


def test_dpmpp_2m_is_its_papers_algorithm() -> None:
    x, t = start(), grid()
    lam, old = [-math.log(s) for s in t[:-1]], None
    for i in range(N - 1):  # Lu et al. 2022b, Algorithm 2
        h, new = lam[i + 1] - lam[i], FLOW.denoise(x, t[i])
        r = (lam[i] - lam[i - 1]) / h
        d = new if old is None else (1 + 1 / (2 * r)) * new - 1 / (2 * r) * old
        x, old = t[i + 1] / t[i] * x - math.expm1(-h) * d, new
    same(run("dpmpp_2m"), FLOW.denoise(x, t[-2]))


def test_classical_and_exponential_methods_meet_where_there_is_no_linear_part() -> None:
    for form in ("sigma", "v", "flow", "time"):
        same(run(f"dpm2(form={form})"), run(f"midpoint(form={form})"))


def test_a_loop_can_go_on_from_a_past() -> None:
    solver, x = ds.get_solver("lms"), start()
    field = FLOW.field(solver, x, range(2), 0, None)
    program = ds.plan(solver, ds.Grid(np.array(grid()[:-1])), field)
    whole = list(fixed_step_loop(solver, field, program, State(program.start, x)))
    past, u = (), x
    for ((op,), after) in zip(program.steps[:5], whole, strict=False):
        step = solver.step(field, u, op.span, past)
        u, past = step.y, step.past
        assert torch.equal(after.u, u)
    rest = list(fixed_step_loop(solver, field, program, State(program.nodes[5], u, past, steps=5)))
    assert len(rest) == len(program) - 5
    assert torch.equal(rest[-1].u, whole[-1].u)
