"""States at given times between the steps: they cost little, and their error follows the tolerance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from stubs import rows
from test_adaptive import ABLE, logistic
from test_events import F64, worst
from torch import Tensor

import diffsolve as ds
from diffsolve.problems.interpolant import _INSIDE, hermite

FREE = ["heun", "bs23", "dopri5", "tsit5"]  # rows whose solution between its steps costs nothing at all
DENSE = rows(ABLE, ("bs23", "tsit5", "verner6", "dopri8", "dpm_solver_3"))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("solver", DENSE)
def test_the_error_at_any_time_follows_the_tolerance(solver: str, backwards: bool) -> None:
    problem = logistic((3.0, 0.0) if backwards else (0.0, 3.0))
    times = np.linspace(*problem.span, 47)
    solver = f"{solver}(form=sigma)"
    errors = []
    for rtol in (1e-4, 1e-7) if (ds.get_solver(solver).order or 0) > 2 else (1e-3, 1e-5):
        asked = ds.solve(problem, solver, times, rtol=rtol, atol=rtol)
        plain = ds.solve(problem, solver, rtol=rtol, atol=rtol, save="all")
        assert asked.t.tolist() == times.tolist()
        assert torch.equal(asked.x, plain.x), "the steps are the same"
        assert torch.equal(asked.x, asked.trajectory[-1])
        assert asked.visited.tolist() == plain.t.tolist() == asked.grid.nodes.tolist()
        errors.append(worst(problem, asked))
        assert errors[-1] < 12 * max(worst(problem, plain), rtol)
    assert errors[1] < errors[0] / (20 if (ds.get_solver(solver).order or 0) > 2 else 6)


@pytest.mark.parametrize("solver", FREE)
def test_it_costs_no_call_up_to_order_5(solver: str) -> None:
    times = np.linspace(0, 3, 300)
    costs = [ds.solve(logistic(), solver, schedule, rtol=1e-5).nfe for schedule in (None, times)]
    assert costs[0] == costs[1]


def test_above_order_5_it_costs_what_its_steps_hold() -> None:
    schedules: list[Any] = [None, [0.0, 1.0, 3.0], np.linspace(0, 3, 999)]
    plain, few, many = (ds.solve(logistic(), "verner6", times, rtol=1e-8) for times in schedules)
    assert plain.nfe < few.nfe <= plain.nfe + 4
    assert many.nfe <= plain.nfe + 3 * plain.steps + 1


@pytest.mark.parametrize(
    ("solver", "linear"),
    [("tsit5", -1.0), ("bs23", -40.0), ("dpm_solver_3", -10.0), ("res_3s", -10.0), ("res_3s", -1e3), ("res_3s", -1e5)],
)
def test_a_stiff_linear_part_is_met_between_steps_too(solver: str, linear: float) -> None:
    """u' = L (u - cos t): long steps through a boundary layer and behind it, where an error of a step soon decays."""

    def solution(t: float) -> float:
        return (linear**2 * math.cos(t) - linear * math.sin(t)) / (1 + linear**2) + math.exp(linear * t)

    x0 = torch.tensor([solution(0.0)], dtype=F64)
    problem = ds.SemilinearODE(linear, lambda t, u: torch.full_like(u, -linear * math.cos(t)), (0.0, 2.0), x0)
    times = sorted({*np.linspace(0, 2, 30), *(np.linspace(0.1, 2, 9) / -linear)})
    for rtol in (1e-4, 1e-6):
        found, plain = (ds.solve(problem, solver, ts, rtol=rtol, save="all") for ts in (times, None))
        seen = (zip(s.t.tolist(), s.trajectory, strict=True) for s in (found, plain))
        missed, at_nodes = ([abs(float(x) - solution(t)) for t, x in pairs] for pairs in seen)
        assert max(missed) < 8 * max(rtol, *at_nodes)


@pytest.mark.parametrize("degree", [3, 4, 5, 6, 7])
@pytest.mark.parametrize("z", [0.0, -1.0, 3.0, -7.9, -8.0, -8.1, -300.0, 8.0, 20.0])
def test_the_interpolant_is_exact_where_it_should_be(degree: int, z: float) -> None:
    """u' = L u + N for polynomials N of degree d - 1, on a step of -0.5; of degree 1 where |L h| is large."""
    h, linear = -0.5, z / -0.5
    c = [0.3, -1.0, 0.7, 0.4, -0.2, 0.5, 0.9][: 2 if abs(z) > 8 else degree]

    def value(s: float) -> Tensor:
        return torch.tensor([0.5 * math.exp(linear * s) + np.polyval(c, s)], dtype=F64)

    def rate(s: float) -> Tensor:
        return torch.tensor([0.5 * linear * math.exp(linear * s) + np.polyval(np.polyder(c), s)], dtype=F64)

    inside = [rate(h * x) for x in _INSIDE.get(degree, ())]
    piece = hermite(0.0, h, linear, (value(0), value(h)), (rate(0), rate(h)), inside)
    size = max(1.0, abs(float(value(h))))
    for s in np.linspace(h, 0, 21):
        assert float(abs(piece.at(s) - value(s))) < 1e-11 * size
        assert float(abs(piece.slope(s) - rate(s))) < 1e-10 * size * (1 + abs(linear))


