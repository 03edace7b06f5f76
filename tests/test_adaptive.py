"""Steps chosen by their error: the controllers, the loop that they steer, and the rows that bring one of their own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from stubs import BAD, ENTRIES, Watched, gap, gaussian, mixture, rows
from test_loop import Reads

import diffsolve as ds
from diffsolve import registry
from diffsolve.register import Owner
from diffsolve.tape import trial

FIELD = mixture()


def tried(name: str) -> tuple[int, bool]:
    """The evaluations of one adaptive step, and whether it estimates its error; declared, they are the same."""
    solver = ds.get_solver(name)
    if not solver.traceable or solver.stochastic:
        return 0, False
    field = FIELD.field(solver, FIELD.prior(1), (0,), 0, None)
    span = ds.Span(field.form.variable(2.0), field.form.variable(1.0), adaptive=True)
    calls, estimates = trial(solver, field, span)
    return calls - (solver.evaluations(span, 0) or 0), estimates


TRIED = {entry.name: tried(entry.name) for entry in ENTRIES}
ABLE = [name for name, (_, estimates) in TRIED.items() if estimates]


def logistic(span: tuple[float, float] = (0.0, 3.0)) -> ds.ODEProblem:
    """x' = x (1 - x) (1 + sin t): nonlinear, time-dependent, with a known flow."""

    def exact(x: Any, a: float, b: float) -> Any:
        growth = math.exp(b - math.cos(b) - a + math.cos(a))
        return x * growth / (1 + x * (growth - 1))

    start = torch.tensor([0.1, 0.3, 0.9], dtype=torch.float64)
    return ds.ODEProblem(
        lambda t, x: x * (1 - x) * (1 + math.sin(t)), span, exact(start, 0.0, span[0]), exact=exact
    )


def missed(problem: ds.ODEProblem, solution: ds.Solution) -> float:
    return gap(solution.x, problem.exact(problem.x0, *problem.span))


# The controllers


def test_pid_by_hand() -> None:
    control = ds.PIDController(pcoeff=0.4, icoeff=0.3, dcoeff=0.1)
    wanted = 0.5 ** (-0.8 / 2) * 0.7 ** (0.6 / 2) * 0.9 ** (-0.1 / 2)
    assert control.judge((0.5, 0.7, 0.9), 2)[1] == pytest.approx(1 + math.atan(wanted - 1), rel=1e-7)


@pytest.mark.parametrize("order", [1.5, 2, 3, 5])
def test_pid_keeps_what_would_be_repeated_at_81_percent(order: float) -> None:
    control = ds.PIDController(pcoeff=0.0, icoeff=1.0)
    most = (1 + math.tan(0.81 - 1)) ** -order
    assert [control.judge((e, e, e), order)[0] for e in (0.999 * most, 1.001 * most)] == [True, False]
    assert control.judge((0.0, 0.0, 0.0), order)[1] < 1 + math.pi / 2
    assert control.judge((1e9, 1e9, 1e9), order)[1] > 1 - math.pi / 4


def test_integral_by_hand() -> None:
    control = ds.IntegralController()
    assert control.judge((0.5, 9.0, 9.0), 2) == (True, pytest.approx(0.9 / math.sqrt(0.5)))
    assert [control.judge((e, 1.0, 1.0), 3) for e in (0.0, 1.0, 1e9)] == [(True, 5.0), (True, 0.9), (False, 0.2)]
    assert not control.judge((1.001, 1.0, 1.0), 3)[0], "what is tolerated is 1"


def test_the_norm_by_hand() -> None:
    error, low, before = (torch.tensor(v, dtype=torch.float64) for v in ([[0.3, 0.0]], [[2.0, 0.0]], [[-3.0, 0.0]]))
    norm = ds.PIDController(0.1, 0.01).norm(error, low, before)
    assert float(norm) == pytest.approx((0.3 / 0.3) / math.sqrt(2))
    assert float(ds.PIDController(0.0, 0.5).norm(error, low, before)) == pytest.approx(0.6 / math.sqrt(2))
    assert float(ds.PIDController(0.1, 0.0).norm(error, low, before)) == pytest.approx(1 / math.sqrt(2)), "0 of 0"
    many = ds.PIDController(0.1, 0.01).norm(*(v.tile(5, 3) for v in (error, low, before)))
    assert float(many) == pytest.approx(float(norm)), "of any number of elements"


