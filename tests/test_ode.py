"""An ordinary equation as its users expect it: defaults, times, remedies, and what is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

import diffsolve as ds

F64 = torch.float64
DECAY = ds.ODEProblem(lambda t, x: -x, (0.0, 1.0), torch.ones(2, dtype=F64))


@pytest.mark.parametrize("linear", [0.0, -1.0, -500.0, 2.0])
@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)])
def test_a_tolerance_alone_is_enough(linear: float, span: tuple[float, float]) -> None:
    """u' = L u + cos t, whose solution is known; backwards L changes its sign, so that it stays what it is."""
    linear = math.copysign(linear, linear * (span[1] - span[0]))

    def exact(t: float) -> float:
        return (math.sin(t) - linear * math.cos(t)) / (1 + linear * linear)

    x0 = torch.full((3,), exact(span[0]) + 0.1, dtype=F64)
    problem = ds.SemilinearODE(linear, lambda t, x: torch.full_like(x, math.cos(t)), span, x0)
    errors = []
    for rtol in (1e-4, 1e-8):
        solution = ds.solve(problem, rtol=rtol)
        assert solution.nfe < 900
        wanted = exact(span[1]) + 0.1 * math.exp(linear * (span[1] - span[0]))
        errors.append(float((solution.x - wanted).abs().max()) / max(1.0, abs(wanted)))
    assert errors[0] < 2e-3
    assert errors[1] < 1e-6


@pytest.mark.parametrize(("options", "calls"), [
    ({"solver": "rk4", "n": 5}, 20), ({"solver": "rk4", "n": 5, "execution": "tape"}, 20),
    ({"solver": "rk4", "n": 5, "execution": "fused"}, 20), ({"solver": "lms", "n": 5}, 5), ({"rtol": 1e-5}, None),
])  # fmt: skip
def test_every_evaluation_is_counted(options: dict[str, Any], calls: int | None) -> None:
    made = []

    def f(t: float, x: torch.Tensor) -> torch.Tensor:
        made.append(t)
        return torch.cos(3 * t * x)

    with torch.no_grad():
        solution = ds.solve(ds.ODEProblem(f, (0.0, 1.0), [1.0]), **options)
    assert solution.nfe == len(made) == (calls or len(made)) > 0


def test_a_linear_part_by_itself_or_in_f_begins_with_steps_as_long() -> None:
    """The first step is as long as F = L u + f says, whichever of the two has what."""
    linear, x0 = -0.7, torch.tensor([1.0, -2.0], dtype=F64)
    parted = ds.SemilinearODE(linear, lambda t, x: torch.cos(t + x), (0.0, 2.0), x0)
    whole = ds.ODEProblem(lambda t, x: linear * x + torch.cos(t + x), (0.0, 2.0), x0)
    times = [ds.solve(problem, "tsit5", rtol=1e-6).visited for problem in (parted, whole)]
    assert times[0] == pytest.approx(times[1], rel=1e-9)


def test_the_default_with_a_tolerance_is_named() -> None:
    assert ds.solve(DECAY, rtol=1e-6).solver == ds.solve(DECAY, atol=1e-6).solver == "tsit5"
    assert ds.solve(DECAY, controller=ds.PIDController(1e-6)).solver == "tsit5"
    assert ds.solve(DECAY).solver == "etdrk4"
    assert ds.solve(ds.SemilinearODE(-1e3, lambda t, x: x, (0, 1), [1.0]), rtol=1e-4).solver == "res_3s"


@pytest.mark.parametrize("nodes", [[0.0, 2.0], [0.0, 0.5, -0.1], [1.1, 0.0], torch.tensor([0.0, 1.5]), np.arange(3.0)])
@pytest.mark.parametrize("options", [{}, {"rtol": 1e-3}, {"solver": "dopri5", "x": [1.0, 1.0]}], ids=str)
def test_times_outside_the_span_are_refused(nodes: Any, options: Any) -> None:
    for given in (nodes, list(map(float, nodes))):
        with pytest.raises(ds.GridError, match=r"t = \S+ is outside the problem's span, from 0 to 1; widen|turns back"):
            ds.solve(DECAY, schedule=given, **options)
    with pytest.raises(ds.GridError, match="is outside the problem's span"):
        ds.solve(DECAY, schedule=ds.Grid([0.0, 1.001]), **options)
    shown_in_single = torch.linspace(0, 1 / 3, 4)
    third = ds.ODEProblem(lambda t, x: -x, (0.0, 1 / 3), [1.0])
    assert ds.solve(third, schedule=shown_in_single).t[-1] == pytest.approx(1 / 3)


