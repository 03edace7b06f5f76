"""The claims: every one is decided on the mixtures, and the decisions that rest on mathematics are the right ones."""

from __future__ import annotations

import json
from functools import cache
from types import SimpleNamespace

import pytest
import torch

import diffsolve as ds
from diffsolve.validation import validate_claims
from diffsolve.validation.claims import bench, report, samplers
from diffsolve.validation.claims.claim import Finding
from diffsolve.validation.claims.report import claims

SURE = {
    "ddim-plms": "does not hold",
    "fast-adaptive": "does not hold",
    "karras": "only when",
    "lms-karras": "only when",
    "steps": "holds",
    "modular": "holds",
    "grid": "holds",
    "changing": "only when",
}


@cache
def few(quick: bool) -> list[bench.Bench]:
    """The benches with fewer samples: is a claim decided, and rightly where it is sure?"""
    made = bench.benches(quick)
    for each in made:
        each.x, each.ns, each.most = each.x[:16], (5, 10, 25, 50, 100), 50
        each.reference, each.samples = 500, 100
    return made


@pytest.fixture
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_benches", few)


@pytest.mark.slow
@pytest.mark.usefixtures("_few_samples")
@pytest.mark.parametrize("key", claims())
def test_a_claim_is_decided(key: str) -> None:
    report = validate_claims([key], quick=True)
    assert report.passed
    assert {f.on for f in report.findings} == {"gmm2", "gmm64 cfg"}
    if key in SURE:
        assert {f.verdict for f in report.findings} == {SURE[key]}, str(report)
    assert [f["verdict"] for f in json.loads(report.to_json())["findings"]] == [f.verdict for f in report.findings]
    page = report.to_markdown()
    assert all(f.says in page and f.figures in page for f in report.findings)
    report.plot()


def test_an_unknown_claim_is_refused() -> None:
    with pytest.raises(ds.SolverError, match="'karas'; did you mean 'karras'"):
        validate_claims(["karas"], quick=True)


@pytest.mark.parametrize(
    ("calls", "verdict"),
    [
        ((10, 12, 14, 14, 16, 20), "holds"),
        ((10, 12, 14, 13, 16, 20), "holds"),  # one dip is left to chance
        ((10, 13, 12, 16, 14, 20), "does not hold"),
        ((10, 10, 11, 11, 12, 12), "does not hold"),  # 1.2 times as many is no growth yet
    ],
)
def test_when_more_guidance_means_more_steps(
    calls: tuple[int, ...], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = iter(calls)
    monkeypatch.setattr(samplers, "solve", lambda *_, **__: SimpleNamespace(nfe=next(made)))
    asked = SimpleNamespace(guided=float, x=None, name="made up")
    found = samplers.dpm_adaptive_takes_more_steps_as_guidance_grows(asked)  # type: ignore[arg-type]
    assert (found.verdict, list(found.curves["made up"][1])) == (verdict, list(calls))


def test_a_gap_is_the_median_of_relative_distances() -> None:
    b = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]], [[1.0, 0.0]]])
    assert bench.gap(b, b) == 0
    assert bench.gap(b * torch.tensor([1.1, 0.7, 9.0]).view(3, 1, 1), b) == pytest.approx(0.3)


def test_a_mixture_is_guided_where_the_scale_is_not_1() -> None:
    plain, cfg = bench.benches(quick=True)
    for case in (plain, cfg):
        free, told = case.guided(1.0), case.guided(3.0)
        assert [hasattr(problem.denoiser, "scale") for problem in (free, told)] == [False, True]


@pytest.mark.parametrize(("drawn", "rows"), [(1, 1), (3, 1), (4, 2)])
def test_every_curve_has_a_panel_of_a_size_to_read(drawn: int, rows: int) -> None:
    found = Finding("holds", "1 < 2", "", {"a": ((1, 10), (2, 20))}, ("steps", "error"))
    figure = report.ClaimsReport((*[found] * drawn, Finding("holds", "no curves"))).plot()
    assert len(figure.axes) == drawn
    assert figure.get_size_inches().tolist() == [15.0, 3.6 * rows]
