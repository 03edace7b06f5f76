"""`solve(problem, quality=...)`: the estimate against the truth, the pairs of grids, budgets, and misuse."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stubs import BAD, Watched, mixture
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve.app import picture
from diffsolve.app.cli import app
from diffsolve.engine.quality import AIM, PRESETS, Pair, _next, asked
from diffsolve.validation.cost.reached import GROUPS, Solved, page, solves
from diffsolve.validation.references import row_errors, sampling_cases

ODE = ds.ODEProblem(lambda t, x: -t * x * x, span=(0.0, 2.0), x0=[1.0])


def truth(case: Any) -> torch.Tensor:
    """The end of very many steps, the last one to 0 included."""
    return ds.solve(case.flow, "damped_abm(order=5, reach=2, trust=0.67)", n=400, x=case.x).x


@pytest.mark.parametrize("name", ["gmm2", "gmm64 cfg"])
@pytest.mark.parametrize("quality", list(PRESETS))
def test_no_n_is_needed_and_the_estimate_is_near_the_truth(quality: str, name: str) -> None:
    case = next(case for case in sampling_cases(5, 8) if case.name == name)
    solution = ds.solve(case.flow, x=case.x, quality=quality)
    errors = row_errors(solution.x, truth(case))
    delivered, stats = float(errors.square().mean().sqrt()), solution.stats
    assert delivered <= 3 * PRESETS[quality]
    assert 0.1 < stats["estimate"] / delivered < 10
    assert stats["estimate"] <= 1.5 * PRESETS[quality] == 1.5 * stats["asked"]
    assert len(stats["estimates"]) == 8
    assert stats["pairs"][-1] == [stats["calls"], stats["estimate"]]
    assert solution.nfe == sum(n + n - max(1, round(n / 6)) for n, _ in stats["pairs"]), "all of it is counted"
    assert torch.equal(solution.x, ds.solve(case.flow, x=case.x, nfe=stats["calls"]).x)
    assert f"its error is estimated at {stats['estimate']:.2g}, {PRESETS[quality]:g} was asked for" in solution.status


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "rk4", "lms(order=3)"])
def test_any_row_with_a_grid(solver: str) -> None:
    case = sampling_cases(5, 8)[0]
    solution = ds.solve(case.flow, solver, x=case.x, quality=0.05, final="none")
    exact = case.at(case.end)
    delivered = float(row_errors(solution.x, exact).square().mean().sqrt())
    assert 0.2 < solution.stats["estimate"] / delivered < 5


@pytest.mark.parametrize("quality", [1e-3, 1e-6])
def test_an_ode(quality: float) -> None:
    solution = ds.solve(ODE, quality=quality, dtype=torch.float64)
    assert abs(float(solution.x) - 1 / 3) * 3 < 3 * quality


def test_each_sample_alone_and_the_estimates_of_a_batch() -> None:
    case = sampling_cases(5, 8)[1]
    whole = ds.solve(case.flow, x=case.x, quality="good")
    alone = ds.solve(case.flow, x=case.x[:1], quality=whole.stats["asked"])
    if alone.stats["calls"] == whole.stats["calls"]:
        assert alone.stats["estimates"][0] == pytest.approx(whole.stats["estimates"][0], rel=1e-6)
    mean = sum(e * e for e in whole.stats["estimates"]) / 8
    assert whole.stats["estimate"] == pytest.approx(mean**0.5)


def test_a_pair_by_hand() -> None:
    """Errors 6^-p and 5^-p along one direction: the estimate is the finer's, at p = 3.5."""
    class Made:
        reason = "end"

        def __init__(self, steps: int) -> None:
            self.steps, self.x = steps, torch.tensor([[3.0, 4.0 + steps**-3.5]], dtype=torch.float64)

    pair = Pair(6, Made(5), Made(6), 3.5)  # type: ignore[arg-type]
    assert pair.error == pytest.approx(6**-3.5 / 5, rel=1e-2)


@pytest.mark.parametrize(
    ("seen", "calls"),
    [
        ([(20, 0.025)], 60),  # of order 1: 80 were needed, and three times as many are the most
        ([(10, 0.1), (20, 0.025)], 40),  # the order that was seen is 2
        ([(5, 0.9), (10, 0.1), (20, 0.025)], 40),
        ([(10, math.inf), (20, 0.025)], 60),
        ([(10, 0.1), (20, 0.0124)], 26),  # of order 3: 20 (0.0124/0.00625)^(1/3) is 25.1
        ([(20, math.inf)], 40),
    ],
)
def test_the_next_grid_by_hand(seen: list[tuple[int, float]], calls: int) -> None:
    found = [SimpleNamespace(calls=calls, error=error) for calls, error in seen]
    assert _next(found, 0.00625 / AIM, 1.0) == calls  # type: ignore[arg-type]


def test_a_budget() -> None:
    case = sampling_cases(5, 4)[1]
    full = ds.solve(case.flow, x=case.x, quality=1e-5)
    cut = ds.solve(case.flow, x=case.x, quality=1e-5, nfe=full.nfe - 1)
    assert (full.reason, cut.reason) == ("end", "max_nfe")
    assert cut.nfe <= full.nfe - 1
    assert cut.stats["pairs"] == full.stats["pairs"][:-1]
    assert "the budget has no room" in cut.status


