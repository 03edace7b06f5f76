"""Checks of whole runs: what a solve by any solver counts on, whatever the problem, the grid and the batch."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Generator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from .. import ProbabilityFlow
from ..app.stored import load_solution
from ..denoiser import Output
from ..errors import SolverError
from ..grid import Final
from ..integrate import solve, start
from ..problem import Call
from ..problems import ODEProblem
from ..process import PROCESSES
from ..program import count_evaluations
from ..registry import SOLVERS, get_schedule, get_solver, list_schedules
from ..run import Reply, Run
from ..solver import Solver
from .needs import of_solvers, place
from .world import FINALS, OneBuffer, Watched, gap, gaussian, mixture


def schedules() -> list[str]:
    """All but the one that places an ODE's times."""
    return [entry.name for entry in list_schedules() if entry.name != "uniform"]


def final_of(place: int) -> Final:
    return FINALS[place % 3]


def counted(solver: Solver, run: Run, problem: ProbabilityFlow) -> int | None:
    """The evaluations that are told before a run; None where they can't be told."""
    try:
        return count_evaluations(solver, run.solution.grid, problem)
    except SolverError:
        return None


def _runs_and_counts(solver: Solver, watched: Watched, schedule: str, n: int, **options: object) -> None:
    run = start(watched, solver, schedule, n, batch=2, **options)  # type: ignore[arg-type]
    for _ in run:
        pass
    solution, where = run.solution, f"{schedule}, n = {n}"
    assert solution.x.shape == (2, *watched.shape), where
    assert solution.x.isfinite().all(), where
    assert solution.reason == "end", where
    assert solution.nfe == watched.calls, f"{where}: {solution.nfe} told, {watched.calls} made"
    told = counted(solver, run, watched)
    assert told in (None, solution.nfe), f"{where}: {told} evaluations were counted before, {solution.nfe} were made"
    assert watched.untouched, f"{where}: a state that was evaluated was changed afterwards"


@of_solvers()
def check_runs(solver: Solver) -> None:
    """One, two and three steps on every schedule: finite, and as many evaluations as are told and counted before."""
    for i, schedule in enumerate(schedules(), place(solver)):
        _runs_and_counts(solver, Watched(mixture()), schedule, 1 + i % 3)


@of_solvers()
def check_zero(solver: Solver) -> None:
    """However a run ends, at sigma = 0 too, on every process: finite; one, two and eight steps."""
    for i, process in enumerate(PROCESSES, place(solver)):
        for k, final in enumerate(FINALS):
            _runs_and_counts(solver, Watched(gaussian((1,), process)), "karras", (1, 2, 8)[(i + k) % 3], final=final)


@of_solvers()
def check_shapes(solver: Solver) -> None:
    """Any shape, float32 and float64: states keep both, x is left as it is, and a run is the same again."""
    for i, shape in enumerate(((), (3,), (2, 3, 3), (2, 2, 3, 3)), place(solver)):
        dtype = (torch.float32, torch.float64)[i % 2]
        problem = gaussian(shape, dtype=dtype)
        x = problem.prior(2, seed=5)
        before = x.clone()
        runs = [solve(problem, solver, n=4, x=x, seed=5, save="all") for _ in range(2)]
        assert torch.equal(x, before), "x was changed"
        states = runs[0].trajectory or []
        assert {state.shape for state in states} == {(2, *shape)}
        assert {state.dtype for state in states} == {dtype}
        assert torch.equal(runs[0].x, runs[1].x), "a second run is another one"
        assert torch.equal(solve(problem, solver, n=4, batch=2, seed=5).x, runs[0].x)


