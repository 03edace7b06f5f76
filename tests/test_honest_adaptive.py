"""What an adaptive solve does by itself: its first step, its form, its tolerances, and what it says at the end."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from stubs import BAD, Watched, gap, mixture, rows
from test_adaptive import ABLE, logistic, missed

import diffsolve as ds
from diffsolve.validation.references import sampling_cases

OWN = [name for name in ABLE if not name.startswith("fehlberg78")]  # which is blind where f depends on t alone


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
@pytest.mark.parametrize("solver", rows(OWN))
def test_a_first_length_is_neither_refused_nor_timid(solver: str, rtol: float) -> None:
    for problem in (logistic(), mixture()):
        stats = ds.solve(problem, solver, rtol=rtol).stats
        assert stats["errors"][0] < 1.5
        assert abs(stats["h"][0]) > abs(stats["h"][1]) / 30


def test_the_first_length_is_hairers_by_hand() -> None:
    """x' = -k x from 1: d_0 = 1/tol, d_1 = k/tol, h_0 = 0.01/k, d_2 = k^2/tol, and h_1 = (0.01 tol/k^2)^(1/order)."""
    k, tol = 3.0, 1e-6
    problem = ds.ODEProblem(lambda t, x: -k * x, (0.0, 1.0), torch.ones(1, dtype=torch.float64))
    for solver, order in (("bs23", 3), ("dopri5", 5)):
        h = ds.solve(problem, solver, rtol=tol).stats["h"][0]
        assert h == pytest.approx(min(1 / k, (0.01 * tol / max(k, k * k)) ** (1 / order)), rel=1e-6)
    back = ds.ODEProblem(lambda t, x: -k * x, (1.0, 0.0), torch.ones(1, dtype=torch.float64))
    assert ds.solve(back, "bs23", rtol=tol).stats["h"][0] < 0


@pytest.mark.parametrize("size", [0.0, 1e-9])
def test_a_start_that_says_nothing_still_begins(size: float) -> None:
    problem = ds.ODEProblem(lambda t, x: 1 - x, (0.0, 5.0), torch.full((2,), size, dtype=torch.float64))
    assert ds.solve(problem, "dopri5", rtol=1e-6).x == pytest.approx(1 - 2.718281828459045**-5, rel=1e-5)


@pytest.mark.parametrize("solver", ["heun", "dopri5", "adaptive_abm", "dpm_adaptive"])
def test_inside_out_is_the_same(solver: str) -> None:
    problem = mixture()
    x = problem.prior(2)
    whole = ds.solve(problem, solver, x=x, rtol=1e-3)
    run = ds.start(problem, solver, x=x, rtol=1e-3)
    calls, made = run.calls(), 0
    call = next(calls, None)
    while call is not None:
        made += 1
        with suppress(StopIteration):
            call = calls.send(problem.denoiser(call.y, call.sigma))
            continue
        call = None
    assert torch.equal(run.solution.x, whole.x)
    assert made == run.solution.nfe == whole.nfe


@pytest.mark.parametrize(
    ("solver", "options", "form"),
    [
        ("dopri5", {}, "noise"), ("heun", {}, "noise"), ("dopri5(form=sigma)", {}, "sigma"),
        ("dopri5", {"form": "sigma"}, "sigma"), ("dopri5", {"form": "v"}, "v"), ("dopri5(form=v)", {}, "v"),
        ("flow_heun", {}, "flow"), ("dpm_solver_3", {}, "noise"), ("res_3s", {}, "data"),
    ],
)  # fmt: skip
def test_the_form_of_a_diffusion(solver: str, options: dict[str, Any], form: str) -> None:
    problem = mixture()
    assert ds.start(problem, solver, rtol=1e-2, **options).field.form.name == form
    own = ds.get_solver(solver).form if not options else options["form"]
    assert ds.start(problem, solver, n=4, **options).field.form.name == own, "on a grid it is what it is"
    if form == "noise" and own == "sigma":
        assert ds.start(problem, solver, rtol=1e-2).solution.solver == f"{solver}(form=noise)", "and it says so"
        assert ds.start(problem, ds.get_solver(solver), rtol=1e-2).field.form.name == "noise"
        assert ds.start(logistic(), solver, rtol=1e-2).solution.solver == solver


