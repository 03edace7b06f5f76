"""Orders proved: every row of the catalogue, known results, and wrong methods that must be caught."""

from __future__ import annotations

import json
import math
from fractions import Fraction as Q
from typing import Any

import pytest
from stubs import ONE_OF_EACH_KIND, slow

import diffsolve as ds
from diffsolve import scalars
from diffsolve.solvers import Adams, ExponentialRungeKutta, ExponentialTableau, RungeKutta, Tableau, tableaux
from diffsolve.validation import validate_conditions
from diffsolve.validation.orders.proofs import tree_order
from diffsolve.validation.orders.stiff import exact_moments, stiff_conditions, stiff_order, vanishes
from diffsolve.validation.orders.trees import elementary_weights, is_tall, trees

ROWS = [entry.name for entry in ds.list_solvers() if entry.form is not None and entry.order is not None]


def tableau(c: str, a: tuple[str, ...], b: str, claimed: int, error: str = "") -> RungeKutta:
    rows = [tuple(Q(x) for x in row.split()) for row in (c, b, error, *a)]
    return RungeKutta(Tableau(rows[0], tuple(rows[3:]), rows[1], claimed, rows[2]))


JAMESON = tableau("0 1/3 1/2", ("", "1/3", "0 1/2"), "0 0 1", 3)
RK4_WRONG_NODES = tableau("0 1/4 3/4 1/2", ("", "1/2", "0 1/2", "0 0 1"), "1/6 1/3 1/3 1/6", 4)
RK4_MOVED_NODE = tableau("0 2/5 1/2 1", ("", "2/5", "0 1/2", "0 0 1"), "1/6 1/3 1/3 1/6", 4)
KROGSTAD_TERMS = ((Q(2), 2), (Q(-4), 3))
KROGSTAD = ExponentialTableau(
    (Q(0), Q(1, 2), Q(1, 2), Q(1)),
    ((), ((),), ((), ((Q(1), 2),)), ((), (), ((Q(2), 2),))),
    ((), KROGSTAD_TERMS, KROGSTAD_TERMS, ((Q(-1), 2), (Q(4), 3))),
    4,
)


