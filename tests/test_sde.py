"""Users' own SDEs, the reverse SDE as a problem, paths with their areas, strong and weak orders of every row."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from stubs import gap, gaussian, mixture, slow
from torch import Tensor

import diffsolve as ds
from diffsolve.form import as_form
from diffsolve.problems.noise import SpaceTimePath
from diffsolve.solvers.schedules import PolyExponential
from diffsolve.tape import Draw, Evaluate
from diffsolve.validation import validate_strong, validate_weak
from diffsolve.validation.orders import strong_weak
from diffsolve.validation.orders.moments import moment_errors

CLASSICAL = ["euler_maruyama", "milstein", "sra1", "sra3"]
F64 = torch.float64


def path(
    samples: Any = range(4), shape: tuple[int, ...] = (3,), low: float = -2.7, high: float = 3.6, **options: Any
) -> SpaceTimePath:
    return SpaceTimePath(0, samples, shape, low, high, **{"dtype": F64, **options})


def increments(b: SpaceTimePath, start: float, end: float) -> tuple[Tensor, Tensor, float]:
    """W(end) - W(start) and the integral of W - W(start), as solvers read them."""
    h = abs(end - start)
    z, z2 = b.wiener(start, end), b.area(start, end)
    return math.sqrt(h) * z, h**1.5 * (z / 2 + z2 / math.sqrt(12)), h


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.0, 4.0), (4.0, 0.0)])
def test_increments_and_areas_compose(low: float, high: float) -> None:
    nodes = [low + (high - low) * i / 64 for i in (3, 4, 11, 30, 31, 50)]  # places that the tree resolves
    w, area = 0, 0
    for start, end in pairwise(nodes):
        dw, da, h = increments(path(low=low, high=high), start, end)
        area, w = area + da + h * w, w + dw
    whole = increments(path(low=low, high=high), nodes[0], nodes[-1])
    assert torch.allclose(w, whole[0], rtol=0, atol=1e-12)
    assert torch.allclose(area, whole[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("nodes", [[-2.7, -1.0, -0.9, 0.8, 3.0, 3.6], [0.1, 0.1001, 0.1003, 0.1004, 0.105]], ids=str)
def test_increments_and_areas_are_independent_standard_normals(nodes: list[float]) -> None:
    """The second case lies inside single cells at the foot of the tree."""
    n = 40_000
    b = path(range(n), (1,), depth=26)
    z = torch.cat([q(s, e) for s, e in pairwise(nodes) for q in (b.wiener, b.area)], 1).numpy()
    products = z[:, :, None] * z[:, None]  # inside a cell their fourth moments are not those of normals
    gaps = products.mean(0) - np.eye(z.shape[1])
    assert (np.abs(gaps) < 5 * products.std(0) / math.sqrt(n)).all()
    assert np.abs(z.mean(0)).max() < 5 / math.sqrt(n)


def test_a_path_is_the_samples_own_and_does_not_know_what_was_asked() -> None:
    alone, batch = path([3]), path(range(8))
    batch.wiener(-1.0, 2.0)
    for interval in ((0.1, 0.2), (-2.7, 3.6), (0.1, 0.1002)):
        assert torch.equal(batch.area(*interval)[3:4], alone.area(*interval))
        assert torch.equal(path([3]).wiener(*interval), alone.wiener(*interval))
    with pytest.raises(ds.SolverError, match="shorter than the Brownian path's resolution"):
        alone.area(0.0, 1e-7)


# -- problems ----------------------------------------------------------------------------------------------------------


def linear(rows: int = 3, **options: Any) -> ds.SDEProblem:
    x0 = torch.ones(rows, 2, dtype=F64)
    return ds.SDEProblem(lambda t, x: -x, options.pop("g", lambda t: 0.5), (0.0, 1.0), x0, **options)


@pytest.mark.parametrize("solver", CLASSICAL)
def test_a_sample_is_keyed_by_its_row(solver: str) -> None:
    whole = ds.solve(linear(4), solver, n=8, seed=2).x
    assert torch.equal(ds.solve(linear(2), solver, n=8, seed=2).x, whole[:2])
    named = ds.solve(linear(2), solver, n=8, seed=2, batch=range(2, 4)).x
    assert torch.equal(named, whole[2:])
    assert torch.equal(ds.solve(linear(2), solver, n=8, seed=2, x=torch.ones(2, 2, dtype=F64), batch=[2, 3]).x, named)
    assert gap(ds.solve(linear(4), solver, n=8, seed=3).x, whole) > 1e-2
    assert ds.solve(linear(4), solver, n=8).nfe == 8 * ds.get_solver(solver).stages


def test_a_solve_converges_to_the_solution_of_its_own_path() -> None:
    """dx = -x dt + 0.5 dW: x(1) = e^-1 x(0) + 0.5 (W - int e^{-(1 - s)} W ds), W read off the path."""
    problem = linear(64)
    field = problem.field(ds.get_solver("sra1"), problem.x0, range(64), 0, None)
    n = 512
    w, integral = torch.zeros(64, 2, dtype=F64), 0
    for i in range(n):
        span = ds.Span(i / n, (i + 1) / n)
        dw = field.normal(span, ds.Noise.WIENER) / math.sqrt(n)
        weight = quad(lambda s: math.exp(s - 1), span.start, span.end)[0] * n
        integral, w = integral + weight * (w / n + dw / n / 2), w + dw
    exact = math.exp(-1) * problem.x0 + 0.5 * (w - integral)
    errors = [gap(ds.solve(problem, "sra1", n=k).x, exact) for k in (8, 32)]
    assert errors[1] < errors[0] / 7 < 5e-3


@pytest.mark.parametrize("solver", CLASSICAL)
def test_additive_noise_may_have_a_level_for_each_component(solver: str) -> None:
    levels = torch.tensor([0.5, 0.1], dtype=F64)
    given = ds.solve(linear(g=lambda t: levels), solver, n=8).x
    for i, level in enumerate(levels.tolist()):
        assert torch.allclose(given[:, i], ds.solve(linear(g=lambda t, level=level: level), solver, n=8).x[:, i])


def test_milstein_takes_the_derivative_of_the_noise() -> None:
    """Against the step written out for g(t, x) = sin x + t."""
    problem = ds.SDEProblem(lambda t, x: 0 * x, lambda t, x: torch.sin(x) + t, (0.5, 1.0), torch.ones(4, 1, dtype=F64))
    field = problem.field(ds.get_solver("milstein"), problem.x0, range(4), 0, None)
    z = field.normal(ds.Span(0.5, 1.0), ds.Noise.WIENER)
    dw, x = z * math.sqrt(0.5), problem.x0
    expected = x + (x.sin() + 0.5) * dw + 0.5 * (x.sin() + 0.5) * x.cos() * (dw**2 - 0.5)
    assert torch.allclose(ds.solve(problem, "milstein", n=1).x, expected, rtol=1e-14)
    flat = ds.SDEProblem(lambda t, x: -x, lambda t, x: torch.ones_like(x), (0.0, 1.0), problem.x0)
    assert torch.equal(ds.solve(flat, "milstein", n=4).x, ds.solve(flat, "euler_maruyama", n=4).x)


def test_exponential_methods_take_additive_noise_of_one_level() -> None:
    assert gap(ds.solve(linear(), "euler_ancestral", n=8).x, ds.solve(linear(), "euler_maruyama", n=8).x) < 1e-12


def test_the_reverse_sde_is_a_problem() -> None:
    problem = mixture()
    for solver in ("euler_ancestral", "sra1"):
        for eta in (0.5, 1.0):
            given = ds.solve(problem, solver, n=6, eta=eta)
            assert torch.equal(ds.solve(problem.sde(eta), solver, n=6).x, given.x)
            assert torch.equal(ds.solve(problem.sde(eta=eta), solver, n=6, eta=eta).x, given.x)
    assert problem.eta is None
    assert ds.solve(problem.sde(0.5), "dpmpp_2m_sde", nfe=9).nfe == 9


@pytest.mark.parametrize("solver", ["euler_ancestral", slow("sra1")])
@pytest.mark.parametrize(
    "form", [name if name == "sde" else slow(name) for name, form in ds.FORMS.items() if form.stochastic]
)
def test_every_form_of_the_reverse_sde_has_the_same_end(form: str, solver: str) -> None:
    """Hundreds of steps too, the last of which are short in every variable: no step is beyond the path's resolution."""
    problem, n = gaussian((1,)), 4000
    x = ds.solve(problem, solver, n=300, batch=n, form=form).x
    assert float(x.mean() - problem.mean) == pytest.approx(0, abs=0.03 + 4.5 * math.sqrt(float(problem.variance) / n))
    assert float(x.var()) == pytest.approx(float(problem.variance), rel=0.05 + 4.5 * math.sqrt(2 / n))


