"""One-step methods from tableaux: every coefficient of every kind counts, and the numbers are the published ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction as Q
from itertools import pairwise
from typing import Any

import pytest
import scipy.integrate
import torch
import torchdiffeq
from stubs import Stub, gap, mixture, slow
from torchdiffeq._impl import bosh3, dopri5, dopri8, fehlberg2

import diffsolve as ds
from diffsolve.solvers import ExponentialRungeKutta, ExponentialTableau, RungeKutta, Tableau, tableaux
from diffsolve.validation import problems as zoo
from diffsolve.validation import validate_conditions, validate_order
from diffsolve.validation.orders.proofs import tree_order

CLASSICAL = {name: value for name, value in vars(tableaux).items() if isinstance(value, Tableau)}
EMBEDDED = {name: t for name, t in CLASSICAL.items() if t.error}
EXPONENTIAL: dict[str, ExponentialTableau] = {
    "etdrk4": tableaux.ETDRK4,
    "krogstad": tableaux.KROGSTAD,
    "lawson4": tableaux.LAWSON4,
    "res_5s": tableaux.HOCHBRUCK_OSTERMANN,
    "res_2s": tableaux.res_2(),
    "res_3s": tableaux.res_3(),
    "dpm_2": tableaux.dpm_2(),
    "dpm_3": tableaux.dpm_3(),
}
OFF = Q(1, 50)


def used(t: Tableau) -> int:
    return max(i for i, b in enumerate(t.b) if b) + 1


def nudged(row: tuple[Any, ...], place: int, off: Any) -> tuple[Any, ...]:
    return (*row[:place], row[place] + off, *row[place + 1 :])


# Classical


def wrong_classical(t: Tableau) -> Iterator[tuple[str, Tableau]]:
    """One entry of b, a or c put off, each in turn; b and the rows of a keep their sums where they can."""
    for i in range(used(t)):
        b = nudged(t.b, i, OFF)
        yield f"b{i}", replace(t, b=nudged(b, i - 1, -OFF) if i else b)
        if i:
            yield f"c{i}", replace(t, c=nudged(t.c, i, OFF))
        for j in range(i):
            row = nudged(t.a[i], j, OFF)
            row = nudged(row, j - 1 if j else i - 1, -OFF) if i > 1 else row
            yield f"a{i}{j}", replace(t, a=(*t.a[:i], row, *t.a[i + 1 :]))


def in_floats(t: Tableau) -> tuple[list[float], list[list[float]], list[float]]:
    """The proofs are many, and 1e-12 tells OFF from rounding."""
    return [float(c) for c in t.c], [[float(x) for x in row] for row in t.a], [float(b) for b in t.b]


@pytest.mark.parametrize("name", CLASSICAL)
def test_each_coefficient_counts(name: str) -> None:
    t = CLASSICAL[name]
    assert tree_order(*in_floats(t))[0] == t.order
    for place, wrong in wrong_classical(t):
        blind = t.order == 2 and place[0] == "a" and sum(wrong.a[int(place[1])]) == wrong.c[int(place[1])]
        assert blind or tree_order(*in_floats(wrong), t.order)[0] < t.order, place


@pytest.mark.parametrize("name", CLASSICAL)
def test_rows_sum_to_nodes(name: str) -> None:
    t = CLASSICAL[name]
    off = 1e-15 if name in ("TSIT5", "DOPRI8") else 0
    assert all(abs(sum(row, Q(0)) - c) <= off for row, c in zip(t.a, t.c, strict=True))
    assert abs(sum(t.b) - 1) <= off
    assert abs(sum(t.error)) <= off
    assert [len(row) for row in t.a] == list(range(len(t.b)))


@pytest.mark.parametrize("name", EMBEDDED)
def test_each_weight_of_an_embedded_solution_counts(name: str) -> None:
    t = EMBEDDED[name]
    c, a, b = in_floats(t)
    low = [x - float(e) for x, e in zip(b, t.error, strict=True)]
    order = tree_order(c, a, low)[0]
    assert order == t.order + (1 if name == "FEHLBERG78" else -1)
    for i in range(len(low)):
        wrong = list(low)
        wrong[i] += 0.02
        assert tree_order(c, a, wrong, order)[0] < order, i


@pytest.mark.parametrize("name", ["bs23", "cash_karp", "tsit5", *map(slow, ("verner6", "fehlberg78", "dopri8"))])
def test_a_wrong_weight_shows_in_the_measured_order(name: str) -> None:
    solver = ds.get_solver(name)
    assert isinstance(solver, RungeKutta)
    t, last = solver.tableau, used(solver.tableau) - 1
    for wrong in (
        replace(t, b=nudged(nudged(t.b, last, OFF), 0, -OFF)),
        replace(t, a=(*t.a[:last], nudged(nudged(t.a[last], 0, OFF), last - 1, -OFF), *t.a[last + 1 :])),
        replace(t, c=nudged(t.c, last, OFF)),
    ):
        assert not validate_order(RungeKutta(wrong), zoo.neural(), ns=(8, 16, 32, 64, 128)).passed


@pytest.mark.slow
def test_principal_error_norms_as_published() -> None:
    """Prince & Dormand 1981, table 2, 4.51e-6; Cash & Karp's 9.48e-4 and Tsitouras' 1.4e-4 after Tsitouras 2011."""
    for name, norm in {"dopri8": 4.51e-6, "cash_karp": 9.48e-4, "tsit5": 1.39e-4}.items():
        assert validate_conditions(name).constant == pytest.approx(norm, rel=5e-3)


@pytest.mark.slow
def test_rounded_coefficients_are_said_to_be_so() -> None:
    for name in ("tsit5", "dopri8"):
        report = validate_conditions(name)
        assert (report.passed, report.exact) == (True, False)
        assert "to 1e-12, since it has irrational or rounded coefficients" in str(report)
    for name in ("verner6", "fehlberg78", "cash_karp"):
        assert validate_conditions(name).exact


PEERS = {"dopri5": dopri5._DORMAND_PRINCE_SHAMPINE_TABLEAU, "dopri8": dopri8._DOPRI8_TABLEAU,
         "bosh3": bosh3._BOGACKI_SHAMPINE_TABLEAU, "fehlberg2": fehlberg2._FEHLBERG2_TABLEAU}  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_the_numbers_are_torchdiffeqs(name: str) -> None:
    theirs, solver = PEERS[name], ds.get_solver(name)
    assert isinstance(solver, RungeKutta)
    t = solver.tableau
    n = len(t.c)
    rows = [*theirs.beta[: n - 1]]
    assert [float(x) for x in t.c[1:]] == pytest.approx(theirs.alpha.tolist()[: n - 1], rel=1e-15)
    for ours, row in zip(t.a[1:], rows, strict=True):
        assert [float(x) for x in ours] == pytest.approx(row.tolist(), rel=1e-15)
    assert [float(x) for x in t.b] == pytest.approx(theirs.c_sol.tolist()[:n], rel=1e-15)
    if name != "dopri5":  # torchdiffeq embeds Shampine's 1986 weights
        assert [float(x) for x in t.error] == pytest.approx(theirs.c_error.tolist()[:n], rel=1e-14, abs=1e-16)


@pytest.mark.parametrize(("name", "theirs"), [("bs23", scipy.integrate.RK23), ("dopri5", scipy.integrate.RK45)])
def test_the_error_is_scipys(name: str, theirs: Any) -> None:
    solver = ds.get_solver(name)
    assert isinstance(solver, RungeKutta)
    sign = -1 if solver.error[0] * theirs.E[0] < 0 else 1
    assert [sign * e for e in solver.error] == pytest.approx(theirs.E.tolist(), rel=1e-13, abs=1e-16)


@pytest.mark.parametrize(("name", "theirs"), [("rk4_38", "rk4"), ("heun3", "heun3"), ("heun", "heun2")])
def test_fixed_steps_are_torchdiffeqs(name: str, theirs: str) -> None:
    case = zoo.neural()
    times = torch.linspace(0.0, 3.0, 13, dtype=torch.float64)
    reference = torchdiffeq.odeint(case.problem.f, case.x, times, method=theirs)[-1]
    assert gap(ds.solve(case.problem, name, times.tolist(), x=case.x).x, reference) < 1e-14


# Exponential


def wrong_terms(row: tableaux.Weights) -> Iterator[tuple[str, tableaux.Weights]]:
    """One term's coefficient put off; its k for the next one's, as large at L = 0; its own argument left out."""
    for j, terms in enumerate(row):
        for n, (q, k, *own) in enumerate(terms):
            changes: dict[str, Any] = {"q": (q + OFF, k, *own)}
            if q and own != [0]:
                changes["k"] = (q * (k + 1), k + 1, *own)
            if own:
                changes["argument"] = (q, k)
            for kind, term in changes.items():
                yield f"{j}{kind}", (*row[:j], (*terms[:n], term, *terms[n + 1 :]), *row[j + 1 :])


def wrong_exponential(t: ExponentialTableau) -> Iterator[tuple[str, ExponentialTableau]]:
    for place, b in wrong_terms(t.b):
        yield f"b{place}", replace(t, b=b)
    for i, row in enumerate(t.a):
        for place, wrong in wrong_terms(row):
            yield f"a{i}{place}", replace(t, a=(*t.a[:i], wrong, *t.a[i + 1 :]))
        if i:
            yield f"c{i}", replace(t, c=nudged(t.c, i, OFF))


def series(t: ExponentialTableau) -> tuple[int | None, dict[str, Any]]:
    """The proved order at L = -1, and the leading local error."""
    solver = ExponentialRungeKutta(t)
    solver.form = "data"
    report = validate_conditions(solver, "series")
    return report.proved, dict(report.coefficients)


LATE = {"res_5s": ["a21k"], "res_3s": ["a21k", "a21argument", "a21k"], "res_2s": ["b1k"], "dpm_3": ["a21k"],
        "dpm_2": ["b1k"]}  # fmt: skip


@pytest.mark.parametrize("name", [n if EXPONENTIAL[n].order < 3 else slow(n) for n in EXPONENTIAL])
def test_each_term_of_an_exponential_tableau_counts(name: str) -> None:
    """A wrong phi in a stage that only enters late keeps the order; then the leading error tells."""
    t, late = EXPONENTIAL[name], []
    right = series(t)
    assert right[0] == t.order
    for place, wrong in wrong_exponential(t):
        found = series(wrong)
        assert found != right, place
        if found[0] == t.order:
            late.append(place)
    assert late == LATE.get(name, [])


@pytest.mark.parametrize(
    ("name", "stiff", "weak"),
    [("res_2s", 2, 2), ("res_3s", 2, 3), ("res_5s", 3, 4), ("etdrk4", 2, 2), ("krogstad", 3, 3), ("lawson4", 0, 1),
     ("dpmpp_2s", 1, 2), ("dpmpp_3s", 2, 3)],
)  # fmt: skip
def test_stiff_orders_as_published(name: str, stiff: int, weak: int) -> None:
    """Hochbruck & Ostermann 2005, sec. 5: res_5s is their only one of order 4, by the weak form."""
    details = validate_conditions(name).details
    assert (details["stiff"], details["stiff, weak form"]) == (stiff, weak)


def in_data_form(t: ExponentialTableau) -> ExponentialRungeKutta:
    solver = ExponentialRungeKutta(t)
    solver.form = "data"
    return solver


ETDRK4, LAWSON4 = tableaux.ETDRK4, tableaux.LAWSON4


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        slow(replace(ETDRK4, a=(*ETDRK4.a[:3], ((), (), ((1, 1),)))), id="its own argument for another's"),
        slow(replace(LAWSON4, b=(((Q(1, 6), 1),), *LAWSON4.b[1:])), id="a first weight of its own"),
        pytest.param(replace(tableaux.res_3(), a=(*tableaux.res_3().a[:2], ((), ((Q(3), 2),)))), id="gamma left out"),
        pytest.param(replace(tableaux.res_2(), b=((), ((Q(1), 2),))), id="res_2: b"),
    ],
)
def test_a_wrong_term_shows_in_the_measured_order(wrong: ExponentialTableau) -> None:
    right = {4: ETDRK4, 3: tableaux.res_3(), 2: tableaux.res_2()}[wrong.order]
    for t, passes in ((right, True), (wrong, False)):
        assert validate_order(in_data_form(t), quick=True).passed == passes


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_without_a_linear_part_it_is_a_classical_method(name: str) -> None:
    t = EXPONENTIAL[name]

    def rational(row: tableaux.Weights, total: Q) -> list[Q]:
        weights = [sum((Q(q) / math.factorial(k) for q, k, *_ in terms), Q(0)) for terms in row]
        return [total - sum(weights[1:]), *weights[1:]] if row else []

    a = tuple(tuple(rational(row, c)) for row, c in zip(t.a, t.c, strict=True))
    classical = Tableau(t.c, a, tuple(rational(t.b, Q(1))), t.order, tuple(rational(t.error, Q(0))))
    span = ds.Span(0.3, 0.8, adaptive=True)
    ours = ExponentialRungeKutta(t).step(Stub(0.0), 0.7, span, ())
    theirs = RungeKutta(classical).step(Stub(0.0), 0.7, span, ())
    assert ours.y == pytest.approx(theirs.y, rel=1e-14)
    assert (ours.error is None) == (theirs.error is None)
    if t.error:
        assert ours.error == pytest.approx(theirs.error, rel=1e-12)


# Embedded pairs of exponential methods


def dpm_solver_by_hand(f: Any, y: torch.Tensor, a: float, b: float, order: int) -> tuple[torch.Tensor, torch.Tensor]:
    """DPM-Solver-12 and -23 in y/sigma (Lu et al. 2022, Algorithms 1 and 2, app. C): (high, low). f is -eps."""
    h, r1, r2 = b - a, 1 / 2 if order == 2 else 1 / 3, 2 / 3
    first = f(y, a)
    middle = f(math.exp(r1 * h) * y + math.expm1(r1 * h) * first, a + r1 * h)
    one = math.exp(h) * y + math.expm1(h) * first
    two = one + math.expm1(h) / (2 * r1) * (middle - first)
    if order == 2:
        return two, one
    inner = math.expm1(r2 * h) / (r2 * h) - 1
    at = math.exp(r2 * h) * y + math.expm1(r2 * h) * first + r2 / r1 * inner * (middle - first)
    return one + (math.expm1(h) / h - 1) / r2 * (f(at, a + r2 * h) - first), two


@pytest.mark.parametrize("order", [2, 3])
def test_the_embedded_pairs_are_dpm_solver_12_and_23(order: int) -> None:
    problem, solver = mixture((4,)), ds.get_solver(f"dpm_solver_{order}")
    y = problem.prior(3, sigma=3.0)
    field = problem.field(solver, y, range(3), 0, None)
    u = field.form.to_form(y, 3.0)
    a, b = -math.log(3.0), -math.log(1.7)
    step = solver.step(field, u, ds.Span(a, b, adaptive=True), ())
    assert field.nfe == order, "the error costs no evaluation"
    high, low = dpm_solver_by_hand(field, u, a, b, order)
    assert gap(step.y, high) < 1e-14
    assert gap(step.error, high - low) < 1e-10
    assert solver.step(field, u, ds.Span(a, b), ()).error is None


@pytest.mark.parametrize(("name", "order"), [("dpm_solver_2", 1), ("dpm_solver_3", 2), ("res_2s", 1), ("res_3s", 2)])
def test_embedded_orders_of_exponential_pairs(name: str, order: int) -> None:
    assert validate_conditions(name).details["embedded"] == order
    solver = ds.get_solver(name)
    assert isinstance(solver, ExponentialRungeKutta)
    for place, error in wrong_terms(solver.tableau.error):
        wrong = ExponentialRungeKutta(replace(solver.tableau, error=error))
        if place.endswith("q") and order > 1:
            assert validate_conditions(wrong).details["embedded"] < order, place


# Stage noise


def dpmpp_sde_by_hand(problem: Any, sigmas: list[float], y: torch.Tensor, z: Any, r: float) -> torch.Tensor:
    """k-diffusion's DPM++ SDE at eta = 1, in sigma: z(a, b) is the standard normal from noise level a down to b."""
    for a, b in pairwise(sigmas):
        middle = math.exp((1 - r) * math.log(a) + r * math.log(b))
        first = problem.denoise(y, a)

        def to(end: float, value: torch.Tensor, a: float = a, y: torch.Tensor = y) -> torch.Tensor:
            share = (end / a) ** 2
            return share * y + (1 - share) * value + end * math.sqrt(1 - share) * z(a, end)

        second = problem.denoise(to(middle, first), middle)
        y = to(b, (1 - 1 / (2 * r)) * first + 1 / (2 * r) * second)
    return y


