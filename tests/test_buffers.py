"""Memory of a fused run: used again within it and by the next run of its plan, and never while somebody has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import diffsolve as ds
from diffsolve.execution.buffers import POOL, Buffers

SHAPE = (4, 16, 16)


def problem(dtype: torch.dtype = torch.float32) -> ds.ProbabilityFlow:
    return ds.ProbabilityFlow(lambda x, t: torch.tanh(3 * x) + t.view(-1, 1, 1, 1) / 1000, shape=SHAPE, dtype=dtype)


def started(of: ds.Problem, name: str, grid: ds.Grid, **options: Any) -> Any:
    return ds.start(of, name, grid, batch=2, execution="fused", **options)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "guarded_abm", "euler_ancestral"])
def test_the_next_run_of_a_plan_has_the_buffers_of_the_last(name: str) -> None:
    of, solver = problem(), ds.get_solver(name)
    grid = ds.make_grid(ds.Karras(), 8, of.process)
    kept, made = list[tuple[Tensor, Tensor]](), list[int]()
    for seed in range(4):
        run = ds.start(of, solver, grid, batch=2, seed=seed, execution="fused")
        for visit in run:
            kept.append((visit.x, visit.x.clone()))
        made.append(run._loop.buffers.made)  # type: ignore[union-attr]
    for shown, then in kept:
        assert torch.equal(shown, then), "what was handed out stays"
    del kept, shown, then, visit
    first = ds.start(of, solver, grid, batch=2, seed=9, execution="fused")
    assert first._loop.buffers.made == made[-1], "they are there again"  # type: ignore[union-attr]
    alone = started(of, name, grid, seed=9)  # at the same time: not these
    assert first._loop.buffers is not alone._loop.buffers  # type: ignore[union-attr]
    for a, b in zip(first, alone, strict=True):
        assert torch.equal(a.x, b.x)


def test_a_run_that_is_over_is_gone_on_with_in_memory_of_its_own() -> None:
    of = problem()
    grid = ds.make_grid(ds.Karras(), 8, of.process)
    run = started(of, "dpmpp_2m", grid)
    for _ in range(3):
        run.step()
    saved = run.state
    run.rest()
    whole = run.solution.x.clone()
    other = started(of, "dpmpp_2m", grid, seed=1)
    other.step()
    run.resume(saved)
    while not run._state.ended:
        run._commit(run._next())
        other.step()
    other.rest()
    assert run._loop.buffers is not other._loop.buffers
    assert torch.equal(run.solution.x, whole)
    assert torch.equal(other.solution.x, ds.solve(of, "dpmpp_2m", grid, batch=2, seed=1).x)


def test_the_pool_is_bounded_and_no_tensor_of_inference_leaves_it() -> None:
    of = problem()
    grid = ds.make_grid(ds.Karras(), 4, of.process)
    with torch.inference_mode():
        assert ds.solve(of, "euler", grid, batch=2, execution="fused").x.is_inference()
    for _ in range(2):
        assert not ds.solve(of, "euler", grid, batch=2, execution="fused").x.is_inference()
    for batch in range(1, 70):
        ds.solve(of, "euler", grid, batch=batch, execution="fused")
    assert len(POOL._kept) <= 64
    assert 1 << 20 < sum(size for *_, size in POOL._kept) <= 1 << 24
    assert all(size <= 1 << 22 for *_, size in POOL._kept)


def test_what_somebody_keeps_is_not_used_again_and_no_more_than_64_are_watched() -> None:
    buffers = Buffers(torch.Size((2,)), torch.float32, torch.device("cpu"))
    held = [buffers.take() for _ in range(70)]
    assert len({tensor.data_ptr() for tensor in held}) == 70
    assert (buffers.made, buffers.size) == (64, 64 * 2 * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_the_step_before_are_those_that_would_be_measured(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver: Any = ds.get_solver("guarded_abm")
    rule = type(solver.share)
    found, numbers = list[list[list[float]]](), rule.numbers
    for again in (rule.again, {}):
        seen = list[list[float]]()
        with monkeypatch.context() as patch:
            patch.setattr(rule, "again", again)
            patch.setattr(rule, "numbers", lambda self, p, was, seen=seen: seen.append([*p]) or numbers(self, p, was))
            ds.solve(problem(dtype), type(solver)(guided=True).with_changes(form="noise"), "karras", 12, batch=2,
                     execution="fused")  # fmt: skip
        found.append(seen)
    assert len(found[0]) > 10
    assert found[0] == found[1]
