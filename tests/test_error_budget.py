"""Error budgets: parts that add up, long steps that are named, and an evened grid that is better where it says so."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from stubs import ONE_OF_EACH_KIND, slow

import diffsolve as ds
from diffsolve.validation import Case, ErrorBudgetReport, error_budget, sampling_cases
from diffsolve.validation.references import case_of, reference, row_errors

SOLVERS = ["euler", "heun", "dpmpp_2m"]


def karras(n: int) -> np.ndarray:
    process = ds.PROCESSES["sd"]
    return ds.Karras().nodes(n + 1, process.sigma_min, process.sigma_max, process)


def check(report: ErrorBudgetReport, n: int) -> None:
    """What holds for every budget."""
    assert report.passed, str(report)
    assert len(report.intervals) == n
    assert sum(i.share for i in report.intervals) == pytest.approx(1, abs=1e-9)
    assert sum(i.signed for i in report.intervals) == pytest.approx(1, abs=1e-4)
    assert all(i.share >= 0 and i.local > 0 for i in report.intervals)
    evened = np.array(report.evened)
    assert len(evened) == n + 1
    assert (np.diff(evened) < 0).all()
    assert (evened[0], evened[-1]) == (report.nodes[0], report.nodes[-1])
    assert report.kept == (report.after < report.before)
    assert report.sigmas.tolist() == list(report.evened if report.kept else report.nodes)


@pytest.mark.parametrize("seed", [0, slow(1), slow(2)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gaussian_is_evened(solver: str, seed: int) -> None:
    for n in (10, 20):
        report = error_budget(solver, "gauss", n=n, seed=seed, starts=16)
        check(report, n)
        assert report.after < 0.9 * report.before


@pytest.mark.parametrize("solver", ["euler", slow("heun"), slow("dpmpp_2m")])
def test_a_mixture_is_evened(solver: str) -> None:
    report = error_budget(solver, "gmm2", n=10, starts=16)
    check(report, 10)
    assert report.after < 0.8 * report.before


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "seed"), [("gmm2", 0), ("gmm2 cfg", 1)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_mixtures_are_evened(solver: str, seed: int, problem: str) -> None:
    """Under guidance Euler's parts cancel, and then even lengths need not be best: the report says so itself."""
    report = error_budget(solver, problem, n=8, seed=seed, starts=48)
    check(report, 8)
    assert report.kept or (solver, problem) == ("euler", "gmm2 cfg"), str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ONE_OF_EACH_KIND, "euler_ancestral", "seeds_2", "dpm_fast"])
def test_every_kind_of_row_has_a_budget(name: str) -> None:
    check(error_budget(name, "gmm2", n=8, starts=16), 8)


def test_the_suggestion_goes_back_into_solve() -> None:
    case = sampling_cases(0, 16)[0]
    report = error_budget("heun", case, n=12)
    rows = slice(1, None, 2)  # those that the grid was not made from
    exact = reference(case).state[rows]
    for schedule, error in ((report.sigmas, report.after), ("karras", report.before)):
        solution = ds.solve(case.problem, "heun", schedule, 12, x=case.x[rows], final="none")
        assert solution.n == 12
        assert float(row_errors(solution.x, exact).median()) == pytest.approx(error, rel=1e-9)


