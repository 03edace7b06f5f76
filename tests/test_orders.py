"""Orders: measured (of every row: test_contract.py), and every way to get a method wrong is shown to be caught."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction as Q

import numpy as np
import pytest
import torch
from stubs import ONE_OF_EACH_KIND, slow

import diffsolve as ds
from diffsolve.solvers import Adams, ExponentialRungeKutta, RungeKutta, Tableau, tableaux
from diffsolve.validation import Case, OrderReport, fit_slope, validate_order
from diffsolve.validation import problems as zoo

CLASSICAL = {name: getattr(tableaux, name.upper()) for name in ("euler", "midpoint", "heun", "rk4", "dopri5")}
FORMS = ("sigma", "noise", "data", "v", "flow", "time")
OFF = Q(1, 50)
SHORT = (8, 16, 32, 64, 128, 256)  # enough to see a wrong method, and to pass the right one
SETTLE_LATE = ("unipc",)
LINEAR_AUTONOMOUS = ds.ODEProblem(
    lambda t, x: x @ torch.tensor([[-0.4, 1.1], [-1.3, 0.2]], dtype=torch.float64),
    (0.0, 3.0),
    torch.tensor([[1.0, 0.5]], dtype=torch.float64),
)


def met(*args: object, **options: object) -> bool:
    report = validate_order(*args, **{"early": True, **options})  # what is right is proved too
    assert report.passed, f"\n{report}"
    return report.passed


def missed(*args: object, **options: object) -> OrderReport:
    report = validate_order(*args, **{"ns": SHORT, **options})
    assert not report.passed, f"\n{report}"
    return report


# Claims


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_no_claim_depends_on_the_seed_or_the_dimension(name: str) -> None:
    flow = zoo.guided(3, dim=8)
    cases = [flow] if ds.get_solver(name).stochastic else [zoo.semilinear(1, dim=3), flow]
    assert met(name, cases, ns=(*SHORT, 512, 1024) if name in SETTLE_LATE else SHORT)


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4), ("dopri5", 5), ("dpm_solver_1", 1), ("dpm_solver_2", 2),
     ("dpm_solver_3", 3), ("dpmpp_2m", 2), ("lms", 4), ("plms", 2)],
)  # fmt: skip
def test_the_claims_are_the_literatures(name: str, order: int) -> None:
    assert ds.find_solver(name).order == ds.get_solver(name).order == order


@pytest.mark.parametrize(("order", "started"), [(1, 1), (2, 2), slow(3, 2), slow(4, 2)])
def test_lms_of_every_order(order: int, started: int) -> None:
    solver = ds.get_solver(f"lms(order={order})")
    assert (solver.order, solver.order_as_started) == (order, started)
    assert met(solver, zoo.mixture())
    assert met(solver, zoo.mixture(), start="exact")


@pytest.mark.slow
def test_plms_has_the_order_of_its_weights_on_an_even_grid_alone() -> None:
    assert met("plms", start="exact", grid="uniform", claimed=4, quick=True)
    assert met("plms", grid="uniform", claimed=3, quick=True)
    assert met("plms", start="exact", grid="uneven", claimed=2, quick=True)
    assert missed("plms", start="exact", grid="uneven", claimed=4, quick=True).measured == pytest.approx(2, abs=0.15)
    assert missed("plms", start="exact", grid="jagged", quick=True).measured == pytest.approx(1, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rk4", "dpm_solver_3", "dpmpp_2m"])
def test_a_row_meets_its_claim_on_every_problem(name: str) -> None:
    assert met(name, start="exact")


CELLS = [
    ("lms(order=3, form={})", "exact"),
    ("dpm_solver_3(form={})", "as_started"),
    ("dpmpp_2m(form={})", "as_started"),
]


@pytest.mark.parametrize("form", [FORMS[1], *map(slow, FORMS[:1] + FORMS[2:])])
@pytest.mark.parametrize(("cell", "start"), CELLS[:2])
def test_a_method_keeps_its_order_in_every_form(cell: str, start: str, form: str) -> None:
    assert met(cell.format(form), zoo.mixture(), start=start)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("cell", "start"),
    [CELLS[2], *((f"{name}(form={{}})", "as_started") for name in ("heun", "rk4"))],
)
def test_a_method_keeps_its_order_in_every_form_with_guidance(cell: str, start: str, form: str) -> None:
    assert met(cell.format(form), zoo.guided(), start=start)


@pytest.mark.slow
def test_a_solver_that_nobody_registered() -> None:
    class Own(ds.Solver):
        order, stages = 2, 2

        def step(self, f: ds.Field, y: object, span: ds.Span, past: ds.Past) -> ds.Step:
            k1 = f(y, span.start)
            k2 = f(y + span.h * k1, span.end)
            return ds.Step(y + span.h / 2 * (k1 + k2), past=past)

    assert met(Own())
    assert not validate_order(Own(), zoo.neural(), claimed=1).passed, "an order above the claim is a wrong claim too"
    with pytest.raises(ds.SolverError, match="claims no order"):
        validate_order(type("Nothing", (Own,), {"order": 0})())


def test_early_ends_where_the_claim_is_met_and_nowhere_else() -> None:
    case = zoo.mixture()
    (early,), (whole,), (beside,) = (
        validate_order("heun", case, **options).slopes.values()
        for options in ({"early": True}, {}, {"early": True, "claimed": 1})
    )
    assert early.meets(2, above=0.1)
    assert early.ns == whole.ns[: len(early.ns)] == (8, 16, 32, 64, 128)
    assert early.errors == whole.errors[: len(early.ns)]
    assert beside.ns == whole.ns, "a slope that settles beside the claim is followed"


# Sabotage


def bent(tableau: Tableau, part: str) -> list[Tableau]:
    """The tableau with one entry of b, a or c put off, each in turn; b and the rows of a keep their sums."""
    used = max(i for i, b in enumerate(tableau.b) if b) + 1
    found = []
    for i in range(used):
        if part == "b":
            b = list(tableau.b)
            b[i] += OFF
            if used > 1:
                b[i - 1] -= OFF
            found.append(replace(tableau, b=tuple(b)))
        elif part == "a":
            for j in range(i):
                row = list(tableau.a[i])
                row[j] += OFF
                if i > 1:
                    row[j - 1 if j else i - 1] -= OFF
                found.append(replace(tableau, a=(*tableau.a[:i], tuple(row), *tableau.a[i + 1 :])))
        elif i:
            found.append(replace(tableau, c=(*tableau.c[:i], tableau.c[i] + OFF, *tableau.c[i + 1 :])))
    return found


DEAR = ("dopri5", "rk4")
BENT = [slow(name, part) if name in DEAR else (name, part)
        for name in CLASSICAL for part in "bac" if bent(CLASSICAL[name], part)]  # fmt: skip


@pytest.mark.parametrize(("name", "part"), BENT)
def test_a_wrong_entry_of_a_tableau_is_caught(name: str, part: str) -> None:
    assert met(RungeKutta(CLASSICAL[name]), zoo.neural(), ns=SHORT)
    for tableau in bent(CLASSICAL[name], part):
        missed(RungeKutta(tableau), zoo.neural())


@pytest.mark.parametrize("name", ["midpoint", slow("heun"), slow("rk4")])
def test_a_linear_autonomous_problem_is_blind_to_wrong_nodes(name: str) -> None:
    tableau = CLASSICAL[name]
    wrong = RungeKutta(replace(tableau, c=tuple(c + OFF for c in tableau.c)))
    assert met(wrong, LINEAR_AUTONOMOUS)
    assert missed(wrong, quick=True).measured < tableau.order - 0.8


@pytest.mark.slow
def test_jamesons_scheme_is_third_order_on_linear_problems_alone() -> None:
    jameson = Tableau((Q(0), Q(1, 3), Q(1, 2)), ((), (Q(1, 3),), (Q(0), Q(1, 2))), (Q(0), Q(0), Q(1)), 3)
    assert met(RungeKutta(jameson), LINEAR_AUTONOMOUS)
    assert missed(RungeKutta(jameson), quick=True).measured == pytest.approx(2, abs=0.15)


DPM_2, DPM_3 = tableaux.dpm_2(), tableaux.dpm_3()


@pytest.mark.parametrize(
    "wrong",
    [
        replace(DPM_2, b=((), ((Q(1) + OFF, 1),))),
        replace(DPM_2, c=(Q(0), Q(1, 2) + OFF)),
        slow(replace(DPM_3, b=((), (), ((Q(3, 2), 1),)))),
        slow(replace(DPM_3, b=((), (), ((Q(3, 4), 1),)))),
        slow(replace(DPM_3, b=((), (), ((Q(3, 2) + OFF, 2),)))),
        slow(replace(DPM_3, a=((), ((),), ((), ((Q(4, 3), 1),))))),
        slow(replace(DPM_3, a=((), ((),), ((), ((Q(4, 3) + OFF, 2),))))),
        slow(replace(DPM_3, c=(Q(0), Q(1, 3) + OFF, Q(2, 3)))),
        slow(replace(DPM_3, c=(Q(0), Q(1, 3), Q(2, 3) + OFF))),
    ],
    ids=["2: b", "2: c", "3: phi_1 for phi_2 in b", "3: phi_1/2 for phi_2 in b", "3: b", "3: phi_1 for phi_2 in a",
         "3: a", "3: c_2", "3: c_3"],
)  # fmt: skip
def test_a_wrong_entry_of_an_exponential_tableau_is_caught(wrong: ds.solvers.ExponentialTableau) -> None:
    right = DPM_2 if wrong.order == 2 else DPM_3
    assert met(ExponentialRungeKutta(right), quick=True, ns=SHORT)
    missed(ExponentialRungeKutta(wrong), quick=True)


@pytest.mark.slow
def test_only_a_linear_part_tells_half_phi_1_from_phi_2() -> None:
    wrong = ExponentialRungeKutta(replace(DPM_3, b=((), (), ((Q(3, 4), 1),))))
    assert met(wrong, zoo.neural())
    assert missed(wrong, zoo.semilinear()).measured == pytest.approx(2, abs=0.15)
    wrong.form = "noise"
    assert missed(wrong, zoo.mixture()).measured == pytest.approx(2, abs=0.15)


class WrongWeight(Adams):
    """Newest weights off by two hundredths, with the right sum."""

    def weights(self, linear: float, span: ds.Span, nodes: list[float]) -> list[float]:
        *rest, last = super().weights(linear, span, nodes)
        return [rest[0] + span.h / 50, *rest[1:], last - span.h / 50] if rest else [last]


class OffByOne(Adams):
    """Every node remembered with the evaluation before its own."""

    def step(self, f: ds.Field, y: object, span: ds.Span, past: ds.Past) -> ds.Step:
        step = super().step(f, y, span, past)
        values = [value for _, value in (*past, step.past[-1])]
        shifted = (values[:1] + values[:-1])[-len(step.past) :]
        return ds.Step(step.y, past=tuple(zip([node for node, _ in step.past], shifted, strict=True)))


class ClassicalWeights(Adams):
    """The weights of L = 0 whatever L is: phi_k(0) for phi_k(L h)."""

    def weights(self, linear: float, span: ds.Span, nodes: list[float]) -> list[float]:
        return super().weights(0.0, span, nodes)


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("kind", [WrongWeight, OffByOne, ClassicalWeights])
def test_a_wrong_multistep_method_is_caught(kind: type[Adams], order: int) -> None:
    assert met(Adams(order), zoo.semilinear(), start="exact", ns=SHORT)
    missed(kind(order), zoo.semilinear(), start="exact")


@pytest.mark.parametrize("order", [3, 4])
def test_even_weights_on_an_uneven_grid_are_caught(order: int) -> None:
    report = missed(Adams(order, quadrature="uniform"), start="exact", claimed=order, quick=True)
    assert report.measured == pytest.approx(2, abs=0.15)


class HalfFor2M(Adams):
    """DPM-Solver++ 2M with 1/2 in place of 1/(2r), r the ratio of the last two steps."""

    def weights(self, linear: float, span: ds.Span, nodes: list[float]) -> list[float]:
        return super().weights(linear, span, [span.start + (i - len(nodes) + 1) * span.h for i in range(len(nodes))])


@pytest.mark.slow
def test_2m_without_its_step_ratio_is_caught_where_steps_jump() -> None:
    right, wrong = (kind(2, quadrature="midpoint") for kind in (Adams, HalfFor2M))
    wrong.form = right.form = "data"
    assert met(right, grid="jagged", quick=True)
    assert missed(wrong, grid="jagged", quick=True).measured == pytest.approx(1, abs=0.15)
    assert met(wrong, grid="uneven", quick=True), "on a smooth grid r is 1 + O(h), and the order can't tell"


@pytest.mark.slow
def test_an_order_two_start_is_not_enough_for_order_four() -> None:
    assert missed("lms", claimed=4, quick=True, ns=None).measured == pytest.approx(2, abs=0.15)


# The instrument


@pytest.mark.parametrize("tableau", [*CLASSICAL.values()], ids=[*CLASSICAL])
def test_a_tableaus_rows_sum_to_its_nodes(tableau: Tableau) -> None:
    assert [sum(row, Q(0)) for row in tableau.a] == list(tableau.c)
    assert sum(tableau.b) == 1
    assert sum(tableau.error) == 0


NS = (8, 16, 32, 64, 128, 256, 512)


def test_a_power_law_is_read_off_exactly() -> None:
    s = fit_slope(NS, [n**-3.0 for n in NS])
    assert (s.window, s.settled) == ((0, 7), True)
    assert [s.slope, s.low, s.high, *s.pairs] == pytest.approx([3] * 9)
    assert math.isnan(s.floor)


def test_coarse_points_and_the_rounding_floor_are_left_out() -> None:
    errors = [3.0, math.inf, *(n**-5.0 for n in NS[2:]), 2e-14, 3e-14, 2.5e-14]
    s = fit_slope((*NS, 1024, 2048, 4096), errors)
    assert s.window == (2, 6)
    assert s.slope == pytest.approx(5)
    assert s.floor == 3e-14


def test_a_fall_that_stops_above_rounding_counts() -> None:
    s = fit_slope(NS, [n**-4.0 + 1e-7 for n in NS])
    assert math.isnan(s.floor)
    assert not s.meets(4)


def test_a_slope_is_signed_and_ends_where_it_is_going() -> None:
    growing = fit_slope(NS, [1e-6 * n for n in NS])
    assert growing.slope == pytest.approx(-1)
    assert not growing.meets(1)
    drifting = fit_slope(NS, [n**-4.0 + 1e-3 * n**-2.0 for n in NS])
    assert 1.9 < drifting.trend < 2.1
    assert not drifting.meets(4)
    assert not fit_slope(NS, [*(n**-4.0 for n in NS[:-1]), math.nan]).found


def test_too_few_points_are_no_order() -> None:
    s = fit_slope((8, 16, 32, 64), [1e-5, 1e-12, 1e-15, 1e-15], resolution=1e-13)
    assert (s.found, s.floor, str(s)) == (False, 1e-13, "no asymptotic window in n = 8..64")
    assert not s.meets(5)
    with pytest.raises(ValueError, match="rising"):
        fit_slope((8, 8), (1.0, 1.0))


def test_references_agree_with_what_is_known() -> None:
    logistic = zoo.clocked_logistic()
    integrated = Case("the same", logistic.problem, logistic.start, logistic.end, logistic.x)
    assert integrated.error(logistic.at(logistic.end)) < 1e-13
    gaussian = ds.problems.Gaussian([0.5, -1.0], [0.3, 2.0], process="vp")
    case = Case("gaussian", gaussian, 8.0, 0.5, gaussian.prior(2, 0, 8.0))
    for node in (0.5, 11.0, 20.0):
        assert torch.allclose(case.at(node), gaussian.exact(case.x, 8.0, node), rtol=1e-12, atol=0)


@pytest.mark.parametrize("grid", zoo.GRIDS)
def test_grids_end_where_the_problem_does(grid: str) -> None:
    solver = ds.get_solver("lms(form=noise)")
    for case in (zoo.neural(), zoo.mixture()):
        nodes = case.nodes(grid, solver, 16, before=6)
        assert len(nodes) == 23
        assert (nodes[6], nodes[-1]) == (case.start, case.end)
        assert case.has_room(nodes)
    s = np.diff(-np.log(nodes))
    assert np.ptp(s) < 1e-12 if grid == "uniform" else np.ptp(s) > 0.01


def test_an_exact_start_gives_the_exact_past() -> None:
    case, seen = zoo.neural(), []

    class Watched(Adams):
        def step(self, f: ds.Field, y: object, span: ds.Span, past: ds.Past) -> ds.Step:
            seen.append(past)
            return super().step(f, y, span, past)

    validate_order(Watched(4), case, start="exact", ns=(16, 32))
    known = seen[6]  # the first step after two histories of three
    assert len(known) == 3
    assert known[-1][0] < case.start
    for node, value in known:
        assert torch.equal(value, case.problem.f(node, case.at(node)))


def test_a_report_reads_well(tmp_path: object) -> None:
    report = validate_order("lms(order=2)", [zoo.neural(), zoo.neural(1)], start="exact", grid="jagged")
    assert report.passed
    assert str(report).startswith("lms(order=2): order 2 claimed with an exact start, jagged grid; measured ")
    data = json.loads(report.to_json())
    assert data["passed"]
    assert data["measured"] == report.measured == min(s.slope for s in report.slopes.values())
    assert list(report.errors) == list(report.ns) == list(data["problems"]) == ["neural 4-D", "neural 4-D, seed 1"]
    assert report.band[0] < report.measured < report.band[1]
    axes = report.plot().axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert report.__rich__().row_count == 2


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ds.SolverError, match="as_started"):
        validate_order("euler", start="exactly")
    with pytest.raises(ds.SolverError, match="uneven"):
        validate_order("euler", grid="karras")
    with pytest.raises(ds.ProblemError, match="int"):
        validate_order("euler", [3])
    with pytest.raises(ds.SolverError, match="more room"):
        validate_order("lms(order=12, form=v)", zoo.mixture(), start="exact", grid="uniform", ns=(8, 16))
