"""Plans: a structure is compiled once, and other numbers are put into it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from stubs import rows
from test_execution import PROBLEMS, TRACED
from torch import Tensor

import diffsolve as ds
from diffsolve.execution import choose
from diffsolve.execution.instructions import NOTHING, Measure, Pass, Plan
from diffsolve.execution.native import native
from diffsolve.execution.passes import CompiledPass, torch_pass
from diffsolve.execution.plan import compile_plan
from diffsolve.program import plan
from diffsolve.tape import record

pytestmark = pytest.mark.filterwarnings("ignore:.*is made for guidance")
GRIDS = [
    (ds.Karras(), None), (ds.Karras(rho=5), None), (ds.Karras(), 12.0), (ds.Karras(rho=6), 11.0), ("exponential", None),
]  # fmt: skip


def parts(of: Pass | Measure) -> dict[str, Any]:
    return {f.name: getattr(of, f.name) for f in fields(of) if f.name not in ("table", "rows")}


def differences(one: Plan, other: Plan) -> list[str]:
    """What of two plans is not the same, to the bit."""
    found = [name for name in ("expected", "told") if getattr(one, name) != getattr(other, name)]
    for i, (a, b) in enumerate(zip(one.steps, other.steps, strict=True)):
        names = vars(a).keys() & vars(b).keys() - {"first", "instructions", "items", "history", "empty", "checked"}
        found += [f"{i} {name}" for name in names if getattr(a, name) != getattr(b, name)]
        for first, second in zip((a.first, *a.instructions), (b.first, *b.instructions), strict=True):
            if isinstance(first, Measure) and isinstance(second, Measure):
                found += [] if parts(first) == parts(second) else [f"{i} {first}"]
                first, second = first.rows, second.rows
            if isinstance(first, Pass) and isinstance(second, Pass):
                same = parts(first) == parts(second) and np.array_equal(first.table, second.table)
                found += [] if same else [f"{i} {first}"]
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


@pytest.mark.parametrize("samples", [1, 3])
def test_a_share_of_numbers_is_that_of_tensors(samples: int) -> None:
    """Inner products in compiled code, odd lengths too, and the rule on one sample's floats."""
    if native().library is None:
        pytest.skip(native().reason)
    rule: Any = ds.get_solver("guarded_abm").share  # type: ignore[attr-defined]
    seen = set()
    for seed in range(40):
        noise = ds.normals(seed, range(samples), -3, (5, 7, 151), torch.float64, "cpu") * 0.2
        factors = noise.new_tensor([1.0, 0.2 + seed / 80, 0.3, -1.0, -0.3 - seed / 100])  # an unstable run's, and noise
        rows = noise[:, :1] * 5 * factors.view(5, 1, 1) + noise
        vectors = [rows[:, k].contiguous() for k in range(5)]
        flat = torch.stack([v.flatten(1) for v in vectors], 1)
        products = flat @ flat.mT
        table = np.array([[0.0, 0, 0, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0]])
        item = Measure(Pass((0, 1, 2, 3, 4), (5, -1, -1), table), (5, 6, 7, 0, 1), 8, rule, -1)
        given, kept = [*vectors[3:], vectors[1] - vectors[4], vectors[0], vectors[2]], torch.empty_like(vectors[0])
        found = CompiledPass(kept).products(item, [*given, kept, NOTHING, NOTHING])  # the last two rows are nowhere
        assert torch.equal(kept, vectors[0])
        assert np.allclose(found, [[of[i, j] for i, j in rule.pairs] for of in products.numpy()], rtol=1e-12, atol=1e-9)
        before = torch.linspace(0.2, 0.9, samples, dtype=torch.float64)
        for was in (None, before):
            whole = rule(products, was)
            each = [rule.numbers(of, None if was is None else float(was[i])) for i, of in enumerate(found)]
            assert np.allclose(whole.numpy(), each, atol=1e-12)
            seen |= set(np.round(each, 3))
    assert len(seen) > 3, "some are alarmed, and some are not"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("terms", [1, 3, 8, 13])
def test_a_pass_has_a_table_for_each_sample(terms: int, dtype: torch.dtype) -> None:
    """Columns for an input times products of shares, beside plain ones, an output that reads the one before, and what
    is not finite: in C and by torch what the sums say, sample by sample."""
    if native().library is None:
        pytest.skip(native().reason)
    noise = ds.normals(terms, range(3), -3, (terms + 2, 5, 417), torch.float64, "cpu").to(dtype)
    inputs, shares = [noise[:, k].contiguous() for k in range(terms)], [noise[:, -1, :1, :1].clone() for _ in range(2)]
    shares[1].mul_(0.5)
    numbers = ds.normals(terms, (1,), -3, (2, terms + 5), torch.float64, "cpu")[0].numpy()
    numbers[0, terms : terms + 2] = numbers[1, terms + 1] = 0
    products = ((0, 1), (terms - 1, 2), (0, 2))
    item = Pass(tuple(range(terms)), (terms, terms + 1), numbers, 3, (20, 21), ((0, 0), (1, 1)), products)
    first, second = (share.double() for share in shares)
    of = [tensor.double() for tensor in inputs]
    extra = (of[0] * first, of[-1] * first * second, of[0] * first * second)
    expected = list[Tensor]()
    for row in numbers:
        columns = [*of, *expected, *[torch.zeros_like(of[0])] * (2 - len(expected)), *extra]
        expected.append(sum(float(c) * column for c, column in zip(row, columns, strict=True)))  # type: ignore[arg-type]
    for play in (CompiledPass(inputs[0]), torch_pass):
        outputs = [torch.empty_like(inputs[0]) for _ in range(2)]
        assert play(item, inputs, outputs, shares) == 0
        for made, right in zip(outputs, expected, strict=True):
            assert float((made.double() - right).abs().max()) < (1e-4 if dtype == torch.float32 else 1e-12)
    inputs[0][2, 3, 416] = np.inf
    assert [play(item, inputs, outputs, shares) for play in (CompiledPass(inputs[0]), torch_pass)] == [3, 3]
