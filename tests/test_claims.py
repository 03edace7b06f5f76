"""The claims: every one is decided on the mixtures, and the decisions that rest on mathematics are the right ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache

import pytest

import diffsolve as ds
from diffsolve.validation import validate_claims
from diffsolve.validation.claims import bench, report
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


@pytest.fixture(scope="module")
def _runs_are_shared() -> Iterator[None]:
    """Each claim alone asks for the runs of others, as all of them together do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "benches", cache(bench.benches))
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_runs_are_shared")
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
