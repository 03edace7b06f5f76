"""Multistep methods and predictor-correctors: what their options promise. Parity is in test_parity.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction as Q
from functools import cache
from itertools import pairwise
from typing import Any

import parity_cases as parity
import pytest
import torch
from scipy.integrate import quad
from stubs import Stub, by_hand, slow, spans
from torch import Tensor

import diffsolve as ds
from diffsolve.field import Evaluation
from diffsolve.problems import GaussianMixture
from diffsolve.solvers import Adams, PredictorCorrector, quadrature
from diffsolve.solvers.adams import check_apart
from diffsolve.validation import problems as zoo
from diffsolve.validation import validate_conditions, validate_order

ROWS = [e.name for e in ds.list_solvers(tags="multistep") if e.factory.__module__.endswith("catalogue.multistep")]
SHORT = (8, 16, 32, 64, 128, 256)


def mixture(dtype: torch.dtype = torch.float64) -> GaussianMixture:
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), [3, 2, 1, 1, 2], dtype=dtype)


def test_gradient_estimation_is_the_papers() -> None:
    problem = mixture()
    grid = ds.make_grid(ds.Karras(), 16, problem.process, final="none")
    x = first = problem.prior(6, sigma=float(grid.sigmas[0]))
    before = None
    for now, then in pairwise(grid.sigmas.tolist()):
        eps = problem.eps(x, now)
        x = x + (then - now) * (eps if before is None else eps + 0.7 * (eps - before))
        before = eps
    assert parity.distance(ds.solve(problem, "gradient_estimation(gamma=1.7)", grid, x=first).x, x) < 1e-13


# Predictor-correctors


def pec(f: Any, linear: float, u: float, nodes: Sequence[float], p: int, c: int) -> list[float]:
    """Predictions by the book: the corrected state of every node is kept, and each step starts from there."""

    def advance(u: float, a: float, b: float, known: Sequence[float]) -> float:
        values = dict(seen)
        weights = quadrature.exact(linear, b - a, [at - a for at in known])
        return math.exp(linear * (b - a)) * u + sum(w * values[at] for w, at in zip(weights, known, strict=True))

    seen: list[tuple[float, float]] = []
    corrected, states = u, []
    for i, node in enumerate(nodes[:-1]):
        seen.append((node, f(u, node)))
        if i:
            corrected = advance(corrected, nodes[i - 1], node, nodes[max(0, i - c + 1) : i + 1])
        u = advance(corrected, node, nodes[i + 1], nodes[max(0, i - p + 1) : i + 1])
        states.append(u)
    return states


@pytest.mark.parametrize("linear", [0.0, 1.0, -2.0])
@pytest.mark.parametrize(("p", "c"), [(1, 1), (1, 2), (2, 2), (2, 3), (3, 1), (4, 3), (4, 5)])
def test_a_predictor_corrector_needs_no_corrected_state(p: int, c: int, linear: float) -> None:
    class F(Stub):
        def evaluate(self, u: float, s: float, /) -> Evaluation:
            return Evaluation(math.sin(2 * u + s))

    f, nodes = F(linear), [0.1, 0.3, 0.4, 0.7, 0.8, 1.0, 1.3, 1.4]
    steps = by_hand(PredictorCorrector(p, c), f, 0.7, spans(nodes))
    assert steps == pytest.approx(pec(f, linear, 0.7, nodes, p, c), rel=1e-12)


FORMS = ("noise", "data", "sigma", "v")


@pytest.mark.parametrize(
    ("order", "form"),
    [(1, "noise"), slow(3, "sigma"), slow(2, "data"), slow(4, "v"),
     *(slow(k, form) for k, form in enumerate(FORMS[::-1], 1))],
)  # fmt: skip
def test_abm_of_every_order_and_form(order: int, form: str) -> None:
    solver = f"abm(order={order}, form={form})"
    assert validate_conditions(solver).passed
    assert validate_order(solver, zoo.mixture(), early=True).passed


@pytest.mark.slow
def test_moulton_error_constants() -> None:
    """Hairer, Norsett & Wanner I, table III.1.2; and what the predictor adds, 3/8 of N''' for order 3."""
    constants = [validate_conditions(f"abm(order={k})").coefficients for k in (1, 2, 3, 4)]
    assert [list(c.values()) for c in constants] == [[Q(1, 2)], [Q(1, 12)], [Q(1, 24)], [Q(19, 720)]]
    assert validate_conditions("unipc").coefficients == {"N^(4)": Q(19, 720), "N_u N'''": -Q(3, 8)}


