"""Stability: known intervals, the linear part of exponential rows, multistep roots, and what must be caught."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.solvers import ExponentialRungeKutta, RungeKutta, tableaux
from diffsolve.validation import validate_stability
from diffsolve.validation.stability.matrix import principal_root, root_condition, step_matrix


class TwoStep(ds.Solver):
    """u_2 = a1 u_1 + a0 u_0 + h (b1 f_1 + b0 f_0), by Euler at first; its past holds the state and the slope."""

    def __init__(self, a1: float, a0: float, b1: float, b0: float, order: int) -> None:
        self.weights, self.order, self.history = (a1, a0, b1, b0), order, 2

    def step(self, f, y, span, past):
        slope, (a1, a0, b1, b0) = f(y, span.start), self.weights
        kept = ((span.start, y), (span.start, slope))
        if not past:
            return ds.Step(y + span.h * slope, past=kept)
        (_, before), (_, slope_before) = past
        return ds.Step(a1 * y + a0 * before + span.h * (b1 * slope + b0 * slope_before), past=kept)


@pytest.mark.parametrize(
    ("solver", "real", "imaginary"),
    [
        ("euler", 2.0, 0.0),
        ("heun", 2.0, 0.0),
        ("midpoint", 2.0, 0.0),
        ("rk4", 2.785293563, math.sqrt(8)),
        ("dopri5", 3.3065679, 0.9971888),
        ("lms(order=2)", 1.0, 0.0),
        ("lms(order=3)", 6 / 11, 0.7236275),
        ("lms(order=4)", 3 / 10, 0.4299870),
    ],
)
def test_known_intervals(solver: str, real: float, imaginary: float) -> None:
    report = validate_stability(solver)
    assert report.regions[0].real == pytest.approx(real, abs=1e-6)
    assert report.regions[0].imaginary == pytest.approx(imaginary, abs=1e-6)
    assert report.passed
    assert report.linear_order >= report.order


def test_the_stability_function_is_the_series() -> None:
    for name, stages in (("euler", 1), ("heun", 2), ("rk4", 4)):
        matrix = validate_stability(name).regions[0].matrix
        assert matrix[0, 0] == pytest.approx([1 / math.factorial(j) for j in range(stages + 1)], abs=1e-15)


@pytest.mark.parametrize("name", ["rk4", "dpm2", "dpmpp_2m", "lms(order=3, form=noise)"])
def test_the_matrix_is_what_a_solve_does(name: str) -> None:
    solver, linear, mu, n = ds.get_solver(name), -0.2 if "rk4" not in name else 0.0, -0.1, 40
    problem = ds.SemilinearODE(linear, lambda t, u: mu * u, (0.0, float(n)), torch.ones(1, dtype=torch.float64))
    x = ds.solve(problem, solver, n=n).x.item()
    before = ds.solve(problem, solver, schedule=list(range(n)), n=n).x.item()
    matrix = np.polynomial.polynomial.polyval(mu, np.moveaxis(step_matrix(solver, linear), -1, 0))
    largest = max(np.linalg.eigvals(matrix), key=abs)
    assert x / before == pytest.approx(largest.real, rel=1e-9)


@pytest.mark.parametrize("name", ["dpm_solver_1", "dpm_solver_2", "dpm_solver_3", "dpmpp_2m", "lms(form=data)"])
def test_exponential_rows_are_exact_in_the_linear_part(name: str) -> None:
    report = validate_stability(name, steps=(0.0, 0.5, 3.0))
    assert report.passed
    assert any("exact in the linear part" in s for s in report.statements)
    sign = ds.FORMS[report.form](ds.PROCESSES["sd"]).linear
    assert [r.linear for r in report.regions] == [0.0, sign * 0.5, sign * 3.0]
    for region in report.regions:
        assert region.matrix[0, 0, 0] == pytest.approx(math.exp(region.linear), rel=1e-14)


def test_classical_rows_in_a_form_with_a_linear_part_are_not() -> None:
    report = validate_stability("rk4(form=data)")
    assert report.passed
    assert not any("exact" in s for s in report.statements)
    assert report.regions[1].real == pytest.approx(2.785293563 - 0.5, abs=1e-6)  # R depends on (L + mu) h alone


def test_a_stability_is_never_claimed_of_an_explicit_row() -> None:
    for name in ("euler", "lms", "dpmpp_2m"):
        assert validate_stability(name).statements[0].startswith("not A-stable")


@pytest.mark.slow
def test_order_on_the_linear_problem_to_twelve() -> None:
    for order, form in ((1, "data"), (5, "data"), (9, "noise"), (12, "sigma")):
        report = validate_stability(f"lms(order={order}, form={form})", steps=(0.0,))
        assert report.linear_order == order
        assert report.passed


def test_error_constants_of_adams() -> None:
    for order, constant in ((1, 1 / 2), (2, 5 / 12), (3, 3 / 8), (4, 251 / 720)):
        assert validate_stability(f"lms(order={order})").constant == pytest.approx(-constant, rel=1e-12)


def test_leapfrog_lives_on_the_imaginary_axis() -> None:
    report = validate_stability(TwoStep(0, 1, 2, 0, order=2))
    assert report.zero_stable
    assert report.passed
    assert sorted(r.real for r in report.roots) == pytest.approx([-1, 1])
    assert report.regions[0].imaginary == pytest.approx(1.0, abs=1e-4)
    assert report.regions[0].real == 0


def test_the_unstable_two_step_method_is_caught() -> None:
    report = validate_stability(TwoStep(-4, 5, 4, 2, order=3))  # of all two-step methods the most accurate
    assert report.linear_order == 3
    assert abs(report.roots[0]) == pytest.approx(5)
    assert not report.zero_stable
    assert not report.passed
    assert "NOT zero-stable" in str(report)


def test_a_double_root_on_the_circle_is_caught() -> None:
    assert not validate_stability(TwoStep(2, -1, 1, -1, order=1)).zero_stable
    assert not root_condition(np.array([[1.0, 1.0], [0.0, 1.0]]))
    assert root_condition(np.eye(2))
    assert root_condition(np.array([[0.0, 1.0], [0.0, 0.0]]))


def test_wrong_coefficients_are_caught() -> None:
    quarter = Fraction(1, 4)
    wrong = RungeKutta(replace(tableaux.RK4, b=(quarter, quarter, quarter, quarter)))
    assert validate_stability(wrong).linear_order == 2
    assert not validate_stability(wrong).passed
    doubled = tableaux.dpm_2()
    doubled = ExponentialRungeKutta(replace(doubled, b=((), ((Fraction(2), 1),))))
    doubled.form = "noise"
    assert not validate_stability(doubled).passed
    assert not validate_stability(TwoStep(1, 0, 1.6, -0.6, order=2)).passed
    assert validate_stability(TwoStep(1, 0, 1.5, -0.5, order=2)).passed


def test_a_wrong_node_is_not_seen_by_the_linear_problem() -> None:
    """Why `passed` is necessary only: u' = lam u has no time in it."""
    wrong = RungeKutta(replace(tableaux.RK4, c=(Fraction(0), Fraction(1, 3), Fraction(1, 5), Fraction(1))))
    assert validate_stability(wrong).passed


