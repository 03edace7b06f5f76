"""The house: which folder may import what, how long a file may be, and what an import may cost."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from itertools import takewhile
from pathlib import Path

import pytest

import diffsolve

ROOT = Path(__file__).resolve().parent.parent
ZOOS = {"problems", "solvers", "validation"}
FOLDERS = {"diffsolve", *ZOOS}
MAY_SEE = {"problems": set(), "solvers": set(), "validation": {"problems", "solvers"}}
# Not its app, nor what it joins to other libraries.
KERNEL = {"execution", "io", *(path.stem for path in (ROOT / "diffsolve").glob("*.py"))}
SOURCES = sorted(p.relative_to(ROOT) for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))


def breaches(file: str, code: str) -> Iterator[str]:
    """What in `code`, standing at `file`, goes against the import directions."""
    folder, depth = file.split("/")[0], file.count("/")
    free = file.startswith("diffsolve/testing/")  # which sees all, and is seen by none
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.level:
            module, names = node.module or "", {a.name for a in node.names}
            if node.level > depth:
                yield f"line {node.lineno}: a relative import that leaves {folder}/"
            elif folder == "diffsolve" and not free and node.level == depth and ZOOS & {module.split(".")[0], *names}:
                yield f"line {node.lineno}: the kernel imports a zoo"
            elif folder == "diffsolve" and not free and module.split(".")[0] == "testing":
                yield f"line {node.lineno}: the testing kit is for tests"
            continue
        if isinstance(node, ast.ImportFrom):
            found = {node.module: {a.name for a in node.names}}
        elif isinstance(node, ast.Import):
            found = {a.name: set() for a in node.names}
        else:
            continue
        for module, names in found.items():
            top, *inner = module.split(".")
            if top in ZOOS:
                yield f"line {node.lineno}: {top} is no import name, diffsolve.{top} is"
            elif folder == "solvers" and top == "torch":
                yield f"line {node.lineno}: a solver imports torch"
            elif top == "diffsolve" and folder == "diffsolve":
                yield f"line {node.lineno}: inside a folder imports are relative"
            elif top == "diffsolve":
                yield from (f"line {node.lineno}: {what}" for what in _from_room(folder, node, inner, names))


def _from_room(folder: str, node: ast.stmt, inner: list[str], names: set[str]) -> Iterator[str]:
    """What goes against the rules where a room imports diffsolve.<inner>, or `names` from it."""
    rooms = ZOOS & {*inner[:1], *([] if inner else names)}
    if isinstance(node, ast.Import) and inner:
        yield "a module is imported from, `from diffsolve.x import ...`"
    elif not rooms <= MAY_SEE[folder]:
        yield f"{folder} must not know {', '.join(sorted(rooms))}"
    elif inner and not rooms and inner[0] not in KERNEL:
        yield f"diffsolve.{'.'.join(inner)} is none of the kernel's modules"
    elif any(part.startswith("_") for part in (*inner, *names)):
        yield "what begins with _ is its module's own"


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_import_directions(file: Path) -> None:
    assert list(breaches(file.as_posix(), (ROOT / file).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("diffsolve/a.py", "from .solvers import Euler"),
        ("diffsolve/a.py", "from . import problems"),
        ("diffsolve/a.py", "from .testing import check_solver"),
        ("diffsolve/interop/a.py", "from .. import validation"),
        ("diffsolve/a.py", "import diffsolve.grid"),
        ("diffsolve/a.py", "from diffsolve import solve"),
        ("solvers/a.py", "import torch"),
        ("solvers/a.py", "def f():\n    from torch.nn import functional"),
        ("solvers/a.py", "from ..grid import Karras"),
        ("solvers/a.py", "from diffsolve.app.cli import app"),
        ("solvers/a.py", "from diffsolve.interop import torchsde"),
        ("solvers/a.py", "from diffsolve.field import _OF_FIELD"),
        ("solvers/a.py", "from diffsolve.problems.ode import GivenForm"),
        ("problems/a.py", "import diffsolve.field"),
        ("solvers/a.py", "from diffsolve import problems"),
        ("problems/a.py", "from diffsolve import solvers"),
        ("problems/emoji/a.py", "from ... import solve"),
        ("problems/a.py", "import validation"),
        ("validation/a.py", "import diffsolve.problems"),
    ],
)
def test_the_checker_sees_a_breach(file: str, code: str) -> None:
    assert len(list(breaches(file, code))) == 1


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("diffsolve/a.py", "import torch\nfrom .grid import Karras"),
        ("diffsolve/interop/a.py", "from ..grid import Karras\nfrom . import solvers"),
        ("solvers/a.py", "import numpy\nfrom . import tableaux\nfrom diffsolve import Solver, scalars"),
        ("solvers/a.py", "from diffsolve.field import Vector\nfrom diffsolve.validate import whole"),
        ("problems/emoji/a.py", "from ..stable_diffusion import StableDiffusion\nimport torch"),
        ("validation/a.py", "import diffsolve as ds\nfrom diffsolve import problems, solvers"),
        ("validation/a.py", "from diffsolve.problems.ode import GivenForm"),
    ],
)
def test_the_checker_lets_the_rest_pass(file: str, code: str) -> None:
    assert list(breaches(file, code)) == []


def test_no_file_outgrows_its_room() -> None:
    lengths = {str(f): len((ROOT / f).read_text(encoding="utf-8").splitlines()) for f in SOURCES}
    assert {f: n for f, n in lengths.items() if n > 400} == {}


def test_the_kernel_is_small() -> None:
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in (ROOT / "diffsolve").glob("*.py")) <= 4500


@pytest.mark.slow
def test_the_walk_of_a_solve_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and calls of the product that a solve passes through: 20 steps, then as many by nfe=."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    walk = importlib.import_module("walk")
    first, by_nfe, *_ = (walk.walk(task) for _, task in zip(range(2), walk.tasks().values(), strict=False))
    assert len({file for file, _ in first}) <= 14
    assert first.total() <= 900
    assert by_nfe.total() <= 1.3 * first.total()


def test_no_function_outgrows_a_screen() -> None:
    long = {}
    for file in SOURCES:
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > 60:
                long[f"{file}:{node.name}"] = lines
    assert long == {}


def without_rule(code: str) -> list[str]:
    """The classes in `code` whose `step` has no formula of its result, y_1 or u_1, in the comment right above it."""
    lines, found = code.splitlines(), []
    for kind in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ClassDef)):
        for step in (node for node in kind.body if isinstance(node, ast.FunctionDef) and node.name == "step"):
            above = lines[: min(node.lineno for node in (step, *step.decorator_list)) - 1]
            comment = takewhile(lambda line: line.lstrip().startswith("#"), reversed(above))
            if not re.search(r"\b[yu]_1 ([~=+]|likewise)", " ".join(comment)):
                found.append(kind.name)
    return found


def test_each_step_has_its_rule_above_it() -> None:
    codes = {str(f): (ROOT / f).read_text(encoding="utf-8") for f in SOURCES if f.parts[0] == "solvers"}
    assert sum(code.count("    def step(") for code in codes.values()) >= 25
    assert {file: found for file, code in codes.items() if (found := without_rule(code))} == {}


@pytest.mark.parametrize("above", ["", "    # y_1 = y_0 + h k_1\n\n", "    # as Heun's\n", "    y_1 = 2\n"])
def test_a_step_without_a_rule_is_seen(above: str) -> None:
    step = "    def step(self, f, y, span, past):\n        # y_1 = y_0 + h k_1\n        return y\n"
    assert without_rule(f"class A:\n{above}{step}") == ["A"]
    assert without_rule(f"class A:\n    # y_1 = y_0 + h k_1\n{step}") == []


def test_any_is_rare() -> None:
    counts = {str(f): len(re.findall(r"\bAny\b", (ROOT / f).read_text(encoding="utf-8"))) for f in SOURCES}
    assert sum(counts.values()) <= 250, sorted(counts.items(), key=lambda item: -item[1])[:10]


def test_the_public_names_are_few_and_the_same_for_type_checkers() -> None:
    assert len(diffsolve.__all__) <= 70
    stub = ast.parse((ROOT / "diffsolve" / "__init__.pyi").read_text(encoding="utf-8"))
    homes = {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert homes == {**diffsolve._HOME_OF, **dict.fromkeys(set(diffsolve._ROOMS) & homes.keys())}
    for name in diffsolve.__all__:
        assert getattr(diffsolve, name) is not None


def test_pyproject_lists_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = [f.parent.as_posix().replace("/", ".") for f in SOURCES if f.name == "__init__.py"]
    assert sorted(listed) == sorted(f if f.startswith("diffsolve") else f"diffsolve.{f}" for f in folders)


@pytest.mark.parametrize("group", ["diffsolve.solvers", "diffsolve.problems"])
def test_entry_points_load(group: str) -> None:
    own = [e for e in entry_points(group=group) if e.dist is not None and e.dist.name == "diffsolve"]
    assert own, "the installed metadata is missing; run: pip install -e ."
    for entry in own:
        entry.load()


def run(code: str, cwd: Path) -> str:
    """What `code` prints in a fresh interpreter, away from the checkout."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # compiled once, as an installed package is
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_generic_name_is_importable(tmp_path: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('problems', 'solvers', 'validation') if u.find_spec(n)])"
    assert run(code, tmp_path).strip() == "[]"


