"""Adaptive runs as their users see them: progress, budgets, interrupts, and what happens where no step is good."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from stubs import BAD, Watched, gap, gaussian, mixture
from test_adaptive import logistic

import diffsolve as ds

FIELD = mixture()


def test_progress_is_the_share_of_the_way() -> None:
    seen: list[Any] = []
    solution = ds.solve(mixture(), "dpm_adaptive", callback=seen.append)
    assert [p.index for p in seen] == list(range(solution.n))
    assert {p.count for p in seen} == {None}
    assert [p.sigma for p in seen] == solution.sigmas[1:].tolist()
    assert all(a.share < b.share and a.nfe < b.nfe for a, b in pairwise(seen[:-1]))
    lambdas = -np.log(solution.sigmas[:-1])
    assert [p.share for p in seen[:-1]] == pytest.approx((lambdas[1:] - lambdas[0]) / (lambdas[-1] - lambdas[0]))
    assert (seen[-2].share, seen[-1].share) == (1, 1)
    fixed: list[Any] = []
    ds.solve(mixture(), "heun", n=4, callback=fixed.append)
    assert [(p.share, p.count) for p in fixed] == [(0.25, 4), (0.5, 4), (0.75, 4), (1.0, 4)]


@pytest.mark.parametrize("solver", ["heun", "dpm_adaptive"])
def test_the_bar_reaches_the_end(solver: str, capfd: pytest.CaptureFixture[str]) -> None:
    solution = ds.solve(mixture(), solver, n=4, progress=True)
    assert "100%" in capfd.readouterr().err.split("\r")[-1]
    assert solution.reason == "end"


def test_a_callback_may_stop() -> None:
    full = ds.solve(mixture(), "dpm_adaptive", save="all")
    stopped = ds.solve(mixture(), "dpm_adaptive", save="all", callback=lambda p: p.index == 2)
    assert (stopped.reason, stopped.steps, stopped.n) == ("stopped", 3, 3)
    assert stopped.sigmas.tolist() == full.sigmas[:4].tolist()
    assert torch.equal(stopped.x, full.trajectory[3])


def test_an_interrupt_hands_back_the_kept_steps() -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    full = ds.solve(mixture(), "dpm_adaptive", save="all")
    with pytest.raises(ds.Interrupted, match=r"after step \d+$") as caught:
        ds.solve(Watched(mixture(), {12: interrupt}), "dpm_adaptive", save="all")
    solution = caught.value.solution
    assert (solution.reason, solution.nfe) == ("interrupted", 12)
    assert 0 < solution.steps == solution.n == solution.stats["accepted"] < full.n
    assert torch.equal(solution.x, full.trajectory[solution.steps])
    assert solution.sigmas.tolist() == full.sigmas[: solution.steps + 1].tolist()


@pytest.mark.parametrize("solver", ["heun", "dopri5", "dpm_adaptive"])
def test_a_budget_is_kept(solver: str) -> None:
    problem = gaussian((3,))
    full = ds.solve(problem, solver, rtol=1e-2, save="all")
    for budget in range(8, full.nfe + 2, 3):
        solution = ds.solve(problem, solver, rtol=1e-2, nfe=budget, save="all")
        done = budget >= full.nfe
        assert solution.reason == ("end" if done else "max_nfe")
        assert solution.nfe <= budget
        assert torch.equal(solution.x, full.trajectory[solution.steps])
        if solution.steps:
            assert solution.sigmas.tolist() == full.sigmas[: solution.steps + 1].tolist()
        if solution.steps and solution.sigmas[-1] > problem.span[1]:
            rest = ds.solve(problem, solver, [solution.sigmas[-1], problem.span[1], 0.0], x=solution.x, rtol=1e-2)
            assert gap(rest.x, full.x) < 0.1, "it can be gone on with"
    with pytest.raises(ds.SolverError, match=r"needs at least \d evaluations, the budget is nfe = 1; raise it"):
        ds.solve(problem, solver, rtol=1e-2, nfe=1)


def test_a_nan_is_a_step_too_long() -> None:
    def broken(at: Sequence[int]) -> Watched:
        return Watched(mixture(), {call: lambda d: d * BAD for call in at})

    whole = ds.solve(mixture(), "dpm_adaptive", save="all")
    problem = broken([3])
    solution = ds.solve(problem, "dpm_adaptive")
    assert solution.stats["rejected"] == whole.stats["rejected"] + 1
    assert solution.stats["h"][0] == pytest.approx(0.01)
    assert gap(solution.x, whole.x) < 0.1
    assert solution.nfe == problem.calls
    with pytest.raises(ds.NonFiniteError, match=r"^step 3 \(.*infinite 8 times, at ever shorter") as caught:
        ds.solve(broken(range(8, 99)), "dpm_adaptive", save="all")
    kept = caught.value.solution
    assert (kept.reason, kept.steps, kept.n) == ("failed", 2, 2)
    assert torch.equal(kept.x, whole.trajectory[2])


def test_a_singularity_is_named_and_what_was_before_it_kept() -> None:
    blow_up = ds.ODEProblem(lambda t, x: x * x, (0.0, 2.0), torch.ones(1, dtype=torch.float64))  # 1/(1 - t)
    with pytest.raises(ds.DiffsolveError) as caught:
        ds.solve(blow_up, "dopri5", rtol=1e-6)
    solution = caught.value.solution
    assert "lost in rounding; raise rtol" in str(caught.value) or "NaN or infinite" in str(caught.value)
    assert 0.99 < solution.sigmas[-1] < 1.01
    assert solution.x.isfinite().all()


def test_float32_can_be_asked_too_much() -> None:
    problem = logistic()
    with pytest.raises(ds.SolverError, match=r"rtol = 1e-10 and .* float32 is no better than 5e-07; .*torch\.float64"):
        ds.solve(problem, "dopri5", rtol=1e-10, dtype=torch.float32)
    assert ds.solve(problem, "dopri5", rtol=0, atol=1e-5, dtype=torch.float32).reason == "end"
