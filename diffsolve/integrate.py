"""`solve`: problem -> grid -> step -> solution, and what watches over a run."""

from __future__ import annotations

import itertools
import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .adaptive import LOOK, adapt, check_adaptive
from .control import Controller, controlled
from .errors import (
    DiffsolveError,
    GridError,
    Interrupted,
    NonFiniteError,
    ProblemError,
    SolverError,
    did_you_mean,
    whole,
)
from .form import FORMS
from .grid import Final, Grid
from .loop import march, spans_of
from .problem import Problem, RightHandSide
from .registry import get_schedule, get_solver
from .solution import Solution
from .solver import Solver, Span
from .tape import ends_by_denoising, record


@dataclass
class Progress:
    """What a callback is given after each step: x is the state at `sigma` (the node just reached).

    count: the steps there will be, None where they are chosen on the way. share: how much of the way is done, from 0
    to 1: of the steps, or else of the variable.
    """

    index: int
    count: int | None
    share: float
    sigma: float
    x: Tensor
    nfe: int
    field: RightHandSide

    @property
    def denoised(self) -> Tensor | None:
        """The newest data estimate, of the step's last evaluation: what a preview shows."""
        return self.x if self.sigma == 0 else self.field.denoised()


Callback = Callable[[Progress], Any]


@torch.no_grad()
def solve(
    problem: Problem,
    solver: str | Solver | None = None,
    schedule: Any = None,
    n: int = 20,
    *,
    nfe: int | None = None,
    x: Tensor | None = None,
    seed: int = 0,
    batch: int | Sequence[int] = 1,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: Final = "denoise",
    rtol: float | None = None,
    atol: float | None = None,
    controller: Controller | None = None,
    variable: str | None = None,
    eta: float | None = None,
    save: Literal["final", "all"] = "final",
    callback: Callback | None = None,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: Any = None,
    execution: Literal["auto", "eager", "tape"] = "auto",
) -> Solution:
    """Integrate `problem` with `solver` over `schedule` in `n` steps.

    solver: a name ("heun"), a name with options ("lms(order=3)"), or a Solver. schedule: a name, a Schedule such as
    Karras(rho=7), a Grid, or explicit nodes. None is the problem's own: "damped_abm" on "karras" for a diffusion, by
    measurement (benchmarks/results/error_for_cost.md), and "etdrk4", which is Kutta's fourth-order method where there
    is no linear part, on "uniform" times for an ODE. n is not read where the nodes are explicit.
    nfe: take the most steps that cost at most so many evaluations, instead of n.
    rtol, atol: choose the steps by the solver's estimate of their error, to be about that, relative and absolute in VE
    coordinates; controller: by which rule (see Controller). A solver with a controller of its own does so in any case.
    Of n and the schedule only the ends are then read, the steps are chosen for the whole batch, and nfe is a budget:
    once it is spent the solve stops, with reason "max_nfe" and the state it has reached.
    x: the state at the first node, (B, *shape) in VE coordinates; without it, the prior's samples keyed by `seed`.
    batch: how many samples, or which ones: range(8, 16). Sample i is the same in whatever batch it is computed.
    final: what follows sigma_min: "denoise" (one Euler step to 0), "step" (the solver's own step to 0 where it has one)
    or "none". variable: solve in another form, a name of FORMS ("sigma", "data", "sde", ...). eta: of the reverse SDE.
    save: "all" keeps the state at every node. callback: called with a Progress after each step; a true answer stops.
    execution: "eager" runs the steps as written, "tape" records them first; "auto" chooses.

    Raises SolverError, GridError, ProblemError or NonFiniteError, each with `.solution`, what was computed until then,
    once stepping has begun; Interrupted (a KeyboardInterrupt) likewise.
    """
    if not isinstance(problem, Problem):
        raise ProblemError(f"problem must be a diffsolve Problem, got {type(problem).__name__}{_called(problem)}")
    _choice("save", save, ("final", "all"))
    _choice("execution", execution, ("auto", "eager", "tape"))
    _choice("final", final, get_args(Final))
    if not (callback is None or callable(callback)):
        raise SolverError(f"callback must be a function of a Progress, got {callback!r}")
    method = _in_form(get_solver(problem.default_solver if solver is None else solver), variable, problem)
    rule, name = get_schedule(problem.default_schedule if schedule is None else schedule)
    whole_seed = _seed(seed)
    samples = _samples(batch, x)

    def grid_of(steps: int) -> Grid:
        return problem.grid(rule, steps, final=final, sigma_min=sigma_min, sigma_max=sigma_max, name=name)

    chosen = controlled(method.controller, controller, rtol, atol)
    if chosen is not None:
        grid = grid_of(max(2, whole(n, "the number of steps n", GridError)))  # one step has but one end
    else:
        grid = grid_of(n) if nfe is None else _within(nfe, method, grid_of, problem, eta)
    state = problem.start(x, samples, whole_seed, float(grid.nodes[0]), dtype, device)
    field = problem.field(method, state, samples, whole_seed, eta)
    spans = list(method.plan(spans_of(grid, field), field))
    _check_whole(method, field, spans)
    solution = Solution(
        state, 0, grid, problem, method.name or type(method).__name__, grid.name if chosen is None else "adaptive",
        steps=0, seed=whole_seed, trajectory=[state] if save == "all" else None,
    )
    if not _is_finite(state):
        raise _non_finite(state, "the starting state x", "Look at where x comes from")
    start = field.enter(state, float(grid.nodes[0]))
    if chosen is not None:
        cost = check_adaptive(method, field, chosen, solution, execution)
        budget = None if nfe is None else whole(nfe, "nfe", GridError)
        if budget is not None and budget < cost:
            raise _too_few(budget, method, cost)
        spans = []
        states = adapt(method, field, chosen, spans, start, solution, cost, budget)
    elif execution == "tape":
        states = record(method, field, spans).play(field, start)
    else:
        states = march(method, field, spans, start)
    _run(states, field, grid, spans, solution, callback, progress, adaptive=chosen is not None)
    return solution


