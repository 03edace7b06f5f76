"""Plans: a structure is compiled once, and other numbers are put into it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stubs import rows
from test_execution import PROBLEMS, TRACED

import diffsolve as ds
from diffsolve.execution import choose
from diffsolve.execution.instructions import Pass
from diffsolve.execution.plan import Plan, compile_plan
from diffsolve.program import plan
from diffsolve.tape import record

GRIDS = [
    (ds.Karras(), None), (ds.Karras(rho=5), None), (ds.Karras(), 12.0), (ds.Karras(rho=6), 11.0), ("exponential", None),
]  # fmt: skip


def differences(one: Plan, other: Plan) -> list[str]:
    """What of two plans is not the same, to the bit."""
    found = [name for name in ("expected", "told") if getattr(one, name) != getattr(other, name)]
    for i, (a, b) in enumerate(zip(one.steps, other.steps, strict=True)):
        names = vars(a).keys() & vars(b).keys() - {"first", "instructions", "items", "history", "empty", "checked"}
        found += [f"{i} {name}" for name in names if getattr(a, name) != getattr(b, name)]
        for first, second in zip((a.first, *a.instructions), (b.first, *b.instructions), strict=True):
            if isinstance(first, Pass) and isinstance(second, Pass):
                same = (first.inputs, first.outputs, first.watched) == (second.inputs, second.outputs, second.watched)
                found += [] if same and np.array_equal(first.table, second.table) else [f"{i} {first}"]
            elif first is None or second is None or vars(first) != vars(second):
                found += [] if first is second else [f"{i} {first}"]
    return found


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("name", rows([n.replace("rectified_cfg_pp", "rectified_cfg_pp(guidance=3)") for n in TRACED]))
def test_other_numbers_are_put_into_a_structure(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is what compiling it anew gives, whatever the schedule and the ends; compiling goes on for no more than
    three grids."""
    compiled = list[bool]()
    monkeypatch.setattr(choose, "_STRUCTURES", type(choose._STRUCTURES)())
    monkeypatch.setattr(choose, "compile_plan", lambda *given: compiled.append(len(given) > 4) or compile_plan(*given))
    solver = ds.get_solver(name)
    problem = PROBLEMS[kind](torch.float32)
    for schedule, high in GRIDS:
        rule: Any = ds.get_schedule(schedule)[0] if isinstance(schedule, str) else schedule
        grid = ds.make_grid(rule, 7, problem.process, sigma_max=high)
        field = problem.field(solver, problem.prior(1, 0), (0,), 0, None)
        program = plan(solver, grid, field)
        tape = record(solver, field, program)
        meanings = choose.meanings_of(field)
        made = choose._compiled(tape, field, program.start)
        assert differences(made, compile_plan(tape, field.form, program.start, meanings)) == []
    rounded = name in ("flow_cps", "lcm")  # a share of 0 but for rounding is sometimes none
    if type(solver).plan is ds.Solver.plan and not rounded:  # else it may be another structure for each grid
        assert len(compiled) <= 4
        assert sum(compiled) >= 1


def test_another_schedule_runs_as_it_would_alone() -> None:
    problem = PROBLEMS["network"](torch.float32)
    for sigma_max in (14.0, 13.0, 12.0, 11.0, 10.0):
        given: Any = {"n": 9, "batch": 2, "sigma_max": sigma_max}
        eager, fused = (ds.solve(problem, "dpmpp_2m_sde", execution=e, **given) for e in ("eager", "fused"))  # type: ignore[arg-type]
        assert float((fused.x - eager.x).abs().max()) < 1e-5 * float(eager.x.abs().max())