@pytest.mark.parametrize(("order", "stiff"), [slow(1, 1), slow(2, 2), slow(3, 4)])
def test_unipc_has_one_order_more_than_its_predictor(order: int, stiff: int) -> None:
    for variant in ("bh1", "bh2"):
        solver = f"unipc(order={order}, variant={variant})"
        report = validate_conditions(solver)
        assert (report.proved, report.started_proved) == (order + 1, min(order + 1, 3))
        assert report.details["stiff"] == stiff, "the short cut of two nodes costs an order where L h is large"
        assert report.passed
        assert validate_order(solver, start="exact", quick=True, early=True).passed
    assert validate_conditions(f"abm(order={order + 1}, predictor={order}, form=data)").details["stiff"] == order + 1


@pytest.mark.parametrize(
    "solver", [slow("unipc(order=3, lower_final=True)"), slow("unipc(corrector=False, lower_final=True)")]
)
def test_a_lower_order_at_the_end_is_of_order_2(solver: str) -> None:
    assert validate_conditions(solver).passed
    assert validate_order(solver, start="exact", quick=True, early=True).passed


class WrongCorrector(PredictorCorrector):
    """The corrector's newest weight off by a hundredth of a step, with the right sum."""

    def weights(self, linear: float, span: ds.Span, nodes: Sequence[float]) -> list[float]:
        *rest, last = super().weights(linear, span, nodes)
        implicit = nodes[-1] == span.end
        return [rest[0] + span.h / 100, *rest[1:], last - span.h / 100] if implicit and rest else [*rest, last]


class NeverCorrected(PredictorCorrector):
    """The same nodes for the corrector as for the predictor, so that the correction is 0."""

    def weigh(self, f: ds.Field, span: ds.Span, nodes: Sequence[float]) -> list[float]:
        return [*super().weigh(f, span, nodes[:-1]), 0.0] if nodes[-1] == span.end else super().weigh(f, span, nodes)


@pytest.mark.parametrize("kind", [WrongCorrector, NeverCorrected])
def test_a_wrong_corrector_is_caught(kind: type[PredictorCorrector]) -> None:
    case = zoo.semilinear()
    assert validate_order(PredictorCorrector(2, 3), case, ns=SHORT).passed
    assert not validate_order(kind(2, 3), case, ns=SHORT).passed


def test_conditions_see_a_wrong_corrector() -> None:
    assert validate_conditions(PredictorCorrector(2, 3)).passed
    report = validate_conditions(WrongCorrector(2, 3))
    assert (report.proved, report.passed) == (1, False)


# Starts and coordinates


@pytest.mark.parametrize(
    ("start_", "started", "form"),
    [slow("euler", 2, "sigma"), slow("heun", 3, "noise"), slow("third", 4, "data"), slow("third", 4, "sigma")],
)  # fmt: skip
def test_a_start_of_order_q_gives_order_q_plus_1(start_: str, started: int, form: str) -> None:
    solver = f"lms(order=4, start={start_}, form={form})"
    assert ds.get_solver(solver).order_as_started == started
    assert validate_conditions(solver).passed
    assert validate_order(solver, quick=True, early=True).passed


def test_a_start_may_be_any_one_step_method_and_is_not_evaluated_twice() -> None:
    solver = Adams(4, start=ds.get_solver("rk4"))
    assert validate_order(solver, [zoo.neural(), zoo.mixture()]).passed
    grid = ds.make_grid(ds.Karras(), 7, mixture().process, final="none")
    assert ds.count_evaluations(solver, grid, mixture()) == 3 * 4 + 4
    assert ds.count_evaluations(ds.get_solver("abm"), grid, mixture()) == 7


