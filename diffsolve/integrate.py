"""`solve`: problem -> grid -> step -> solution, and the one loop that every fixed-grid solver runs in."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

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
from .problem import Problem, RightHandSide, check_like
from .registry import get_schedule, get_solver
from .solution import Solution
from .solver import Driver, Past, Solver, Span
from .tape import check_step, climb, ends_by_denoising, record


@dataclass
class Progress:
    """What a callback is given after each step: x is the state at `sigma` (the node just reached)."""

    index: int
    count: int
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
    solver: str | Solver = "dpmpp_2m",
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
    Karras(rho=7), a Grid, or explicit nodes; None is the problem's own ("karras" for a diffusion, "uniform" for an
    ODE). n is not read where the nodes are explicit.
    nfe: take the most steps that cost at most so many evaluations, instead of n.
    x: the state at the first node, (B, *shape) in VE coordinates; without it, the prior's samples keyed by `seed`.
    batch: how many samples, or which ones: range(8, 16). Sample i is the same in whatever batch it is computed.
    final: what follows sigma_min: "denoise" (one Euler step to 0), "step" (the solver's own step to 0 where it has one)
    or "none". variable: solve in another form ("sigma", "noise", "data", "v", "flow", "time"). eta: of the reverse SDE.
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
    method = _in_form(get_solver(solver), variable, problem)
    rule, name = get_schedule(problem.default_schedule if schedule is None else schedule)
    whole_seed = _seed(seed)
    samples = _samples(batch, x)

    def grid_of(steps: int) -> Grid:
        return problem.grid(rule, steps, final=final, sigma_min=sigma_min, sigma_max=sigma_max, name=name)

    grid = grid_of(n) if nfe is None else _within(nfe, method, grid_of, problem, eta)
    state = problem.start(x, samples, whole_seed, float(grid.nodes[0]), dtype, device)
    field = problem.field(method, state, samples, whole_seed, eta)
    spans = method.plan(spans_of(grid, field))
    _check_whole(method, field, spans)
    solution = Solution(
        state, 0, grid, problem, method.name or type(method).__name__, grid.name, steps=0, seed=whole_seed,
        trajectory=[state] if save == "all" else None,
    )
    if not _is_finite(state):
        raise _non_finite(state, "the starting state x", "Look at where x comes from")
    start = field.enter(state, float(grid.nodes[0]))
    if execution == "tape":
        states: Iterator[Tensor] = record(method, field, spans).play(field, start)
    else:
        states = march(method, field, spans, start)
    _run(states, field, grid, spans, solution, callback, progress)
    return solution


def march(
    solver: Solver, field: RightHandSide, spans: Sequence[Span], u: Tensor, past: Past = ()
) -> Iterator[Tensor]:
    """The loop: every step of every fixed-grid solver is taken here. Yields the form's state after each span.

    past: the history that the first step is given, for a multistep method that does not start from one state.
    """
    if isinstance(solver, Driver):
        yield from _driven(solver, field, spans, u)
        return
    for span in spans:
        if ends_by_denoising(solver, field, span):
            u = field.denoise(u, span.start)
        elif span.up:
            u, past = climb(field, u, span), ()
        else:
            step = solver.step(field, u, span, past)
            check_step(step, solver)
            check_like(step.y, u, "{0!r}.step", solver)
            u, past = step.y, step.past
        u = field.settle(u, span)
        yield u


def _driven(solver: Driver, field: RightHandSide, spans: Sequence[Span], u: Tensor) -> Iterator[Tensor]:
    own = [span for span in spans if not ends_by_denoising(solver, field, span)]
    if own:
        for state in solver.run(field, u, own):
            check_like(state, u, "{0!r}.run", solver)
            u = state
            yield u
    for span in spans[len(own) :]:
        yield field.denoise(u, span.start)


def _run(
    states: Iterator[Tensor],
    field: RightHandSide,
    grid: Grid,
    spans: Sequence[Span],
    solution: Solution,
    callback: Callback | None,
    progress: bool,
) -> None:
    """Draw the states into `solution`, watching for the user, for NaN, and for whatever the model raises."""
    began = time.perf_counter()
    finite: list[Tensor] = []  # on an accelerator this is read once, at the end: reading it is a host sync
    bar = _bar(len(spans), progress)
    node_of, good = {field.variable(node): node for node in grid.sigmas.tolist()}, solution.x

    def step(index: int) -> str:
        span = spans[index]
        return f"step {index + 1} of {len(spans)} ({node_of[span.start]:g} -> {node_of[span.end]:g})"

    try:
        for index, span in enumerate(spans):
            try:
                u = next(states)
            except DiffsolveError as error:
                error.args = (f"{step(index)}: {error}", *error.args[1:])
                raise
            node = node_of[span.end]
            x = field.leave(u, node)
            if _on_host(x):
                if not _is_finite(x):
                    raise _non_finite(x, f"{step(index)}: the state", _LOOK)
            else:
                finite.append(x.isfinite().all() & (finite[-1] if finite else True))
                good = torch.where(finite[-1], x, good)
            solution.x, solution.nfe, solution.steps = x, field.nfe, index + 1
            if solution.trajectory is not None:
                solution.trajectory.append(x)
            if bar is not None:
                bar.set_postfix(NFE=field.nfe, refresh=False)
                bar.update()
            if callback is not None and callback(
                Progress(index, len(spans), node, x, field.nfe, field)
            ):
                solution.reason = "stopped"
                break
        if finite and not bool(finite[-1]):
            steps = int(torch.stack(finite).sum())
            solution.x, solution.steps = good, steps
            if solution.trajectory is not None:
                del solution.trajectory[steps + 1 :]
            raise NonFiniteError(f"{step(steps)}: the state has NaN or infinite values. {_LOOK}")
    except KeyboardInterrupt as error:
        solution.reason = "interrupted"
        raise Interrupted(f"interrupted after step {solution.steps} of {len(spans)}", solution) from error
    except Exception as error:
        solution.reason = "failed"
        if not isinstance(error, DiffsolveError):
            error.add_note(f"diffsolve: in {step(min(solution.steps, len(spans) - 1))}")
        error.solution = solution  # type: ignore[attr-defined]
        raise
    finally:
        solution.seconds = time.perf_counter() - began
        solution.nfe = field.nfe
        if bar is not None:
            bar.close()


def spans_of(grid: Grid, field: RightHandSide) -> list[Span]:
    """The grid's steps in the variable of the field's form."""
    ends = [field.variable(node) for node in grid.sigmas.tolist()]
    count, to_zero = len(grid), grid.final != "none"
    return [
        Span(ends[i], ends[i + 1], i, count, last=to_zero and i == count - 1, own=grid.final == "step")
        for i in range(count)
    ]


def _within(
    nfe: int, solver: Solver, grid_of: Callable[[int], Grid], problem: Problem, eta: float | None
) -> Grid:
    """The finest grid whose solve makes at most `nfe` evaluations."""
    budget = whole(nfe, "nfe", GridError)
    least = 0
    for steps in range(budget + 1, 0, -1):
        if steps > 1 and steps * solver.stages > budget + 2 * solver.stages + 2:
            continue
        grid = grid_of(steps)
        least = count_evaluations(solver, grid, problem, eta)
        if least <= budget:
            return grid
    raise SolverError(
        f"{solver!r} needs at least {least} evaluations, the budget is nfe = {budget}; "
        "raise it, or take a solver with fewer stages"
    )


def count_evaluations(solver: Solver, grid: Grid, problem: Problem, eta: float | None = None) -> int:
    """Evaluations of a solve over `grid`: read off the tape, or declared where the solver can't be traced."""
    field = problem.field(solver, torch.zeros(1), (0,), 0, eta)
    spans = solver.plan(spans_of(grid, field))
    if solver.traceable:
        return record(solver, field, spans).nfe
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
    if not (own and solver.traceable and (field.linear or field.noise(own[0]))):
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


_LOOK = (
    "Look at the model's output there; half precision and a guidance scale that is too high are the usual causes"
)


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


def _bar(count: int, progress: bool) -> Any:
    if not progress:
        return None
    from tqdm.auto import tqdm

    return tqdm(total=count, unit="step")
