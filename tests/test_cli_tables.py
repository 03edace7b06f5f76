"""The command line without a picture: version and help, its tables, plugins' commands."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import typer
from test_cli import assert_refused, diffsolve
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve import register
from diffsolve.app import cli


def test_version_and_help() -> None:
    assert diffsolve("--version").output == f"diffsolve {ds.__version__}\n"
    shown = diffsolve("--help").output
    assert [c for c in ("sample", "solvers", "schedules", "problems") if c not in shown] == []
    assert diffsolve("sample").exit_code == 2


def takes_a_union(x: int | str) -> None:
    """A command that typer can't make an option of."""


def test_a_broken_plugin_leaves_the_other_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "bad_commands", bad_commands := ModuleType("bad_commands"))
    vars(bad_commands).update(number=5, unknown=typer.Typer())
    bad_commands.unknown.command()(takes_a_union)
    names = {"broken": "no_such_module:app", "sample": "diffsolve.validation.site.cli:app", "exits": "exits:app",
             "number": "bad_commands:number", "unknown": "bad_commands:unknown", "empty": "bad_commands"}  # fmt: skip
    (tmp_path / "exits.py").write_text("raise SystemExit(4)")
    monkeypatch.syspath_prepend(tmp_path)
    known = [(point, EntryPoint(*point, "diffsolve.commands")) for point in names.items()]
    points = [register.Point(*point, "diffsolve.commands", "a_package", at.load) for point, at in known]
    monkeypatch.setattr(register, "scan", lambda: points)
    commands = typer.Typer()
    with pytest.warns(UserWarning, match="the command plugin .* of a_package could not be loaded") as caught:
        cli._fill(commands)
    for (name, value), said in zip(names.items(), caught, strict=True):
        assert value in str(said.message), name
    assert "sample" in CliRunner().invoke(commands, ["--help"]).output


def test_tables_are_whole_when_piped() -> None:
    for command, entries in (("solvers", ds.list_solvers()), ("schedules", ds.list_schedules())):
        rows = {line.split()[0]: line for line in diffsolve(command).stdout.splitlines()}
        assert list(rows) == ["name", *(e.name for e in entries)]
        for e in entries:
            assert [w for w in (*e.aliases.values(), e.source) if w not in rows[e.name]] == []
    assert re.search(r"^lms +2/4 +1 +sigma +sample_lms ", diffsolve("solvers").stdout, flags=re.MULTILINE)


@pytest.mark.parametrize("command", ["solvers", "schedules"])
@pytest.mark.parametrize("width", [80, 300])
def test_tables_fit_the_terminal(command: str, width: int) -> None:
    shown = re.sub(r"\x1b\[[\d;]*m", "", diffsolve(command, COLUMNS=str(width), FORCE_COLOR="1").stdout)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    names = [e.name for e in (ds.list_solvers() if command == "solvers" else ds.list_schedules())]
    assert re.findall(r"^(\w+)", shown, flags=re.MULTILINE) == ["name", *names]


def test_tables_for_programs() -> None:
    rows = json.loads(diffsolve("solvers", "--tags", "multistep", "--json").stdout)
    assert [r["name"] for r in rows] == [e.name for e in ds.list_solvers("multistep")]
    assert {r["name"]: r["aliases"].get("A1111") for r in rows}["dpmpp_2m"] == "DPM++ 2M"
    assert {"order", "order_as_started", "stages", "form", "stochastic", "source"} <= rows[0].keys()
    assert len(json.loads(diffsolve("schedules", "--json").stdout)) == len(ds.list_schedules())
    assert_refused(diffsolve("solvers", "--tags", "multi"), "'multi'", "'multistep'")
    assert_refused(diffsolve("solvers", "--tags", "multistep,one-step"), "ask for fewer")
    assert "gaussian_mixture: Data from K Gaussians" in diffsolve("problems").stdout
