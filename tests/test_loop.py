"""The loop by itself: what it hands to a solver, what it hands back, and how it ends when it does not reach the end."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from stubs import (
    BAD,
    FINALS,
    ONE_STEP,
    SCHEDULES,
    SOLVERS,
    TRACEABLE,
    Watched,
    gap,
    gaussian,
    mixture,
    rows,
)
from torch.utils._python_dispatch import TorchDispatchMode

import diffsolve as ds
from diffsolve import integrate


class Oracle(ds.Solver):
    """Knows the exact flow, and notes which intervals it is given."""

    name, order, traceable = "oracle", 99, False

    def __init__(self, problem: Any) -> None:
        self.exact = problem.exact
        self.given: list[ds.Span] = []

    def step(self, f: ds.Field, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
        self.given.append(span)
        return ds.Step(self.exact(y, span.start, span.end), past=(*past, (span.start, y)))


@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 17])
def test_with_an_oracle_only_the_loop_is_left(schedule: str, n: int, final: str) -> None:
    problem = gaussian((3,))
    oracle = Oracle(problem)
    solution = ds.solve(problem, oracle, schedule, n, batch=2, final=final, save="all")
    grid = solution.grid
    assert solution.n == solution.steps == n
    assert [a.end for a in oracle.given[:-1]] == [b.start for b in oracle.given[1:]], "the steps tile the grid"
    own = n - (final != "none")
    assert [s.start for s in oracle.given] == grid.nodes[:own].tolist()
    assert [(s.index, s.count, s.last) for s in oracle.given] == [(i, n, False) for i in range(own)]
    assert solution.nfe == n - own
    start = problem.prior(2, sigma=grid.nodes[0])
    for node, x in zip(grid.nodes, solution.trajectory, strict=False):
        assert gap(x, problem.exact(start, grid.nodes[0], node)) < 1e-13
    if final != "none":
        last = problem.exact(start, grid.nodes[0], grid.nodes[-1])
        assert gap(solution.x, problem.denoise(last, float(grid.nodes[-1]))) < 1e-13
        assert solution.sigmas[-1] == 0


@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("form", ["sigma", "data"])
def test_the_last_step_to_zero_is_the_solvers_own_where_it_has_one(form: str, final: str) -> None:
    problem = gaussian((3,))
    oracle = Oracle(problem)
    oracle.steps_to_zero, oracle.form = True, form
    oracle.exact = lambda y, a, b: problem.exact(y, *(s if form == "sigma" else math.exp(-s) for s in (a, b)))
    solution = ds.solve(problem, oracle, n=4, final=final)
    own = final == "step" and form == "sigma"  # log sigma has no last step: there it is denoise's
    assert solution.nfe == (final != "none" and not own)
    tried = form == "data"  # once at the start: whether its linear part is left to it
    assert [(span.end == 0, span.last) for span in oracle.given[3 + tried :]] == {
        "denoise": [], "none": [(False, False)], "step": [(True, True)] if own else [],
    }[final]  # fmt: skip
    if own:
        start = problem.prior(1)
        assert gap(solution.x, problem.exact(start, problem.process.sigma_max, 0.0)) < 1e-13


def test_a_multistep_method_steps_to_zero_with_its_history() -> None:
    problem = mixture()
    by_itself, denoised = (ds.solve(problem, "lms", n=6, final=f) for f in ("step", "denoise"))
    assert by_itself.nfe == denoised.nfe == 6
    assert gap(by_itself.x, denoised.x) > 1e-6
    first = (ds.solve(problem, "ddim", n=6, final=f).x for f in ("step", "denoise"))
    assert gap(*first) < 1e-12, "of order 1 they are the same step"


def test_the_tape_keeps_a_state_that_is_also_read_within_its_step() -> None:
    class Odd(ds.Solver):
        def step(self, f: ds.Field, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
            first = f(y, span.start)
            f(first, span.start)
            return ds.Step(first)

    eager, tape = (ds.solve(mixture(), Odd(), n=3, final="none", execution=e) for e in ("eager", "tape"))
    assert torch.equal(eager.x, tape.x)
    assert eager.nfe == tape.nfe == 6


def test_the_history_that_a_step_hands_back_is_what_the_next_is_given() -> None:
    class Keeper(ds.Solver):
        traceable = False

        def step(self, f: ds.Field, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
            assert [node for node, _ in past] == nodes[max(span.index - 2, 0) : span.index]
            return ds.Step(y, past=(*past, (span.start, y))[-2:])

    nodes = [9.0, 8.0, 6.0, 3.0, 2.0]
    assert ds.solve(mixture(), Keeper(), [*nodes, 1.0], final="none").steps == 5


@pytest.mark.parametrize("solver", rows(ONE_STEP))
def test_a_run_can_be_cut_at_every_node(solver: str) -> None:
    problem = mixture((3,))
    whole = ds.solve(problem, solver, n=6, batch=2, seed=4, save="all")
    for k in range(1, 6):
        rest = ds.solve(problem, solver, whole.grid[k:], x=whole.trajectory[k], seed=4, save="all")
        assert rest.n == 6 - k
        for a, b in zip(rest.trajectory, whole.trajectory[k:], strict=True):
            assert gap(a, b) < 1e-12
        first = ds.solve(problem, solver, whole.grid[: k + 1], batch=2, seed=4)
        assert first.grid.final == "none"
        assert torch.equal(first.x, whole.trajectory[k])


STRENGTHS = (0.01, 0.3, 0.5, 0.77, 1.0)


@pytest.mark.parametrize("solver", rows(SOLVERS))
def test_every_strength_runs(solver: str) -> None:
    problem, first = mixture(), SOLVERS.index(solver)
    few = [(n, STRENGTHS[(first + n) % 5]) for n in (1, 2, 3)]  # all, over the rows
    for n, strength in [*few, *((7, strength) for strength in STRENGTHS)]:
        grid = ds.make_grid(ds.Karras(), n, problem.process)
        part = grid.strength(strength)
        assert len(part) == max(1, round(n * strength))
        clean = problem.sample(2)
        solution = ds.solve(problem, solver, part, x=problem.noised(clean, float(part.nodes[0]), seed=2))
        assert solution.x.isfinite().all(), (n, strength)
        assert solution.sigmas.tolist() == grid.sigmas[-len(part) - 1 :].tolist()


@pytest.mark.parametrize("execution", ["eager", "tape"])
def test_the_callback_sees_every_step_and_may_stop(execution: Any) -> None:
    problem = mixture()
    seen: list[Any] = []
    full = ds.solve(problem, "heun", n=5, save="all", callback=seen.append, execution=execution)
    assert [p.index for p in seen] == [0, 1, 2, 3, 4]
    assert {p.count for p in seen} == {5}
    assert [p.sigma for p in seen] == full.sigmas[1:].tolist()
    assert [p.nfe for p in seen] == [2, 4, 6, 8, 9]
    assert all(torch.equal(p.x, x) for p, x in zip(seen, full.trajectory[1:], strict=True))

    stopped = ds.solve(problem, "heun", n=5, save="all", execution=execution, callback=lambda p: p.index == 2)
    assert (stopped.reason, stopped.steps, stopped.n, stopped.nfe) == ("stopped", 3, 5, 6)
    assert torch.equal(stopped.x, full.trajectory[3])
    assert len(stopped.trajectory) == 4
    assert full.reason == "end"


@pytest.mark.parametrize("form", ["sigma", "noise", "data", "v", "flow", "time"])
def test_the_preview_is_the_newest_data_estimate(form: str) -> None:
    problem = mixture()
    previews = []
    full = ds.solve(
        problem, "euler", n=5, save="all", form=form, callback=lambda p: previews.append(p.denoised)
    )
    for state, sigma, preview in zip(full.trajectory, full.sigmas, previews, strict=False):
        assert gap(preview, problem.denoise(state, float(sigma))) < 1e-11


@pytest.mark.parametrize("execution", ["eager", "tape"])
def test_an_interrupt_hands_back_the_last_whole_step(execution: Any) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    full = ds.solve(mixture(), "heun", n=5, save="all")
    with pytest.raises(ds.Interrupted, match="after step 2 of 5") as caught:
        ds.solve(Watched(mixture(), {6: interrupt}), "heun", n=5, save="all", execution=execution)
    solution = caught.value.solution
    assert isinstance(caught.value, KeyboardInterrupt)
    assert (solution.reason, solution.steps, solution.nfe) == ("interrupted", 2, 6)
    assert gap(solution.x, full.trajectory[2]) < 1e-12
    assert len(solution.trajectory) == 3
    resumed = ds.solve(mixture(), "heun", solution.grid[2:], x=solution.x)
    assert gap(resumed.x, full.x) < 1e-12


def test_save_all_is_the_state_at_every_node_and_final_the_last_alone() -> None:
    problem = mixture()
    x = problem.prior(2)
    saved = ds.solve(problem, "dpm_solver_2", n=4, x=x, save="all")
    assert len(saved.trajectory) == len(saved.sigmas) == 5
    assert torch.equal(saved.trajectory[0], x)
    assert saved.trajectory[-1] is saved.x
    final = ds.solve(problem, "dpm_solver_2", n=4, x=x)
    assert final.trajectory is None
    assert torch.equal(final.x, saved.x)


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.").split(".")[0]
        if name in ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "equal"):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("execution", ["eager", "tape"])
@pytest.mark.parametrize("solver", rows(SOLVERS))
def test_off_the_cpu_no_step_waits_for_the_device(solver: str, execution: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("diffsolve.solution.on_host", lambda x: False)
    problem = mixture()
    x, reads = problem.prior(2), []
    if execution == "tape" and solver not in TRACEABLE:
        return
    with Reads() as mode:
        steps = ds.solve(
            problem, solver, n=6, x=x, execution=execution, callback=lambda _: reads.append(mode.calls.total())
        ).steps
    assert len(reads) == steps
    assert reads[-1] == reads[0], "a step read a value"
    assert reads[0] <= 1, "the start alone is read before the first step"
    assert mode.calls.total() == reads[-1] + 1, "and once, at the end, whether all was finite"


def test_the_counter_of_reads_sees_them() -> None:
    reads: list[int] = []
    with Reads() as mode:
        ds.solve(mixture(), "heun", n=4, callback=lambda _: reads.append(mode.calls.total()))
    assert reads[3] - reads[0] == 3, "on the CPU each step is checked as it is made"


@pytest.mark.parametrize("save", ["all", "final"])
def test_off_the_cpu_a_nan_is_found_at_the_end_and_nothing_is_lost(save: Any, monkeypatch: Any) -> None:
    full = ds.solve(mixture(), "euler", n=6, save="all")
    monkeypatch.setattr("diffsolve.solution.on_host", lambda x: False)
    watched = Watched(mixture(), {3: lambda d: d * BAD})
    with pytest.raises(ds.NonFiniteError, match=r"step 3 of 6 \(") as caught:
        ds.solve(watched, "euler", n=6, save=save)
    solution = caught.value.solution
    assert watched.calls == 6
    assert (solution.reason, solution.steps) == ("failed", 2)
    assert torch.equal(solution.x, full.trajectory[2])
    assert solution.visited.tolist() == full.visited[:3].tolist()
    assert save == "final" or len(solution.trajectory) == 3


def test_the_state_takes_the_better_dtype_unless_one_is_asked_for() -> None:
    single, double = torch.float32, torch.float64
    for of_problem, of_x, asked, kept in (
        (single, single, None, single),
        (single, double, None, double),
        (double, single, None, double),
        (double, None, None, double),
        (double, None, single, single),
        (single, None, double, double),
        (single, double, single, single),
        (double, single, single, single),
    ):
        problem = mixture(dtype=of_problem)
        x = None if of_x is None else problem.prior(1).to(of_x)
        for solver in ("heun", "euler_ancestral"):
            assert ds.solve(problem, solver, n=2, x=x, dtype=asked).x.dtype == kept
    ode = ds.ODEProblem(lambda t, u: -u, (0.0, 1.0), torch.ones(1, dtype=single))
    assert ds.solve(ode, "heun", n=2).x.dtype == single
    assert ds.solve(ode, "heun", n=2, dtype=double).x.dtype == double
    assert ds.ODEProblem(lambda t, u: -u, (0, 1), [1, 2]).x0.dtype == single, "whole numbers become floats"


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", "dpmpp_2m_sde", "damped_abm", "restart"])
@pytest.mark.parametrize("nfe", [4, 25, 26, 60, 601])
def test_a_budget_buys_the_most_steps_for_few_plans(solver: str, nfe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []

    def counted(solver: ds.Solver, grid: ds.Grid, *rest: Any) -> Any:
        planned.append(len(grid))
        return ds.plan(solver, grid, *rest)

    monkeypatch.setattr(integrate, "plan", counted)
    problem, method = mixture((2,)), ds.get_solver(solver)
    steps = ds.start(problem, method, "karras", nfe=nfe).solution.n
    assert len(planned) == 1, "what the solver declares is right at once"

    def cost(n: int) -> int:
        return ds.count_evaluations(method, ds.make_grid(ds.Karras(), n, problem.process), problem)

    assert cost(steps) <= nfe < min(cost(steps + more) for more in range(1, 5))
