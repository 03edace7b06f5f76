"""The kit for plugin authors: a sound solver passes, and each fault is found by the check that is there for it."""

from __future__ import annotations

from typing import Any

import pytest

import diffsolve as ds
from diffsolve.testing import ChecksFailed, check_solver, checks_of

CHECKS = {check.__name__: check for check in checks_of()}


def euler(f: Any, y: Any, span: ds.Span) -> Any:
    return y + span.h * f(y, span.start)


def made(step: Any, **traits: Any) -> ds.Solver:
    return type("Odd", (ds.Solver,), {"step": step, "order": 1, **traits})()


def remembers(self: Any, f: Any, y: Any, span: ds.Span, past: Any) -> ds.Step:
    self.kept = getattr(self, "kept", 0) + 1
    return ds.Step(euler(f, y, span) * (1 + 1e-6 * self.kept))


FAULTY = {
    "check_runs": made(lambda s, f, y, span, past: ds.Step(euler(f, y, span) + 0 * f(y, span.end)), stages=1,
                       evaluations=lambda self, span, known: 1),
    "check_memory": made(remembers),
    "check_shared": made(remembers),
    "check_batch": made(lambda s, f, y, span, past: ds.Step(euler(f, y, span) - 1e-3 * y.mean(0)), traceable=False),
    "check_declared": made(lambda s, f, y, span, past: ds.Step(euler(f, y, span)), history=1),
    "check_forms": made(lambda s, f, y, span, past: ds.Step(y + 0.9 * span.h * f(y, span.start))),
    "check_gradient": made(lambda s, f, y, span, past: ds.Step(euler(f, y.detach(), span)), traceable=False),
    "check_order": made(lambda s, f, y, span, past: ds.Step(euler(f, y, span)), order=2),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_is_found_by_its_check(name: str) -> None:
    with pytest.raises((AssertionError, ds.SolverError)):
        CHECKS[name](FAULTY[name])


def test_failures_are_named_together_and_may_be_expected() -> None:
    solver = made(remembers)
    with pytest.raises(ChecksFailed, match=r"Odd: \d+ of \d+ checks failed\n(.*\n)*  check_memory: ") as caught:
        check_solver(solver)
    failed = {result.check: "it counts its steps" for result in caught.value.results if result.status == "failed"}
    assert {r.status for r in check_solver(solver, expected_failed_checks=failed)} == {"passed", "expected", "skipped"}
    with pytest.raises(ChecksFailed, match=r"was expected to fail .*and passes: take it out"):
        check_solver(solver, expected_failed_checks={**failed, "check_told": "no reason"})
    with pytest.raises(ds.DiffsolveError, match="there is no check 'check_memry' of a solver; did you mean"):
        check_solver(solver, expected_failed_checks={"check_memry": "a typing error"})