def test_tolerances_complete_each_other() -> None:
    def tolerances(control: ds.Controller) -> tuple[float, float]:
        return control.rtol, control.atol

    assert tolerances(ds.PIDController()) == (1e-3, 1e-3)
    assert tolerances(ds.PIDController(1e-2)) == tolerances(ds.PIDController(atol=1e-2)) == (1e-2, 1e-2)
    own = ds.get_solver("dpm_adaptive").controller
    assert tolerances(own) == (0.05, 0.0078)
    assert tolerances(own.tolerating(1e-3, None)) == pytest.approx((1e-3, 0.0078 / 50)), "their proportion stays"
    assert tolerances(own.tolerating(None, 0.0156)) == pytest.approx((0.1, 0.0156))
    assert tolerances(own.tolerating(1e-3, 1e-5)) == (1e-3, 1e-5)
    assert tolerances(own.tolerating(0, None)) == (0, 0.0078)
    assert tolerances(ds.PIDController(0.0, 1e-3).tolerating(1e-2, None)) == (1e-2, 1e-3)
    assert tolerances(own) == (0.05, 0.0078), "it is not changed"


# The loop


def test_what_an_adaptive_step_costs_is_what_it_declares() -> None:
    assert {name: off for name, (off, _) in TRIED.items() if off} == {}


class Scripted(ds.Controller):
    """Answers from a list, then keeps steps of the same length; notes what it is asked."""

    def __init__(self, *answers: tuple[bool, float], **lengths: Any) -> None:
        super().__init__(**lengths)
        self.answers, self.asked = list(answers), []

    def judge(self, errors: Any, order: float) -> tuple[bool, float]:
        self.asked.append((*errors, order))
        return self.answers.pop(0) if self.answers else (True, 1.0)


class Noting(ds.Solver):
    """Euler with an error of the step's length; notes its spans and what it is handed."""

    order, traceable = 2, False

    def __init__(self) -> None:
        self.given: list[tuple[ds.Span, Any, int]] = []

    def step(self, f: ds.Field, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
        self.given.append((span, y, len(past)))
        y = y + span.h * f(y, span.start)
        return ds.Step(y, error=y * 0 + span.h, past=(*past, (span.start, y)))


@pytest.mark.parametrize("way", [1.0, -1.0])
def test_the_loop_does_what_the_controller_says(way: float) -> None:
    control = Scripted((True, 2.0), (False, 0.5), (True, 1.0), (False, 0.25), h_init=0.1, atol=1.0, rtol=0.0)
    solver, calls = Noting(), []

    def f(t: float, x: Any) -> Any:
        calls.append(t)
        return -x

    solution = ds.solve(ds.ODEProblem(f, (0.0, way), [1.0]), solver, controller=control, save="all")
    lengths = [0.1, 0.2, 0.1, 0.1, *[0.025] * 32]
    assert [abs(span.h) for span, *_ in solver.given] == pytest.approx(lengths)
    assert {math.copysign(1.0, span.h) for span, *_ in solver.given} == {way}
    assert all(span.adaptive and span.stop == way for span, *_ in solver.given)
    assert [past for *_, past in solver.given[:6]] == [0, 1, 1, 2, 2, 3], "of kept steps alone"
    assert solver.given[1][1] is solver.given[2][1]
    assert solver.given[-1][0].end == way, "to the last bit"
    kept = [h for i, h in enumerate(lengths) if i not in (1, 3)]
    assert solution.steps == solution.n == solution.stats["accepted"] == len(kept)
    assert solution.stats["rejected"] == 2
    assert np.abs(solution.stats["h"]) == pytest.approx(kept)
    assert solution.stats["errors"] == pytest.approx(kept)
    assert solution.sigmas == pytest.approx(way * np.cumsum([0.0, *kept]))
    assert len(calls) == solution.nfe == solution.steps, "the start of a rejected step is evaluated once"
    assert len(solution.trajectory) == len(solution.sigmas)
    assert [asked[0] for asked in control.asked[:5]] == pytest.approx([0.1, 0.2, 0.1, 0.1, 0.025])
    assert np.asarray([asked[1:] for asked in control.asked[:5]]) == pytest.approx(np.asarray([[0.1, 0.1, 2]] * 5))
    assert (solution.schedule, solution.reason) == ("adaptive", "end")


def test_lengths_have_bounds() -> None:
    def lengths(**bounds: Any) -> list[float]:
        return ds.solve(logistic(), "bs23", controller=ds.PIDController(1e-4, **bounds)).stats["h"]

    free, capped = lengths(), lengths(h_max=0.05)
    assert 1e-3 < free[0] < 0.1
    assert max(free) > 0.1
    assert max(capped) == pytest.approx(0.05)
    assert lengths(h_init=0.01)[0] == 0.01
    with pytest.raises(ds.SolverError, match=r"a step of 0\.5 still has an error .* below h_min; raise rtol = 1e-09"):
        ds.solve(logistic(), "bs23", controller=ds.PIDController(1e-9, h_min=0.5))


def test_a_cut_last_step_that_is_rejected_gets_shorter() -> None:
    solver = Noting()
    control = Scripted((False, 0.9), h_init=100.0)
    ds.solve(ds.ODEProblem(lambda t, x: -x, (0.0, 1.0), [1.0]), solver, controller=control)
    first, second = (span.h for span, *_ in solver.given[:2])
    assert (first, second) == (1.0, pytest.approx(100 * 0.9**44)), "the first of 100 * 0.9^k below what is left"


@pytest.mark.parametrize("solver", ["dopri5", "bs23", "tsit5"])
def test_a_last_stage_is_the_next_steps_first(solver: str) -> None:
    solution = ds.solve(logistic(), solver, rtol=1e-5)
    attempts = solution.stats["accepted"] + solution.stats["rejected"]
    stages = len(ds.get_solver(solver).tableau.c)
    assert solution.nfe == 2 + (stages - 1) * attempts, "one is the first length's"


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("solver", rows(ABLE, ["bs23"]))
def test_the_error_follows_the_tolerance(solver: str, backwards: bool) -> None:
    problem = logistic((3.0, 0.0) if backwards else (0.0, 3.0))
    solver = f"{solver}(form=sigma)"
    coarse, fine = (ds.solve(problem, solver, rtol=rtol, atol=rtol) for rtol in (1e-4, 1e-7))
    assert missed(problem, coarse) < 5e-2
    assert missed(problem, fine) < 2e-4
    assert missed(problem, fine) < missed(problem, coarse) / 20
    assert fine.nfe > coarse.nfe
    assert [s.sigmas[[0, -1]].tolist() for s in (coarse, fine)] == [list(problem.span)] * 2


def test_an_estimate_that_lies_misses_the_tolerance() -> None:
    class Liar(ds.Solver):
        order = 3

        def step(self, f: ds.Field, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
            step = ds.get_solver("bs23").step(f, y, span, past)
            return ds.Step(step.y, step.error * 1e-6)

    problem = logistic()
    assert missed(problem, ds.solve(problem, Liar(), rtol=1e-7)) > 1e-5


def test_a_plugins_error_is_enough() -> None:
    class MyHeun(ds.Solver):
        order, stages = 2, 2

        def step(self, f: ds.Field, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
            k1 = f(y, span.start)
            k2 = f(y + span.h * k1, span.end)
            return ds.Step(y + span.h / 2 * (k1 + k2), error=span.h / 2 * (k2 - k1), past=past)

    problem = mixture()
    ours, row = (ds.solve(problem, solver, rtol=1e-3) for solver in (MyHeun(), "heun(form=sigma)"))
    assert gap(ours.x, row.x) < 1e-12
    assert ours.nfe == row.nfe == 2 * row.stats["accepted"] + row.stats["rejected"] + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 3), (2, 2, 3, 3)], ids=str)