def _run(
    states: Iterator[Tensor],
    field: RightHandSide,
    grid: Grid,
    spans: Sequence[Span],
    solution: Solution,
    callback: Callback | None,
    progress: bool,
    adaptive: bool,
) -> None:
    """Draw the states into `solution`, watching for the user, for NaN, and for whatever the model raises.

    spans: those of the states; in an adaptive run, those so far and the one that is being tried.
    """
    began = time.perf_counter()
    finite: list[Tensor] = []  # on an accelerator this is read once, at the end: reading it is a host sync
    count = None if adaptive else len(spans)
    node_of, good = {field.variable(node): node for node in grid.sigmas.tolist()}, solution.x
    ends = [field.variable(float(node)) for node in grid.nodes[[0, -1]]]
    nodes = [float(grid.nodes[0])]
    bar = _bar(count, progress)

    def level(s: float) -> float:
        return node_of[s] if s in node_of else field.sigma(s)

    def step(index: int) -> str:
        span = spans[index]
        return f"step {index + 1}{_of(count)} ({level(span.start):g} -> {level(span.end):g})"

    try:
        for index in itertools.count() if count is None else range(count):
            try:
                u = next(states)
            except StopIteration:
                if count is not None:
                    raise
                break
            except DiffsolveError as error:
                where = f"{step(index)}: " if index < len(spans) else ""
                error.args = (f"{where}{error}", *error.args[1:])
                raise
            span = spans[index]
            node = level(span.end)
            nodes.append(node)
            x = field.leave(u, node)
            if _on_host(x):
                if not _is_finite(x):
                    raise _non_finite(x, f"{step(index)}: the state", LOOK)
            else:
                finite.append(x.isfinite().all() & (finite[-1] if finite else True))
                good = torch.where(finite[-1], x, good)
            solution.x, solution.nfe, solution.steps = x, field.nfe, index + 1
            if solution.trajectory is not None:
                solution.trajectory.append(x)
            if count is not None:
                share = (index + 1) / count
            else:
                share = 1.0 if span.last else (span.end - ends[0]) / (ends[1] - ends[0])
            if bar is not None:
                bar.set_postfix(NFE=field.nfe, refresh=False)
                bar.update(1 if count else share - bar.n)
            if callback is not None and callback(Progress(index, count, share, node, x, field.nfe, field)):
                solution.reason = "stopped"
                break
        if finite and not bool(finite[-1]):
            steps = int(torch.stack(finite).sum())
            solution.x, solution.steps = good, steps
            if solution.trajectory is not None:
                del solution.trajectory[steps + 1 :]
            raise NonFiniteError(f"{step(steps)}: the state has NaN or infinite values. {LOOK}")
    except KeyboardInterrupt as error:
        solution.reason = "interrupted"
        raise Interrupted(f"interrupted after step {solution.steps}{_of(count)}", solution) from error
    except Exception as error:
        solution.reason = "failed"
        if not isinstance(error, DiffsolveError) and spans:
            error.add_note(f"diffsolve: in {step(min(solution.steps, len(spans) - 1))}")
        error.solution = solution  # type: ignore[attr-defined]
        raise
    finally:
        solution.seconds = time.perf_counter() - began
        solution.nfe = field.nfe
        if adaptive and solution.steps:
            to_zero = grid.final != "none" and nodes[solution.steps] == 0
            taken = nodes[: solution.steps + (not to_zero)]
            solution.grid = Grid(np.asarray(taken), "adaptive", grid.final if to_zero else "none")
        if bar is not None:
            bar.close()


def _of(count: int | None) -> str:
    return "" if count is None else f" of {count}"


