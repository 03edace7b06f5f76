"""What a user's function hands back is the user's: one buffer that is filled again each time changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stubs import mixture
from torch import Tensor

import diffsolve as ds


@pytest.mark.parametrize("solver", ["dpmpp_2m", "lms", "damped_abm", "heun"])
def test_a_network_and_a_denoiser_of_both_sides_with_one_buffer(solver: str) -> None:
    buffer = torch.empty(2, 2, dtype=torch.float64)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return buffer.copy_(torch.tanh(x))

    plain = ds.ProbabilityFlow(lambda x, t: torch.tanh(x), prediction="x0", shape=(2,), dtype=torch.float64)
    static = ds.ProbabilityFlow(network, prediction="x0", shape=(2,), dtype=torch.float64)
    assert torch.equal(*[ds.solve(p, solver, n=6, batch=2).x for p in (static, plain)])

    free, held = torch.empty(2, 2, dtype=torch.float64), torch.empty(2, 2, dtype=torch.float64)

    def sides(y: Tensor, sigma: Any) -> ds.Output:
        return ds.Output(held.copy_(torch.tanh(y)), free.copy_(0.5 * torch.tanh(y)))

    fresh = lambda y, sigma: ds.Output(torch.tanh(y), 0.5 * torch.tanh(y))  # noqa: E731
    for wrap in (lambda d: d, lambda d: ds.Guided(d, 3.0)):
        problems = [ds.ProbabilityFlow(shape=(2,), dtype=torch.float64, denoiser=wrap(d)) for d in (sides, fresh)]
        assert torch.equal(*[ds.solve(p, solver, n=6, batch=2).x for p in problems])


def test_answers_from_outside_may_be_one_buffer() -> None:
    problem, buffer = mixture(), torch.empty(2, 2, dtype=torch.float64)
    run = ds.start(problem, "dpmpp_2m", n=6, batch=2)
    calls = run.calls()
    call: Any = next(calls)
    try:
        while True:
            call = calls.send(ds.Output(buffer.copy_(problem.denoise(call.y, call.sigma))))
    except StopIteration:
        pass
    assert torch.equal(run.solution.x, ds.solve(problem, "dpmpp_2m", n=6, batch=2).x)


def test_a_function_that_works_in_place_is_named() -> None:
    def f(t: float, x: Tensor) -> Tensor:
        return x.mul_(2)

    with pytest.raises(ds.ProblemError, match="the right-hand side at t = 0 changes the state it is given in place"):
        ds.solve(ds.ODEProblem(f, (0.0, 1.0), [1.0]), "rk4", n=2)

    class Rude(ds.ProbabilityFlow):
        def denoise(self, y: Tensor, sigma: float) -> Tensor:
            return y.mul_(0.5)

    with pytest.raises(ds.ProblemError, match=r"the denoiser at sigma = .* changes the state it is given in place"):
        ds.solve(Rude(shape=(2,)), "euler", n=2)


def test_a_callback_that_changes_the_state_in_place_is_named() -> None:
    with pytest.raises(ds.SolverError, match="changed the state, or the data estimate, in place"):
        ds.solve(mixture(), "euler", n=3, callback=lambda visit: visit.x.zero_() is None)
