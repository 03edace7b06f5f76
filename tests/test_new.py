"""`diffsolve new-solver` and its kin: what they write installs, is found by name, and passes its own test at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffsolve import OutputError
from diffsolve.app import cli
from diffsolve.app.new import write

KINDS = ("solver", "schedule", "process", "problem")


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_writes_three_files(kind: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, [f"new-{kind}", f"my-{kind}", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    folder = tmp_path / f"my-{kind}"
    assert f"pip install -e {folder} && pytest {folder}" in result.output
    assert {p.name for p in folder.iterdir()} == {"pyproject.toml", f"my_{kind}.py", f"test_my_{kind}.py"}
    for file in folder.iterdir():
        text = file.read_text()
        assert "@word@" not in text
        assert max(map(len, text.splitlines())) <= 120
    assert f"check_{kind}(" in (folder / f"test_my_{kind}.py").read_text()


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("solver", "My Solver", r"lower-case letters, digits and hyphens, got 'My Solver'; such as 'my-solver'"),
        ("solver", "heun", r"there is a solver 'heun' already; .* such as 'my-heun'"),
        ("solver", "sample-heun", r"there is a solver 'sample_heun' already"),
        ("schedule", "karras", r"there is a schedule 'karras' already"),
        ("process", "edm", r"there is a process 'edm' already"),
        ("problem", "gaussian", r"there is a problem 'gaussian' already"),
        ("solver", "json", r"json is a module of Python's or an installed one"),
        ("solver", "lambda", r"lambda is a module of Python's"),
        ("solver", "../elsewhere", r"lower-case letters"),
    ],
)
def test_a_name_that_can_not_be_is_refused(kind: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=message):
        write(kind, name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_that_exists_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="mine exists; choose another name"):
        write("solver", "mine", tmp_path)
    assert not list((tmp_path / "mine").iterdir())


def install(made: Path, site: Path) -> None:
    """As pip leaves it, without its wait: .ci/smoke takes pip itself."""
    about = tomllib.loads((made / "pyproject.toml").read_text())
    project, (module,) = about["project"], about["tool"]["setuptools"]["py-modules"]
    info = site / f"{module}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [line for group, known in project["entry-points"].items()
              for line in (f"[{group}]", *(f"{name} = {value}" for name, value in known.items()))]  # fmt: skip
    (info / "entry_points.txt").write_text("\n".join(points))
    shutil.copy(made / f"{module}.py", site)


AUTHOR = """
import runpy, sys
import pytest
import diffsolve as ds
from diffsolve.registry import list_problems
assert not pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]])
sys.argv = ["plugin", "my_solver"]
runpy.run_module("plugin")
print(*(entry.name for entry in ds.list_schedules()), *ds.PROCESSES, *list_problems())
"""  # in one process, which imports everything once


@pytest.mark.slow
def test_what_is_written_installs_and_passes_its_test(tmp_path: Path) -> None:
    made, site = [write(kind, f"my-{kind}", tmp_path) for kind in KINDS], tmp_path / "site"
    for each in made:
        install(each, site)
    shutil.copy(Path(__file__).parent.parent / ".ci" / "plugin.py", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    (tmp_path / "author.py").write_text(AUTHOR)
    command = [sys.executable, "-W", "error::UserWarning", "author.py", *map(str, made)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert "from my_solver" in done.stdout
    assert "one of ours" in done.stdout
    assert set(done.stdout.splitlines()[-1].split()) >= {f"my_{kind}" for kind in KINDS[1:]}
