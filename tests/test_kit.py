"""The kit for plugin authors: each check finds what is broken for it, and what is sound passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from saboteurs import OTHERS, SOLVERS, made, momentum, once
from stubs import gaussian, mixture, slow

import diffsolve as ds
from diffsolve.testing import (
    ChecksFailed,
    check_problem,
    check_process,
    check_schedule,
    check_solver,
    checks_of,
    parametrize_with_checks,
)
from diffsolve.testing.world import knows_linear

KINDS = ("solver", "schedule", "process", "problem")
CHECKS = {check.__name__: check for kind in KINDS for check in checks_of(kind)}
BROKEN = {**SOLVERS, **{name: make for name, (_, make) in OTHERS.items()}}
DEAR = ("check_order", "check_sde_orders", "check_scheduler")


@pytest.mark.parametrize("name", [slow(name) if name in DEAR else name for name in CHECKS])
def test_a_fault_is_found_by_its_check(name: str) -> None:
    assert len(CHECKS) == sum(len(checks_of(kind)) for kind in KINDS), "a name is two checks'"
    with pytest.raises((AssertionError, ds.DiffsolveError, ArithmeticError, TypeError, IndexError)):
        CHECKS[name](BROKEN[name]())


@pytest.mark.slow
def test_failures_are_named_together_and_may_be_expected() -> None:
    solver = made(momentum, traceable=False, order=None)
    with pytest.raises(ChecksFailed, match=r"Odd: \d+ of \d+ checks failed\n(.*\n)*  (\w+, )*check_shared: ") as caught:
        check_solver(solver)
    failed = {result.check: "it has a memory" for result in caught.value.results if result.status == "failed"}
    assert set(failed) == {"check_saved_state", "check_shared"}, "what has a memory goes wrong where two runs cross"
    assert {r.status for r in check_solver(solver, expected_failed_checks=failed)} == {"passed", "expected", "skipped"}
    with pytest.raises(ChecksFailed, match=r"was expected to fail .*and passes: take it out"):
        check_solver(solver, expected_failed_checks={**failed, "check_told": "no reason"})
    with pytest.warns(UserWarning, match="checks failed"):
        check_solver(solver, on_fail="warn")
    with pytest.raises(ds.DiffsolveError, match="there is no check 'check_memry' of a solver; did you mean"):
        check_solver(solver, expected_failed_checks={"check_memry": "a typing error"})
    with pytest.raises(ds.DiffsolveError, match="check_told is expected to fail: say why, got ''"):
        check_solver(solver, expected_failed_checks={"check_told": ""})
    with pytest.raises(ds.SolverError, match="did you mean 'heun'"):
        check_solver("huen")


def test_a_fault_that_many_checks_meet_is_said_once() -> None:
    def bare(self: Any, f: Any, y: Any, span: ds.Span, past: Any) -> Any:
        return y + span.hh * f(y, span.start)

    with pytest.raises(ChecksFailed) as caught:
        check_solver(type("Odd", (ds.Solver,), {"step": bare, "order": 1})())
    lines = str(caught.value).splitlines()
    assert [line.count("has no attribute 'hh'") for line in lines] == [0, 1, 1], "on the tape, and off it"
    assert "check_order, " in lines[1]


def test_a_step_that_is_no_step_is_said_to_be_none() -> None:
    def bare(self: Any, f: Any, y: Any, span: ds.Span, past: Any) -> Any:
        return y + span.h * f(y, span.start)

    solver = type("Odd", (ds.Solver,), {"step": bare, "order": 1})()
    with pytest.raises(ds.SolverError, match="returned Tensor, expected diffsolve"):
        CHECKS["check_ode"](solver)


@pytest.mark.parametrize(("solver", "knows"), [
    ("heun", True), ("dpmpp_2m", True), (made(once), True),
    (made(lambda self, f, y, span, past: y + span.h * f(y, span.start)), False), (made(momentum), False),
])  # fmt: skip
def test_who_knows_a_linear_part(solver: Any, knows: bool) -> None:
    assert knows_linear(ds.get_solver(solver)) == knows


SCHEDULES = [entry.name for entry in ds.list_schedules() if entry.name != "uniform"]


@parametrize_with_checks(SCHEDULES, kind="schedule")
def test_a_schedule(schedule: str, check: Any) -> None:
    check(schedule)


@parametrize_with_checks(list(ds.PROCESSES), kind="process")
def test_a_process(process: str, check: Any) -> None:
    check(process)


def problems() -> list[Any]:
    images = ds.problems.EmpiricalImages(torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    held = ds.problems.Inpaint(mixture(), torch.zeros(2), [1, 0])
    return [mixture(), gaussian(process="flow"), held, images, ds.ODEProblem(lambda t, x: -x, (0.0, 1.0), [1.0])]


@parametrize_with_checks(problems(), kind="problem")
def test_a_problem(problem: Any, check: Any) -> None:
    check(problem)


def test_the_others_report_as_a_solver_does() -> None:
    for check, thing in ((check_schedule, "karras"), (check_process, "edm"), (check_problem, gaussian())):
        assert {result.status for result in check(thing)} == {"passed"}
        broken = next(make for kind, make in OTHERS.values() if check.__name__ == f"check_{kind}")()
        with pytest.raises(ChecksFailed, match=r": \d of \d checks failed"):
            check(broken)


def test_cases_are_those_that_are_asked_and_those_expected_to_fail_are_marked() -> None:
    solvers = ["euler", "euler_ancestral", made(once)]

    @parametrize_with_checks(solvers, expected_failed_checks={"check_told": "a reason"})
    def each(solver: Any, check: Any) -> None: ...

    (mark,) = each.pytestmark  # type: ignore[attr-defined]
    names = [case.id for case in mark.args[1]]
    assert {"euler-ode", "euler_ancestral-noise", "Odd-order"} <= set(names)
    assert not {"euler_ancestral-ode", "euler-sde_orders"} & set(names)
    (told,) = (case for case in mark.args[1] if case.id == "euler-told")
    assert [m.kwargs["reason"] for m in told.marks] == ["a reason"]
