"""Gradients through a solve, by backprop and by checkpoint: exact (of every row: test_contract.py), never dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stubs import mixture, numbers
from torch import Tensor
from torch.autograd import forward_ad

import diffsolve as ds

ADAPTIVE = ["heun", "dopri5", "dpm_solver_3"]
WEIGHT = numbers(2, 2, stream=-9)


def slope(f: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> float:
    """The derivative of a number along a direction, by central differences of order 4."""
    h = 1e-3
    with torch.no_grad():
        a, b, c, d = (float(f(at + k * h * along)) for k in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - d) / (12 * h)


def agrees(f: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> None:
    x = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(x), x)
    expected = slope(f, at, along)
    assert abs(float((gradient * along).sum()) - expected) <= 1e-6 * max(abs(expected), 1e-2)


def loss(x: Tensor) -> Tensor:
    return (x * WEIGHT).sum()


@pytest.mark.parametrize("gradient", [None, "checkpoint"])
@pytest.mark.parametrize("solver", ADAPTIVE)
def test_adaptive_steps_are_held_constant(solver: str, gradient: Any) -> None:
    problem, x = mixture(), mixture().prior(2).requires_grad_()
    solution = ds.solve(problem, solver, rtol=1e-3, x=x, gradient=gradient)
    (found,) = torch.autograd.grad(loss(solution.x), x)
    fixed = ds.solve(problem, solution.solver, solution.grid, x=x)
    (expected,) = torch.autograd.grad(loss(fixed.x), x)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("gradient", [None, "backprop", "checkpoint"])
@pytest.mark.parametrize("solver", ["euler_maruyama", "milstein", "sra1", "sra3"])
def test_an_sde_with_respect_to_its_parameters_and_x0(solver: str, gradient: Any) -> None:
    additive = solver.startswith("sra")

    def end(p: Tensor) -> Tensor:
        drift = lambda t, x: -p[0] * x  # noqa: E731
        noise = (lambda t: p[1].expand(2, 2)) if additive else (lambda t, x: p[1] * torch.sin(x))
        problem = ds.SDEProblem(drift, noise, (0.0, 1.0), WEIGHT + p[2], noise="diagonal")
        return ds.solve(problem, solver, n=5, seed=4, gradient=gradient).x.sum()

    agrees(end, torch.tensor([0.7, 0.4, 0.2], dtype=torch.float64), torch.tensor([1.0, -0.5, 0.3]).double())


def network(theta: Tensor) -> Any:
    return lambda x, t: torch.tanh(x * theta[0] + theta[1])


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_the_weights_of_a_network_count_where_they_are_asked_for(gradient: Any) -> None:
    x = numbers(2, 2) * 10

    def end(theta: Tensor) -> Tensor:
        problem = ds.ProbabilityFlow(network(theta), shape=(2,), dtype=torch.float64)
        return loss(ds.solve(problem, "dpmpp_2m", n=5, x=x, gradient=gradient).x)

    agrees(end, torch.tensor([0.4, 0.1], dtype=torch.float64), torch.tensor([1.0, -0.7]).double())
    theta = torch.tensor([0.4, 0.1], dtype=torch.float64, requires_grad=True)
    plain = ds.ProbabilityFlow(network(theta), shape=(2,), dtype=torch.float64)
    assert not ds.solve(plain, "dpmpp_2m", n=5, x=x).x.requires_grad, "sampling stays free of graphs"


@pytest.mark.parametrize("solver", ["rk4", "dpmpp_2m", "damped_abm", "dpmpp_2m_sde", "lms"])
def test_transforms_of_torch_func_agree_with_backward(solver: str) -> None:
    problem, at, along = mixture(), mixture().prior(2), numbers(2, 2)

    def f(x: Tensor) -> Tensor:
        return loss(ds.solve(problem, solver, n=4, x=x, seed=1).x)

    x = at.clone().requires_grad_()
    (expected,) = torch.autograd.grad(f(x), x)
    assert torch.allclose(torch.func.grad(f)(at), expected, rtol=1e-10)
    _, forward = torch.func.jvp(f, (at,), (along,))
    assert torch.allclose(forward, (expected * along).sum(), rtol=1e-10)


def test_a_parameter_under_torch_func_is_not_dropped() -> None:
    def f(p: Tensor) -> Tensor:
        return ds.solve(ds.ODEProblem(lambda t, x: -p * x, (0.0, 0.5), [1.0]), "rk4", n=40).x.sum()

    assert float(torch.func.grad(f)(torch.tensor(1.0))) == pytest.approx(-0.5 * 0.6065, abs=1e-4)


def test_no_graph_where_nobody_asks() -> None:
    x = mixture().prior(1).requires_grad_()
    with torch.no_grad():
        assert not ds.solve(mixture(), "heun", n=3, x=x).x.requires_grad
    assert not ds.solve(mixture(), "heun", n=3).x.requires_grad
    assert ds.solve(mixture(), "heun", n=3, x=x).x.requires_grad
    with torch.no_grad():
        assert ds.solve(mixture(), "heun", n=3, x=x, gradient="backprop").x.requires_grad


@pytest.mark.parametrize("solver", ["rk4", "dpmpp_2m", "damped_abm"])
def test_checkpoint_keeps_one_step_and_costs_one_pass_more(solver: str) -> None:
    problem, calls = mixture(), []

    class Counted(ds.ProbabilityFlow):
        def denoise(self, y: Tensor, sigma: float) -> Tensor:
            calls.append(sigma)
            return problem.denoise(y, sigma)

    counted = Counted(shape=(2,), dtype=torch.float64)
    x = problem.prior(2).requires_grad_()
    kept: list[int] = []
    pack = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with pack:
        solution = ds.solve(counted, solver, n=10, x=x, gradient="checkpoint")
    history = ds.get_solver(solver).history
    assert len(kept) <= (history + 3) * 10, "of each step no more than its state and history"
    loss(solution.x).backward()
    assert len(calls) <= 2.2 * solution.nfe


def test_what_can_not_be_says_so() -> None:
    x = mixture().prior(1)
    with pytest.raises(ds.SolverError, match="gradient must be one of 'backprop', 'checkpoint', got 'backporp'"):
        ds.solve(mixture(), n=2, gradient="backporp")  # type: ignore[arg-type]
    with pytest.raises(ds.SolverError, match="leave execution out"):
        ds.solve(mixture(), n=2, gradient="checkpoint", execution="tape")
    with pytest.raises(ds.SolverError, match=r"does not go together with torch\.func"):
        torch.func.grad(lambda x: ds.solve(mixture(), n=2, x=x, gradient="checkpoint").x.sum())(x)
    with forward_ad.dual_level(), pytest.raises(ds.SolverError, match=r"does not go together with torch\.func"):
        ds.solve(mixture(), n=2, x=forward_ad.make_dual(x, x), gradient="checkpoint")


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "guarded_abm"])
def test_a_level_of_forward_mode_goes_through(solver: str) -> None:
    x, along = mixture().prior(2, seed=3), numbers(2, 2, stream=-8)

    def end(x: Tensor) -> Tensor:
        return ds.solve(mixture(), solver, n=4, x=x).x

    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(end(forward_ad.make_dual(x, along))).tangent
    assert torch.allclose(found, torch.func.jvp(end, (x,), (along,))[1], rtol=1e-10)
    assert float((WEIGHT * found).sum()) == pytest.approx(slope(lambda x: loss(end(x)), x, along), rel=1e-6)
