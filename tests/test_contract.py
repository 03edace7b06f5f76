"""What every registered solver keeps, whatever it is: a solver is tested by being registered."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from stubs import (
    DETERMINISTIC,
    ENTRIES,
    FINALS,
    PROCESSES,
    SCHEDULES,
    SOLVERS,
    STOCHASTIC,
    TRACEABLE,
    Stub,
    Watched,
    by_hand,
    gap,
    gaussian,
    mixture,
    spans,
)

import diffsolve as ds
from diffsolve.tape import Draw, Evaluate, TapeStep

EXECUTIONS = ("eager", "tape")
FORMS = [name for name, form in ds.FORMS.items() if not form.stochastic]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_runs_and_counts(solver: str, schedule: str, n: int) -> None:
    watched = Watched(mixture())
    solution = ds.solve(watched, solver, schedule, n, batch=2)
    assert solution.x.shape == (2, 2)
    assert solution.x.isfinite().all()
    assert (solution.reason, solution.steps, solution.n) == ("end", n, n)
    counted = ds.count_evaluations(ds.get_solver(solver), solution.grid, watched)
    assert solution.nfe == watched.calls == counted
    assert watched.untouched


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_runs_and_counts_everywhere(solver: str, process: str) -> None:
    place = SOLVERS.index(solver) + PROCESSES.index(process)
    for schedule, final, n in itertools.product(SCHEDULES[place % 3 :: 3], FINALS, (1, 2, 3, 8)):  # all, over the rows
        watched = Watched(gaussian((1,), process))
        solution = ds.solve(watched, solver, schedule, n, final=final)
        assert solution.x.isfinite().all(), (schedule, final, n)
        counted = ds.count_evaluations(ds.get_solver(solver), solution.grid, watched)
        assert solution.nfe == watched.calls == counted, (schedule, final, n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 3), (2, 2, 3, 3)], ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_shape_dtype_inputs_and_repeats(solver: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
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
@pytest.mark.parametrize("solver", SOLVERS)
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


@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("schedule", ["karras", "linspace"])
@pytest.mark.parametrize("solver", TRACEABLE)
def test_the_tape_is_the_eager_run(solver: str, schedule: str, final: str) -> None:
    eager, tape = (
        ds.solve(mixture(), solver, schedule, 7, batch=2, final=final, save="all", execution=e) for e in EXECUTIONS
    )
    assert eager.nfe == tape.nfe
    for a, b in zip(eager.trajectory, tape.trajectory, strict=True):
        assert gap(b, a) < 1e-12


def taped(solver: ds.Solver, schedule: str = "karras", n: int = 0) -> tuple[TapeStep, ...]:
    problem = mixture()
    grid = ds.make_grid(ds.get_schedule(schedule)[0], n or solver.history + 4, problem.process, final="none")
    field = problem.field(solver, torch.zeros(1), (0,), 0, None)
    nodes = [field.variable(node) for node in grid.nodes.tolist()]
    return ds.record(solver, field, spans(nodes)).steps


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.name in TRACEABLE], ids=lambda e: e.name)
def test_what_is_declared_is_what_the_tape_shows(entry: ds.SolverEntry) -> None:
    solver = ds.get_solver(entry.name)
    made_before: set[int] = set()
    for index, step in enumerate(taped(solver)):
        calls = {op.out for op in step.operations if isinstance(op, Evaluate)}
        read = {register for op in step.operations if not isinstance(op, Draw) for register, _ in op.row}
        if "singlestep" in entry.tags:  # its last steps are cheaper
            assert len(calls) <= solver.stages == entry.stages
        else:
            assert len(calls) >= solver.stages == entry.stages
            assert len(calls) == solver.stages or index <= solver.history
        reads = len(read & made_before)
        assert reads == solver.history if index >= solver.history else reads <= index  # a one-step start reads none
        drawn = bool([op for op in step.operations if isinstance(op, Draw)])
        assert drawn == entry.stochastic == solver.stochastic or type(solver).plan is not ds.Solver.plan
        made_before |= {op.out for op in step.operations} | {getattr(op, "plain", None) for op in step.operations}
        made_before -= {step.out}
    assert entry.form in ds.FORMS
    assert entry.order >= entry.started >= min(entry.order, 1)
    assert entry.order or "no integrator" in entry.note, "a row without an order says why"
    assert entry.source


@pytest.mark.parametrize("solver", TRACEABLE)
def test_no_step_branches_on_values(solver: str) -> None:
    def structure(steps: tuple[TapeStep, ...]) -> list[object]:
        return [(type(op), getattr(op, "row", ()) and [r for r, _ in op.row]) for s in steps for op in s.operations]

    method = ds.get_solver(solver)
    shapes = [structure(taped(method, schedule, 9)) for schedule in ("karras", "linspace", "beta")]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("linear", [0.0, 1.0, -1.0, -2.0])
@pytest.mark.parametrize("solver", TRACEABLE)
def test_a_step_keeps_no_memory_and_reads_no_further_than_it_says(solver: str, linear: float) -> None:
    method, f = ds.get_solver(solver), Stub(linear, noise=0.1)
    steps = spans([0.1, 0.3, 0.4, 0.7, 0.8, 1.0, 1.3, 1.4])
    first = by_hand(method, f, 0.7, steps)
    assert by_hand(method, f, 0.7, steps) == first
    assert by_hand(method, f, 0.7, steps, keep=method.history) == first
    if method.history:
        assert by_hand(method, f, 0.7, steps, keep=method.history - 1) != first


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_solver_object_serves_two_solves_at_once(solver: str) -> None:
    method, problem = ds.get_solver(solver), mixture()
    alone = ds.solve(problem, method, n=6, seed=1)
    crossed = ds.solve(problem, method, n=6, seed=1, callback=lambda _: ds.solve(problem, method, n=3, seed=2).nfe < 0)
    assert torch.equal(alone.x, crossed.x)


@pytest.mark.parametrize("linear", [0.0, 1.0, -1.0, -2.0])
@pytest.mark.parametrize("solver", TRACEABLE)
def test_one_step_for_every_kind_of_number(solver: str, linear: float) -> None:
    method, steps = ds.get_solver(solver), spans([0.1, 0.3, 0.4, 0.7, 0.8, 1.0])
    noise = 0.1 if method.stochastic else 0.0
    kinds = {
        "float": 0.7,
        "numpy": np.array([0.7]),
        "torch": torch.tensor([0.7], dtype=torch.float64),
        "float32": torch.tensor([0.7]),
    }
    ends = {kind: by_hand(method, Stub(linear, noise), y, steps)[-1] for kind, y in kinds.items()}
    runs = {kind: float(np.asarray(y).squeeze()) for kind, y in ends.items()}
    tape = ds.record(method, Stub(linear, noise), steps)
    *_, last = tape.play(Stub(linear, noise), kinds["torch"])
    runs["tape"] = float(last)
    assert runs.pop("float32") == pytest.approx(runs["float"], rel=1e-5)
    assert max(runs.values()) - min(runs.values()) < 1e-12 * abs(runs["float"])


@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_budget_is_kept_and_used(solver: str, final: str) -> None:
    problem, method = mixture(), ds.get_solver(solver)

    def cost(n: int) -> int:
        grid = problem.grid(ds.Karras(), n, final=final, sigma_min=None, sigma_max=None, name="karras")
        return ds.count_evaluations(method, grid, problem)

    for budget in (1, 2, 3, 4, 7, 13, 25):
        if cost(1) > budget:
            with pytest.raises(ds.SolverError, match=f"at least {cost(1)} evaluations, the budget is nfe = {budget}"):
                ds.solve(problem, solver, nfe=budget, final=final)
            continue
        solution = ds.solve(problem, solver, nfe=budget, final=final)
        assert solution.nfe <= budget < cost(solution.n + 1)


def swing(t: float, u: torch.Tensor) -> torch.Tensor:
    return torch.cos(u * t).flip(0) + t * t


@pytest.mark.parametrize("linear", [0.0, -2.0, 0.7])
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_ode_problems_converge(solver: str, linear: float) -> None:
    x0 = [0.3, -0.8]

    def full(t: float, u: np.ndarray) -> np.ndarray:
        return linear * u + swing(t, torch.from_numpy(u)).numpy()

    reference = solve_ivp(full, (0.5, 2.0), x0, "DOP853", rtol=1e-13, atol=1e-13).y[:, -1]
    problem = ds.SemilinearODE(linear, swing, (0.5, 2.0), torch.tensor(x0, dtype=torch.float64))
    if linear == 0:
        problem = ds.ODEProblem(swing, (0.5, 2.0), torch.tensor(x0, dtype=torch.float64))
    runs = [ds.solve(problem, solver, n=n) for n in (64, 128)]
    coarse, fine = (gap(run.x, torch.from_numpy(reference)) for run in runs)
    assert fine < 0.02
    assert fine < 0.6 * coarse or fine < 1e-11
    assert runs[1].sigmas[[0, -1]].tolist() == [0.5, 2.0]
    assert gap(ds.solve(problem, solver, n=64, execution="tape").x, runs[0].x) < 1e-12


@pytest.mark.parametrize("variable", FORMS)
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_every_form_is_the_same_flow(solver: str, variable: str) -> None:
    problem = gaussian((2,), "vp")
    x = problem.prior(2, sigma=20.0)
    exact = problem.exact(x, 20.0, 0.1)
    options = {"x": x, "sigma_max": 20.0, "sigma_min": 0.1, "final": "none", "variable": variable}
    coarse, fine = (gap(ds.solve(problem, solver, "lambda", n, **options).x, exact) for n in (60, 120))
    assert fine < 0.1
    assert fine < 0.65 * coarse or fine < 1e-11


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_eta_zero_is_the_flow_and_draws_nothing(solver: str) -> None:
    problem = mixture()
    seeds = [ds.solve(problem, solver, n=8, x=problem.prior(2), eta=0.0, seed=s).x for s in (0, 1)]
    assert torch.equal(*seeds)
    noisy = [ds.solve(problem, solver, n=8, x=problem.prior(2), seed=s).x for s in (0, 1)]
    assert gap(*noisy) > 1e-2
    one = ds.solve(problem, solver, n=8, x=problem.prior(2), eta=1.0, seed=0).x
    assert torch.equal(one, noisy[0]), "eta is 1 unless told otherwise"


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_the_seed_of_an_ode_solver_is_the_seed_of_its_start(solver: str) -> None:
    problem = mixture()
    a, b = (ds.solve(problem, solver, n=5, x=problem.prior(2, seed=9), seed=s).x for s in (0, 1))
    assert torch.equal(a, b)