@pytest.mark.parametrize("solver", CLASSICAL)
def test_classical_methods_draw_their_noise_from_one_path(solver: str) -> None:
    """On a Gaussian, where a run's mean and variance are known: sampled against propagated."""
    problem, n = gaussian((1,), "vp"), 20_000
    ends: Any = {"sigma_max": 8.0, "sigma_min": 0.5, "final": "none"}
    x = ds.solve(problem, solver, "lambda", 12, x=torch.zeros(n, 1, dtype=F64), **ends).x
    field = problem.field(ds.get_solver(solver), torch.zeros(1, 1, dtype=F64), (0,), 0, 1.0)
    grid = problem.grid(PolyExponential(), 12, name="", **ends)
    tape = ds.record(ds.get_solver(solver), field, ds.plan(ds.get_solver(solver), grid, field))

    registers = {0: np.zeros(1 + tape.draws)}  # the offset, and what each draw is multiplied by
    drawn = 0
    for line in tape.operations:
        op = line.op
        if isinstance(op, Draw):
            drawn += 1
            registers[op.out] = np.eye(1 + tape.draws)[drawn]
            continue
        total = sum(c * registers[r] for r, c in zip(op.row, line.coefficients, strict=True))
        if isinstance(op, Evaluate):
            sigma = math.exp(-line.s)
            share = float(problem.variance / (problem.variance + sigma**2))
            total = 2 * (total * share + np.eye(1 + tape.draws)[0] * float(problem.mean) * (1 - share))
            registers |= {out: total for _, out in op.parts}
        else:
            registers[op.out] = total
    offset, *noise = registers[tape.structure[-1].out]
    variance = float(np.square(noise).sum())
    assert float(x.mean()) == pytest.approx(offset, abs=4.5 * math.sqrt(variance / n))
    assert float(x.var()) == pytest.approx(variance, rel=4.5 * math.sqrt(2 / n))