def test_the_kinds_of_deis() -> None:
    problem = mixture()

    def end(solver: str) -> Tensor:
        return ds.solve(problem, solver, n=7, batch=4, final="none").x

    assert parity.distance(end("deis(kind=rho)"), end("lms(order=3)")) < 1e-12
    assert parity.distance(end("deis(kind=logrho)"), end("lms(order=3, form=noise)")) < 1e-14
    assert parity.distance(end("deis(kind=t)"), end("deis(kind=t, form=sigma)")) < 1e-5, "a kinked t(sigma)"
    assert parity.distance(end("deis(kind=t)"), end("deis(kind=rho)")) > 1e-3


@pytest.mark.parametrize("linear", [0.0, 1.0, -3.0])
def test_weights_in_another_coordinate(linear: float) -> None:
    nodes, span = [-2.0, -1.2, -0.7], ds.Span(-0.7, 0.9)
    weights = quadrature.in_coordinate(linear, span, nodes, math.exp)
    places = [math.exp(s) for s in nodes]
    for j, w in enumerate(weights):
        def rate(s: float, j: int = j) -> float:
            return math.exp(linear * (span.end - s)) * quadrature.lagrange(places, math.exp(s))[j]

        assert w == pytest.approx(quad(rate, span.start, span.end, epsabs=1e-14, epsrel=1e-13)[0], rel=1e-12)


# Step counts, and misuse


@cache
def reference() -> tuple[Tensor, Tensor]:
    problem = mixture()
    x = problem.prior(4, seed=3)
    return x, ds.solve(problem, "lms(order=4, start=third, form=noise)", n=2500, x=x, final="none").x


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_more_steps_are_never_worse(row: str) -> None:
    problem, counts = mixture(), (50, 200, 1000)  # fewer and other ones: test_many_steps.py
    x, exact = reference()
    errors = [parity.distance(ds.solve(problem, row, n=n, x=x, final="none").x, exact) for n in counts]
    assert all(after < 0.4 * before for before, after in pairwise(errors)), errors
    single = mixture(torch.float32)
    errors = [parity.distance(ds.solve(single, row, n=n, x=x.float(), final="none").x, exact) for n in counts[1:]]
    assert errors[1] < 3 * max(errors[0], 1e-6), errors


@pytest.mark.parametrize(
    ("solver", "said"),
    [
        ("lms(start=huen)", "did you mean 'heun'"),
        ("abm(order=3, predictor=1)", "at most one above its predictor's, must be a whole number from 1 to 2, got 3"),
        ("abm(order=0)", "from 1 to 12, got 0"),
        ("unipc(order=5)", "order must be a whole number from 1 to 4, got 5"),
        ("unipc(variant=bh3)", "must be one of 'bh1', 'bh2', got 'bh3'"),
        ("deis(kind=sigma)", "must be one of 'logrho', 'rho', 't', got 'sigma'"),
    ],
)
def test_wrong_options_are_named(solver: str, said: str) -> None:
    with pytest.raises(ds.SolverError, match=said):
        ds.get_solver(solver)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quadrature": "mid"}, "quadrature must be one of 'exact', 'uniform', 'midpoint', .*'bh1', 'bh2', got 'mid'"),
        ({"coordinate": "lambda"}, "coordinate must be one of 'variable', 'time', 'sigma', got 'lambda'"),
        ({"coordinate": "time", "quadrature": "uniform"}, "only 'exact' reads coordinate='time'"),
        ({"start": Adams(2)}, "one-step solver"),
    ],
)
def test_wrong_options_of_adams_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ds.SolverError, match=said):
        Adams(3, **options)


def test_a_predictor_corrector_has_no_other_start() -> None:
    with pytest.raises(ds.SolverError, match="leave start out"):
        PredictorCorrector(2, 2, start="heun")


@pytest.mark.parametrize(("apart", "far"), [(1.0, 1e9), (0.5, 1e9), (2.0, 1e9), (0.5, 5e8)])
def test_how_near_one_another_nodes_may_be(apart: float, far: float) -> None:
    """No nearer than 1e-9 of the way from the step to the farthest of them."""
    span, nodes = ds.Span(0.0, 1.0), (-far, apart - far)
    if apart < 1e-9 * far:
        with pytest.raises(ds.SolverError, match=r"two nodes of the grid are 0\.5 apart"):
            check_apart(span, nodes)
    else:
        check_apart(span, nodes)
