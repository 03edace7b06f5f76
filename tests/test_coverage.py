"""docs/coverage.md is the registry's: all but its measured orders is made again and compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from stubs import slow

import diffsolve as ds
from diffsolve.validation.site import coverage, stamp

STAMPED = (Path(__file__).resolve().parent.parent / "docs" / "coverage.md").read_text(encoding="utf-8")
PAGE = stamp.LINE.sub("", STAMPED, count=1)


def measured(spec: str) -> str:
    """What the page says was measured of a solver."""
    cells = {line.split(" | ")[coverage.MEASURED].strip() for line in PAGE.splitlines() if f" | `{spec}` | " in line}
    assert len(cells) == 1, f"docs/coverage.md has no {spec}: run diffsolve validate coverage -o docs/coverage.md"
    return cells.pop()


def test_the_page_is_the_registrys() -> None:
    assert coverage.page(measured) == PAGE, "run diffsolve validate coverage -o docs/coverage.md"


def test_every_row_is_on_the_page() -> None:
    for entry in ds.list_solvers():
        assert f"| `{entry.name}" in PAGE


@pytest.mark.parametrize("spec", ["heun", slow("dpmpp_2m"), "euler_ancestral"])
def test_what_was_measured_is_what_is_measured(spec: str) -> None:
    assert coverage.measure(spec) == measured(spec)


def test_a_row_that_no_longer_exists_is_an_error() -> None:
    with pytest.raises(ds.SolverError, match="did you mean 'euler"):
        coverage.line("Euler", "euleer")