def test_dopri5_just_works() -> None:
    case = sampling_cases(3, 32)[1]
    by_form = {form: ds.solve(case.flow, "dopri5", x=case.x, rtol=1e-3, **form_of(form), final="none")
               for form in ("", "sigma")}  # fmt: skip
    exact = case.at(case.end)
    assert gap(by_form[""].x, exact) < 2e-3 * float(exact.abs().max())
    assert by_form[""].nfe < 0.7 * by_form["sigma"].nfe


def form_of(form: str) -> dict[str, Any]:
    return {"form": form} if form else {}


def test_rtol_alone_means_something_for_dpm_adaptive() -> None:
    case = sampling_cases(3, 32)[1]
    exact = case.at(case.end)
    found = [ds.solve(case.flow, "dpm_adaptive", x=case.x, rtol=r, final="none") for r in (0.05, 1e-3, 1e-5)]
    errors = [float((s.x - exact).norm() / exact.norm()) for s in found]
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 10
    assert found[0].stats["atol"] == pytest.approx(0.0078)
    assert found[1].stats["atol"] == pytest.approx(0.0078 / 50)


def test_the_adaptive_pair_is_of_its_order() -> None:
    problem, solver = logistic(), ds.get_solver("adaptive_abm").with_changes(controller=None)
    for order, options in ((3, solver), (2, ds.get_solver("adaptive_abm(order=2)").with_changes(controller=None))):
        coarse, fine = (missed(problem, ds.solve(problem, options, n=n)) for n in (80, 160))
        assert coarse / fine == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize("name", ["gmm2", pytest.param("gmm64 cfg", marks=pytest.mark.slow)])
def test_the_adaptive_pair_needs_few_calls(name: str) -> None:
    case = next(case for case in sampling_cases(3, 32) if case.name == name)
    exact = case.at(case.end)

    def least(solver: str, target: float) -> int:
        for k in range(4, 22):
            solution = ds.solve(case.flow, solver, x=case.x, rtol=10 ** (-k / 4), final="none")
            if float((solution.x - exact).norm() / exact.norm()) < target:
                return solution.nfe
        return 10**6

    for target in (1e-2, 1e-3):
        assert least("adaptive_abm", target) <= 0.7 * least("dpm_adaptive", target)


# What it says at its end


def test_a_status_in_words_for_every_end() -> None:
    problem = mixture()
    whole = ds.solve(problem, "dpm_adaptive")
    stats = whole.stats
    assert whole.status.startswith(f"reached sigma = 0 in {whole.steps} steps, {whole.nfe} evaluations, "
                                   f"{stats['rejected']} attempts rejected, the largest error")  # fmt: skip
    spent = ds.solve(problem, "adaptive_abm", nfe=7)
    assert (spent.nfe, spent.reason) == (7, "max_nfe")
    assert f"stopped at sigma = {spent.visited[-1]:.4g} after {spent.steps} steps" in spent.status
    assert "raise nfe, or rtol and atol" in spent.status
    stopped = ds.solve(problem, "dopri5", rtol=1e-2, callback=lambda visit: True)
    assert stopped.status.startswith("stopped at sigma = ")
    assert "after 1 step, " in stopped.status
    assert stopped.status.endswith("a callback asked for it")
    fixed = ds.solve(problem, "heun", n=4)
    assert fixed.status == f"reached sigma = 0 in 4 steps, {fixed.nfe} evaluations"


def test_a_status_in_words_where_it_failed() -> None:
    blow_up = ds.ODEProblem(lambda t, x: x * x, (0.0, 2.0), torch.ones(1, dtype=torch.float64))
    with pytest.raises(ds.DiffsolveError) as caught:
        ds.solve(blow_up, "dopri5", rtol=1e-6)
    assert caught.value.solution.status.startswith("failed at t = 1 after ")
    assert str(caught.value) in caught.value.solution.status
    with pytest.raises(ds.NonFiniteError) as lost:
        ds.solve(Watched(mixture(), {k: lambda d: d * BAD for k in range(8, 99)}), "dpm_adaptive")
    assert "infinite 8 times, at ever shorter" in lost.value.solution.status

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(ds.Interrupted) as broken:
        ds.solve(Watched(mixture(), {12: interrupt}), "dpm_adaptive")
    assert broken.value.solution.status.startswith("interrupted at sigma = ")
    ended = ds.solve(logistic(), rtol=1e-4, events=_halfway)
    assert ended.status.startswith("ended at t = ")
    assert ended.status.endswith("a terminal event happened")


def _halfway(t: float, x: Any) -> Any:
    return t - 1.5


_halfway.terminal = True  # type: ignore[attr-defined]
