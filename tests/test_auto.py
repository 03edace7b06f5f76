"""`solver="auto"`: what the table says is what is solved with, and said; the table is the command's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stubs import gaussian, mixture
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve.registry import CHOOSERS, Choice
from diffsolve.solvers.choosing import kind_of, table
from diffsolve.validation.cost.choices import PAIRS, Kept, Trial, by_calls, by_tolerance, choices
from diffsolve.validation.references import sampling_cases
from diffsolve.validation.site.cli import app

ROOT = Path(__file__).resolve().parent.parent
ODE = ds.ODEProblem(lambda t, x: -t * x * x, span=(0.0, 2.0), x0=[1.0])


def problems() -> dict[str, Any]:
    free = mixture()
    guided = next(case.problem for case in sampling_cases(1, 2) if case.name == "gmm2 cfg")
    inside = ds.FunctionDenoiser(lambda y, sigma: ds.Output(y * 0.5, y * 0.4))
    networked = ds.ProbabilityFlow(denoiser=ds.Guided(inside, 4.0), process="sd", shape=(2,))
    return {"unguided": [free, gaussian((3,)), free.reversed(), guided.unguided],
            "guided": [guided, networked], "sde": [free.sde(1.0)], "ode": [ODE]}  # fmt: skip


@pytest.mark.parametrize("kind", list(PAIRS))
def test_the_kind_of_a_problem(kind: str) -> None:
    assert {kind_of(problem) for problem in problems()[kind]} == {kind}


@pytest.mark.parametrize("budget", [5, 6, 13, 20, 100])
@pytest.mark.parametrize("kind", list(PAIRS))
def test_what_is_chosen_is_the_tables_and_is_said(kind: str, budget: int) -> None:
    problem, known = problems()[kind][0], table()[kind]["calls"]
    solution = ds.solve(problem, "auto", nfe=budget, seed=3)
    entry = known[min(known, key=lambda n: abs(int(n) / budget - 1) if int(n) > budget else abs(budget / int(n) - 1))]
    assert solution.solver == ds.get_solver(entry["solver"]).name
    assert solution.schedule == entry["schedule"]
    assert solution.nfe <= budget
    by_name = ds.solve(problem, entry["solver"], entry["schedule"], nfe=budget, seed=3)
    assert torch.equal(solution.x, by_name.x)
    said = solution.stats["chosen"]
    assert said.startswith(f"{kind} problem, {budget} calls: {entry['solver']} on {entry['schedule']}, the least error")
    assert "chosen" not in by_name.stats


def test_n_is_a_number_of_calls_and_a_schedule_that_is_given_stays() -> None:
    assert torch.equal(ds.solve(ODE, "auto", n=9).x, ds.solve(ODE, "auto", nfe=9).x)
    solution = ds.solve(mixture(), "auto", "linspace", n=9)
    assert solution.schedule == "linspace"


@pytest.mark.parametrize("kind", ["unguided", "guided", "ode"])
def test_a_tolerance_takes_a_row_that_chooses_its_steps(kind: str) -> None:
    solution = ds.solve(problems()[kind][0], "auto", rtol=1e-2, nfe=500)
    assert solution.reason == "end"
    assert solution.schedule == "adaptive"
    assert solution.solver.startswith(table()[kind]["tolerance"]["solver"])
    assert f"{kind} problem with a tolerance" in solution.stats["chosen"]


def test_with_a_quality_too() -> None:
    solution = ds.solve(mixture(), "auto", quality="draft")
    assert solution.stats["chosen"].startswith("unguided problem, 20 calls")
    assert 0.03 < solution.stats["estimate"] < 0.3


def test_many_and_misuse() -> None:
    answers = list(ds.solve_many(mixture(), [{"solver": "auto", "nfe": 8}, {"solver": "auto", "nfe": 0}]))
    assert sorted(answer.status for answer in answers) == ["end", "refused"]
    assert "chosen" in next(a for a in answers if a.status == "end").result().stats
    with pytest.raises(ds.SolverError, match="no row that chooses its steps; give auto a number of calls"):
        ds.solve(mixture().sde(), "auto", rtol=1e-2)
    with pytest.raises(ds.SolverError, match="auto has no table for SDEProblem"):
        ds.solve(ds.SDEProblem(lambda t, x: -x, lambda t: 1.0, (0.0, 1.0), [1.0]), "auto")
    with pytest.raises(ds.SolverError, match="unknown solver 'auto'"):
        ds.get_solver("auto")


def test_a_plugin_may_choose() -> None:
    CHOOSERS.entries["mine"] = lambda problem, calls, tolerant: Choice("heun", "linspace", f"{calls} calls")
    try:
        solution = ds.solve(mixture(), "mine", nfe=9)
    finally:
        del CHOOSERS.entries["mine"]
    assert (solution.solver, solution.schedule, solution.nfe) == ("heun", "linspace", 9)
    assert solution.stats["chosen"] == "9 calls"


def test_a_scheduler_takes_the_row_for_its_calls() -> None:
    from diffsolve.interop.diffusers import DiffsolveScheduler

    scheduler = DiffsolveScheduler(solver="auto")
    for n in (6, 20):
        scheduler.set_timesteps(n)
        chosen = scheduler._planned.recipe.solver.name
        expected = CHOOSERS["auto"](None, n, False, kind="guided").solver
        assert chosen == ds.get_solver(expected).name
        assert len(scheduler.timesteps) == n


# The table


def test_the_table_is_of_this_code() -> None:
    told = json.loads((ROOT / "solvers" / "auto.json").read_text(encoding="utf-8"))
    assert told["command"].startswith("diffsolve validate auto")
    assert set(told["kinds"]) == set(PAIRS)
    for kind, rows in told["kinds"].items():
        for entry in rows["calls"].values():
            assert (entry["solver"], entry["schedule"]) in PAIRS[kind]
            assert entry["ratio"] >= 1
        assert len(rows["of"]) == rows["problems"]
    assert {"emoji at 4", "fashion at 2", "gmm2 cfg"} <= set(told["kinds"]["guided"]["of"])


def test_the_least_error_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAIRS, "toy", [("a", "x"), ("b", "x"), ("c", "x")])
    errors = {"a": [1.0, 9.0], "b": [2.0, 2.0], "c": [float("nan"), 0.1]}
    trials = [Trial(str(i), lambda solver, grid, calls, i=i: errors[solver][i], lambda row, rtol: (int(1 / rtol), rtol))
              for i in range(2)]  # fmt: skip
    kept = Kept(tmp_path / "kept.json")
    ((count, entry),) = by_calls("toy", trials, kept, [10])
    assert (count, entry["solver"], entry["next"]) == (10, "b", "a on x, 2.12")
    assert entry["ratio"] == pytest.approx(2**0.5, abs=1e-3)
    assert by_tolerance("toy", trials, kept)["why"].startswith("100 calls to an error of 0.01")
    again = Kept(tmp_path / "kept.json")
    assert again.get("toy 0 10 ('a', 'x')", lambda: pytest.fail("it was measured")) == 1.0


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSOLVE_CACHE", str(tmp_path))
    text = json.loads(choices("a command", kinds=["ode"], networks=False, calls=[8]))
    assert text["kinds"]["ode"]["calls"]["8"]["solver"] == table()["ode"]["calls"]["8"]["solver"]
    assert "--networks" in CliRunner().invoke(app, ["auto", "--help"]).output


@pytest.mark.parametrize(("options", "networks"), [([], True), (["--no-networks"], False)])
@pytest.mark.parametrize("command", ["auto", "reach"])
def test_networks_are_measured_unless_told(
    command: str, options: list[str], networks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    cost = "diffsolve.validation.cost"
    monkeypatch.setattr(f"{cost}.choices.choices", lambda *_, networks, **__: asked.append(networks) or "")
    monkeypatch.setattr(f"{cost}.reached.reached", lambda networks, *_: asked.append(networks))
    monkeypatch.setattr(f"{cost}.reached.page", lambda *_: "")
    assert CliRunner().invoke(app, [command, *options]).exit_code == 0
    assert asked == [networks]


def test_a_live_pipeline_to_a_quality_and_by_the_table() -> None:
    from pipelines import family

    from diffsolve.interop.diffusers import DiffsolveScheduler, run

    pipe, given = family("flux", torch.float32)
    given = given | {"output_type": "latent", "generator": torch.Generator().manual_seed(3)}
    out = run(pipe, "flow_heun", quality=0.05, **given)
    assert out.solution.stats["estimate"] <= 2 * 0.05
    assert out.solution.nfe > out.solution.stats["calls"]
    given["generator"].manual_seed(3)
    again = run(pipe, "flow_heun", nfe=out.solution.stats["calls"], **given)
    assert torch.allclose(again.images, out.images, atol=1e-5)
    pipe.scheduler = DiffsolveScheduler.from_config(pipe.scheduler.config, solver="auto")
    given["generator"].manual_seed(3)
    assert run(pipe, nfe=6, **given).solution.stats["chosen"].split(": ")[0].endswith("6 calls")
