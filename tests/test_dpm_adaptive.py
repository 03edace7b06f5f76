"""DPM-Solver's own controller and its fast variant: k-diffusion's runs, step by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_k_diffusion_adaptive import ADAPTIVE, FAST, ROWS, SEEDS, spelt
from make_k_diffusion_adaptive import mixture as of_k_diffusion
from stubs import gap, mixture
from test_adaptive import Scripted, logistic, missed

import diffsolve as ds
from diffsolve.program import State, fixed_step_loop

FILE = Path(__file__).parent / "data" / "k_diffusion_adaptive.npz"
FIELD = mixture()


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


def given_noise(stored: dict[str, Any]) -> Any:
    """The mixture of the stored runs, with their noise."""
    problem, noise = of_k_diffusion(), torch.from_numpy(stored["noise"])
    make = problem.field

    def field(*args: Any) -> Any:
        made = make(*args)
        made.normal = lambda span, kind=None: noise[span.index % len(noise)]  # type: ignore[method-assign]
        return made

    problem.field = field  # type: ignore[method-assign]
    return problem


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", ADAPTIVE, ids=spelt)
def test_k_diffusion_adaptive(options: dict[str, Any], seed: int, stored: dict[str, Any]) -> None:
    name = f"{seed} adaptive {spelt(options)}"
    solution = ds.solve(given_noise(stored), f"dpm_adaptive({spelt(options)})", batch=ROWS, seed=seed, final="none")
    nfe, accepted, rejected = stored[f"{name} counts"]
    assert (solution.stats["accepted"], solution.stats["rejected"]) == (accepted, rejected)
    assert solution.nfe == nfe - rejected, "k-diffusion evaluates the start of a rejected step again"
    assert np.abs(np.log(solution.sigmas / stored[f"{name} nodes"])).max() < 1e-8
    assert gap(solution.x, torch.from_numpy(stored[f"{name} x"])) < 1e-10


def test_the_stored_runs_reject_steps(stored: dict[str, Any]) -> None:
    assert sum(counts[2] for name, counts in stored.items() if name.endswith("counts")) > 20


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", FAST, ids=spelt)
def test_k_diffusion_fast(options: dict[str, Any], seed: int, stored: dict[str, Any]) -> None:
    n = options["n"]
    solver = f"dpm_fast(remainder={n % 3}, eta={options.get('eta', 0.0)})"
    solution = ds.solve(given_noise(stored), solver, "exponential", nfe=n, batch=ROWS, seed=seed, final="none")
    assert (solution.nfe, solution.n) == (n, n // 3 + 1)
    assert gap(solution.x, torch.from_numpy(stored[f"{seed} fast {spelt(options)} x"])) < 1e-10


@pytest.mark.parametrize(("remainder", "order"), [(0, 2), (1, 2), (2, 3)])
def test_dpm_fast_is_as_good_as_its_last_steps(remainder: int, order: int) -> None:
    solver = ds.get_solver(f"dpm_fast(remainder={remainder})")
    assert solver.order == order
    problem = logistic()
    coarse, fine = (missed(problem, ds.solve(problem, solver, n=n)) for n in (80, 160))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("alias", ["DPM adaptive", "sample_dpm_adaptive", "DPM fast", "dpm_fast"])
def test_names_elsewhere(alias: str) -> None:
    assert ds.find_solver(alias).name == ("dpm_fast" if "fast" in alias else "dpm_adaptive")


@pytest.mark.parametrize(("order", "fixed"), [(2, "dpm2"), (3, "dpm_solver_3")])
def test_on_a_fixed_grid_dpm_adaptive_is_dpm_solver(order: int, fixed: str) -> None:
    problem = mixture()
    x = problem.prior(2)
    solver, other = ds.get_solver(f"dpm_adaptive(order={order})"), ds.solve(problem, fixed, n=8, x=x)
    field = problem.field(solver, x, range(2), 0, None)
    start = field.form.to_form(x, problem.span[0])
    program = ds.plan(solver, other.grid, field)
    state = State(program.start, start)
    *_, stepped = fixed_step_loop(solver, field, program, state)
    *_, played = ds.record(solver, field, program).play(field, state)
    assert gap(stepped.u, other.x) < 1e-13
    assert gap(played.u, other.x) < 1e-12


def test_a_rejected_step_of_a_noisy_solver_keeps_its_path() -> None:
    """The draws of a step and of its parts belong to one path, so trying again does not choose among noises."""
    problem = mixture((3,))
    control = Scripted((False, 0.5), (True, 1.0), h_init=2.0)
    field = problem.field(ds.get_solver("dpm_adaptive(eta=1)"), problem.prior(1), (0,), 3, None)
    a, b, c = (field.form.variable(sigma) for sigma in (5.0, 4.0, 1.0))
    whole, first, second = (field.normal(ds.Span(*ends)) for ends in ((a, c), (a, b), (b, c)))
    shares = [field.form.variance_at(s) for s in (a, b, c)]
    path = first * math.sqrt(shares[1] - shares[0]) + second * math.sqrt(shares[2] - shares[1])
    assert gap(whole * math.sqrt(shares[2] - shares[0]), path) < 1e-6
    tried = ds.solve(problem, "dpm_adaptive(eta=1)", controller=control, seed=3)
    assert tried.stats["rejected"] == 1


def test_an_ancestral_step_goes_down_to_the_end_of_the_run_at_most() -> None:
    problem, solver = mixture((3,)), ds.get_solver("dpm_adaptive(eta=1)")
    field = problem.field(solver, problem.prior(1), (0,), 3, None)
    start, end, low = (field.form.variable(sigma) for sigma in (5.0, 0.5, 1e-3))
    y = field.form.to_form(problem.prior(1), 5.0)
    to_the_end, far_from_it, of_no_run = (
        solver.step(field, y, ds.Span(start, end, stop=stop), ()).y for stop in (end, low, None)
    )
    assert torch.equal(far_from_it, of_no_run)
    assert gap(to_the_end, of_no_run) > 1e-3