# -- orders ------------------------------------------------------------------------------------------------------------


def test_euler_is_of_strong_order_one_half_where_the_noise_depends_on_the_state() -> None:
    problem = strong_weak.geometric(500)
    euler = validate_strong("euler_maruyama", problem, quick=True, claimed=0.5)
    assert euler.passed, str(euler)
    assert not validate_strong("euler_maruyama", problem, quick=True, claimed=1).passed
    run = next(iter(euler.runs.values()))
    assert 0.3 < run.low < run.slope < run.high < 0.7
    assert all(low < error < high for error, (low, high) in zip(run.errors, run.bands, strict=True))


@pytest.fixture
def boaster() -> Any:
    """sra1 with one coefficient wrong, and its claims."""
    from dataclasses import replace

    from diffsolve.solvers import sde

    wrong = replace(sde.SRA1, b=((), (1.2,)))

    @ds.register_solver("boaster", order=2, form="sde", stages=2, stochastic=True, strong=1.5, weak=2, source="a test")
    def make() -> ds.Solver:
        return sde.AdditiveRungeKutta(wrong)

    return "boaster"


@pytest.mark.slow
def test_a_wrong_coefficient_fails_its_claims(boaster: str) -> None:
    weak = validate_weak(boaster, quick=True)
    assert not weak.passed, str(weak)
    assert weak.measured < 1.5
    strong = validate_strong(boaster, quick=True)
    assert strong.measured < validate_strong("sra1", quick=True).measured - 0.3, str(strong)


@pytest.mark.slow
def test_both_orders_from_one_set_of_paths_are_those_of_each() -> None:
    weak, strong = strong_weak.validate_both("euler_ancestral", quick=True)
    assert weak == validate_weak("euler_ancestral", quick=True)
    assert strong == validate_strong("euler_ancestral", quick=True)
    assert strong_weak.validate_both("repaint", quick=True) == []


@pytest.mark.parametrize(("draws", "passes"), [(1, True), (2, False)])
def test_what_solves_another_sde_has_no_strong_order(draws: int, passes: bool) -> None:
    class Loud(ds.Solver):
        form, stochastic = "sde", True

        def step(self, f: Any, y: Any, span: ds.Span, past: Any) -> ds.Step:
            rate = f(y, span.start) + f.form.linear * y
            noise = f.form.noise_std(span.start, span.end) * f.normal(span)
            return ds.Step(y + span.h * rate + draws * noise)

    report = validate_strong(Loud(), claimed=1, quick=True)
    assert report.measured > 0.85  # it converges to something
    assert (report.consistent, report.passed) == (passes, passes), str(report)
    assert ("it solves another equation" in str(report)) is not passes


@pytest.mark.slow
def test_moments_are_those_of_many_samples() -> None:
    """The variance that is propagated through the tape, against that of the same Gaussian's exact SDE."""
    coarse, fine = (moment_errors(ds.get_solver("dpmpp_sde"), n) for n in (8, 256))
    assert coarse[1] > 1e-3
    assert max(fine) < 3e-4
    for solver in ("score_sde_vp", "seeds_1", "er_sde_1", "euler_maruyama"):
        assert max(moment_errors(ds.get_solver(solver), 256)) < 2e-2, solver


