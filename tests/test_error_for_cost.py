"""Ours against the peers: the ratios, what is held against us, the set that is compared, and the page of tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve.validation import WorkPrecisionReport, sampling_cases, work_precision
from diffsolve.validation.cost import error_for_cost
from diffsolve.validation.cost.cells import Cell, summary, versus
from diffsolve.validation.report import load
from diffsolve.validation.site.cli import app


def _against(ours: Sequence[float], default: Sequence[float], peer: float = 0.1) -> WorkPrecisionReport:
    """A report of three budgets: what another row, the default and a peer reach."""
    name, schedule = error_for_cost.DEFAULT.split()
    runs = [(name, schedule, "", default), ("a", "karras", "", ours), ("d", "karras", "them", [peer] * 3)]
    cells = [
        Cell("p", solver, grid, budget, whose, 5, error, error, 1.0)
        for solver, grid, whose, errors in runs
        for budget, error in zip((5, 8, 10), errors, strict=False)  # the default may have no answer at the last
    ]
    return WorkPrecisionReport(tuple(cells), (5, 8, 10), {"p": 0.0}, True)


def test_what_is_held_against_us_and_what_is_a_tie() -> None:
    first, second, third = versus(_against([0.3, 0.13, 0.1002], [0.4, 0.4, 0.05]))
    assert (first.ratio, first.default_ratio) == pytest.approx((3.0, 4.0))
    assert (third.ratio, third.default_ratio) == pytest.approx((0.5, 0.5))
    assert f"{third.ours.solver} {third.ours.schedule}" == error_for_cost.DEFAULT
    text = "\n".join(summary([first, second, third]))
    assert "at most 0.8 in 1 of 3 cells, a tie in 0" in text
    assert "above 1: p at 8 (1.30); the largest 1.30" in text  # not at 5
    assert f"{error_for_cost.DEFAULT}, the default of solve(), to each cell's best peer: geometric mean 2.00" in text
    tied = summary(versus(_against([0.3, 0.1, 0.1002], [0.4, 0.4, 0.4])))
    assert "a tie in 2" in tied[0]
    assert "nowhere; the largest 1.00" in tied[1]
    assert "has no answer in 1 cells" in summary(versus(_against([0.3, 0.1, 0.1], [0.4, 0.4])))[-1]
    assert len(summary(versus(_against([0.3, 0.1, 0.1], [])))) == 2
    assert summary([]) == []


def test_what_is_compared_has_the_peers_methods_and_the_default() -> None:
    rows = error_for_cost.field()
    assert len({ds.get_solver(row).name for row in rows}) > len(ds.list_solvers()) / 2
    assert {row.name for row in ds.list_solvers() if row.form is not None and not row.stochastic} < set(rows)
    name, schedule = error_for_cost.DEFAULT.split()
    assert name in rows
    assert schedule in error_for_cost.SCHEDULES
    assert not any(ds.get_solver(row).stochastic for row in rows)


@pytest.mark.slow
def test_the_command_writes_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSOLVE_CACHE", str(tmp_path))
    torchdiffeq = pytest.importorskip("torchdiffeq")
    arguments = ["damped_abm", "lms", "--schedules", "karras", "--budgets", "5,10", "--seeds", "3,4", "--starts", "4"]
    page = tmp_path / "page.md"
    paths = ["--peers", torchdiffeq.__name__, "--dims", "4,2,3", "-o", str(tmp_path), "--markdown", str(page)]
    done = CliRunner().invoke(app, ["work-precision", *arguments, *paths])
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert text.count("| gmm3 cfg | 10 | damped_abm karras |") == 2
    assert "## Seed 3, dimensions 4,2,3" in text
    assert "of 20 cells" in text.partition("## All of them")[2].partition("##")[0]
    assert text.count("for every cell: geometric mean") == 4
    assert "torchdiffeq" in text.split("Python")[0]
    kept = [load(tmp_path, path.stem) for path in tmp_path.glob("work-precision-*.json")]
    fresh = work_precision(
        ["damped_abm", "lms"], ["karras"], (5, 10), sampling_cases(3, 4, dims=(4, 2, 3)), ["torchdiffeq"]
    )
    read = next(error_for_cost.read(saved.data) for saved in kept if saved.title.startswith("seed 3"))
    assert [(c.key, c.median, c.status) for c in read.cells] == [(c.key, c.median, c.status) for c in fresh.cells]
    again = CliRunner().invoke(app, ["work-precision", *arguments, *paths])
    assert again.exit_code == 0
    assert page.read_text(encoding="utf-8").partition("##")[2] == text.partition("##")[2]  # from what is kept