def test_the_parts_are_those_of_a_hand_calculation() -> None:
    """Euler on N(0, 1) in two steps: y' = sigma y/(1 + sigma^2), whose flow scales y by sqrt((1 + s1^2)/(1 + s0^2))."""
    case = case_of("", ds.problems.Gaussian([0.0], 1.0), starts=4)
    s = [case.start, 1.0, case.end]
    report = error_budget("euler", case, schedule=s)

    def flow(a: float, b: float) -> float:
        return float(np.sqrt((1 + b * b) / (1 + a * a)))

    def euler(a: float, b: float) -> float:
        return 1 + (b - a) * a / (1 + a * a)

    whole = abs(flow(s[0], s[2]))
    first = abs(euler(s[0], s[1]) - flow(s[0], s[1]))
    second = abs(euler(s[0], s[1]) * (euler(s[1], s[2]) - flow(s[1], s[2])))
    one, two = report.intervals
    assert (one.local * whole, two.local * whole) == pytest.approx((first, second), rel=1e-12)
    assert one.propagated * whole == pytest.approx(first * flow(s[1], s[2]), rel=1e-12)
    assert two.propagated == two.local
    assert one.share == pytest.approx(one.propagated / (one.propagated + two.propagated), rel=1e-12)


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m"])
def test_a_step_made_too_long_is_named(solver: str) -> None:
    nodes = np.delete(karras(20), [8, 9])
    report = error_budget(solver, "gauss", schedule=nodes, starts=16)
    check(report, 18)
    worst = max(report.intervals, key=lambda i: i.share)
    assert (worst.start, worst.end) == (nodes[7], nodes[8])
    assert report.verdict(worst) == "too long"
    assert "too long" in str(report)
    assert np.abs(report.sigmas - nodes[7]).min() > 0 or report.sigmas[8] > nodes[8]  # something now lies in between
    assert ((report.sigmas < nodes[7]) & (report.sigmas > nodes[8])).any()


def test_a_grid_that_is_no_better_is_not_kept() -> None:
    report = error_budget("lms(order=3, form=noise)", "gauss", n=20, starts=16)
    check(report, 20)
    assert not report.kept
    assert np.array_equal(report.sigmas, karras(20))
    assert "no better" in report.advice()


@pytest.mark.slow
def test_multistep_parts_add_up_to_first_order_by_the_flow_and_exactly_by_themselves() -> None:
    coarse, fine = (error_budget("dpmpp_2m", "gauss", n=n, starts=4) for n in (20, 80))
    assert coarse.multistep
    assert max(coarse.mismatch, fine.mismatch) < 1e-9
    assert fine.first_order < 0.5 * coarse.first_order < 0.25
    heun = error_budget("heun", "gauss", n=20, starts=4)
    assert not heun.multistep
    assert heun.first_order == heun.mismatch < 1e-9


@pytest.mark.slow
def test_the_starting_step_of_a_multistep_method_is_in_it() -> None:
    """Of many steps most of the error is the first one's, which is Euler's."""
    report = error_budget("lms(order=4, form=noise)", "gauss", schedule="exponential", n=50, starts=4)
    assert max(report.intervals, key=lambda i: i.local).start == report.nodes[0]


def test_a_stochastic_solver_is_run_without_its_noise() -> None:
    ancestral, ddim = (error_budget(name, "gauss", n=8, starts=4) for name in ("euler_ancestral", "ddim"))
    assert ancestral.error == pytest.approx(ddim.error, rel=1e-9)


def test_a_grid_with_other_ends_is_judged_between_them() -> None:
    report = error_budget("heun", "gauss", "trailing", 20, starts=8)
    check(report, 20)
    assert report.nodes[-1] > 0.1
    check(error_budget("heun", "gauss", [8.0, 4.0, 2.0, 1.0], starts=8), 3)


def test_a_flow_of_ones_own_and_bad_arguments() -> None:
    flow = ds.problems.GaussianMixture([[0.0, 1.0], [1.0, -1.0]], [0.4, 0.3])
    assert error_budget("heun", flow, "exponential", 6, starts=4).problem == "GaussianMixture"
    with pytest.raises(ds.ProblemError, match="choose from gauss"):
        error_budget("heun", "gmm3")
    with pytest.raises(ds.SolverError, match="at least 2 starts"):
        error_budget("heun", Case("", flow, 10.0, 0.1, torch.zeros(1, 2, dtype=torch.float64)))


def test_the_report_is_plain_and_drawn() -> None:
    report = error_budget("heun", "gauss", n=12, starts=8)
    data = json.loads(report.to_json())
    assert data["sigmas"] == report.sigmas.tolist()
    assert data["intervals"][0]["start"] == report.nodes[0]
    figure = report.plot()
    bars, errors = figure.axes
    assert [p.get_height() for p in bars.patches] == pytest.approx([i.share for i in report.intervals])
    assert errors.get_xscale() == errors.get_yscale() == "log"
    assert errors.get_xlim()[0] > errors.get_xlim()[1]
    figure.canvas.draw()
    assert not replace(report, mismatch=0.1).passed
    replace(report, after=1.0).plot().canvas.draw()
