"""A few hundred of the random calls of `make fuzz`; and that its checks see what they are there for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import fuzz
import fuzz_cases
import numpy as np
import pytest
import torch
from stubs import slow

import diffsolve as ds

DEAR = ("solve", "settings")
CALLS = {"solve": 120, "make": 130, "config": 60, "settings": 10, "command": 4}


@pytest.mark.parametrize("kind", [slow(kind) if kind in DEAR else kind for kind in fuzz.KINDS])
def test_random_calls(kind: str) -> None:
    assert fuzz.block(kind, seed=20, calls=CALLS[kind]) >= CALLS[kind] // 2


def case(also: str, problem: str = "gaussian sd", **options: Any) -> fuzz_cases.Solve:
    return fuzz_cases.Solve(problem, {"solver": "euler", "n": 3, **options}, also)


def scaled(factor: Callable[[], float]) -> Callable[..., Any]:
    """`solve` with its result multiplied."""
    true = ds.solve

    def solve(*given: Any, **options: Any) -> ds.Solution:
        solution = true(*given, **options)
        solution.x = solution.x * factor()
        return solution

    return solve


@pytest.mark.parametrize(("also", "factors"), [("exact", [1.5] * 9), ("again", [1.0, 1.01]), ("alone", [1.0, 1.01]),
                                               ("run", [1.01]), ("tape", [1.0, 1.01]), ("calls", [1.01])])  # fmt: skip
def test_a_wrong_result_is_seen(also: str, factors: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz.check_solve(case(also))
    left = iter(factors)
    monkeypatch.setattr(ds, "solve", scaled(lambda: next(left)))
    with pytest.raises(AssertionError):
        fuzz.check_solve(case(also))


def works() -> None:
    while True:
        pass


@pytest.mark.slow
def test_a_busy_machine_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits for its turn has time left; one that works all the while has not."""
    monkeypatch.setattr(fuzz, "LIMIT", 1)
    with fuzz.watched():
        time.sleep(1.2)
    with pytest.raises(AssertionError, match="took more than 1 s"), fuzz.watched():
        works()


def test_a_pair_whose_orders_are_one_has_an_error_of_0() -> None:
    fuzz.check_solve(case("again", solver="adaptive_abm(rtol=1, trust=0.1)", rtol=0.5, sigma_min=0.05, sigma_max=10.0))


def test_samples_that_are_not_counted_are_counted() -> None:
    fuzz.check_solve(case("alone", solver="abm(form=data)", nfe=8, batch=None, n=1))


def test_a_grid_that_ends_elsewhere_with_more_steps_is_no_fault() -> None:
    fuzz.check_solve(case("exact", solver="flow_euler(form=noise)", schedule="leading", nfe=8, n=1))


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), ZeroDivisionError(), RuntimeWarning("x")])
def test_a_foreign_exception_is_seen(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def solve(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(ds, "solve", solve)
    with pytest.raises(type(error)):
        fuzz.check_solve(case("again"))


def test_a_hang_an_empty_message_and_a_changed_x_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "LIMIT", 1)
    monkeypatch.setattr(fuzz, "TURNS", 1)
    with pytest.raises(AssertionError, match="took more than 1 s"), fuzz.watched():
        time.sleep(9)
    for said in ("no", "it must be one of", "take another:"):
        with pytest.raises(AssertionError, match=r"says nothing|breaks off"):
            fuzz.attempt(lambda said=said: (_ for _ in ()).throw(ds.SolverError(said)))
    x, true = torch.ones(1, 3, dtype=torch.float64), ds.solve

    def solve(*given: Any, **options: Any) -> ds.Solution:
        solution = true(*given, **options)
        x.add_(1)
        return solution

    monkeypatch.setattr(ds, "solve", solve)
    with pytest.raises(AssertionError, match="x was changed"):
        fuzz.check_solve(case("again", x=x))


# ---- what it found


NODES = ds.Grid([3.0, 1.0])
FOUND: dict[str, tuple[Callable[[], Any], str]] = {
    "form of any kind": (lambda: ds.get_solver("heun(form={})"), "unknown form {}"),
    "steps from one node": (lambda: fuzz_cases.problem("gaussian sd") and ds.solve(
        fuzz_cases.problem("gaussian sd"), "dopri5", [1.0], rtol=0.1), "there is the one node 1"),
    "eta of a wide process": (lambda: ds.solve(
        fuzz_cases.problem("gaussian cosine"), "ddpm", n=3, eta=50), "eta = 50 is too large for the form 'sde'"),
    "tags": (lambda: ds.list_solvers(0), "tags are names"),  # type: ignore[arg-type]
    "a problem's name": (lambda: ds.get_problem(1), "unknown problem 1"),  # type: ignore[arg-type]
    "a solver's name": (lambda: ds.find_solver(1), "unknown solver 1"),  # type: ignore[arg-type]
    "interval": (lambda: ds.Guided(lambda y, s: y, 2.0, 2.5), "interval is"),  # type: ignore[arg-type,return-value]
    "no denoiser": (lambda: ds.Guided(3, 2.0), "guidance goes around a denoiser"),  # type: ignore[arg-type]
    "label": (lambda: fuzz_cases.problem("mixture").guided(torch.tensor([1.0, 2.0])), "no component labelled"),
    "labels": (lambda: ds.problems.GaussianMixture([[0.0]], 1.0, labels=2.5), "labels must be"),  # type: ignore[arg-type]
    "seed of a prior": (lambda: fuzz_cases.problem("mixture").prior(1, "x"), "seed must be a whole number"),
    "order": (lambda: ds.PIDController(order=1e-3), "order must be a number from 0.1 to 100"),
    "growth": (lambda: ds.SemilinearODE(1e30, lambda t, u: u, (0.0, 1.0), [1.0]), "more than float64 holds"),
    "process": (lambda: ds.make_grid(NODES, 2, "sdd"), "unknown process 'sdd'"),  # type: ignore[arg-type]
    "nodes": (lambda: ds.Grid(1j), "a list of sigmas"),  # type: ignore[arg-type]
    "no betas": (lambda: ds.VP(betas=()).sigma_max, "the betas give no sigma"),
    "learned_range": (lambda: ds.NetworkDenoiser(lambda x, t: x, learned_range=torch.ones(2)), "must be True or False"),
    "events that are no functions": (lambda: ds.solve(
        ds.ODEProblem(lambda t, x: -x, (0.0, 1.0), [1.0]), "dopri5", rtol=0.5, events=np.array([1, 2])), "event"),
    "far noise level": (lambda: ds.EDM(1e-300, 80.0), "expected 1e-12 <= t_min < t_max .*got 1e-300"),
    "the far end": (lambda: ds.EDM(1.0, 1e13), r"expected t_min < t_max <= 1e\+12, got 1 and 1e\+13"),
    "the other way": (lambda: ds.EDM(1e-12, 1e-13), "expected t_min < t_max, got 1e-12 and 1e-13"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_it_found_is_refused(name: str) -> None:
    call, message = FOUND[name]
    with pytest.raises(ds.DiffsolveError, match=message):
        call()
