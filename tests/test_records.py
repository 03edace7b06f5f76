"""Problems are frozen records: sde, reversed and Inpaint go together in any order and depth, and lose nothing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stubs import gap, gaussian, mixture

import diffsolve as ds
from diffsolve.form import FORMS

CHANGES: dict[str, Callable[[Any], Any]] = {
    "sde": lambda p: p.sde(0.5),
    "inpaint": lambda p: ds.problems.Inpaint(p, [1.0, 0.0], [1, 0]),
    "reversed": lambda p: p.reversed(),
}


@pytest.mark.parametrize("names", [n for k in (1, 2, 3) for n in itertools.combinations(CHANGES, k)])
def test_any_order_is_the_same_problem(names: tuple[str, ...]) -> None:
    x = mixture().prior(2, sigma=0.05 if "reversed" in names else None)
    solver = "dpmpp_2m_sde" if "sde" in names else "dpmpp_2m"
    ends = []
    for order in itertools.permutations(names):
        problem = mixture()
        for name in order:
            problem = CHANGES[name](problem)
        ends.append(ds.solve(problem, solver, n=5, x=x, seed=2).x)
    assert all(torch.equal(end, ends[0]) for end in ends)
    if "inpaint" in names and "reversed" not in names:
        assert torch.equal(ends[0][:, 0], torch.ones(2, dtype=torch.float64))


def test_inpainting_an_sde_keeps_its_eta() -> None:
    ends = [
        ds.solve(ds.problems.Inpaint(problem, [1.0, 0.0], [1, 0]), "dpmpp_2m_sde", n=6, seed=1).x
        for problem in (mixture().sde(0.5), mixture().sde(1.0))
    ]
    assert gap(*ends) > 1e-3
    asked = ds.problems.Inpaint(mixture(), [1.0, 0.0], [1, 0])
    assert torch.equal(ds.solve(asked, "dpmpp_2m_sde", n=6, seed=1, eta=0.5).x, ends[0])


def test_turned_twice_is_the_problem_again() -> None:
    problem = mixture()
    again = problem.reversed().reversed()
    assert again.span == problem.span
    assert torch.equal(ds.solve(again, n=4).x, ds.solve(problem, n=4).x)


def test_fields_can_not_be_set() -> None:
    for problem, name in (
        (mixture(), "eta"), (ds.ProbabilityFlow(lambda x, t: x, shape=(2,)), "shape"),
        (ds.ODEProblem(lambda t, x: x, (0, 1), [1.0]), "x0"), (mixture(), "process"),
    ):  # fmt: skip
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(problem, name, None)
    with pytest.raises(ds.ProblemError, match="no field 'etta'; did you mean 'eta'"):
        mixture().replace(etta=1)


def test_a_copy_keeps_what_a_subclass_knows() -> None:
    problem = gaussian((2,)).sde(0.3)
    assert type(problem) is ds.problems.Gaussian
    assert problem.exact(torch.zeros(1, 2, dtype=torch.float64), 1.0, 0.5).shape == (1, 2)
    assert (problem.eta, problem.default_solver) == (0.3, "dpmpp_2m_sde")
    assert gaussian((2,)).eta is None


def test_what_is_passed_in_is_copied() -> None:
    mean, x0 = torch.zeros(2, dtype=torch.float64), torch.ones(3)
    gauss, ode = ds.problems.Gaussian(mean, 1.0), ds.ODEProblem(lambda t, x: -x, (0.0, 1.0), x0)
    known = torch.ones(2, dtype=torch.float64)
    inpaint = ds.problems.Inpaint(gauss, known, [1, 0])
    before = [ds.solve(p, "euler", n=3).x for p in (gauss, ode, inpaint)]
    for tensor in (mean, x0, known):
        tensor.fill_(7.0)
    assert all(torch.equal(ds.solve(p, "euler", n=3).x, x) for p, x in zip((gauss, ode, inpaint), before, strict=True))


@pytest.mark.parametrize("form", ["sde", "sde_noise", "sde_sigma", "sde_time"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_sde_upwards_has_the_marginals_of_the_process(form: str, eta: float) -> None:
    """From the law at sigma 0.5 to that at 5: at eta = 1 it is the forward process, and any eta keeps the marginals."""
    problem = ds.problems.Gaussian([1.0], 0.7, "vp").sde(eta).reversed()
    low, high, count = 0.5, 5.0, 4000
    x = problem.noised(problem.sample(count, 1), low, 2)
    nodes = torch.linspace(low**0.25, high**0.25, 121, dtype=torch.float64) ** 4
    end = ds.solve(problem, f"euler_ancestral(form={form})", nodes.tolist(), x=x, seed=3).x
    spread = (0.49 + high**2) ** 0.5
    assert abs(float(end.mean()) - 1.0) < 4 * spread / count**0.5
    assert abs(float(end.std()) / spread - 1) < 0.05


def test_the_sde_upwards_at_eta_1_is_the_forward_process_to_rounding() -> None:
    problem = mixture().sde(1.0).reversed()
    x = mixture().sample(3)
    one = ds.solve(problem, "euler_ancestral", [0.1, 4.0], x=x, seed=5).x
    many = ds.solve(problem, "euler_ancestral", [0.1, 0.2, 0.7, 2.0, 4.0], x=x, seed=5).x
    assert gap(one, many) < 1e-6, "without a drift the steps add up, on one path"
    assert gap(one, x) > 0.5


def test_what_can_not_go_upwards_says_so() -> None:
    x = mixture().prior(1, sigma=0.1)
    for problem, solver, message in (
        (mixture().reversed(), "dpmpp_2m_sde", "this is the flow upwards"),
        (mixture().sde().reversed(), "ddim", "this problem is the reverse SDE"),
        (mixture().sde().reversed(), "ddim_eta", "upwards take a solver in a stochastic form"),
        (mixture().sde().reversed(), "er_sde_2", "has no way up in noise"),
    ):
        with pytest.raises(ds.SolverError, match=message):
            ds.solve(problem, solver, n=3, x=x)


def test_every_form_knows_its_process() -> None:
    process = ds.PROCESSES["vp"]
    for name in FORMS:
        form = FORMS[name](process)
        s = form.variable(2.0)
        assert form.time(s) == pytest.approx(process.t(2.0))
        assert form.alpha(s) == pytest.approx(process.alpha(2.0))
        assert form.variable_at_time(form.time(s)) == pytest.approx(s)