@pytest.mark.slow
def test_a_report_says_what_it_found(tmp_path: Any) -> None:
    report = validate_weak("sra1", quick=True)
    data = json.loads(report.to_json())
    assert (data["solver"], data["kind"], data["claimed"], data["passed"]) == ("sra1", "weak", 2, True)
    assert set(data["problems"]) == {"Gaussian, exact moments", "mixture 2-D, sampled"}
    report.plot().savefig(tmp_path / "a.png")
    assert "weak order 2 claimed" in str(report)


# -- misuse ------------------------------------------------------------------------------------------------------------


def drift(t: float, x: Tensor) -> Tensor:
    return -x


def ones(t: float, x: Tensor) -> Tensor:
    return torch.ones_like(x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ds.SDEProblem(drift, 0.5, (0, 1), [1.0]), ds.ProblemError, r"g must be a function .* got float"),
        (lambda: ds.SDEProblem(drift, ones, (0, 1), 1.0), ds.ProblemError, r"x0 is the number 1; .* \(B, \.\.\.\)"),
        (lambda: ds.SDEProblem(drift, lambda: 1.0, (0, 1), [1.0]), ds.ProblemError, "g must take .*; this one takes 0"),
        (lambda: ds.solve(linear(), "vq_diffusion"), ds.SolverError, "vq_diffusion.? is no method of an SDE; take"),
        (lambda: ds.solve(linear(g=lambda t: None), "sra1"), ds.ProblemError, "g at t = 0 returned None, expected"),
        (lambda: ds.solve(linear(g=lambda t: torch.ones(7)), "milstein"), ds.ProblemError, r"returned shape \(7,\)"),
        (lambda: ds.solve(linear(), "heun"), ds.SolverError, "heun.? solves ODEs .* 'euler_maruyama'"),
        (lambda: ds.solve(linear(), "milstein", eta=0.5), ds.SolverError, "eta = 0.5 .* its own g"),
        (lambda: ds.solve(linear(), "milstein", batch=[1, 2]), ds.ProblemError, "batch names 2 samples"),
        (lambda: ds.solve(linear(g=ones), "sra1"), ds.SolverError, r"sra1.? is for additive noise, g\(t\)"),
        (lambda: ds.solve(linear(g=ones), "euler_ancestral"), ds.SolverError, "additive noise of one level"),
        (lambda: ds.solve(linear(g=lambda t, x: 1.0), "milstein"), ds.ProblemError, r"g at t = 0 returned float"),
        (lambda: ds.solve(linear(), "milstein", execution="tape"), ds.SolverError, "not traceable; .*'eager'"),
        (lambda: ds.solve(linear(), "dpm2_ancestral"), ds.SolverError, "reads a noise level"),
        (lambda: ds.solve(mixture().sde(), "heun"), ds.SolverError, "heun.? solves the ODE, .* reverse SDE"),
        (lambda: ds.solve(mixture().sde(0.5), "sra1", eta=1.0), ds.SolverError, r"the problem is sde\(eta=0.5\)"),
        (lambda: mixture().sde(eta=-1), ds.SolverError, "eta must be a finite number of at least 0, got -1"),
        (lambda: validate_strong("heun"), ds.SolverError, "claims no strong order"),
        (lambda: validate_weak("sra1", ns=(8, 12)), ds.SolverError, "each a multiple of the one before"),
        (lambda: validate_strong("sra1", ds.ODEProblem(drift, (0, 1), [1.0])), ds.SolverError, "on an SDEProblem"),
    ],
)  # fmt: skip
def test_what_can_not_be_asked(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_noise_that_reads_others_later_on_is_found() -> None:
    """Looked at in the steps 1, 2, 4 and every eighth, so that a g that is diagonal at first does not pass for one."""

    def g(t: float, x: Tensor) -> Tensor:
        return x.roll(1, -1) if t > 0.5 else x

    problem = ds.SDEProblem(lambda t, x: -x, g, (0.0, 1.0), torch.ones(2, 3, dtype=F64))
    for n in (4, 30):
        with pytest.raises(ds.SolverError, match="reads other components"):
            ds.solve(problem, "milstein", n=n)


def test_a_span_of_sigma_squared_has_the_same_noise_both_ways() -> None:
    form = as_form("sde_sigma", ds.PROCESSES["sd"], 0.5)
    assert form.noise_std(4.0, 1.0) == form.noise_std(1.0, 4.0) == pytest.approx(math.sqrt(0.5 * 3))
