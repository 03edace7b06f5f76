"""Error against cost: every solver on every schedule at equal budgets of evaluations, and the peers beside them.

The error of a cell is the relative error of the state at sigma_min against the exact flow, over many starts: the
median, which is smooth, and the RMS, which jumps when a start ends in another mode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from diffsolve import (
    NonFiniteError,
    ProbabilityFlow,
    Solver,
    count_evaluations,
    get_schedule,
    get_solver,
    list_solvers,
    solve,
)
from diffsolve.register import parse
from diffsolve.registry import find_solver

from ..problems import Case
from ..references import Reference, reference, row_errors, sampling_cases
from .cells import Cell, WorkPrecisionReport
from .peers import Method, OtherEndsError, check_ends, methods

BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)
LOST = 1.0  # a median relative error above it has nothing to do with the answer


def work_precision(
    solvers: Sequence[str | Solver] | None = None,
    schedules: Sequence[str] = ("karras", "exponential"),
    budgets: Sequence[int] = BUDGETS,
    problems: Sequence[Case] | None = None,
    peers: Sequence[str] = (),
    *,
    tags: str = "",
    seed: int = 0,
    starts: int = 256,
    done: Iterable[Cell] = (),
    progress: Callable[[Cell], None] | None = None,
) -> WorkPrecisionReport:
    """Run every solver on every schedule at every budget, and measure each against the exact flow.

    solvers: names (with options) or Solvers; by default every deterministic row that carries all of `tags`
    ("multistep,data"). schedules: names, with options ("karras(rho=12)"). budgets: the most evaluations; each
    solver takes as many steps as they pay for. problems: `sampling_cases(seed, starts)` by default. peers: of
    "diffusers", "k_diffusion", "torchdiffeq", "azula", run on the same problems; one that can't be imported is noted.
    done: cells of an earlier run, which are taken over. progress: called with each new cell.
    """
    rows = [e.name for e in list_solvers(tags) if not e.stochastic] if solvers is None else solvers
    chosen = [get_solver(s) for s in rows]
    others = {peer: methods(peer) for peer in peers}
    notes = tuple(f"{peer} can't be imported: nothing of it was run" for peer, found in others.items() if not found)
    kept = {cell.key: cell for cell in done}
    cells: list[Cell] = []
    estimates: dict[str, float] = {}
    converged = True

    def keep(cell: Cell, run: Callable[[], tuple[Tensor, int, float]]) -> None:
        if cell.key not in kept:
            kept[cell.key] = _measured(cell, run, exact)
            if progress is not None:
                progress(kept[cell.key])
        cells.append(kept[cell.key])

    for case in sampling_cases(seed, starts) if problems is None else problems:
        exact = reference(case)
        estimates[case.name], converged = exact.error, converged and exact.converged
        for solver in chosen:
            name, ours = solver.name or type(solver).__name__, told(solver, case.flow)
            for schedule in schedules:
                for budget in budgets:
                    keep(Cell(case.name, name, schedule, budget), _ours(case, ours, schedule, budget))
        for peer, found in others.items():
            for method in found:
                for cell, run in _theirs(case, peer, method, schedules, budgets):
                    keep(cell, run)
    return WorkPrecisionReport(tuple(cells), tuple(budgets), estimates, converged, notes)


class _TooDearError(Exception):
    """The budget pays for no step."""


def told(solver: Solver, problem: ProbabilityFlow) -> Solver:
    """The solver; a row that wants to know the scale of guidance, and was not told, told that of the problem."""
    scale = getattr(problem.denoiser, "scale", None)
    if scale is None or getattr(solver, "guidance", scale) is not None or not solver.name:
        return solver
    name, options = parse(solver.name)
    return find_solver(name).build(**options | {"guidance": scale})


def _ours(case: Case, solver: Solver, schedule: str, budget: int) -> Callable[[], tuple[Tensor, int, float]]:
    def run() -> tuple[Tensor, int, float]:
        rule, name = get_schedule(schedule)
        one = case.problem.grid(rule, 1, final="none", sigma_min=case.end, sigma_max=case.start, name=name)
        if count_evaluations(solver, one, case.problem) > budget:
            raise _TooDearError
        solution = solve(
            case.problem, solver, schedule, nfe=budget, x=case.x, final="none", sigma_min=case.end, sigma_max=case.start
        )
        check_ends(solution.grid.nodes, case)
        return solution.x, solution.nfe, solution.seconds

    return run


def _theirs(
    case: Case, peer: str, method: Method, schedules: Sequence[str], budgets: Sequence[int]
) -> Iterable[tuple[Cell, Callable[[], tuple[Tensor, int, float]]]]:
    if method.tolerances:
        for rtol in method.tolerances:
            cell = Cell(case.name, method.name, "adaptive", None, peer, note=f"rtol = {rtol:g}")
            yield cell, _counted(case, method, "adaptive", rtol)
        return
    for schedule in schedules:
        if method.schedules is None or schedule in method.schedules:
            for budget in budgets:
                steps = budget // method.calls
                yield Cell(case.name, method.name, schedule, budget, peer), _counted(case, method, schedule, steps)


def _counted(case: Case, method: Method, schedule: str, steps: float) -> Callable[[], tuple[Tensor, int, float]]:
    def run() -> tuple[Tensor, int, float]:
        nfe = 0

        def denoise(y: Tensor, sigma: float) -> Tensor:
            nonlocal nfe
            nfe += 1
            return case.flow.denoise(y, sigma)

        if not steps:
            raise _TooDearError
        began = time.perf_counter()
        with torch.no_grad():
            x = method.run(denoise, case, schedule, steps)
        return x, nfe, time.perf_counter() - began

    return run


def _measured(cell: Cell, run: Callable[[], tuple[Tensor, int, float]], exact: Reference) -> Cell:
    head = cell.problem, cell.solver, cell.schedule, cell.budget, cell.peer
    try:
        x, nfe, seconds = run()
    except _TooDearError:
        return Cell(*head, status="too dear")
    except OtherEndsError as error:
        return Cell(*head, status="other ends", note=str(error))
    except NonFiniteError as error:
        return Cell(*head, nfe=error.solution.nfe if error.solution else 0, status="diverged", note=str(error))
    except Exception as error:  # whatever a plugin or a peer raises is a finding, not the end of the run
        return Cell(*head, status="failed", note=f"{type(error).__name__}: {error}")
    if not bool(x.isfinite().all()):
        return Cell(*head, nfe=nfe, seconds=seconds, status="diverged", note="not finite")
    median = float(row_errors(x, exact.state).median())
    rms = float((x.double() - exact.state).norm() / exact.state.norm())
    return Cell(*head, nfe, median, rms, seconds, "ok" if median <= LOST else "diverged", cell.note)