@pytest.mark.parametrize("r", [Q(1, 2), Q(3, 10), Q(1)])
def test_stage_noise_makes_dpmpp_sde(r: Q) -> None:
    problem, sigmas = mixture((4,), "edm"), [10.0, 4.0, 1.5, 0.6, 0.2]
    solver = ExponentialRungeKutta(tableaux.dpm_2(r))
    solver.form, solver.stochastic = "sde", True
    x = problem.prior(3, sigma=sigmas[0])
    field = problem.field(solver, x, range(3), 7, None)

    def drawn(a: float, b: float) -> torch.Tensor:
        return field.normal(ds.Span(-math.log(a), -math.log(b)))

    ours = [ds.solve(problem, solver, sigmas, x=x, seed=7, final="none", execution=e).x for e in ("eager", "tape")]
    by_hand = dpmpp_sde_by_hand(problem, sigmas, x, drawn, float(r))
    assert max(gap(run, by_hand) for run in ours) < 1e-13

    def at_the_end_alone(a: float, b: float) -> torch.Tensor:
        return drawn(a, b) if b in sigmas else torch.zeros_like(x)

    assert r == 1 or gap(dpmpp_sde_by_hand(problem, sigmas, x, at_the_end_alone, float(r)), by_hand) > 1e-4


def test_every_stage_draws_over_its_own_part() -> None:
    class Asked(Stub):
        def normal(self, span: ds.Span, kind: ds.Noise = ds.Noise.INCREMENT) -> Any:
            parts.append((span.start, span.end))
            return super().normal(span, kind)

    parts: list[tuple[float, float]] = []
    solver, span = ds.get_solver("res_5s"), ds.Span(0.2, 1.2)
    noisy = solver.step(Asked(-2.0, noise=0.1), 0.7, span, ()).y
    assert [start for start, _ in parts] == [0.2] * 5
    assert [end for _, end in parts] == pytest.approx([0.7, 0.7, 1.2, 0.7, 1.2])
    assert noisy != solver.step(Asked(-2.0), 0.7, span, ()).y
    assert len(parts) == 5, "without noise nothing is drawn"


