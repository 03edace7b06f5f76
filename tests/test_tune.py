"""Grids fitted to a model: better than the rules on what they have not seen, and read wherever a schedule is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve.app.cli import app
from diffsolve.grid import Tabulated
from diffsolve.interop.diffusers import DiffsolveScheduler
from diffsolve.validation.cost import tune as tuning
from diffsolve.validation.cost.tune import tune
from diffsolve.validation.references import sampling_cases

GUIDED = next(case.problem for case in sampling_cases() if case.name == "gmm64").guided(1, 4.0)
TABLE = (14.0, 5.0, 2.0, 0.7, 0.03)


@pytest.mark.parametrize(
    ("solver", "most"), [("dpmpp_2m", 0.5), pytest.param("damped_abm", 0.6, marks=pytest.mark.slow),
                         pytest.param("euler_ancestral", 0.97, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_fitted_grid_is_better_on_other_noise(solver: str, most: float) -> None:
    found = tune(GUIDED, solver, 6, batch=16, rounds=3)
    assert found.gain < most, str(found)
    assert len(found.sigmas) == 7
    process = GUIDED.process
    assert (found.sigmas[0], found.sigmas[-1]) == pytest.approx((process.sigma_max, process.sigma_min))
    grid = GUIDED.grid(found.schedule, 6, final="denoise", sigma_min=None, sigma_max=None, name="")
    assert grid.nodes == pytest.approx(found.sigmas[:-1], rel=1e-12)


def shares(sigmas: np.ndarray) -> np.ndarray:
    """Of each step in log sigma."""
    lengths = np.diff(np.log(sigmas))
    return lengths / lengths.sum()


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({"diffsolve_grid": 1, "sigmas": TABLE}))
    return str(path)


def test_a_file_is_a_schedule_everywhere(file: str) -> None:
    solution = ds.solve(GUIDED, "euler", file, 4)
    process = GUIDED.process
    low, high = process.sigma_min, process.sigma_max
    assert solution.schedule == "grid.json"
    assert solution.grid.nodes == pytest.approx(Tabulated(TABLE).nodes(5, low, high, process)[:-1])
    assert len(ds.solve(GUIDED, "euler", file, 9).grid) == 9
    scheduler = DiffsolveScheduler(solver="euler", schedule=file)
    scheduler.set_timesteps(4)
    assert shares(scheduler.sigmas[:4].double().numpy()) == pytest.approx(shares(solution.grid.nodes), rel=1e-3)


@pytest.mark.parametrize(
    ("told", "says"),
    [("{", "can't be read as a schedule"), ("[]", "'diffsolve_grid'"), ('{"diffsolve_grid": 2}', "'diffsolve_grid'"),
     ('{"diffsolve_grid": 1}', "list of sigmas"), ('{"diffsolve_grid": 1, "sigmas": [1, 2]}', "falls"),
     ('{"diffsolve_grid": 1, "sigmas": [2, 1, 0]}', "above 0"),
     ('{"diffsolve_grid": 1, "sigmas": [2, NaN]}', "finite"),
     ('{"diffsolve_grid": 1, "sigmas": 3}', "can't be read"),
     ('{"diffsolve_grid": 1, "sigmas": "ab"}', "can't be read"),
     ("[" * 100_000, "can't be read")],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, told: str, says: str) -> None:
    path = tmp_path / "grid.json"
    path.write_text(told)
    with pytest.raises(ds.GridError, match=says):
        ds.solve(GUIDED, "euler", str(path), 4)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ds.GridError, match=r"none\.json can't be read as a schedule"):
        ds.solve(GUIDED, "euler", "none.json", 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["emoji", "--solver", "huen"], "did you mean 'heun'"), (["folder"], "--prompt"),
     (["emoji", "-n", "1"], "from 2 to 200, got 1"), (["emoji", "-n", "1000000"], "from 2 to 200"),
     (["emoji", "--solver", "dpm_adaptive"], "no grid to fit"), (["emoji", "-o", "grid.txt"], "pass -o grid.txt.json"),
     (["emoji", "--held", "owl"], "as many --held as --prompt")],
)  # fmt: skip
def test_the_command_asks_first(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["tune", *arguments])
    assert result.exit_code
    assert says in f"{result.output} {result.exception}"


@pytest.mark.slow
def test_the_command_writes_what_sample_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "REFERENCE", ("dpmpp_2m", "karras", 16))  # how good the grid is, is asked above
    path, picture = str(tmp_path / "own.json"), tmp_path / "x.png"
    asked = ["--solver", "euler", "--rounds", "1", "--prompt", "bag", "--guidance", "1", "-o", path]
    result = CliRunner().invoke(app, ["tune", "fashion", "-n", "3", *asked])
    assert result.exit_code == 0, result.output
    assert "held out" in result.output
    told = json.loads(Path(path).read_text())
    assert told["made"]["model"] == "fashion"
    assert told["made"]["steps"] == 3
    asked = ["--model", "fashion", "-n", "3", "--schedule", path, "-o", str(picture)]
    drawn = CliRunner().invoke(app, ["sample", "bag", *asked])
    assert drawn.exit_code == 0, drawn.output
    assert picture.stat().st_size