def test_times_do_not_lose_a_gradient_without_a_word() -> None:
    with pytest.raises(ds.GridError, match=r"the times carry a gradient.*detach"):
        ds.solve(DECAY, schedule=torch.tensor([0.0, 1.0], requires_grad=True))


@pytest.mark.parametrize("options", [{"solver": "euler", "n": 30}, {"rtol": 1e-6}, {"solver": "rk4", "n": 12}], ids=str)
@pytest.mark.parametrize("f", [lambda t, x: x * x * 1e200, lambda t, x: x * math.nan, lambda t, x: torch.log(x - 1)])
def test_a_blow_up_is_not_blamed_on_a_model(options: Any, f: Any) -> None:
    with pytest.raises(ds.DiffsolveError) as caught:
        ds.solve(ds.ODEProblem(f, (0.0, 2.0), torch.ones(1, dtype=F64)), **options)
    assert isinstance(caught.value, ds.NonFiniteError)
    assert re.search("right-hand side", str(caught.value))
    assert not re.search("model|guidance|half precision", str(caught.value))
    noisy = ds.SDEProblem(f, lambda t, x: x, (0.0, 2.0), torch.ones(1, 1, dtype=F64))
    with pytest.raises(ds.NonFiniteError, match="Look at f and g there"):
        ds.solve(noisy, n=30)


def test_a_list_of_methods_is_not_promised_where_there_is_none() -> None:
    noisy = ds.SDEProblem(lambda t, x: -x, lambda t: 1.0, (0.0, 1.0), [1.0])
    with pytest.raises(ds.SolverError, match=r"milstein.* gives no estimate of its error.* controller out$"):
        ds.solve(noisy, rtol=1e-3)
    with pytest.raises(ds.GridError, match="the times run from 1 to 0, against the span"):
        ds.solve(noisy, schedule=[1.0, 0.0], x=[1.0])


def test_what_users_of_other_libraries_write_is_named() -> None:
    x0 = torch.ones(2, dtype=F64)
    with pytest.raises(TypeError, match="must be Tensor, not float") as caught:
        ds.solve(ds.ODEProblem(lambda t, x: x * torch.sin(t), (0.0, 1.0), x0))
    assert any("math.sin(t), not torch.sin(t)" in note for note in caught.value.__notes__)
    with pytest.raises(ds.ProblemError, match="returned ndarray, expected a tensor"):
        ds.solve(ds.ODEProblem(lambda t, x: -x.numpy(), (0.0, 1.0), x0))
    with pytest.raises(ds.ProblemError, match=r"returned dtype torch.complex128, expected torch.float64"):
        ds.solve(ds.ODEProblem(lambda t, x: -x * 1j, (0.0, 1.0), x0))
    with pytest.raises(ds.ProblemError, match=r"x0 has dtype torch.complex64; .* torch\.view_as_real"):
        ds.ODEProblem(lambda t, x: -x, (0.0, 1.0), torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ds.GridError, match=r"start at 0\.5, but x0 is .* pass x, .* or begin the times with 0"):
        ds.solve(DECAY, schedule=[0.5, 1.0], rtol=1e-4)
    noisy = ds.SDEProblem(lambda t, x: -x, lambda t: torch.tensor([0.1, 0.2], dtype=F64), (0.0, 1.0), torch.ones(4, 2))
    for solver in ("euler_maruyama", "sra1"):
        assert ds.solve(noisy, solver, n=4).x.dtype == torch.float32, "a level is a number, whatever its dtype"
    with pytest.raises(ds.ProblemError, match=r"x is the number 1; an SDE's state is \(B, \.\.\.\)"):
        ds.solve(noisy, x=torch.tensor(1.0))


def test_an_ode_is_a_record_that_can_be_changed() -> None:
    problem = ds.ODEProblem(lambda t, x: -x, (0.0, 1.0), [1.0])
    later = problem.replace(span=(0.0, 2.0))
    assert problem.span == (0.0, 1.0)
    assert float(ds.solve(later, "dopri5", n=40).x) == pytest.approx(math.exp(-2), rel=1e-6)
    with pytest.raises(ds.ProblemError, match="ODEProblem has no field 'spam'; did you mean 'span'"):
        problem.replace(spam=(0.0, 2.0))
