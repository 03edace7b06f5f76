"""What somebody else holds: states that are shown, calls that are answered, numbers with a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stubs import mixture
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import Inpaint

KEPT = "changed the state, or the data estimate, in place"


def shown(name: str, execution: str) -> None:
    """Iterate a run and change what a visit shows, between two steps."""
    for visit in ds.start(mixture(), "dpmpp_2m", "karras", 4, execution=execution):  # type: ignore[arg-type]
        getattr(visit, name).zero_()


@pytest.mark.parametrize("execution", ["eager", "tape"])
@pytest.mark.parametrize("name", ["x", "denoised"])
def test_what_a_visit_shows_is_not_to_be_changed(name: str, execution: str) -> None:
    with pytest.raises(ds.SolverError, match=KEPT):
        shown(name, execution)
    with pytest.raises(ds.SolverError, match=KEPT):
        ds.solve(mixture(), "dpmpp_2m", n=4, callback=lambda visit: visit.denoised.zero_() is None)


def test_a_fused_step_makes_no_data_estimate_that_nobody_asks_for() -> None:
    run = ds.start(mixture(), "dpmpp_2m", "karras", 4, execution="fused")
    visit = run.step()
    assert visit is not None
    assert run.field.newest is not None
    assert run.field.newest.unmade
    assert visit.denoised is not None
    assert not run.field.newest.unmade


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "lms(form=data)"])
def test_nor_is_the_state_of_a_call(solver: str) -> None:
    calls = ds.start(mixture(), solver, "karras", 4).calls()
    call = next(calls)
    answer = mixture().denoiser(call.y.clone(), call.sigma)
    call.y.zero_()
    with pytest.raises(ds.SolverError, match=KEPT):
        calls.send(answer)


def test_an_event_that_changes_the_state_is_named() -> None:
    def event(t: Any, x: Tensor) -> Tensor:
        return x.sub_(0.5)[0]

    problem = ds.ODEProblem(lambda t, x: -x, (0.0, 2.0), torch.ones(1, dtype=torch.float64))
    with pytest.raises(ds.SolverError, match="an event"):
        ds.solve(problem, rtol=1e-6, events=event)


def grad(value: float) -> Any:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


DROPPED: dict[str, Callable[[], Any]] = {
    "span": lambda: ds.ODEProblem(lambda t, x: -x, (0.0, grad(1.0)), [1.0]),
    "span of an SDE": lambda: ds.SDEProblem(lambda t, x: -x, lambda t, x: x, (grad(0.0), 1.0), [[1.0]]),
    "sigma_max": lambda: ds.solve(mixture(), "euler", n=3, sigma_max=grad(10.0)),
    "sigma_min": lambda: ds.make_grid(ds.Karras(), 3, ds.VP(), sigma_min=grad(0.1)),
    "nodes": lambda: ds.solve(mixture(), "euler", torch.tensor([10.0, 5.0, 1.0], requires_grad=True)),
    "nodes one by one": lambda: ds.solve(mixture(), "euler", [grad(10.0), grad(1.0)]),
    "sigma": lambda: mixture().noised(torch.ones(1, 2, dtype=torch.float64), grad(1.0)),
}


@pytest.mark.parametrize("name", DROPPED)
def test_a_gradient_that_would_be_dropped_is_refused(name: str) -> None:
    with pytest.raises(ds.DiffsolveError, match="carries a gradient, and a solve has none in it; detach"):
        DROPPED[name]()


@pytest.mark.parametrize("gradient", [None, "backprop"])
def test_the_known_part_of_a_picture_carries_one(gradient: Any) -> None:
    known, mask = torch.ones(2, dtype=torch.float64, requires_grad=True), torch.tensor([1.0, 0.0])

    def end(known: Tensor) -> Tensor:
        return ds.solve(Inpaint(mixture(), known, mask), "dpmpp_2m", n=5, final="none", gradient=gradient).x[0]

    jacobian = torch.autograd.functional.jacobian(end, known)
    step = torch.tensor([1e-5, 0.0], dtype=torch.float64)
    with torch.no_grad():
        slope = (end(known + step) - end(known - step)) / 2e-5
    assert torch.allclose(jacobian[:, 0], slope, rtol=1e-6, atol=1e-9)
    assert abs(float(slope[1])) > 1e-4


@pytest.mark.parametrize(("n", "cost"), [(1, "1 step, 1 evaluations"), (2, "2 steps, 2 evaluations")])
def test_the_status_counts_steps(n: int, cost: str) -> None:
    assert ds.solve(mixture(), "euler", n=n, final="none").status.endswith(f" in {cost}")