def test_import_is_light_and_costs_little_beyond_torch(tmp_path: Path) -> None:
    code = """
        import sys
        bare = set(sys.modules)
        import diffsolve as ds
        print([m for m in ("torch",) if m in sys.modules])
        own = set(sys.modules) - bare
        import numpy, torch
        before = set(sys.modules)
        ds.solve, ds.list_solvers()
        print([m for m in ("diffusers", "transformers", "sympy", "matplotlib") if m in sys.modules])
        new = own | set(sys.modules) - before
        print({name.partition(".")[0] for name in new} - set(sys.stdlib_module_names) - {"numpy"})
        print(len([name for name in new if name.partition(".")[0] == "diffsolve"]))
    """
    unasked, heavy, packages, count = run(code, tmp_path).split("\n")[:4]
    assert (unasked, heavy) == ("[]", "[]")
    assert packages == "{'diffsolve'}"
    assert int(count) < 130, "modules"


def test_help_answers_without_torch(tmp_path: Path) -> None:
    code = """
        import sys
        from diffsolve.app.cli import main
        sys.argv = ["diffsolve", "--help"]
        try:
            main()
        except SystemExit as end:
            assert not end.code
        print({"torch", "numpy", "scipy", "PIL", "matplotlib", "diffusers"} & set(sys.modules))
        print(len(sys.modules))
    """
    *text, packages, count, _ = run(code, tmp_path).split("\n")
    assert "sample" in "".join(text)
    assert packages == "set()"
    assert int(count) < 450, "modules; 371 when this was written"


def test_console_script_is_installed(tmp_path: Path) -> None:
    script = shutil.which("diffsolve", path=Path(sys.executable).parent)
    assert script is not None
    done = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sample" in done.stdout


def test_the_solvers_in_contributing_work() -> None:
    blocks = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```python\n")[1:]
    first, second, test = (block.split("```")[0] for block in blocks)
    assert len(first.splitlines()) <= 12
    for code in (first, second, test):
        exec(code, {"__name__": "contributing"})
    ode = diffsolve.ODEProblem(lambda t, x: -t * x * x, (0.0, 2.0), [1.0])
    stiff = diffsolve.SemilinearODE(-5.0, lambda t, x: t * x / (1 + x * x), (0.0, 2.0), [1.0])
    exact = float(diffsolve.solve(stiff, "etdrk4", n=1000).x)
    for name, problem, end in (("my_heun", ode, 1 / 3), ("my_ab2", ode, 1 / 3), ("my_ab2", stiff, exact)):
        coarse, fine = (abs(float(diffsolve.solve(problem, name, n=n).x) - end) for n in (80, 160))
        assert 3.5 < coarse / fine < 4.5, name
