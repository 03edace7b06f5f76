"""The README is true: its Python runs, block after block, and so do its diffsolve commands."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffsolve.app import cli

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


FEWER_STEPS = re.compile(r"((?:, n|teps)=|arras\((?:\), )?)20\b")  # of the embedded model
SHORTER = {"n=8, x=noise": "n=4, x=noise", "n=12, seed=7": "n=5, seed=7", "nfe=12, seed=1": "nfe=6, seed=1"}  # likewise
CLAIMS = """
assert len(solution.events) > 2 and len(solution.trajectory) == len(times) == 4
assert abs(rate.item() - 1.6094) < 1e-3
assert losses[-1] < losses[0]
"""


@pytest.mark.slow
def test_python(tmp_path: Path) -> None:
    told = [block + CLAIMS * ("losses.append" in block) for block in blocks("python")]
    code = FEWER_STEPS.sub(r"\g<1>6", "\n".join(told))  # in an interpreter of its own: it registers a solver
    for text, shorter in SHORTER.items():
        assert code.count(text) == 1
        code = code.replace(text, shorter)
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # the model is small, and tests run side by side
    done = subprocess.run(command, cwd=tmp_path, env=one_thread, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["apple.png", "green_apple.png", "lotka_volterra.png"]
    coarse, fine = ast.literal_eval(done.stdout.splitlines()[-1])
    assert 3.5 < coarse / fine < 4.5


COMMANDS = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
VALIDATE = [command[2:] for command in COMMANDS if command[:2] == ["diffsolve", "validate"]]
FEWER = {"64": "4", "10,20": "10", "20": "6"}  # starts and budgets of error for cost, and steps of a picture


def called(*arguments: str) -> None:
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [a for a in VALIDATE if a[0] != "all"], ids=lambda a: a[0])  # that is CI's own
def test_validate(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["--quick"] if arguments[0] in ("order", "strong") else []
    called("validate", *(FEWER.get(argument, argument) for argument in arguments), *quick)


@pytest.mark.slow
def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "red apple", "n": 2}\n{"prompt": "owl", "n": 2, "seed": 1}\n')
    for program, *arguments in COMMANDS:
        if program == "diffsolve" and arguments[0] != "validate":
            called(*(FEWER.get(argument, argument) for argument in arguments))
    assert Path("out.png").read_bytes() == Path("again.png").read_bytes() != Path("other.png").read_bytes()


def test_names_in_the_text() -> None:
    """The table of forms is whole, and every solver that it names exists in that form."""
    import diffsolve as ds

    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*?) ?\|$", README, flags=re.MULTILINE))
    assert rows.keys() == ds.FORMS.keys()
    for form, text in rows.items():
        text = re.sub(r"(\w+)_1, 2 and 3", r"\1_1, \1_2, \1_3", text)
        assert {e.name for e in ds.list_solvers(form)} >= set(re.findall(r"\w+", text))
