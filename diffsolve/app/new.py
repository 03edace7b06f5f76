"""The commands `diffsolve new-solver`, `new-schedule`, `new-process`, `new-problem`: a small package to begin with."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import OutputError
from . import templates
from .report import note, reported

Name = Annotated[str, typer.Argument(help="Of the package, in lower case: my-solver is called my_solver in solve().")]
Folder = Annotated[Path, typer.Option("-o", "--folder", help="Where the package's own folder is made.")]
HERE = Path()


def new_solver(name: Name, folder: Folder = HERE) -> None:
    """Write an installable package with a solver of your own, its formula and its test."""
    _new("solver", name, folder)


def new_schedule(name: Name, folder: Folder = HERE) -> None:
    """Write an installable package with a schedule of your own, its formula and its test."""
    _new("schedule", name, folder)


def new_process(name: Name, folder: Folder = HERE) -> None:
    """Write an installable package with a noising process of your own, its formulas and its test."""
    _new("process", name, folder)


def new_problem(name: Name, folder: Folder = HERE) -> None:
    """Write an installable package with a problem of your own, its formula and its test."""
    _new("problem", name, folder)


COMMANDS: tuple[Callable[..., None], ...] = (new_solver, new_schedule, new_process, new_problem)


def _new(kind: str, name: str, folder: Path) -> None:
    with reported():
        made = write(kind, name, folder)
        module = made.name.replace("-", "_")
        note(f"{made}: its {kind} is in {module}.py")
        typer.echo(f"pip install -e {made} && pytest {made}")


def write(kind: str, name: str, folder: Path) -> Path:
    """The package `name` with a solver, schedule, process or problem, in a new folder of that name in `folder`.

    Returns its path. Raises OutputError where the name can't be a package's or is taken, and where the folder exists.
    """
    module = _module(kind, name)
    target = folder / name
    words = {"name": name, "module": module, "kind": kind, "group": {"process": "processes"}.get(kind, f"{kind}s"),
             "class": "".join(part.capitalize() for part in module.split("_"))}  # fmt: skip
    words["point"] = f"{module}:{words['class']}" if kind == "problem" else module
    files = {"pyproject.toml": templates.PYPROJECT, f"{module}.py": templates.MODULES[kind],
             f"test_{module}.py": templates.TESTS[kind]}  # fmt: skip
    try:
        target.mkdir(parents=True)
        for file, template in files.items():
            text = re.sub(r"@(\w+)@", lambda found: words[found[1]], template.lstrip("\n"))
            (target / file).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise OutputError(f"{target} exists; choose another name, or another place with -o") from error
    except OSError as error:
        raise OutputError(f"can't write {target}: {error.strerror}") from error
    return target


def _module(kind: str, name: str) -> str:
    """The name in Python, which nothing that is installed has yet."""
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789") or "my-solver"
        raise OutputError(f"a package's name is lower-case letters, digits and hyphens, got {name!r}; such as {near!r}")
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or find_spec(module) is not None:
        raise OutputError(f"{module} is a module of Python's or an installed one; choose another, such as 'my-{name}'")
    if module in _taken(kind):
        raise OutputError(f"there is a {kind} {module!r} already; choose another name, such as 'my-{name}'")
    return module


def _taken(kind: str) -> set[str]:
    """The names that are registered, by us or by others."""
    from ..process import PROCESSES
    from ..register import Register
    from ..registry import SCHEDULES, SOLVERS, list_problems

    if kind == "problem":
        return set(list_problems())
    registers: dict[str, Register[Any]] = {"solver": SOLVERS, "schedule": SCHEDULES, "process": PROCESSES}
    return {*registers[kind], *registers[kind].aliases}
