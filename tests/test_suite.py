"""`diffsolve validate`: reports are kept, a false claim fails the command, and nothing that differs is hidden."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from stubs import slow
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve.app import cli
from diffsolve.validation.report import Saved
from diffsolve.validation.site import suite
from diffsolve.validation.site.page import page

ORDER_2 = ("order", "heun", "--quick")


@pytest.fixture
def boaster() -> str:
    """A solver that claims more than it has."""

    @ds.register_solver("boaster", order=3, source="a test")
    class Boaster(ds.Solver):
        stages = 2

        def step(self, f: ds.Field, y: object, span: ds.Span, past: ds.Past) -> ds.Step:
            k = f(y, span.start)
            last = f(ds.combine((1.0, y), (span.h, k)), span.end)
            return ds.Step(ds.combine((1.0, y), (span.h / 2, k), (span.h / 2, last)))

    return "boaster"


def validate(*arguments: str, out: Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["validate", *arguments, "-o", str(out)])
    return result.exit_code, result.output


def test_a_true_claim_passes_and_is_kept(tmp_path: Path) -> None:
    code, output = validate(*ORDER_2, out=tmp_path)
    assert code == 0, output
    assert "1 of 1 hold" in output
    (page,) = tmp_path.rglob("index.html")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!-- made by: ")
    assert text.count("<svg ") == 1
    assert "http" not in text  # self-contained
    saved = json.loads(next(tmp_path.rglob("order-heun.json")).read_text(encoding="utf-8"))
    assert saved["passed"] is True
    assert saved["data"]["claimed"] == 2


@pytest.mark.slow
def test_a_second_run_goes_on_from_the_first(tmp_path: Path) -> None:
    validate(*ORDER_2, out=tmp_path)
    report = next(tmp_path.rglob("order-heun.json"))
    before = report.stat().st_mtime_ns
    assert validate(*ORDER_2, out=tmp_path)[0] == 0
    assert report.stat().st_mtime_ns == before
    report.write_text("{", encoding="utf-8")  # half a file is made again
    assert validate(*ORDER_2, out=tmp_path)[0] == 0
    assert json.loads(report.read_text(encoding="utf-8"))["passed"] is True


@pytest.mark.parametrize("command", [slow("order"), "conditions", "stability"])
def test_a_false_claim_fails_the_command(command: str, boaster: str, tmp_path: Path) -> None:
    code, output = validate(command, boaster, out=tmp_path)
    assert code == 1, output
    assert "FAILS" in output


def test_an_unknown_name_is_an_error_before_any_work(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["validate", "order", "huen", "-o", str(tmp_path / "new")])
    assert isinstance(result.exception, ds.SolverError)
    assert "did you mean 'heun'?" in str(result.exception)
    assert not (tmp_path / "new").exists()


def saved(kind: str, **data: object) -> Saved:
    return Saved(f"{kind}-x", kind, "x", True, 0.0, "", {"solver": "x", **data})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("all", "--only", "ordr"), "unknown kind 'ordr'; did you mean 'order'?"),
        (("work-precision", "heun", "--budgets", "5,x"), "whole numbers above 0, such as"),
    ],
)
def test_numbers_and_kinds_are_read_with_care(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    code, output = validate(*arguments, out=tmp_path)
    assert code == 2
    assert message in " ".join(output.replace("│", " ").split())


def test_disagreements_are_found() -> None:
    proof = saved("conditions", claimed=4, proved=4, started_claimed=2, started_proved=2)
    right = saved("order", start="exact", claimed=4, measured=3.97)
    wrong = saved("order", start="exact", claimed=4, measured=3.5)
    assert suite.disagreements([proof, right]) == []
    assert suite.disagreements([proof, wrong]) == [("x", "exact start: 4 proved, 3.50 measured")]
    none = saved("conditions", claimed=None, proved=1, started_claimed=None, started_proved=1)
    assert suite.disagreements([none]) == []
    less = saved("conditions", claimed=4, proved=3, started_claimed=2, started_proved=2)
    assert ("x", "exact start: 4 claimed, 3 proved") in suite.disagreements([less])


def test_a_page_unfolds_failures_and_what_is_alone_of_its_kind() -> None:
    kinds = (("a", True), ("a", None), ("a", False), ("b", True), ("c", False))
    reports = [replace(saved(kind), title=f"{kind} {passed}", passed=passed) for kind, passed in kinds]
    sections = re.findall(r"<details( open)?><summary><b>(.*?)</b>", page(reports, "", ""))
    assert [name for opened, name in sections if opened] == ["a False", "b True", "c False"]
    assert len(sections) == len(kinds)


def test_the_suite_covers_the_catalogue() -> None:
    keys = [task.key for task in suite.tasks()]
    assert len(keys) == len(set(keys))
    for row in (row for row in ds.list_solvers() if row.form is not None):
        kinds = ["order-{}-as-started"] if row.order is not None else []
        if ds.get_solver(row.name).traceable:
            kinds += ["stability-{}", "conditions-{}"] if row.order is not None else ["stability-{}"]
        assert {kind.format(row.name) for kind in kinds} <= set(keys)


@pytest.mark.slow
def test_orders_show_on_the_embedded_network() -> None:
    from diffsolve.validation import validate_order
    from diffsolve.validation.orders.network import network
    from diffsolve.validation.problems import Case

    whole, start, rtol = network(), 1.05, 1e-8  # a quarter of its range, in steps as long: the reference is dear
    near = Case(whole.name, whole.problem, start, whole.end, whole.flow.prior(1, 0, start), rtol=rtol, atol=rtol / 10)
    report = validate_order("heun", near, ns=(4, 6, 8, 12))
    assert report.passed
    assert report.measured == pytest.approx(2, abs=0.2)


@pytest.mark.slow
def test_proofs_claims_and_measurements_agree(tmp_path: Path) -> None:
    tasks = suite.tasks(("conditions", "order"), quick=True)
    few = [task for task in tasks if re.search("-(heun|dpmpp_2m|plms)(-|$)", task.key)]
    done = suite.run(tmp_path, few, quick=True)
    assert len(done) == len(few) > 6
    assert [s.key for s in done if s.passed is not True] == []
    assert suite.disagreements(done) == []