# Options


@pytest.mark.parametrize(
    ("name", "said"),
    [("rk3(kind=ralstonn)", "'kutta', 'ralston', 'ssp'"), ("res_3s(c2=2/3)", "res_3s can't be built"),
     ("dpmpp_2s(r=0)", "dpmpp_2s can't be built"), ("dpmpp_3s(r1=a)", "dpmpp_3s can't be built")],
)  # fmt: skip
def test_options_that_make_no_method_are_refused(name: str, said: str) -> None:
    with pytest.raises(ds.SolverError, match=said):
        ds.get_solver(name)


@pytest.mark.parametrize(
    "name", ["rk3(kind=ralston)", "rk3(kind=ssp)", "res_2s(c2=0.3)", "res_3s(c2=1/3, c3=2/3)", "res_3s(c2=0.4, c3=0.7)",
             "dpmpp_2s(r=1)", "dpmpp_3s(r1=0.4)", "dpmpp_3s(r1=1/3, r2=2/3)", "dpmpp_3s(r1=0.4, r2=0.9)"]
)  # fmt: skip
def test_options_are_claimed_rightly(name: str) -> None:
    assert validate_conditions(name).passed
    assert (ds.get_solver(name).order < ds.find_solver(name.split("(")[0]).order) == ("r2=0.9" in name)
