"""Work-precision and its references: equal cost, honest cells, peers beside ours, and a cache that can't mislead."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.validation import Case, WorkPrecisionReport, cache, references, sampling_cases, work_precision
from diffsolve.validation.cost.cells import Cell
from diffsolve.validation.cost.peers import _AzulaModel, methods
from diffsolve.validation.cost.spread import Part, spread_work_precision
from diffsolve.validation.problems import guided
from diffsolve.validation.references import case_of, reference, row_errors

NAMES = ["gauss", "gmm2", "gmm2 cfg", "gmm3", "gmm3 cfg"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFSOLVE_CACHE", str(tmp_path))
    monkeypatch.setattr(references, "_remembered", {})
    return tmp_path / "references"


def small(seed: int = 0, starts: int = 8) -> list[Case]:
    return sampling_cases(seed, starts, dims=(4, 2, 3), modes=(3, 2))


def mixture(shift: float = 0.0) -> Case:
    flow = ds.problems.GaussianMixture([[0.0, 1.0], [1.0 + shift, -1.0]], [0.4, 0.3])
    return case_of("two modes", flow, starts=4)


# The reference


def test_the_reference_is_the_exact_flow() -> None:
    gauss = small()[0]
    exact = reference(gauss)
    assert exact.error == 0
    flow = ds.problems.GaussianMixture(gauss.problem.mean[None], gauss.problem.variance.sqrt()[None])
    integrated = reference(case_of("the same, as a mixture of one", flow, starts=8))
    assert 0 < integrated.error < 1e-8
    assert integrated.converged
    assert row_errors(integrated.state, exact.state).max() < 1e-9


def test_it_is_read_back_and_not_integrated_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = reference(mixture())
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(references, "_remembered", {})
    monkeypatch.setattr(references, "_integrate", lambda case: pytest.fail("integrated again"))
    again = reference(mixture())
    assert torch.equal(again.state, first.state)
    assert again.error == first.error


def test_a_use_of_the_problem_does_not_change_its_key() -> None:
    case = mixture()
    key = references._key(case)
    ds.solve(case.problem, n=2)
    assert references._key(case) == key == references._key(mixture())
    assert key != references._key(mixture(1e-9))
    assert key != references._key(Case("", case.problem, case.start, case.end, case.x + 1e-9))


@pytest.mark.parametrize("how", ["cut short", "empty", "not an archive", "of another denoiser"])
def test_a_bad_file_is_made_anew(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    first = reference(mixture())
    (file,) = folder.iterdir()
    if how == "of another denoiser":
        kept = dict(np.load(file))
        np.savez(file, **{**kept, "probe": kept["probe"] + 1e-3, "state": kept["state"] + 1})
    else:
        file.write_bytes({"cut short": file.read_bytes()[:-50], "empty": b"", "not an archive": b"hello"}[how])
    monkeypatch.setattr(references, "_remembered", {})
    assert torch.equal(reference(mixture()).state, first.state)
    monkeypatch.setattr(references, "_remembered", {})
    monkeypatch.setattr(references, "_integrate", lambda case: pytest.fail("not mended"))
    reference(mixture())


def test_a_folder_that_cannot_be_written_costs_time_only(folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file where the folder should be")
    assert reference(mixture()).converged


def test_a_problem_made_of_lambdas_is_not_kept(folder: Path) -> None:
    prediction = ds.Prediction("x0", lambda s, p: ds.PREDICTIONS["x0"].scaling(s, p))
    flow = ds.ProbabilityFlow(lambda x, t: 0 * x, prediction=prediction, shape=(2,), dtype=torch.float64)
    assert reference(case_of("lambda", flow, starts=2)).converged
    assert not folder.exists()


def test_the_folder_follows_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.cache_folder() == tmp_path
    monkeypatch.delenv("DIFFSOLVE_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache.cache_folder() == tmp_path / "x" / "diffsolve"
    for platform, part in (("darwin", "Library"), ("win32", "diffsolve")):
        monkeypatch.setattr("sys.platform", platform)
        assert part in cache.cache_folder().parts


def test_seeds_and_dimensions_are_parameters() -> None:
    cases = small(seed=1)
    assert [c.name for c in cases] == NAMES
    assert [tuple(c.x.shape) for c in cases] == [(8, 4), (8, 2), (8, 2), (8, 3), (8, 3)]
    assert not torch.equal(cases[1].problem.means, small()[1].problem.means)
    assert cases[0].start == pytest.approx(14.6146, abs=1e-4)
    assert cases[0].end == pytest.approx(0.0292, abs=1e-4)


# The cells


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> WorkPrecisionReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFSOLVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        solvers = ["euler", "heun", "dopri5", "dpmpp_2m", "lms(order=3, form=noise)"]
        return work_precision(solvers, budgets=(5, 12, 24), problems=small())


def test_every_cell_is_there_and_within_its_budget(report: WorkPrecisionReport) -> None:
    assert report.passed
    assert report.problems == NAMES
    assert len(report.cells) == 5 * 5 * 2 * 3
    assert all(c.nfe <= c.budget for c in report.cells)
    costs = {(c.solver, c.budget): c.nfe for c in report.cells}
    assert costs["heun", 5] == 4
    assert costs["dopri5", 24] == 24
    assert {c.status for c in report.cells if c.solver == "dopri5" and c.budget == 5} == {"too dear"}
    assert all(c.seconds > 0 for c in report.cells if c.status == "ok")


def test_a_cell_is_the_error_of_that_solve(report: WorkPrecisionReport) -> None:
    case = small()[1]
    x = ds.solve(case.problem, "dpmpp_2m", "exponential", nfe=12, x=case.x, final="none").x
    key = ("gmm2", "dpmpp_2m", "exponential", 12)
    cell = next(c for c in report.cells if (c.problem, c.solver, c.schedule, c.budget) == key)
    assert cell.median == pytest.approx(float(row_errors(x, reference(case).state).median()), rel=1e-6)
    assert cell.nfe == 12


def test_more_cost_is_less_error(report: WorkPrecisionReport) -> None:
    for problem in NAMES:
        errors = [report.winner(problem, budget).median for budget in report.budgets]
        assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_the_noise_form_beats_the_data_form(report: WorkPrecisionReport) -> None:
    ranked = [label for label, _ in report.ranking()]
    assert ranked[0].startswith("lms(order=3, form=noise)")
    assert not any(label.startswith("dopri5") for label in ranked)  # it has no answer at 5


def test_the_report_is_plain_and_readable(report: WorkPrecisionReport) -> None:
    data = json.loads(report.to_json())
    assert data["passed"] is True
    assert len(data["cells"]) == len(report.cells)
    assert next(c for c in data["cells"] if c["status"] == "too dear")["median"] is None
    assert "too dear: 10 of 150" in str(report)
    assert all(name in str(report) for name in NAMES)


def test_the_picture_has_a_panel_for_each_problem(report: WorkPrecisionReport) -> None:
    figure = report.plot(top=3)
    assert [axis.get_title() for axis in figure.axes] == NAMES
    assert len(figure.axes[0].get_legend().get_texts()) == 3
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    figure.canvas.draw()
    report.plot("rms", against="seconds").canvas.draw()


class Misbehaves(ds.Solver):
    order = 1

    def __init__(self, how: str) -> None:
        self.name, self.how = how, how

    def step(self, f, y, span, past):
        if self.how == "raises":
            raise RuntimeError("a bug in a plugin")
        return ds.Step((y + f(y, span.start)) * (1e300 if self.how == "overflows" else 3.0))


def test_a_row_that_wants_the_scale_of_guidance_is_told_it() -> None:
    report = work_precision(["rectified_cfg_pp", "euler"], ["karras"], [12], [guided()])
    assert [(c.solver, c.status) for c in report.cells] == [("rectified_cfg_pp", "ok"), ("euler", "ok")]


def test_what_goes_wrong_is_shown() -> None:
    rows = [Misbehaves(how) for how in ("raises", "overflows", "is far off")]
    report = work_precision([*rows, "euler"], ["karras"], [6], [mixture()])
    status = {c.solver: c.status for c in report.cells}
    assert status == {"raises": "failed", "overflows": "diverged", "is far off": "diverged", "euler": "ok"}
    assert "a bug in a plugin" in report.cells[0].note
    assert math.isfinite(report.cells[2].median)  # shown as it is
    assert not report.passed
    assert "diverged: 2 of 4" in str(report)
    assert work_precision(rows[1:], ["karras"], [6], [mixture()]).passed
    work_precision(rows[1:], ["karras"], [6], [mixture()]).plot().canvas.draw()


def test_a_reference_that_has_not_converged_fails() -> None:
    case = mixture()
    loose = Case(case.name, case.problem, case.start, case.end, case.x, rtol=1e-4, atol=1e-4)
    assert not work_precision(["euler"], ["karras"], [6], [loose]).passed


def test_a_run_goes_on_where_it_stopped() -> None:
    seen: list[Cell] = []
    first = work_precision(["euler", "heun"], ["karras"], [6, 8], [mixture()], progress=seen.append)
    assert tuple(seen) == first.cells
    seen.clear()
    done = first.cells[:3]
    again = work_precision(["euler", "heun"], ["karras"], [6, 8], [mixture()], done=done, progress=seen.append)
    assert [c.label for c in seen] == ["heun karras"]
    assert again.cells[:3] == first.cells[:3]


def test_tags_choose_rows() -> None:
    found = work_precision(schedules=["karras"], budgets=[6], problems=[mixture()], tags="multistep,data")
    assert {c.solver for c in found.cells} == {e.name for e in ds.list_solvers("multistep,data") if not e.stochastic}
    everything = work_precision(schedules=["karras"], budgets=[6], problems=[mixture()])
    assert {c.solver for c in everything.cells} == {e.name for e in ds.list_solvers() if not e.stochastic}
    assert everything.passed


def test_where_no_rows_are_named_each_row_without_noise_is_a_part() -> None:
    parts: list[Part] = []

    def only_told(measure: object, told: Iterable[Part]) -> Iterable[tuple[Cell, ...]]:
        parts.extend(told)
        raise InterruptedError

    given: Any = ["karras"], (5, 8), (0, 8, (4, 2, 4))
    with pytest.raises(InterruptedError):
        spread_work_precision(None, *given, ["azula"], tags="multistep", spread=only_told)
    named = [rows for rows, *_ in parts]
    assert named == [*((e.name,) for e in ds.list_solvers("multistep") if not e.stochastic), ()]
    assert ("dpmpp_2m",) in named
    assert {part[1:4] for part in parts} == {(("karras",), (5, 8), (0, 8, (4, 2, 4)))}
    assert [part[4] for part in parts] == [()] * (len(parts) - 1) + [("azula",)]


def _cell(solver: str, budget: int | None, error: float, nfe: int = 5, peer: str = "") -> Cell:
    return Cell("p", solver, "karras", budget, peer, nfe, error, error, 1.0)


def test_winners_and_ranking() -> None:
    cells = (_cell("a", 5, 0.1), _cell("b", 5, 0.2), _cell("a", 10, 0.04), _cell("b", 10, 0.01), _cell("c", 10, 0.03),
             _cell("d", None, 0.005, 9, "them"), _cell("d", None, 0.5, 5, "them"))  # fmt: skip
    report = WorkPrecisionReport(cells, (5, 10), {"p": 0.0}, True)
    assert report.winner("p", 5).solver == "a"
    assert report.winner("p", 10).solver == "b"
    assert report.winner("p", 10, peers=None).solver == "d"  # the adaptive one fits the budget of 10
    assert report.winner("p", 5, peers=True).median == 0.5
    assert report.winner("p", 4) is None
    (a, ratio_a), (b, ratio_b) = sorted(report.ranking())  # c has no answer at 5, d has no budget
    assert (a, b) == ("a karras", "b karras")
    assert ratio_a == pytest.approx(math.sqrt(0.04 / 0.005))
    assert ratio_b == pytest.approx(math.sqrt(2 * 0.01 / 0.005))


def test_ours_against_the_best_peer_of_each_cell() -> None:
    cells = (_cell("a", 5, 0.1), _cell("b", 5, 0.2), _cell("a", 10, 0.04), _cell("b", 10, 0.01), _cell("c", 10, 0.03),
             _cell("d", 5, 0.2, peer="them"), _cell("e", 5, 0.3, peer="them"), _cell("e", 10, 0.02, peer="them"))
    report = WorkPrecisionReport(cells, (5, 10, 20), {"p": 0.0}, True)
    (a, *of_a), (b, *of_b) = sorted(report.against_peers())  # c has no answer at 5, and 20 has no peer
    assert (a, b) == ("a karras", "b karras")
    assert of_a == pytest.approx([1.0, 0.5, 2.0])
    assert of_b == pytest.approx([math.sqrt(0.5), 0.5, 1.0])
    assert report.against_peers()[0][0] == "b karras"
    text = str(report)
    assert "our best pair of each cell to the best peer: at most 0.8 in 2 of 2 cells, a tie in 0" in text
    assert "from 8 evaluations on above 1: nowhere; the largest 0.50" in text
    assert WorkPrecisionReport(cells[:5], (5, 10), {"p": 0.0}, True).against_peers() == []


@pytest.mark.slow
def test_a_schedule_with_other_ends_is_no_error() -> None:
    report = work_precision(["euler"], ["karras", "trailing", "leading"], [6], [mixture()], ["torchdiffeq"])
    assert {c.schedule: c.status for c in report.cells if not c.peer} == {
        "karras": "ok", "trailing": "other ends", "leading": "other ends",
    }  # fmt: skip
    assert {c.status for c in report.cells if c.peer and c.schedule == "trailing"} == {"other ends"}
    assert report.passed


def test_a_case_has_its_own_ends() -> None:
    whole = mixture()
    part = Case("part", whole.problem, 5.0, 0.5, whole.x, rtol=1e-12, atol=1e-13)
    report = work_precision(["dopri5"], ["karras"], [60], [part])
    assert report.cells[0].median < 1e-4


# The peers


def test_an_unknown_peer_and_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ds.SolverError, match="choose from"):
        methods("matlab")
    monkeypatch.setitem(__import__("sys").modules, "k_diffusion", None)
    report = work_precision(["euler"], ["karras"], [6], [mixture()], peers=["k_diffusion"])
    assert "k_diffusion can't be imported" in str(report)
    assert report.passed


def _errors(report: WorkPrecisionReport, schedule: str, budget: int) -> dict[str, float]:
    found = [c for c in report.cells if c.schedule == schedule and c.budget == budget]
    return {" ".join(filter(None, (c.peer, c.solver))): c.median for c in found}


def test_torchdiffeq_agrees_with_ours() -> None:
    pytest.importorskip("torchdiffeq")
    report = work_precision(["euler", "midpoint"], ["karras"], [12], [mixture()], ["torchdiffeq"])
    errors = _errors(report, "karras", 12)
    assert errors["torchdiffeq euler"] == pytest.approx(errors["euler"], rel=1e-9)
    assert errors["torchdiffeq midpoint"] == pytest.approx(errors["midpoint"], rel=1e-9)
    adaptive = [c for c in report.cells if c.solver == "dopri5"]
    assert len({c.nfe for c in adaptive}) > 3
    assert min(c.median for c in adaptive) < 1e-5
    assert not any(c.status == "failed" for c in report.cells)


def test_azula_agrees_with_ours_where_the_method_is_the_same() -> None:
    pytest.importorskip("azula")
    ours = {"lms(order=3)": "zAB-3", "deis": "zEAB-3", "deis(order=4)": "zEAB-4", "res_3m": "xEAB-3"}
    report = work_precision(list(ours), ["karras"], [8, 20], [mixture()], ["azula"])
    assert not any(c.status == "failed" for c in report.cells), str(report)
    for budget in (8, 20):
        errors = _errors(report, "karras", budget)
        for name, theirs in ours.items():
            assert errors[f"azula {theirs}"] == pytest.approx(errors[name], rel=1e-6)


@pytest.mark.slow
def test_diffusers_agrees_with_ours_where_the_method_is_the_same() -> None:
    pytest.importorskip("diffusers")
    ours = {"euler": "Euler", "heun": "Heun", "lms": "LMS-4", "dpmpp_2m": "DPM++ 2M",
            "lms(order=3, form=noise)": "DEIS-3"}  # fmt: skip
    report = work_precision(list(ours), ("karras", "exponential"), [8, 20], [mixture()], ["diffusers"])
    assert not any(c.status == "failed" for c in report.cells), str(report)
    for schedule in ("karras", "exponential"):
        for budget in (8, 20):
            errors = _errors(report, schedule, budget)
            for name, theirs in ours.items():
                assert errors[f"diffusers {theirs}"] == pytest.approx(errors[name], rel=2e-3, abs=1e-5)  # float32


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_what_wins_on_the_whole_set(seed: int) -> None:
    """The order of the measured field: exponential Adams on eps ahead of 2M on data, ahead of Heun."""
    rows: Sequence[str] = ["euler", "heun", "dpmpp_2m", "lms(order=3, form=noise)"]
    report = work_precision(rows, budgets=(10, 20), problems=sampling_cases(seed, 32))
    assert report.passed
    assert report.ranking()[0][0].startswith("lms(order=3, form=noise)")
    for problem in ("gauss", "gmm2", "gmm64"):
        for budget in (10, 20):
            assert report.winner(problem, budget).solver == "lms(order=3, form=noise)"
            best = {row: min(c.median for c in report.at(problem, budget) if c.solver == row) for row in rows}
            assert best["dpmpp_2m"] < best["heun"]


@pytest.mark.parametrize("sigma", [0.0, 0.5, 20.0])
def test_what_azula_is_given_is_the_denoiser_on_its_own_scale(sigma: float) -> None:
    model = _AzulaModel(lambda y, s: y / (1 + s * s))
    t, y = torch.tensor(sigma, dtype=torch.float64), torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    alpha, noise = model.schedule(t)
    assert float(alpha**2 + noise**2) == pytest.approx(1.0)
    assert float(noise / alpha) == pytest.approx(sigma)
    torch.testing.assert_close(model(alpha * y, t).mean, y / (1 + sigma**2))