def _within(
    nfe: int, solver: Solver, grid_of: Callable[[int], Grid], problem: Problem, eta: float | None
) -> Grid:
    """The finest grid whose solve makes at most `nfe` evaluations."""
    budget = whole(nfe, "nfe", GridError)
    least = 0
    for steps in range(budget + 1, 0, -1):
        if steps > 1 and steps * solver.stages > budget + 2 * solver.stages + 2:
            continue
        try:
            grid = grid_of(steps)
        except GridError:  # more steps than the problem has, unless there is no grid at all
            if steps == 1:
                raise
            continue
        least = count_evaluations(solver, grid, problem, eta)
        if least <= budget:
            return grid
    raise _too_few(budget, solver, least)


def _too_few(budget: int, solver: Solver, least: int) -> SolverError:
    return SolverError(
        f"{solver!r} needs at least {least} evaluations, the budget is nfe = {budget}; "
        "raise it, or take a solver with fewer stages"
    )


def count_evaluations(solver: Solver, grid: Grid, problem: Problem, eta: float | None = None) -> int:
    """Evaluations of a solve over `grid`: read off the tape, or declared where the solver can't be traced."""
    field = problem.field(solver, torch.zeros(1), (0,), 0, eta)
    spans = solver.plan(spans_of(grid, field), field)
    if solver.traceable and field.traceable:
        return record(solver, field, spans).nfe
    if not solver.stages:
        raise SolverError(f"how often {solver!r} evaluates can't be told before it is run; pass n in place of nfe")
    return sum(1 if ends_by_denoising(solver, field, span) else solver.stages for span in spans)


def _in_form(solver: Solver, variable: str | None, problem: Problem) -> Solver:
    if variable is None:
        return solver
    if not isinstance(variable, str) or variable not in FORMS:
        raise SolverError(f"unknown variable {variable!r}{did_you_mean(variable, FORMS)}")
    if not problem.forms:
        raise SolverError(f"variable = {variable!r} was given, but {type(problem).__name__} has its own; leave it out")
    changed = copy(solver)
    changed.form = variable
    return changed


def _check_whole(solver: Solver, field: RightHandSide, spans: Sequence[Span]) -> None:
    """Refuse a method that would leave out a part of the equation: the form's noise, or its linear part."""
    own = [span for span in spans if not ends_by_denoising(solver, field, span)][:1]
    if not (own and solver.traceable and field.traceable and (field.linear or field.noise(own[0]))):
        return
    tape = record(solver, field, own)
    if field.noise(own[0]) and not tape.draws:
        raise SolverError(
            f"{solver!r} adds no noise, so it can't solve the reverse SDE; "
            "take a stochastic solver, eta = 0, or another variable"
        )
    if field.linear and tape.keeps == 1:
        raise SolverError(
            f"{solver!r} leaves out the linear part of u' = {field.linear:g} u + f(u, s); "
            "add f.linear * u to each evaluation in its step, or take a variable without one ('sigma', 'v', 'flow')"
        )


def _on_host(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _is_finite(x: Tensor) -> bool:
    return math.isfinite(float(x.sum())) or bool(x.isfinite().all())  # the sum tells all but an overflow, in one pass


def _non_finite(x: Tensor, what: str, remedy: str) -> NonFiniteError:
    nan = int(x.isnan().sum())
    infinite = int((~x.isfinite()).sum()) - nan
    return NonFiniteError(f"{what} has {nan} NaN and {infinite} infinite values of {x.numel()}. {remedy}")


def _choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SolverError(f"{what} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _called(problem: object) -> str:
    return "; call the model with a prompt first: model(prompt='...')" if callable(problem) else ""


def _seed(seed: Any, what: str = "seed") -> int:
    try:
        if not isinstance(seed, bool):
            return operator.index(seed)
    except TypeError:
        pass
    raise ProblemError(f"{what} must be a whole number, got {seed!r}")


def _samples(batch: int | Sequence[int], x: Tensor | None) -> Sequence[int]:
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        samples: Sequence[int] = [_seed(i, "each sample named by batch") for i in batch]
        if not samples or (isinstance(x, Tensor) and x.ndim and len(samples) != x.shape[0]):
            raise ProblemError(
                f"batch names {len(samples)} samples; it must name one for each row of x, and at least one"
            )
        return samples
    count = whole(batch, "batch", ProblemError)
    if isinstance(x, Tensor) and x.ndim:
        if count not in (1, x.shape[0]):
            raise ProblemError(f"batch is {count}, but x has {x.shape[0]} samples; leave batch out where x is given")
        count = x.shape[0]
    return range(count)


def _bar(count: int | None, progress: bool) -> Any:
    if not progress:
        return None
    from tqdm.auto import tqdm

    if count is None:
        return tqdm(total=1.0, bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}")
    return tqdm(total=count, unit="step")
