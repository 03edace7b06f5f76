"""Packages as they are installed, files and metadata and all: what each does wrong stays its own affair."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from stubs import mixture
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve import register
from diffsolve.app import cli

SOLVER = """
    import diffsolve as ds
    @ds.register_solver({name!r}, order={order}, source="a plugin")
    class Own(ds.Solver):
        def step(self, f, y, span, past):
            {before}
            return ds.Step(y + span.h * f(y, span.start))
"""


def solver(name: str, order: int = 1, before: str = "pass") -> str:
    return SOLVER.format(name=name, order=order, before=before)


def install(
    site: Path, name: str, code: str, points: dict[str, dict[str, str]] | str, metadata: str | None = ""
) -> None:
    """A package of one module, with its dist-info, in a folder that stands on the path."""
    (site / f"{name}.py").write_text(textwrap.dedent(code))
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    if metadata is not None:
        (info / "METADATA").write_text(metadata or f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if isinstance(points, dict):
        lines = (line for group, known in points.items()
                 for line in (f"[diffsolve.{group}]", *(f"{k} = {v}" for k, v in known.items())))  # fmt: skip
        points = "\n".join(lines)
    (info / "entry_points.txt").write_text(points + "\n")
    importlib.invalidate_caches()
    register.scan.cache_clear()  # what any test before looked at knew nothing of this package


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path; what is installed there is found by the next `load`, and gone after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(register._stage, "plugins", "done")
    before = set(sys.modules)
    yield tmp_path
    register.scan.cache_clear()
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def load() -> list[str]:
    """Loads what is installed by now; what was said about it."""
    register._stage["plugins"] = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        register.load()
    return [str(w.message) for w in caught]


def rows() -> set[str]:
    return {row.name for row in ds.list_solvers()}


WHOLE = {
    "aa_exits": ("raise SystemExit(3)", r"SystemExit\(3\)"),
    "aa_takes_heun": (solver("heun"), "'heun' is taken by diffsolve.solvers.catalogue.classical"),
    "aa_takes_karras": ("""
        import diffsolve as ds
        from diffsolve.registry import register_schedule
        register_schedule("karras", source="mine")(ds.Karras)""", "the schedule name 'karras' is taken by diffsolve"),
    "aa_half": (solver("half_one") + solver("heun"), "'heun' is taken"),
    "aa_skips": ("import pytest\npytest.skip('a test framework', allow_module_level=True)", "a test framework"),
    "aa_needs_cupy": ("import no_such_cupy", "No module named 'no_such_cupy'"),
    "aa_syntax": ("def (:", "SyntaxError"),
    "aa_recurses": ("def f(): f()\nf()", "RecursionError"),
    "aa_factory": ("""
        import diffsolve as ds
        @ds.register_solver("no_default", order=2, source="t")
        def no_default(order): ...""", "no_default can't be built with {}: .*missing 1 required positional argument"),
    "aa_raises": ("""
        import diffsolve as ds
        @ds.register_solver("raising", order=2, source="t")
        def raising(): raise KeyError("own")""", r"raising can't be built with {}: KeyError\('own'\)"),
    "aa_tags": ("""
        import diffsolve as ds
        ds.register_solver("untagged", order=2, source="t", tags=(5,))""", "texts, got 5"),
    "aa_form": ("""
        import diffsolve as ds
        ds.register_solver("formless", order=2, source="t", form="sigmma")""", "did you mean 'sigma'"),
}  # fmt: skip


def test_each_refused_package_is_alone_and_named(site: Path) -> None:
    for name, (code, _) in WHOLE.items():
        install(site, name, code, {"solvers": {name: name}})
    install(site, "zz_good", solver("good_one"), {"solvers": {"zz_good": "zz_good"}})
    before = rows()
    said = load()
    assert len(said) == len(WHOLE), said
    for (name, (_, reason)), text in zip(sorted(WHOLE.items()), said, strict=True):
        assert text.startswith(f"the solver plugin {name!r} of {name} could not be loaded: "), text
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(text)
    assert rows() == before | {"good_one"}
    assert ds.get_solver("heun").source == "Karras et al. 2022 (arXiv 2206.00364), Algorithm 1"
    register.load()  # says nothing more


@pytest.mark.slow
def test_a_plugin_that_is_imported_before_anything_is_loaded_takes_no_built_in_name(tmp_path: Path) -> None:
    """Where a script imports the package first, the catalogue is loaded before its rows are taken in."""
    install(tmp_path, "early", solver("early") + textwrap.dedent("""
        try:
            ds.register_solver("heun", order=1, source="mine")(Own)
        except ds.SolverError as error:
            print(error)
        print(len(ds.list_solvers()) > 70, ds.get_solver("early").order, ds.get_solver("heun").order)
    """).replace("\n", "\n    "), {"solvers": {"early": "early"}})  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "early.py"], cwd=tmp_path, env=environment, capture_output=True, text=True,
                         check=True)  # fmt: skip
    clash, *_, counts = run.stdout.splitlines()
    assert "'heun' is taken by diffsolve.solvers.catalogue.classical" in clash
    assert counts == "True 1 2"
    assert "could not be loaded" not in run.stderr, "the script and the package are one module"


@pytest.mark.parametrize("text", ["[diffsolve.solvers\nx = y", "[diffsolve.solvers]\nno equals sign", "\x00"])
def test_metadata_that_cant_be_read_hides_no_other_package(site: Path, text: str) -> None:
    install(site, "aa_garbage", "", text)
    install(site, "ab_nameless", solver("nameless"), {"solvers": {"ab": "ab_nameless"}}, metadata=None)
    install(site, "zz_good", solver("good_one"), {"solvers": {"zz_good": "zz_good"}})
    said = load()
    assert all("aa_garbage" in text or "can't be read" in text for text in said), said
    assert {"good_one", "nameless", "heun"} <= rows()


def test_a_plugin_that_another_needs_stays(site: Path) -> None:
    install(site, "aa_uses", "import zz_base\nraise ImportError('later')", {"solvers": {"aa_uses": "aa_uses"}})
    install(site, "zz_base", solver("base_one"), {"solvers": {"zz_base": "zz_base"}})
    (text,) = load()
    assert "'aa_uses'" in text
    assert "base_one" in rows()


def test_two_plugins_with_one_name(site: Path) -> None:
    for name in ("aa_first", "ab_second"):
        install(site, name, solver("shared_name"), {"solvers": {name: name}})
    (text,) = load()
    assert "'ab_second'" in text
    assert "taken by aa_first" in text


@pytest.mark.parametrize("group", ["problems", "libraries"])
def test_what_is_loaded_when_asked_for_is_built_in_first(site: Path, group: str) -> None:
    taken = {"problems": "gaussian", "libraries": "torchsde"}[group]
    install(site, "aa_lazy", "raise SystemExit(1)", {group: {taken: "aa_lazy:Own", "lazy_own": "aa_lazy:Own"}})
    with pytest.warns(UserWarning, match=f"'aa_lazy:Own' of aa_lazy could not be loaded: the name {taken!r} is taken"):
        known = register.points(f"diffsolve.{group}")
    assert known[taken].built_in
    with pytest.raises(ds.DiffsolveError, match=r"'aa_lazy:Own' of aa_lazy could not be loaded: SystemExit\(1\)"):
        known["lazy_own"].open(ds.ProblemError)


def test_the_lists_of_the_command_line_go_on(site: Path) -> None:
    install(site, "aa_bad", "raise SystemExit(1)", {"problems": {"aa_bad": "aa_bad:Own"}, "solvers": {"bad": "aa_bad"}})
    install(site, "zz_good", solver("good_one"), {"solvers": {"zz_good": "zz_good"}})
    load()
    problems, solvers = (CliRunner().invoke(cli.app, [name]) for name in ("problems", "solvers"))
    assert "aa_bad:Own" in problems.stderr
    assert "gaussian: " in problems.stdout
    assert {"good_one", "heun"} <= {line.split()[0] for line in solvers.stdout.splitlines()}


FAILING = {
    "in_a_step": ('if span.index == 5: raise KeyError("own")', r"problem \S.*, step 6 of \d+ \(.*\): KeyError: 'own'"),
    "at_once": ("import sys; sys.exit(4)", r"on problem .*: SystemExit: 4"),
    "of_shape": ("y = y[:1]", r"problem \S.*, step 1 of \d+ \(.*\): ProblemError: .*step returned shape"),
    "a_nan": ("y = y * float('nan')", "on problem .*, step 1 of 1 .*: NonFiniteError"),
}  # fmt: skip


@pytest.mark.slow
def test_validate_names_the_problem_and_the_step_and_goes_on(site: Path, tmp_path: Path) -> None:
    for name, (before, _) in FAILING.items():
        install(site, f"aa_{name}", solver(name, before=before), {"solvers": {name: f"aa_{name}"}})
    assert load() == []
    shown = CliRunner().invoke(cli.app, ["validate", "order", *FAILING, "ddim", "--quick", "-o", str(tmp_path / "out")])
    assert shown.exit_code == 1
    text = shown.output.replace("\n", " ")
    for name, (_, reason) in FAILING.items():
        with pytest.raises(AssertionError, match=f"{name}(: failed.*| .*){reason}"):
            raise AssertionError(text)
    assert "[5/5] order ddim: holds" in text
    assert f"1 of {len(FAILING) + 1} hold" in text


def test_a_plugin_that_has_changed_is_measured_again(site: Path, tmp_path: Path) -> None:
    """Reports are kept for the very code that made them: a plugin's own too."""
    install(site, "aa_changing", solver("changing", order=2), {"solvers": {"changing": "aa_changing"}})
    load()
    command = ["validate", "conditions", "changing", "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(cli.app, command).exit_code == 1
    midpoint = "h = span.h / 2; return ds.Step(y + span.h * f(y + h * f(y, span.start), span.start + h))"
    text = solver("changing", order=2, before=midpoint)
    (site / "aa_changing.py").write_text(textwrap.dedent(text))
    importlib.reload(sys.modules["aa_changing"])
    shown = CliRunner().invoke(cli.app, command)
    assert shown.exit_code == 0, shown.output
    assert json.loads(next((tmp_path / "out").rglob("*.json")).read_text())["passed"] is True
    assert ds.solve(mixture(), "changing", n=2).nfe == 3
