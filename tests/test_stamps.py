"""The stamps of generated pages: what is hashed, what makes a page old, and that no page of this checkout is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffsolve.validation.site import stamp
from diffsolve.validation.site.cli import app


@pytest.mark.parametrize("page", [page for page in stamp.PAGES if (stamp.ROOT / page).exists()])
def test_a_page_is_of_the_code_that_is_there(page: str) -> None:
    assert (dict(stamp.stale()).get(page, "") == "") != (page in stamp.OLD), "stale, or no longer old"


def test_every_generated_page_is_listed() -> None:
    assert [page for page, what in stamp.stale() if page not in stamp.PAGES] == []


def test_comments_and_docstrings_do_not_count() -> None:
    one = '"""What it is."""\nx = 1  # one\n\n\ndef f():\n    """It returns."""\n    return "# not a comment"\n'
    two = 'x = 1\ndef f():\n    # to be seen\n    return "# not a comment"\n'
    assert stamp.code_of(one) == stamp.code_of(two)
    assert stamp.code_of(one) != stamp.code_of(one.replace("x = 1", "x = 2"))
    assert stamp.code_of(one) != stamp.code_of(one.replace("not a", "no"))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with one page, made from src/ but for src/other.py."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("x = 1\n")
    (tmp_path / "src" / "other.py").write_text("y = 1\n")
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    monkeypatch.setattr(stamp, "PAGES", {"page.md": ("src", "!src/other.py")})
    monkeypatch.setattr(stamp, "ROOT", tmp_path)
    inputs = stamp.digest(("src", "!src/other.py"), tmp_path)
    (tmp_path / "page.md").write_text(f"<!-- made by: make it; commit 1234567+; inputs {inputs} -->\n# A page\n")
    return tmp_path


def test_a_change_of_its_code_makes_a_page_old(checkout: Path) -> None:
    assert stamp.stale(checkout) == []
    (checkout / "src" / "other.py").write_text("y = 2\n")
    (checkout / "src" / "a.py").write_text("# a remark\nx = 1\n")
    assert stamp.stale(checkout) == []
    (checkout / "src" / "b.py").write_text("")
    ((page, what),) = stamp.stale(checkout)
    assert page == "page.md"
    assert "older than what it describes (commit 1234567+); make it again: make it" in what
    (checkout / "src" / "b.py").unlink()
    (checkout / "src" / "a.py").write_text("x = 2\n")
    assert len(stamp.stale(checkout)) == 1


def test_a_page_without_a_stamp_is_old(checkout: Path) -> None:
    (checkout / "page.md").write_text("# A page\n")
    assert stamp.stale(checkout) == [("page.md", "it has no stamp; make it again")]


def test_a_result_that_nobody_listed_is_found(checkout: Path) -> None:
    (checkout / "benchmarks" / "results" / "new.md").write_text("# New\n")
    ((page, what),) = stamp.stale(checkout)
    assert page == "benchmarks/results/new.md"
    assert "nothing says what it is made from" in what


def test_a_line_is_read_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/diffsolve", "validate", "coverage", "-o", "my docs/coverage.md"])
    found = stamp.LINE.fullmatch(stamp.line("docs/coverage.md"))
    assert found is not None
    assert found["command"] == "diffsolve validate coverage -o 'my docs/coverage.md'"
    assert found["inputs"] == stamp.digest(stamp.PAGES["docs/coverage.md"])
    monkeypatch.setattr("sys.argv", ["benchmarks/overhead.py", "--threads", "1"])
    assert stamp.this_command() == "python benchmarks/overhead.py --threads 1"


def test_a_json_file_has_it_inside(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamp, "PAGES", {"t.json": ("src",)})
    (checkout / "t.json").write_text("{}")
    assert stamp.stale(checkout) == [("t.json", "it has no stamp; make it again")]
    (checkout / "t.json").write_text(json.dumps({"stamp": f"made by: x; commit 1; inputs {stamp.digest(('src',))}"}))
    assert stamp.stale(checkout) == []
    kept = stamp.kept("t.json")
    (checkout / "src" / "a.py").write_text("x = 2\n")
    assert stamp.stale(checkout)[0][0] == "t.json"
    assert stamp.kept("t.json") != kept  # what other code has measured is no figure of this one


def test_a_page_is_written_with_its_line(checkout: Path) -> None:
    stamp.write("page.md", checkout / "page.md", "# A page")
    assert stamp.stale(checkout) == []
    assert (checkout / "page.md").read_text().endswith("-->\n# A page\n")


def test_away_from_a_checkout_it_says_so(tmp_path: Path) -> None:
    assert stamp.digest(("src",), tmp_path) == "unknown"
    assert stamp.commit(("src",), tmp_path) == "unknown"


def test_the_command_lists_what_is_old(checkout: Path) -> None:
    (checkout / "page.md").write_text("# A page\n")
    done = CliRunner().invoke(app, ["stamps"])
    assert done.exit_code == 1
    assert "page.md: it has no stamp" in done.output


def test_the_page_of_all_reports_is_small() -> None:
    assert (stamp.ROOT / "docs" / "validation.html").stat().st_size <= 2_000_000