@pytest.mark.parametrize("solver", ["dopri5", "tsit5", "cash_karp", "dopri8", "verner6"])
def test_a_continuous_extension_has_order_4_and_joins_smoothly(solver: str) -> None:
    method = ds.get_solver(solver)
    rule = np.array(method.continuous())
    stages = len(rule) - 1
    assert rule.sum(1) == pytest.approx([*method.b[:stages], 0.0])
    assert rule[:, 0] == pytest.approx(np.eye(stages + 1)[0])
    assert rule @ [1, 2, 3, 4] == pytest.approx(np.eye(stages + 1)[-1], abs=1e-9)
    gaps = []
    for h in (0.2, 0.1):  # x' = x cos t + t^2 along a step, the weights of an integral at theta = 0.37
        field = lambda x, t: x * math.cos(t) + t * t  # noqa: E731
        k: list[float] = []
        for c, row in zip(method.c[:stages], method.a, strict=False):
            k.append(field(1 + h * sum(a * v for a, v in zip(row, k, strict=False)), c * h))
        k.append(field(1 + h * sum(b * v for b, v in zip(method.b, k, strict=False)), h))
        inside = 1 + h * (rule @ 0.37 ** np.arange(1, 5)) @ np.array(k)
        problem = ds.ODEProblem(lambda t, x: x * math.cos(t) + t * t, (0.0, 0.37 * h), torch.ones(1, dtype=F64))
        gaps.append(abs(inside - float(ds.solve(problem, "dopri8", n=20).x)))
    assert 20 < gaps[0] / gaps[1] < 80, "its local error is O(h^5)"
    assert ds.get_solver("rk4").continuous() is None


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)], ids=str)
def test_states_of_any_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    problem = ds.ODEProblem(lambda t, x: -x, (0.0, 1.0), torch.ones(shape, dtype=dtype))
    found = ds.solve(problem, schedule=torch.linspace(0, 1, 5), rtol=1e-5)
    for t, x in zip(found.t, found.trajectory, strict=True):
        assert (x.shape, x.dtype) == (shape, dtype)
        assert torch.allclose(x, torch.full_like(x, math.exp(-t)), rtol=1e-4)


def test_the_budget_the_callback_and_a_failure_keep_what_was_reached() -> None:
    times = np.linspace(0, 3, 31)
    spent = ds.solve(logistic(), "tsit5", times, rtol=1e-8, nfe=60)
    stopped = ds.solve(logistic(), "tsit5", times, rtol=1e-8, callback=lambda visit: visit.node > 1)
    assert (spent.reason, stopped.reason) == ("max_nfe", "stopped")
    for found in (spent, stopped):
        assert 1 < len(found.t) == len(found.trajectory) < 31
        assert found.t[-1] <= found.visited[-1] < found.t[-1] + 0.1
        assert worst(logistic(), found) < 1e-6
    singular = ds.ODEProblem(lambda t, x: x * x, (0.0, 2.0), torch.ones(1, dtype=F64))
    with pytest.raises(ds.DiffsolveError) as caught:
        ds.solve(singular, schedule=np.linspace(0, 2, 21), rtol=1e-6)
    known = caught.value.solution
    assert known.t[:10] == pytest.approx(np.arange(0, 1.0, 0.1))
    assert known.t[-1] <= known.visited[-1]
    assert float(known.trajectory[5]) == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("gradient", [None, "backprop", "checkpoint"])
@pytest.mark.parametrize("solver", ["tsit5", "dopri8", "bs23", "res_3s"])
def test_gradients_flow_between_steps(solver: str, gradient: Any) -> None:
    at, along = torch.tensor([0.7, 1.2, 0.9], dtype=F64), torch.tensor([1.0, -0.5, 0.3], dtype=F64)

    def loss(p: Tensor, solver: str = solver, rtol: float = 1e-6) -> Tensor:
        problem = ds.ODEProblem(lambda t, x: torch.cos(p[:2] * x + t) * p[2], (0.0, 2.0), [0.5, -0.3])
        found = ds.solve(problem, solver, [0.0, 0.33, 1.1, 2.0], rtol=rtol, gradient=gradient, dtype=F64)
        return sum(i * x.sum() for i, x in enumerate(found.trajectory))

    p = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(p), p)
    with torch.no_grad():
        h = 1e-4
        expected = (loss(at + h * along, "dopri8", 1e-11) - loss(at - h * along, "dopri8", 1e-11)) / (2 * h)
    assert float((found * along).sum()) == pytest.approx(float(expected), rel=1e-4)
    if gradient != "checkpoint":
        assert torch.allclose(torch.func.grad(loss)(at), found)