def test_a_callback_sees_every_run_and_may_stop() -> None:
    seen: list[int] = []
    solution = ds.solve(mixture(), quality="draft", callback=lambda visit: seen.append(visit.index))
    assert seen == [*range(solution.stats["pairs"][0][0] - 1), *range(solution.stats["pairs"][0][0])]
    stopped = ds.solve(mixture(), quality="draft", callback=lambda visit: visit.index == 2)
    assert stopped.reason == "stopped"


def test_a_grid_that_is_lost_is_made_finer() -> None:
    problem = Watched(mixture(), {3: lambda d: d * BAD})
    solution = ds.solve(problem, quality="draft")
    assert solution.stats["pairs"][0][1] == float("inf")
    assert solution.stats["pairs"][1][0] == 12
    with pytest.raises(ds.NonFiniteError, match="no grid of up to"):
        ds.solve(Watched(mixture(), dict.fromkeys(range(1, 999), lambda d: d * BAD)), quality="draft")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "goood"}, "unknown quality 'goood'; did you mean 'good'"),
        ({"quality": 0}, "or a relative error below 1, got 0"),
        ({"quality": True}, "or a relative error below 1, got True"),
        ({"quality": "nan"}, "or a relative error below 1, got nan"),
        ({"rtol": 1e-3}, "leave out rtol, atol and controller, or it"),
        ({"solver": "dpm_adaptive"}, "leave out rtol, atol and controller, or it"),
        ({"solver": "euler_ancestral"}, "euler_ancestral adds noise; give n or nfe"),
        ({"schedule": [10.0, 1.0, 0.1, 0.0]}, "has one of its own; leave quality out"),
        ({"nfe": 5}, "begins with 15 calls, the budget is nfe = 5"),
    ],
    ids=str,
)
def test_misuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ds.SolverError, match=message):
        ds.solve(mixture(), **{"quality": "good", **options})


def test_numbers_as_text() -> None:
    assert asked("0.01") == asked(0.01) == 0.01


def test_many() -> None:
    case = sampling_cases(5, 4)[1]
    (answer,) = ds.solve_many(case.flow, [{"x": case.x, "quality": "good"}])
    whole = ds.solve(case.flow, x=case.x, quality="good")
    assert answer.result().nfe == whole.stats["calls"]
    assert torch.allclose(answer.result().x, whole.x, atol=1e-9)


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    run = partial(CliRunner().invoke, app)
    out = tmp_path / "a.png"
    done = run(["sample", "red apple", "--guidance", "1", "--quality", "draft", "-o", str(out)])
    assert done.exit_code == 0, done.output
    settings, result, _ = picture.read(out)
    assert settings.quality == "draft"
    assert result["nfe"] > result["steps"]
    auto = run(["sample", "red apple", "--solver", "auto", "--nfe", "6", "-o", str(out)])
    assert auto.exit_code == 0, auto.output
    assert picture.read(out)[1]["solver"] != "auto"
    wrong = run(["sample", "red apple", "--quality", "best", "-o", str(out)])
    assert wrong.exit_code != 0
    assert "unknown quality 'best'" in wrong.output
    (tmp_path / "many").mkdir()
    many = run(["batch", "red apple", "-o", str(tmp_path / "many"), "--quality", "draft", "--guidance", "1"])
    assert many.exit_code == 0, many.output


# The table of docs/quality.md


def test_the_shares_of_the_page_by_hand() -> None:
    def solved(asked: float, estimate: float, delivered: float, pairs: int) -> Solved:
        return Solved("emoji", "good", asked, estimate, delivered, 10, 10 * (pairs + 1), pairs)

    rows = [solved(0.02, 0.02, 0.01, 2), solved(0.02, 0.02, 0.001, 1), solved(0.02, 0.02, 0.001, 2),
            solved(0.02, 0.02, 0.1, 2)]  # fmt: skip
    text = page(rows, "a command")
    assert "| emoji | good | 4 | 10 | 30 | 5.5e-03, 1.0e-01 | 25% | 75% | 50% |" in text
    assert "within 0.3 to 3 of the true error in 25%" in text
    assert "at most 3 times what was asked in 75%; it is within 0.3 to 3 of it in 25%, in 50% with first" in text
    assert "All pairs take 3.0 times the calls of the grid" in text


def test_what_the_page_measures() -> None:
    case = sampling_cases(5, 4)[1]
    found = list(solves(case.flow, "mixtures", case.x[:1], ("damped_abm", 200), ["draft"]))
    (one,) = found
    assert (one.group, one.preset, one.asked) == ("mixtures", "draft", 0.1)
    assert 0 < one.delivered < 0.3
    assert one.grid < one.calls


def test_the_committed_page_is_of_all_groups() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "quality.md").read_text(encoding="utf-8")
    assert "    diffsolve validate reach -o docs/quality.md" in text
    for group in GROUPS:
        for preset in PRESETS:
            assert f"| {group} | {preset} | " in text