@pytest.mark.parametrize("solver", ["dpm_adaptive", "dpm_adaptive(eta=1)", "dopri5"])
def test_shapes(solver: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    problem = gaussian(shape, dtype=dtype)
    x = problem.prior(2, seed=5)
    before = x.clone()
    runs = [ds.solve(problem, solver, x=x, seed=5, save="all", rtol=0.02) for _ in range(2)]
    assert torch.equal(x, before)
    assert {(t.shape, t.dtype) for t in runs[0].trajectory} == {((2, *shape), dtype)}
    assert torch.equal(runs[0].x, runs[1].x)
    assert (runs[0].grid.final, runs[0].sigmas[-1]) == ("denoise", 0)
    assert runs[0].n == runs[0].steps == runs[0].stats["accepted"] + 1


def test_only_the_ends_of_the_grid_are_read() -> None:
    problem = mixture()
    one, other, third = (
        ds.solve(problem, "bs23", schedule, n, rtol=1e-3)
        for schedule, n in (("karras", 20), ("exponential", 1), (problem.span, 3))
    )
    assert gap(other.x, one.x) < 1e-12
    assert gap(third.x, one.x) < 1e-12
    inner = ds.solve(problem, "bs23", [3.0, 2.0, 1.0], rtol=1e-3, final="none")
    assert inner.sigmas[[0, -1]].tolist() == [3.0, 1.0]


def test_one_number_is_read_for_each_attempt(monkeypatch: Any) -> None:
    monkeypatch.setattr("diffsolve.solution.on_host", lambda x: False)
    problem = mixture()
    x, reads = problem.prior(2), []
    with Reads() as mode:
        solution = ds.solve(
            problem, "dpm_adaptive", x=x, rtol=1e-3, callback=lambda p: reads.append((p.index, mode.calls.total()))
        )
    attempts = solution.stats["accepted"] + solution.stats["rejected"]
    assert reads[-1][1] - reads[0][1] <= attempts - 1
    assert mode.calls.total() <= attempts + 2, "the start and the end are checked too"


# Misuse


class Wild(ds.Controller):
    def judge(self, errors: Any, order: float) -> tuple[bool, float]:
        return False, 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": -1e-3}, "rtol must be a finite number of at least 0, got -0.001"),
        ({"rtol": BAD}, "rtol must be a finite number of at least 0, got nan"),
        ({"rtol": "small"}, "rtol must be a finite number of at least 0, got 'small'"),
        ({"rtol": 1e-3, "atol": -1}, "atol must be a finite number of at least 0, got -1"),
        ({"rtol": 0, "atol": 0}, "both 0, and no step is that good; give one of them, such as rtol=1e-3"),
        ({"rtol": 1e-3, "execution": "tape"}, "a tape's steps are fixed before it is played; leave execution out"),
        ({"controller": "pidd"}, r"unknown controller 'pidd'; did you mean 'pid'"),
        ({"controller": ds.PIDController}, "must be a diffsolve Controller, .* got ABCMeta"),
        ({"controller": Wild()}, r"Wild.judge gave \(False, 1.0\); the factor is above 0, and of a rejected step"),
        ({"rtol": 1e-3, "solver": "lms"}, "lms.* gives no estimate of its error.*take one of: .*dopri5.*dpm_solver_3"),
        ({"rtol": 1e-3, "solver": "rk4"}, "rk4.* gives no estimate of its error"),
        ({"rtol": 1e-3, "solver": "dpm_fast"}, "dpm_fast.* gives no estimate of its error"),
        ({"rtol": 1e-3, "solver": "restart"}, "restart.* plans its own steps; leave rtol, atol and controller out"),
        ({"rtol": 1e-3, "solver": "restart", "n": 2}, "restart.* plans its own steps"),  # whatever n is, it isn't read
        ({"solver": "dpm_adaptive", "execution": "tape"}, "a tape's steps are fixed"),
        ({"solver": "dpm_adaptive", "eta": 0.5}, "dpm_adaptive solves the ODE; eta belongs to stochastic solvers"),
        ({"solver": "dpm_adaptive(order=4)"}, "dpm_adaptive's order must be a whole number from 2 to 3, got 4"),
        ({"solver": "dpm_adaptive(h_init=0)"}, "h_init must be a finite number above 0, got 0"),
        ({"solver": "dpm_adaptive(accept_safety=1)"}, "safety must be above 0 and below 1, got 1"),
        ({"solver": "dpm_adaptive(icoeff=much)"}, "icoeff must be a finite number, got 'much'"),
        ({"solver": "dpm_fast(remainder=3)"}, "remainder, that of nfe by 3, must be a whole number from 0 to 2, got 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_misuse(options: dict[str, Any], message: str) -> None:
    watched = Watched(mixture())
    with pytest.raises(ds.SolverError, match=message):
        ds.solve(watched, **{"solver": "heun", **options})
    assert watched.calls <= 3


def test_a_broken_plugin_does_not_hide_who_estimates_an_error() -> None:
    class Broken(ds.Solver):
        def step(self, *_: Any) -> ds.Step:
            raise KeyError("a plugin's own")

    registry.SOLVERS.add("broken", replace(ds.find_solver("heun"), name="broken", factory=Broken), Owner("a_plugin"))
    with pytest.raises(ds.SolverError, match=r"take one of: .*dopri5"):
        ds.solve(mixture(), "lms", rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ds.PIDController(h_max=0), "h_max must be a finite number above 0, got 0"),
        (lambda: ds.PIDController(h_min=-1), "h_min must be a finite number of at least 0, got -1"),
        (lambda: ds.PIDController(h_min=2.0, h_max=1.0), "h_min = 2 is above h_max = 1"),
        (lambda: ds.PIDController(order=0), "order must be a finite number above 0, got 0"),
        (lambda: ds.PIDController(order=0.09), r"order .*0\.1.* got 0\.09"),
        (lambda: ds.PIDController(order=101), r"order .*100.* got 101"),
        (lambda: ds.IntegralController(safety=1.5), "0 < shrink <= safety < 1 < grow must hold, .* safety=1.5"),
    ],
)
def test_misuse_of_controllers(make: Any, message: str) -> None:
    assert [ds.PIDController(order=order).order for order in (0.1, 100)] == [0.1, 100]
    with pytest.raises(ds.SolverError, match=message):
        make()


@pytest.mark.parametrize("form", ["noise", "sigma", "v", "data"])
def test_a_pair_that_takes_no_step_to_zero_ends_with_the_data_estimate(form: str) -> None:
    step, denoise = (
        ds.solve(mixture(), f"adaptive_abm(form={form})", rtol=1e-3, final=final).x for final in ("step", "denoise")
    )
    assert torch.equal(step, denoise)