@of_solvers()
def check_batch(solver: Solver) -> None:
    """A sample does not know its batch: alone, in any order, and in any memory layout it is the same."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        problem = mixture((5,), dtype=dtype)
        whole, alone, pair = (solve(problem, solver, n=9, batch=batch, seed=3).x for batch in (8, [3], [6, 3]))
        assert gap(alone, whole[3:4]) < tolerance, "alone it is another one"
        assert gap(pair, whole[[6, 3]]) < tolerance, "in another order it is another one"
        assert gap(solve(problem, solver, n=9, batch=[3], seed=4).x, alone) > 1e-3, "the seed does not matter"
        x = problem.prior(8, seed=3)
        assert gap(solve(problem, solver, n=9, x=x.T.contiguous().T, seed=3).x, whole) < tolerance
        assert gap(solve(problem, solver, n=9, x=x[2:4], batch=[2, 3], seed=3).x[1:], alone) < tolerance


@of_solvers()
def check_aliasing(solver: Solver) -> None:
    """A function that hands back one buffer each time, filled again, changes nothing."""
    problem = mixture()
    ends = [solve(p, solver, n=6, x=problem.prior(2), seed=1).x for p in (OneBuffer(problem, 2), problem)]
    assert gap(*ends) < 1e-13, "an answer of the denoiser is read after the next one was asked for"
    if solver.stochastic:
        return
    buffer, x0 = torch.empty(2, dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)

    def static(t: float, x: Tensor) -> Tensor:
        return buffer.copy_(-x * x * t)

    ends = [solve(ODEProblem(f, (0.0, 1.0), x0), solver, n=9).x for f in (static, lambda t, x: -x * x * t)]
    assert torch.equal(*ends), "an answer of the right-hand side is read after the next one was asked for"


@of_solvers("trace")
def check_tape(solver: Solver) -> None:
    """The recorded run is the eager one, state by state."""
    for i, final in enumerate(FINALS, place(solver)):
        eager, tape = (
            solve(
                mixture(), solver, ("karras", "linspace")[i % 2], 7, batch=2, final=final_of(i), save="all",
                execution=execution,
            )
            for execution in ("eager", "tape")
        )
        assert eager.nfe == tape.nfe
        for a, b in zip(eager.trajectory or [], tape.trajectory or [], strict=True):
            assert gap(b, a) < 1e-12, final


def answer(calls: Generator[Call, Reply, None], reply: Callable[[Call], Reply]) -> int:
    """Answer every call; how many there were."""
    count = 0
    try:
        call = next(calls)
        while True:
            count += 1
            call = calls.send(reply(call))
    except StopIteration:
        return count


@of_solvers("steps")
def check_inside_out(solver: Solver) -> None:
    """The run turned inside out, each call answered from outside, is the same to the bit."""
    problem = mixture()
    whole = solve(problem, solver, n=6, batch=2, seed=3)
    watched = Watched(problem)
    run = start(watched, solver, n=6, batch=2, seed=3)
    made = answer(run.calls(), lambda call: Output(problem.denoise(call.y, call.sigma)))
    assert watched.calls == 0, "a step calls the network by itself"
    assert made == run.solution.nfe == whole.nfe
    assert torch.equal(run.solution.x, whole.x)


@of_solvers("steps")
def check_saved_state(solver: Solver) -> None:
    """A run that is saved in the middle, pickled and gone on with is the unbroken one to the bit."""
    problem = mixture()
    whole = solve(problem, solver, n=7, final="step", batch=2, seed=3, save="all")
    for steps in (1, 4):
        begun = start(problem, solver, n=7, final="step", batch=2, seed=3, save="all")
        assert len(list(islice(begun, steps))) == steps
        saved = pickle.loads(pickle.dumps(begun.state))
        solve(problem, solver, n=3, seed=4)  # what is kept on the solver is lost
        resumed = start(problem, solver, n=7, final="step", save="all", state=saved)
        for _ in resumed:
            pass
        assert torch.equal(resumed.solution.x, whole.x)
        assert (resumed.solution.nfe, resumed.solution.nodes) == (whole.nfe, whole.nodes)
        for a, b in zip(resumed.solution.trajectory or [], whole.trajectory or [], strict=True):
            assert torch.equal(a, b)


@of_solvers()
def check_serialisation(solver: Solver) -> None:
    """A copy of the solver does the same, and so does its name; a solution is saved and read again."""
    problem = mixture()
    whole = solve(problem, solver, n=5, seed=1)
    assert torch.equal(solve(problem, copy.deepcopy(solver), n=5, seed=1).x, whole.x)
    if SOLVERS.canonical(solver.name.partition("(")[0]):
        named = get_solver(solver.name).with_changes(controller=None)
        assert torch.equal(solve(problem, named, n=5, seed=1).x, whole.x), f"{solver.name!r} names another solver"
    with tempfile.TemporaryDirectory() as folder:
        whole.save(Path(folder) / "run.safetensors")
        again = load_solution(Path(folder) / "run.safetensors", problem)
    assert torch.equal(again.x, whole.x)
    assert (again.solver, again.nfe) == (whole.solver, whole.nfe)


@of_solvers()
def check_shared(solver: Solver) -> None:
    """One solver object serves two solves at once: nothing is kept on it."""
    problem = mixture()
    alone = solve(problem, solver, n=6, seed=1)
    crossed = solve(problem, solver, n=6, seed=1, callback=lambda _: solve(problem, solver, n=3, seed=2).nfe < 0)
    assert torch.equal(alone.x, crossed.x)


@of_solvers("steps")
def check_budget(solver: Solver) -> None:
    """`nfe` is kept, and one step more would break it."""
    problem, rule = mixture(), get_schedule("karras")[0]

    def cost(n: int, final: Final) -> int:
        grid = problem.grid(rule, n, final=final, sigma_min=None, sigma_max=None, name="karras")
        return count_evaluations(solver, grid, problem)

    for i, budget in enumerate((1, 2, 3, 4, 7, 13, 25), place(solver)):
        final = final_of(i)
        least = cost(1, final)
        if least > budget:
            with suppress(SolverError):
                solve(problem, solver, nfe=budget, final=final)
                raise AssertionError(f"nfe = {budget} was taken, and {least} are the least")
            continue
        solution = solve(problem, solver, nfe=budget, final=final)
        assert solution.nfe <= budget < cost(solution.n + 1, final), f"nfe = {budget}, {solution.n} steps"
