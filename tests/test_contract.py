"""What every registered solver keeps, whatever it is: a solver is tested by being registered."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from stubs import (
    DETERMINISTIC,
    FINALS,
    PROCESSES,
    SCHEDULES,
    SOLVERS,
    STOCHASTIC,
    TRACEABLE,
    Stub,
    Watched,
    advances,
    by_hand,
    gap,
    gaussian,
    mixture,
    numbers,
    rows,
    spans,
)

import diffsolve as ds
from diffsolve import program
from diffsolve.program import State
from diffsolve.tape import Combine, Draw, Evaluate, Projected, Tape

EXECUTIONS = ("eager", "tape")
FORMS = [name for name, form in ds.FORMS.items() if not form.stochastic]


def place(solver: str) -> int:
    """Where a row starts in a cycle of values, so that over the rows all combinations are met."""
    return SOLVERS.index(solver)


@pytest.mark.parametrize("solver", rows(SOLVERS))
def test_runs_and_counts(solver: str) -> None:
    for i, schedule in enumerate(SCHEDULES, place(solver)):
        n = 1 + i % 3
        watched = Watched(mixture())
        solution = ds.solve(watched, solver, schedule, n, batch=2)
        assert solution.x.shape == (2, 2)
        assert solution.x.isfinite().all(), schedule
        assert (solution.reason, solution.steps, solution.n) == ("end", n, n)
        counted = ds.count_evaluations(ds.get_solver(solver), solution.grid, watched)
        assert solution.nfe == watched.calls == counted, schedule
        assert watched.untouched


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_runs_and_counts_everywhere(solver: str) -> None:
    for i, (schedule, final) in enumerate(itertools.product(SCHEDULES, FINALS), place(solver)):
        process, n = PROCESSES[i % len(PROCESSES)], (1, 2, 3, 8)[i % 4]  # rows begin at other places
        watched = Watched(gaussian((1,), process))
        solution = ds.solve(watched, solver, schedule, n, final=final)
        assert solution.x.isfinite().all(), (process, schedule, final, n)
        counted = ds.count_evaluations(ds.get_solver(solver), solution.grid, watched)
        assert solution.nfe == watched.calls == counted, (process, schedule, final, n)


@pytest.mark.parametrize("solver", rows(SOLVERS))
def test_shape_dtype_inputs_and_repeats(solver: str) -> None:
    for i, shape in enumerate(((), (3,), (2, 3, 3), (2, 2, 3, 3)), place(solver)):
        dtype = (torch.float32, torch.float64)[i % 2]
        problem = gaussian(shape, dtype=dtype)
        x = problem.prior(2, seed=5)
        before = x.clone()
        runs = [ds.solve(problem, solver, n=4, x=x, seed=5, save="all") for _ in range(2)]
        assert torch.equal(x, before)
        assert [t.shape for t in runs[0].trajectory] == [(2, *shape)] * 5
        assert {t.dtype for t in runs[0].trajectory} == {dtype}
        assert torch.equal(runs[0].x, runs[1].x)
        from_prior = ds.solve(problem, solver, n=4, batch=2, seed=5)
        assert torch.equal(from_prior.x, runs[0].x), "x=problem.prior(2, seed) is the start that seed stands for"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("solver", rows(SOLVERS))
def test_a_sample_does_not_know_its_batch(solver: str, dtype: torch.dtype) -> None:
    problem = mixture((5,), dtype=dtype)
    whole = ds.solve(problem, solver, n=9, batch=8, seed=3)
    alone = ds.solve(problem, solver, n=9, batch=[3], seed=3)
    pair = ds.solve(problem, solver, n=9, batch=[6, 3], seed=3)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert gap(alone.x, whole.x[3:4]) < tolerance
    assert gap(pair.x, whole.x[[6, 3]]) < tolerance
    assert gap(ds.solve(problem, solver, n=9, batch=[3], seed=4).x, alone.x) > 1e-3
    x = problem.prior(8, seed=3)
    strided = x.T.contiguous().T
    assert not strided.is_contiguous()
    assert gap(ds.solve(problem, solver, n=9, x=strided, seed=3).x, whole.x) < tolerance
    assert gap(ds.solve(problem, solver, n=9, x=x[2:4], batch=[2, 3], seed=3).x[1:], alone.x) < tolerance


@pytest.mark.parametrize("solver", rows(TRACEABLE))
def test_the_tape_is_the_eager_run(solver: str) -> None:
    for i, final in enumerate(FINALS, place(solver)):
        schedule = ("karras", "linspace")[i % 2]
        eager, tape = (
            ds.solve(mixture(), solver, schedule, 7, batch=2, final=final, save="all", execution=e)
            for e in EXECUTIONS
        )
        assert eager.nfe == tape.nfe
        for a, b in zip(eager.trajectory, tape.trajectory, strict=True):
            assert gap(b, a) < 1e-12, (schedule, final)


def taped(solver: ds.Solver, schedule: str = "karras", n: int = 0) -> Tape:
    """The steps of a solver alone, whatever it plans."""
    problem = mixture()
    grid = ds.make_grid(ds.get_schedule(schedule)[0], n or solver.history + 4, problem.process, final="none")
    field = problem.field(solver, torch.zeros(1), (0,), 0, None)
    return ds.record(solver, field, advances(spans([field.form.variable(node) for node in grid.nodes.tolist()])))


@pytest.mark.parametrize("name", rows(TRACEABLE))
def test_what_is_declared_is_what_the_tape_shows(name: str) -> None:
    entry, solver = ds.find_solver(name), ds.get_solver(name)
    made_before, state = {0}, 0  # the start's register
    for index, step in enumerate(taped(solver).structure):
        calls = [op for op in step.operations if isinstance(op, Evaluate)]
        read = {register for op in step.operations if not isinstance(op, Draw) for register in op.row}
        if "singlestep" in entry.tags:  # its last steps are cheaper
            assert len(calls) <= solver.stages == entry.stages
        else:
            assert len(calls) >= solver.stages == entry.stages
            assert len(calls) == solver.stages or index <= solver.history
        reads = len((read & made_before) - {state})
        assert reads == solver.history if index >= solver.history else reads <= index  # a one-step start reads none
        drawn = bool([op for op in step.operations if isinstance(op, Draw)])
        assert drawn == entry.stochastic == solver.stochastic or type(solver).plan is not ds.Solver.plan
        made_before |= {register for op in calls for _, register in op.parts}
        made_before |= {op.out for op in step.operations if isinstance(op, Combine | Draw | Projected)}
        state = step.out
    assert entry.form in ds.FORMS
    if entry.order is None:
        assert entry.order_as_started is None
        assert "no integrator" in entry.note, "a row without an order says why"
    else:
        assert entry.order >= entry.order_as_started >= 1
    assert entry.source


def programs(solver: ds.Solver, n: int, final: Any, problem: Any) -> tuple[Any, list[tuple[ds.Grid, Any]]]:
    """The field of a solver, and of each of three schedules its grid and what is done on it."""
    field = problem.field(solver, torch.zeros(1), (0,), 0, None)
    grids = [
        ds.make_grid(ds.get_schedule(schedule)[0], n, problem.process, final=final)
        for schedule in ("karras", "linspace", "beta")
    ]
    return field, [(grid, ds.plan(solver, grid, field)) for grid in grids]


@pytest.mark.parametrize("solver", rows(TRACEABLE))
def test_what_a_step_does_is_one_structure_for_all_grids_of_one_length(solver: str) -> None:
    method = ds.get_solver(solver)
    tapes = [taped(method, schedule, 9) for schedule in ("karras", "linspace", "beta")]
    assert len({tape.structure for tape in tapes}) == 1
    assert len({tuple(tape.table) for tape in tapes}) == 3
    if type(method).plan is ds.Solver.plan:  # else what is passed again depends on the noise levels
        for final in FINALS:
            field, planned = programs(method, 5, final, mixture())
            made = [ds.record(method, field, steps) for _, steps in planned]
            assert len({tape.structure for tape in made}) == 1
            tapes += made
    assert {type(number) for tape in tapes for number in tape.table} == {float}


@pytest.mark.parametrize("solver", rows(TRACEABLE))
def test_the_evaluations_that_are_declared_are_those_of_the_tape(solver: str, monkeypatch: Any) -> None:
    def traced(*_: Any) -> int:
        raise AssertionError("a row of the catalogue declares what it costs")

    monkeypatch.setattr(program, "_traced", traced)
    method, plain = ds.get_solver(solver), mixture()
    painted = ds.problems.Inpaint(plain, numbers(2), [1, 0])
    for problem, final, n in itertools.product((plain, painted), FINALS, (1, 2, 3, 5, 11)):
        field, planned = programs(method, n, final, problem)
        for grid, steps in planned[:1]:
            counted = ds.count_evaluations(method, grid, problem)
            assert counted == ds.record(method, field, steps).nfe, (final, n)


def test_every_row_declares_its_evaluations() -> None:
    span = ds.Span(2.0, 1.0, adaptive=True)
    for entry in ds.list_solvers():
        calls = [entry.solver.evaluations(span, known) for known in (0, 1, 9)]
        assert all(type(count) is int and count > 0 for count in calls), entry.name


LINEAR = (0.0, 1.0, -1.0, -2.0)


@pytest.mark.parametrize("solver", rows(TRACEABLE))
def test_a_step_keeps_no_memory_and_reads_no_further_than_it_says(solver: str) -> None:
    method, steps = ds.get_solver(solver), spans([0.1, 0.3, 0.4, 0.7, 0.8, 1.0, 1.3, 1.4])
    for linear in LINEAR:
        f = Stub(linear, noise=0.1)
        first = by_hand(method, f, 0.7, steps)
        assert by_hand(method, f, 0.7, steps) == first
        assert by_hand(method, f, 0.7, steps, keep=method.history) == first
        if method.history:
            assert by_hand(method, f, 0.7, steps, keep=method.history - 1) != first


@pytest.mark.parametrize("solver", rows(SOLVERS))
def test_one_solver_object_serves_two_solves_at_once(solver: str) -> None:
    method, problem = ds.get_solver(solver), mixture()
    alone = ds.solve(problem, method, n=6, seed=1)
    crossed = ds.solve(problem, method, n=6, seed=1, callback=lambda _: ds.solve(problem, method, n=3, seed=2).nfe < 0)
    assert torch.equal(alone.x, crossed.x)


@pytest.mark.parametrize("solver", rows(TRACEABLE))
def test_one_step_for_every_kind_of_number(solver: str) -> None:
    method, steps = ds.get_solver(solver), spans([0.1, 0.3, 0.4, 0.7, 0.8, 1.0])
    noise = 0.1 if method.stochastic else 0.0
    kinds = {
        "float": 0.7,
        "numpy": np.array([0.7]),
        "torch": torch.tensor([0.7], dtype=torch.float64),
        "float32": torch.tensor([0.7]),
    }
    for linear in LINEAR:
        ends = {kind: by_hand(method, Stub(linear, noise), y, steps)[-1] for kind, y in kinds.items()}
        runs = {kind: float(np.asarray(y).squeeze()) for kind, y in ends.items()}
        tape = ds.record(method, Stub(linear, noise), advances(steps))
        *_, last = tape.play(Stub(linear, noise), State(0.1, kinds["torch"]))
        runs["tape"] = float(last.u)
        assert runs.pop("float32") == pytest.approx(runs["float"], rel=1e-5)
        assert max(runs.values()) - min(runs.values()) < 1e-12 * abs(runs["float"])


@pytest.mark.parametrize("solver", rows(SOLVERS))
def test_a_budget_is_kept_and_used(solver: str) -> None:
    problem, method = mixture(), ds.get_solver(solver)

    def cost(n: int, final: Any) -> int:
        grid = problem.grid(ds.Karras(), n, final=final, sigma_min=None, sigma_max=None, name="karras")
        return ds.count_evaluations(method, grid, problem)

    for i, budget in enumerate((1, 2, 3, 4, 7, 13, 25), place(solver)):
        final = FINALS[i % 3]
        least = cost(1, final)
        if least > budget:
            with pytest.raises(ds.SolverError, match=f"at least {least} evaluations, the budget is nfe = {budget}"):
                ds.solve(problem, solver, nfe=budget, final=final)
            continue
        solution = ds.solve(problem, solver, nfe=budget, final=final)
        assert solution.nfe <= budget < cost(solution.n + 1, final)


def swing(t: float, u: torch.Tensor) -> torch.Tensor:
    return torch.cos(u * t).flip(0) + t * t


@cache
def swung(linear: float) -> torch.Tensor:
    def full(t: float, u: np.ndarray) -> np.ndarray:
        return linear * u + swing(t, torch.from_numpy(u)).numpy()

    return torch.from_numpy(solve_ivp(full, (0.5, 2.0), [0.3, -0.8], "DOP853", rtol=1e-13, atol=1e-13).y[:, -1])


@pytest.mark.parametrize("linear", [0.0, -2.0, 0.7])
@pytest.mark.parametrize("solver", rows(DETERMINISTIC))
def test_ode_problems_converge(solver: str, linear: float) -> None:
    x0 = torch.tensor([0.3, -0.8], dtype=torch.float64)
    problem = ds.SemilinearODE(linear, swing, (0.5, 2.0), x0)
    if linear == 0:
        problem = ds.ODEProblem(swing, (0.5, 2.0), x0)
    runs = [ds.solve(problem, solver, n=n) for n in (64, 128)]
    coarse, fine = (gap(run.x, swung(linear)) for run in runs)
    assert fine < 0.02
    assert fine < 0.6 * coarse or fine < 1e-11
    assert runs[1].sigmas[[0, -1]].tolist() == [0.5, 2.0]
    assert gap(ds.solve(problem, solver, n=64, execution="tape").x, runs[0].x) < 1e-12


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", rows(DETERMINISTIC))
def test_every_form_is_the_same_flow(solver: str, form: str) -> None:
    problem = gaussian((2,), "vp")
    x = problem.prior(2, sigma=20.0)
    exact = problem.exact(x, 20.0, 0.1)
    options = {"x": x, "sigma_max": 20.0, "sigma_min": 0.1, "final": "none", "form": form}
    coarse, fine = (gap(ds.solve(problem, solver, "lambda", n, **options).x, exact) for n in (60, 120))
    assert fine < 0.1
    assert fine < 0.65 * coarse or fine < 1e-11


@pytest.mark.parametrize("solver", rows(STOCHASTIC))
def test_eta_zero_is_the_flow_and_draws_nothing(solver: str) -> None:
    problem = mixture()
    seeds = [ds.solve(problem, solver, n=8, x=problem.prior(2), eta=0.0, seed=s).x for s in (0, 1)]
    assert torch.equal(*seeds)
    noisy = [ds.solve(problem, solver, n=8, x=problem.prior(2), seed=s).x for s in (0, 1)]
    assert gap(*noisy) > 1e-2
    one = ds.solve(problem, solver, n=8, x=problem.prior(2), eta=1.0, seed=0).x
    assert torch.equal(one, noisy[0]), "eta is 1 unless told otherwise"


@pytest.mark.parametrize("solver", rows(DETERMINISTIC))
def test_the_seed_of_an_ode_solver_is_the_seed_of_its_start(solver: str) -> None:
    problem = mixture()
    a, b = (ds.solve(problem, solver, n=5, x=problem.prior(2, seed=9), seed=s).x for s in (0, 1))
    assert torch.equal(a, b)