class Plugin(ds.Solver):
    """A step as a user writes it."""

    def __init__(
        self, step: Any, claimed: int, form: str = "sigma", started: int | None = None, traceable: bool = True
    ) -> None:
        self.rule, self.order, self.form, self.traceable = step, claimed, form, traceable
        self.order_as_started = started

    def step(self, f: Any, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
        result = self.rule(f, y, span, past)
        return result if isinstance(result, ds.Step) else ds.Step(result)


def heun(node: float = 1.0, weight: float = 0.5) -> Any:
    def step(f: Any, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
        k1 = f(y, span.start)
        k2 = f(y + span.h * k1, span.start + node * span.h)
        y = y + span.h * ((1 - weight) * k1 + weight * k2)
        return ds.Step(y, error=span.h / 2 * (k2 - k1), past=past)

    return step


def multistep_3(second: float) -> Any:
    """DPM-Solver++ 3M in VE coordinates (Lu et al. 2022b; as in diffusers): `second` multiplies D2, 1 as published."""

    def step(f: Any, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
        h, known = span.h, (*past[-2:], (span.start, f(y, span.start)))
        (s0, m0), *older = known[::-1]
        y = scalars.exp(-h) * y + h * scalars.phi(1, -h) * m0
        if older:
            (s1, m1), *oldest = older
            r0 = (s0 - s1) / h
            d1 = (m0 - m1) / r0
            if oldest:
                s2, m2 = oldest[0]
                r1 = (s1 - s2) / h
                d11 = (m1 - m2) / r1
                d2 = (d1 - d11) / (r0 + r1)
                d1 = d1 + r0 / (r0 + r1) * (d1 - d11)
                y = y + second * h * scalars.phi(3, -h) * d2
            y = y + h * scalars.phi(2, -h) * d1
        return ds.Step(y, past=known)

    return step


# The catalogue


@pytest.mark.parametrize("row", ONE_OF_EACH_KIND[:-1])  # of every row: test_contract.py
def test_a_row_is_proved(row: str) -> None:
    entry, report = ds.find_solver(row), validate_conditions(row)
    if not entry.build().traceable:
        assert report.proved is None
        assert "traceable" in report.reason
        return
    assert (report.proved, report.started_proved) == (entry.order, entry.order_as_started), report
    assert report.passed
    assert report.first_failing
    assert 0 < report.constant < 10 or "singlestep" in entry.tags  # a last step of lower order has the constant


@pytest.mark.parametrize(
    "row", ["euler", "heun", "midpoint", "rk4", slow("dopri5"), "heun(form=data)", "midpoint(form=noise)"]
)
def test_series_agree_with_trees(row: str) -> None:
    trees_, series = validate_conditions(row), validate_conditions(row, "series")
    assert (trees_.route, series.route) == ("rooted trees", "B-series of one step")
    assert series.proved == trees_.proved
    assert series.details.get("embedded") == trees_.details.get("embedded")
    if "form" not in row:  # the trees see the whole right-hand side, the series its two parts
        assert dict(series.coefficients) == dict(trees_.coefficients)


@pytest.mark.parametrize(
    "row",
    ["ddim", "dpmpp_2m", "lms(order=3)", slow("lms(order=3, form=noise)"), slow("plms"), "lms(order=2, form=sde)"],
)
def test_series_agree_with_moments(row: str) -> None:
    moments, series = validate_conditions(row), validate_conditions(row, "series")
    assert (moments.route, series.route) == ("exactness on polynomials", "B-series of one step")
    for fact in ("proved", "started_proved", "exact"):
        assert getattr(series, fact) == getattr(moments, fact)
    if row != "ddim":  # which remembers nothing: on any grid it is the same
        assert all(series.details[grid] == moments.details[grid] for grid in ("even", "any"))


@pytest.mark.slow
def test_options_are_claimed_rightly() -> None:
    for row in ("lms(order=1)", "lms(order=6, form=data)", "dpm_solver_2(r=0.3)", "dpm_solver_3(form=data)"):
        assert validate_conditions(row).passed, row


@pytest.mark.slow
def test_orders_beyond_the_trees() -> None:
    report = validate_conditions("lms(order=9)")
    assert (report.proved, report.passed) == (9, True)
    series = validate_conditions(Plugin(lambda f, y, span, past: heun()(f, y, span, past), 20))
    assert (series.proved, series.passed) == (2, False)


# Known results


def test_principal_error_norms() -> None:
    """Dormand & Prince 1980 print 0.399e-3 for RK5(4)7M; 0.0145 is the classical fourth-order method's."""
    dopri5, rk4 = validate_conditions("dopri5"), validate_conditions("rk4")
    assert dopri5.constant == pytest.approx(3.991e-4, abs=1e-7)
    assert (dopri5.proved, dopri5.details["embedded"], len(dopri5.coefficients)) == (5, 4, 20)
    assert rk4.constant == pytest.approx(1.450e-2, abs=5e-6)
    assert rk4.coefficients["[[[[t]]]]"] == -Q(1, 120)
    assert validate_conditions("midpoint").coefficients == {"[t,t]": -Q(1, 24), "[[t]]": -Q(1, 6)}
    assert validate_conditions("heun").coefficients == {"[t,t]": Q(1, 12), "[[t]]": -Q(1, 6)}


@pytest.mark.parametrize(("steps", "constant"), [(1, Q(1, 2)), (2, Q(5, 12)), (3, Q(3, 8)), (4, Q(251, 720))])
@pytest.mark.parametrize("form", ["sigma", "data"])
def test_adams_error_constants(steps: int, constant: Q, form: str) -> None:
    report = validate_conditions(f"lms(order={steps}, form={form})")
    assert list(report.coefficients.values()) == [-constant]
    assert report.details.get("stiff", steps) == steps


def test_stiff_orders_as_published() -> None:
    """Hochbruck & Ostermann 2005, sec. 5: exponential midpoint 2 in the weak form, ETD2RK 2, Krogstad's 3."""
    etd2 = ExponentialTableau((Q(0), Q(1)), ((), ((),)), ((), ((Q(1), 2),)), 2)
    found = [stiff_order(t) for t in (tableaux.dpm_2(), etd2, tableaux.dpm_3(), KROGSTAD)]
    assert [(s.strong, s.weak) for s in found] == [(1, 2), (2, 2), (2, 3), (3, 3)]
    assert found[0].failing.startswith("psi_2(z) = 0")
    report = validate_conditions(ExponentialRungeKutta(KROGSTAD))
    assert (report.proved, report.details["stiff"], report.passed) == (4, 3, True)
    assert [vanishes(c.weak) for c in stiff_conditions(KROGSTAD) if c.order == 4] == [True, False, False, True]


def test_midpoint_quadrature_is_of_order_1_for_any_step() -> None:
    assert exact_moments(Adams(2, quadrature="midpoint"), [Q(-5, 7), Q(0)]) == 1
    assert validate_conditions("dpmpp_2m").details["stiff"] == 1


# Sabotage


def only_on_tall_trees(solver: RungeKutta) -> int:
    """The order that a linear autonomous problem shows."""
    t = solver.tableau
    for n in range(1, 9):
        tall = [tree for tree in trees(n) if is_tall(tree)]
        if elementary_weights(tall, t.c, t.a, t.b) != [Q(1, math.factorial(n))]:
            return n - 1
    return 8


@pytest.mark.parametrize(
    ("solver", "linear", "proved", "failing"),
    [
        (JAMESON, 3, 2, "[t,t], order 3: 1/4, needs 1/3"),
        (RK4_WRONG_NODES, 4, 1, "[s], order 2: 5/12, needs 1/2"),
        (RK4_MOVED_NODE, 1, 1, "[t], order 2: 7/15, needs 1/2"),
    ],
)
@pytest.mark.parametrize("route", ["auto", "series"])
def test_wrong_tableaux_are_caught(solver: RungeKutta, linear: int, proved: int, failing: str, route: Any) -> None:
    assert only_on_tall_trees(solver) == linear
    report = validate_conditions(solver, route)
    assert (report.proved, report.passed) == (proved, False)
    assert report.first_failing == failing or route == "series"


def test_row_sums_alone_say_nothing() -> None:
    assert validate_conditions(RK4_MOVED_NODE).details["row sums"] == "equal the nodes"
    assert validate_conditions(RK4_WRONG_NODES).details["row sums"] == "differ from the nodes"


def test_each_coefficient_of_dopri5_counts() -> None:
    t = tableaux.DOPRI5
    for i, row in enumerate(t.a[:6]):
        for j in range(len(row)):
            a = [list(r) for r in t.a]
            a[i][j] += Q(1, 10**6)
            assert tree_order(t.c, a, t.b, 5)[0] < 5, (i, j)
    for i in (1, 2, 3, 4, 5):
        c = [x + Q(k == i, 10**6) for k, x in enumerate(t.c)]
        assert tree_order(c, t.a, t.b, 5)[0] < 5, i


def test_a_wrong_embedded_solution_shows() -> None:
    right = tableau("0 1", ("", "1"), "1/2 1/2", 2, "-1/2 1/2")
    wrong = tableau("0 1", ("", "1"), "1/2 1/2", 2, "-1/2 1/3")
    for route in ("auto", "series"):
        assert [validate_conditions(s, route).details["embedded"] for s in (right, wrong)] == [1, 0]  # type: ignore[arg-type]


def test_a_plugin_is_proved_without_being_a_tableau() -> None:
    report = validate_conditions(Plugin(heun(), 2))
    assert (report.proved, report.started_proved, report.passed, report.exact) == (2, 2, True, True)
    assert dict(report.coefficients) == dict(validate_conditions("heun").coefficients)
    assert report.details["embedded"] == 1


@pytest.mark.parametrize("rule", [heun(node=0.9), heun(weight=0.49), heun(node=0.0)])
def test_a_sabotaged_plugin_fails(rule: Any) -> None:
    report = validate_conditions(Plugin(rule, 2))
    assert (report.proved, report.passed) == (1, False)


@pytest.mark.slow
def test_3m_as_published_is_of_order_2() -> None:
    published = validate_conditions(Plugin(multistep_3(1.0), 3, "data", started=2))
    mended = validate_conditions(Plugin(multistep_3(2.0), 3, "data", started=2))
    assert (published.proved, published.passed) == (2, False)
    assert (mended.proved, mended.started_proved, mended.passed) == (3, 2, True)
    exact = validate_conditions(Adams(3), "series")
    assert mended.details == exact.details | {"even": 3, "any": 3}
    assert not validate_conditions(Plugin(multistep_3(2.0), 3, "data", started=3)).passed


@pytest.mark.parametrize("route", ["auto", slow("series")])
def test_uniform_weights_are_of_order_2_on_an_uneven_grid(route: Any) -> None:
    """Each neighbour's step may differ by O(h): order 2. By a ratio that stays: order 1. On the even grid: 4."""
    solver = Adams(4, quadrature="uniform")
    solver.order = 4
    report = validate_conditions(solver, route)
    assert (report.proved, report.passed) == (2, False)
    assert (report.details["even"], report.details["any"]) == (4, 1)


def test_a_classical_step_in_an_exponential_form_needs_the_linear_part() -> None:
    """f is N alone: a step that forgets L u is not consistent where L is not 0."""
    report = validate_conditions(Plugin(heun(), 2, form="data"))
    assert (report.proved, report.passed) == (0, False)
    assert report.first_failing == "h u, order 1: off by 1"


def test_irrational_coefficients_are_allowed() -> None:
    """k-diffusion's DPM-Solver-2 in the sigma form: its middle is the geometric mean of the nodes."""

    def step(f: Any, y: Any, span: ds.Span, past: ds.Past) -> Any:
        middle = scalars.exp((scalars.log(span.start) + scalars.log(span.end)) / 2)
        return y + span.h * f(y + (middle - span.start) * f(y, span.start), middle)

    report = validate_conditions(Plugin(step, 2))
    assert (report.proved, report.passed, report.exact) == (2, True, False)


def test_differences_over_h_are_followed() -> None:
    def step(f: Any, y: Any, span: ds.Span, past: ds.Past) -> Any:
        k = f(y, span.start)
        slope = (f(y + span.h * k, span.end) - k) / span.h
        return y + span.h * (k + span.h / 2 * slope)

    assert validate_conditions(Plugin(step, 2)).passed


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda f, y, span, past: y + f(y, span.start).clamp(-1, 1), "clamp"),
        (lambda f, y, span, past: y + math.exp(span.h) * f(y, span.start), "real number, not Series"),
        (lambda f, y, span, past: y + span.h * f(y, span.start) * f(y, span.start), "Vector"),
        (lambda f, y, span, past: y if span.h > 0.5 else f(y, span.start), "not supported"),
        (lambda f, y, span, past: f(span.start, y), "takes the state"),
        (lambda f, y, span, past: ds.Step(y, past=(*past, (span.start, y))), "bounded"),
        (lambda f, y, span, past: 1.0, "y is a float"),
    ],
)
def test_what_is_not_linear_is_not_provable(rule: Any, said: str) -> None:
    report = validate_conditions(Plugin(rule, 2))
    assert (report.proved, report.passed) == (None, None)
    assert said in report.reason
    assert "not provable" in str(report)
    assert report.plot().axes


