"""Every row keeps what diffsolve.testing asks of any solver: a row is tested by being registered."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest
from stubs import ENTRIES, ONE_OF_EACH, ONE_OF_EACH_KIND

import diffsolve as ds
from diffsolve.testing import parametrize_with_checks

DEAR = {  # check -> the rows of the fast set, where it is not one of each kind
    "check_order": ["rk4", "dpmpp_2m"],
    "check_sde_orders": ["euler_ancestral"],
    **dict.fromkeys(("check_ode", "check_backwards", "check_forms"), ONE_OF_EACH_KIND),
}


def marks(row: str, check: str) -> Collection[pytest.MarkDecorator]:
    return () if row in DEAR.get(check, ONE_OF_EACH) else (pytest.mark.slow,)


@pytest.mark.filterwarnings("ignore:.*reads the network's answer without guidance")
@parametrize_with_checks([entry.name for entry in ENTRIES], marks=marks)
def test_a_row(solver: str, check: Callable[[str], None]) -> None:
    check(solver)


def test_every_row_declares_its_evaluations() -> None:
    span = ds.Span(2.0, 1.0, adaptive=True)
    for entry in ds.list_solvers():
        calls = [entry.solver.evaluations(span, known) for known in (0, 1, 9)]
        assert all(type(count) is int and count > 0 for count in calls), entry.name


def test_a_row_names_its_source_and_says_why_it_claims_no_order() -> None:
    for entry in ENTRIES:
        assert entry.source
        assert entry.order or (entry.order_as_started is None and "no integrator" in entry.note), entry.name
