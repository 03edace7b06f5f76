"""examples/plugins: what asks for more than sums of vectors is held to the kit, and what it can't do has its reason."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from stubs import gap, mixture

import diffsolve as ds
from diffsolve import register, registry
from diffsolve.testing import parametrize_with_checks

FOLDER = Path(__file__).parent.parent / "examples" / "plugins"
FILES = sorted(file.stem for file in FOLDER.glob("*.py"))


def load(name: str) -> Any:
    spec: Any = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def classes() -> dict[str, Callable[..., ds.Solver]]:
    """name -> what makes the solver, of each file; nothing stays registered."""
    before = [(each, each.copies()) for each in register.REGISTERS]
    names = set(registry.SOLVERS)
    for name in FILES:
        load(name)
    found = {name: registry.SOLVERS[name].factory for name in set(registry.SOLVERS) - names}
    made = {name: ds.get_solver(name) for name in sorted(found)}
    for each, copies in before:
        each.undo(copies)
    SOLVERS.update(made)
    return found


SOLVERS: dict[str, ds.Solver] = {}
MAKE = classes()
AT_HAND = "the network must be at hand to be differentiated"
CALLS = "one call is an evaluation at every level, so there are fewer"
SHORT = "it calls a denoiser at many levels at once, and this is no diffusion, or another form"
FAILS: dict[str, Mapping[str, str]] = {
    "taylor_2": {"check_inside_out": AT_HAND, "check_scheduler": AT_HAND,
                 "check_aliasing": "a function that writes into one buffer can't be differentiated"},
    "picard": {"check_ode": SHORT, "check_backwards": SHORT, "check_forms": SHORT, "check_order": SHORT,
               "check_runs": CALLS, "check_zero": CALLS,
               "check_aliasing": "the one buffer is of two samples"},
}  # fmt: skip
FAST = ("check_runs", "check_batch", "check_memory", "check_zero")


def marks(name: str, check: str) -> Collection[pytest.MarkDecorator]:
    return () if check in FAST else (pytest.mark.slow,)


@parametrize_with_checks(SOLVERS.values(), expected_failed_checks=lambda s: FAILS.get(s.name, {}), marks=marks)
def test_an_example_passes_the_kit(solver: ds.Solver, check: Callable[[ds.Solver], None]) -> None:
    check(solver)


def test_all_are_examples() -> None:
    assert set(SOLVERS) == {"momentum", "from_file", "held_heun", "taylor_2", "picard"}
    page = (FOLDER / "README.md").read_text()
    assert all(f"| `{name}.py` |" in page for name in FILES)


def test_all_steps_at_once_end_where_eulers_method_ends() -> None:
    problem, calls = mixture(), list[int]()
    inner = problem.denoiser
    watched = problem.replace(denoiser=lambda y, sigma: calls.append(len(y)) or inner(y, sigma))
    x = problem.prior(3)
    exact = ds.solve(problem, "euler", n=12, x=x, final="none").x
    assert gap(ds.solve(watched, MAKE["picard"](tolerance=0.0), n=12, x=x, final="none").x, exact) < 1e-12
    assert calls == [3 * 12] * 12, "one call a sweep, of all the steps of all the samples"
    calls.clear()
    assert gap(ds.solve(watched, MAKE["picard"](tolerance=1e-4), n=12, x=x, final="none").x, exact) < 1e-3
    assert len(calls) < 12


def test_coefficients_come_from_the_file_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "heun.json"
    file.write_text('{"order": 2, "c": ["0", "1"], "a": [[], ["1"]], "b": ["1/2", "1/2"]}')
    x = mixture().prior(2)
    found = ds.solve(mixture(), MAKE["from_file"](str(file)), n=5, x=x).x
    assert torch.equal(found, ds.solve(mixture(), "heun", n=5, x=x).x)
    file.write_text('{"order": 2}')
    with pytest.raises(ds.SolverError, match=r"can't read a tableau \(c, a, b, order\) from .*heun\.json: KeyError"):
        MAKE["from_file"](str(file))


def test_a_step_of_the_kind_that_is_not_declared_is_told_what_to_declare() -> None:
    for name in ("held_heun", "taylor_2"):
        solver = SOLVERS[name].with_changes(traceable=True)
        with pytest.raises(ds.SolverError, match="Declare traceable = False on the solver"):
            ds.solve(mixture(), solver, n=3, execution="tape")