def test_a_last_step_of_lower_order_counts_once() -> None:
    def step(f: Any, y: Any, span: ds.Span, past: ds.Past) -> Any:
        return (y + span.h * f(y, span.start)) if span.index == span.count - 1 else rk4.step(f, y, span, past)

    rk4 = ds.get_solver("rk4")
    report = validate_conditions(Plugin(step, 2))
    assert (report.proved, report.details["all steps but the last"], report.passed) == (2, 4, True)


def test_noise_is_taken_at_eta_0() -> None:
    def step(f: Any, y: Any, span: ds.Span, past: ds.Past) -> Any:
        return heun()(f, y, span, past).y + f.form.noise_std(span.start, span.end) * f.normal(span)

    assert validate_conditions(Plugin(step, 2)).passed
    noisy = validate_conditions(Plugin(lambda f, y, span, past: y + span.h * f(y, span.start) + f.normal(span), 1))
    assert (noisy.proved, noisy.passed) == (None, None)
    assert "noise" in noisy.reason


def test_untraceable_solvers_are_said_to_be_so() -> None:
    report = validate_conditions(Plugin(heun(), 2, traceable=False))
    assert (report.proved, report.passed) == (None, None)
    assert "not traceable" in report.reason


@pytest.mark.parametrize(
    "rule",
    [
        lambda f, y, span, past: y + span.h * f(y, span.h),
        lambda f, y, span, past: y + span.h * f(y * 2, span.start),
        lambda f, y, span, past: y + span.h * f(y + f(y, span.start), span.start),
    ],
)
def test_inconsistent_steps_have_order_0(rule: Any) -> None:
    report = validate_conditions(Plugin(rule, 1))
    assert (report.proved, report.passed) == (0, False)
    assert "does not tend to" in report.first_failing


# The report


def test_report_prints_and_plots() -> None:
    report = validate_conditions("lms")
    assert "order 4 (2 as started) proved, 4 (2 as started) claimed: met" in str(report)
    data = json.loads(report.to_json())
    assert (data["solver"], data["proved"], data["passed"]) == ("lms", 4, True)
    assert data["coefficients"] == {"N^(4)": "-251/720"}
    assert len(validate_conditions("rk4").plot().axes[0].patches) == 9
    assert "NOT met" in str(validate_conditions(JAMESON))


def test_a_claim_is_needed_to_pass() -> None:
    report = validate_conditions(Plugin(heun(), 0))
    assert (report.proved, report.passed) == (2, None)
    assert validate_conditions(Plugin(heun(), 1)).passed is False  # it claims less than it has


def test_unknown_names_and_routes() -> None:
    with pytest.raises(ds.SolverError, match="rk5"):
        validate_conditions("rk5")
    with pytest.raises(ds.SolverError, match="route"):
        validate_conditions("rk4", "guess")  # type: ignore[arg-type]