def test_a_plugin_is_read_from_its_step() -> None:
    class Mine(ds.Solver):
        order = 2

        def step(self, f, y, span, past):
            k = f(y, span.start)
            return ds.Step(y + span.h * f(y + span.h / 2 * k, span.start + span.h / 2), past=past)

    report = validate_stability(Mine())
    assert report.passed
    assert report.regions[0].matrix[0, 0] == pytest.approx([1, 1, 0.5])


def test_what_is_not_linear_is_refused() -> None:
    class Squares(ds.Solver):
        order = 1

        def step(self, f, y, span, past):
            return ds.Step(y + span.h * f(y, span.start) * y, past=past)

    class Hoards(ds.Solver):
        order = 1

        def step(self, f, y, span, past):
            k = f(y, span.start)
            return ds.Step(y + span.h * k, past=(*past, (span.start, k)))

    with pytest.raises(ds.SolverError, match="multiply"):
        validate_stability(Squares())
    with pytest.raises(ds.SolverError, match="bounded"):
        validate_stability(Hoards())


def test_the_principal_root_needs_a_root_at_one() -> None:
    assert np.isnan(principal_root(TwoStep(0.5, 0.2, 1, 0, order=1), (0.0, 1.0))).all()


def test_a_step_that_depends_on_its_place_is_not_blamed_for_it() -> None:
    report = validate_stability("dpm2_ancestral_rf")  # its inner node, a geometric mean, is no middle at length 1
    assert report.linear_order == 1
    assert report.passed


@pytest.mark.parametrize(
    ("solver", "free"),
    [("heun", True), ("dpmpp_2m", True), ("dpm2_ancestral_rf", False), ("damped_abm", False), ("guarded_abm", False)],
)
def test_a_step_that_knows_its_own_length_says_so(solver: str, free: bool) -> None:
    report = validate_stability(solver)
    assert report.scale_free == free
    assert any("length of a step itself" in statement for statement in report.statements) != free


@pytest.mark.slow
def test_every_row_passes_and_the_report_is_plain() -> None:
    for entry in (entry for entry in ds.list_solvers() if entry.form is not None):
        if not ds.get_solver(entry.name).traceable:
            continue
        report = validate_stability(entry.name)
        assert report.passed, str(report)
        assert report.form == entry.form
        assert json.loads(report.to_json())["solver"] == entry.name


@pytest.mark.parametrize("name", ["euler", pytest.param("lms", marks=pytest.mark.slow), "dpmpp_2m"])
def test_the_picture_is_drawn(name: str) -> None:
    figure = validate_stability(name, steps=(0.0, 1.0)).plot()
    plane, moduli = figure.axes
    assert plane.get_xlim()[0] < -0.29
    assert plane.get_xlabel()
    assert moduli.get_legend() is not None
    figure.canvas.draw()
