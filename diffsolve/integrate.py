"""`solve` and `start`: problem -> grid -> step -> solution."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .adaptive import AdaptiveLoop, check_adaptive
from .control import Controller, controlled
from .errors import GridError, ProblemError, SolverError, did_you_mean
from .execution.budget import too_few, within
from .execution.choose import Execution, chosen
from .execution.tape_player import TapeLoop
from .form import FORMS, Form
from .grid import Final, Grid, steps_of
from .problem import Event, Problem, RightHandSide
from .program import FixedLoop, Program, first_step, leaves_linear_out, plan
from .registry import choose, chooses, get_schedule, get_solver, named_schedule, named_solver
from .run import Gradient, GradientMode, Run
from .solution import Callback, Callbacks, Solution
from .solver import Driver, Solver
from .tape import record
from .validate import Device, check_batch, check_trajectory, choice, placed, samples_of, seed_of, whole, written

Save = Literal["final", "all"]
_MOST = 256  # programs that are kept
_EXECUTION, _SAVE, _FINAL = get_args(Execution), get_args(Save), get_args(Final)


def solve(
    problem: Problem,
    solver: str | Solver | None = None,
    schedule: object = None,
    n: int = 20,
    *,
    nfe: int | None = None,
    quality: str | float | None = None,
    x: Tensor | None = None,
    seed: int = 0,
    batch: int | Sequence[int] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: Final = "denoise",
    rtol: float | None = None,
    atol: float | None = None,
    controller: Controller | None = None,
    form: str | None = None,
    eta: float | None = None,
    events: Event | Sequence[Event] | None = None,
    save: Save = "final",
    callback: Callback | None = None,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: Device | None = None,
    execution: Execution = "auto",
    gradient: Gradient | None = None,
    variable: str | None = None,
) -> Solution:
    """Integrate `problem` with `solver` over `schedule` in `n` steps: `start`, and every step of it.

    quality: "draft", "good", "exact" or a relative error: the run that errs by that, of a few that measure each
    other and have nfe as their budget; `Solution.stats` has its estimate. See docs/quality.md.
    callback: called with a Visit after each step; a true answer stops. progress: show a bar. The other arguments are
    those of `start`; `variable` is the former name of `form`.
    Raises SolverError, GridError, ProblemError or NonFiniteError, each with `.solution`, what was computed until then,
    once stepping has begun; Interrupted (a KeyboardInterrupt) likewise.
    """
    if not (callback is None or callable(callback)):
        raise SolverError(f"callback must be a function of a Visit, got {callback!r}")
    if variable is not None:
        warnings.warn("variable= is now form=", DeprecationWarning, stacklevel=2)
    begin = partial(
        start, problem, x=x, seed=seed, batch=batch, sigma_min=sigma_min, sigma_max=sigma_max, final=final, rtol=rtol,
        atol=atol, controller=controller, form=variable if form is None else form, eta=eta, events=events, save=save,
        dtype=dtype, device=device, execution=execution, gradient=gradient,
    )  # fmt: skip
    if quality is None:
        return finish(begin(solver, schedule, n, nfe=nfe), callback, progress, nfe)
    from .engine.quality import reach

    solver, schedule, _, why = choose(problem, solver, schedule, n, None, False)
    ended = partial(finish, callback=callback, progress=progress)
    solution = reach(quality, partial(begin, solver, schedule), ended, nfe, n)
    solution.stats |= {"chosen": why} if why else {}
    return solution


def finish(run: Run, callback: Callback | None = None, progress: bool = False, most: int | None = None) -> Solution:
    """The solution of a run, every step of it taken. Raises SolverError where it made more evaluations than `most`."""
    if progress:
        from .app.bar import Bar

        run.watchers.append(Bar(run.count))
    run.watchers += [Callbacks(callback)] if callback is not None else []
    run.rest()
    if most is not None and run.solution.nfe > most:
        raise SolverError(
            f"{run.solver!r} made {run.solution.nfe} evaluations where nfe = {most}: its `evaluations` declares fewer"
        )
    return run.solution


def start(
    problem: Problem,
    solver: str | Solver | None = None,
    schedule: object = None,
    n: int = 20,
    *,
    nfe: int | None = None,
    x: Tensor | None = None,
    seed: int = 0,
    batch: int | Sequence[int] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: Final = "denoise",
    rtol: float | None = None,
    atol: float | None = None,
    controller: Controller | None = None,
    form: str | None = None,
    eta: float | None = None,
    events: Event | Sequence[Event] | None = None,
    save: Save = "final",
    dtype: torch.dtype | None = None,
    device: Device | None = None,
    execution: Execution = "auto",
    gradient: Gradient | None = None,
    state: Mapping[str, Any] | None = None,
) -> Run:
    """A solve that has taken no step yet, to be stepped, iterated, saved, or turned inside out.

    solver: a name ("heun"), with options ("lms(order=3)"), or a Solver. schedule: a name, a Schedule such as
    Karras(rho=7), a Grid, or explicit nodes, where n is not read. None is the problem's own: "guarded_abm" on
    "karras" for a diffusion, "etdrk4" on "uniform" times for an ODE; with a tolerance "adaptive_abm", "tsit5". "auto"
    is a table's choice. nfe: take the most steps of at most so many evaluations, instead of n. rtol, atol: choose the
    steps by the solver's estimate of their error in the batch, to be about that, relative and absolute in VE
    coordinates; one alone takes the other with it. controller: by which rule (see Controller); a solver may have one.
    Of the grid the ends are read, but for an ODE's explicit times. nfe is then where the solve stops.
    x: the state at the first node, (B, *shape) in VE coordinates; without it, the prior's samples keyed by `seed`.
    batch: how many samples, or which ones: range(8, 16); None is one, or one a prompt, or what x has. Sample i is the
    same in any batch. final: what follows sigma_min: "denoise" (one Euler step to 0), "step" (the solver's own step to
    0 where it has one) or "none". form: solve in another, a name of FORMS. eta: of the reverse SDE. events: functions
    (t, x) of an ODE whose zeros the solution tells of. save: "all" keeps the state at every node. execution: "eager";
    "fused", one pass over memory between two calls; "graph" on CUDA; "tape"; "auto" chooses, and `Solution.stats` says
    why. state: of a run to go on with. gradient: None keeps the graph, where grad mode is on, if x or, of an ODE or
    SDE, x0 or f carries a gradient (not if a diffusion's network alone does); "backprop" in any case; "checkpoint"
    too, but of one step at a time, each taken again. Chosen lengths are held constant. Raises SolverError, GridError,
    ProblemError or NonFiniteError.
    """
    _check_names(problem, save, execution, final, state)
    why = ""
    if isinstance(solver, str) and chooses(solver):
        solver, schedule, nfe, why = choose(problem, solver, schedule, n, nfe, _given(rtol, atol, controller))
    method, control = _method(problem, solver, form, controller, rtol, atol)
    grid_of = _grid_of(problem, schedule, final, sigma_min, sigma_max)
    grid = _grid(grid_of, n, nfe, control, method, problem, eta, final)
    samples = samples_of(batch, x, problem.default_batch) if state is None else state["samples"]
    seed, x = (seed, x) if state is None else (state["seed"], state["x"])
    run = _begin(problem, method, grid, control, nfe, x, samples, seed_of(seed), eta, save, dtype, device, execution,
                 gradient, state, why)  # fmt: skip
    if events is not None or type(problem).watchers is not Problem.watchers:
        run.watchers += problem.watchers(run, events, control is not None or not rtol is atol is None)
    return run


def _grid_of(
    problem: Problem, schedule: object, final: Final, sigma_min: float | None, sigma_max: float | None
) -> Callable[[int], Grid]:
    """The problem's grid of a number of steps, by the schedule that is asked for."""
    asked = problem.default_schedule if schedule is None else schedule
    named = isinstance(asked, str) and not asked.endswith(".json")  # a file is read each time
    rule, name = named_schedule(str(asked)) if named else get_schedule(asked)
    return partial(problem.grid, rule, final=final, sigma_min=sigma_min, sigma_max=sigma_max, name=name)


def _method(
    problem: Problem, solver: str | Solver | None, form: str | None, controller: Controller | None,
    rtol: float | None, atol: float | None,
) -> tuple[Solver, Controller | None]:  # fmt: skip
    """The solver in the form that is asked for, and what chooses its steps; another library's does so by itself."""
    tolerant = not (controller is None and rtol is None and atol is None)
    if solver is None:
        solver = (problem.adaptive_solver if tolerant else "") or problem.default_solver
    method = _solver(solver, form, problem)
    if tolerant and isinstance(method, Driver):
        return method.tolerating(rtol, atol, controller), None
    control = controlled(method.controller, controller, rtol, atol) if tolerant or method.controller else None
    if control is not None and form is None and problem.forms and method.adaptive_form:
        method = _solver(method, method.adaptive_form, problem)
    return method, control


def _grid(
    grid_of: Callable[[int], Grid], n: int, nfe: int | None, control: Controller | None, solver: Solver,
    problem: Problem, eta: float | None, final: Final,
) -> Grid:  # fmt: skip
    if control is not None:
        return grid_of(max(2, steps_of(n)))  # one step has but one end
    if nfe is None:
        return grid_of(n)
    return within(nfe, solver, grid_of, problem.field(solver, torch.zeros(1), (0,), 0, eta), final, _kept)


def _begin(
    problem: Problem, solver: Solver, grid: Grid, control: Controller | None, nfe: int | None, x: Tensor | None,
    samples: Sequence[int], seed: int, eta: float | None, save: Save, dtype: torch.dtype | None, device: Device | None,
    execution: Execution, gradient: Gradient | None, state: Mapping[str, Any] | None, chosen_for: str = "",
) -> Run:  # fmt: skip
    """The run over a grid that has been made. chosen_for: why its solver was, where a table chose it."""
    node = float(grid.nodes[0] if state is None else state["node"])
    if x is None:
        where = getattr(problem, "device", "cpu") if device is None else placed(device)
        check_batch(len(samples), getattr(problem, "shape", ()), where)
    with torch.set_grad_enabled(gradient is not None or torch.is_grad_enabled()):
        x0 = problem.start(x, samples, seed, node, dtype, device)
    if save == "all":
        check_trajectory(x0, len(grid) + 1)
    field = problem.field(solver, x0, samples, seed, eta)
    program = prepared(solver, grid, field, x0)
    mode = GradientMode(gradient, x0, problem.weights_count)
    loop, why = _loop(problem, solver, grid, field, program, x0, control, nfe, execution, mode)
    stats: dict[str, Any] = {"execution": loop.execution, "why": why}
    stats |= {"eta": field.eta} if solver.stochastic else {}
    stats |= {"chosen": chosen_for} if chosen_for else {}
    name = grid.name
    if isinstance(loop, AdaptiveLoop):
        name, stats = "adaptive", stats | {"rtol": loop.controller.rtol, "atol": loop.controller.atol}
    solution = Solution(
        x0, 0, grid, problem, solver.name or type(solver).__name__, name, steps=0, seed=seed,
        trajectory=[x0] if save == "all" else None, stats=stats,
    )  # fmt: skip
    if isinstance(loop, TapeLoop) and gradient == "checkpoint":
        raise SolverError("a tape is played once, and gradient='checkpoint' takes steps again; leave execution out")
    run = Run(solution, field, loop, samples, mode)
    if state is not None:
        run.resume(state)
    return run


def _loop(
    problem: Problem, method: Solver, grid: Grid, field: RightHandSide, program: Program, x: Tensor,
    control: Controller | None, nfe: int | None, execution: Execution, mode: GradientMode,
) -> tuple[FixedLoop | AdaptiveLoop, str]:  # fmt: skip
    if control is None:
        return chosen(method, field, program, x, execution, mode.enabled())
    calls = check_adaptive(method, field, control, problem, grid, x, execution)
    budget = None if nfe is None else whole(nfe, "nfe", GridError)
    loop = AdaptiveLoop(problem, method, control, grid, field, calls, budget)
    if budget is not None and budget < loop.fewest:
        raise too_few(budget, method, loop.fewest)
    return loop, "steps are chosen by their error"


def _given(*values: object) -> bool:
    return any(value is not None for value in values)


def _check_names(problem: object, save: str, execution: str, final: str, state: object) -> None:
    if not isinstance(problem, Problem):
        called = "; call the model with a prompt first: model(prompt='...')" if callable(problem) else ""
        raise ProblemError(f"problem must be a diffsolve Problem, got {type(problem).__name__}{called}")
    for name, value, known in (("save", save, _SAVE), ("execution", execution, _EXECUTION), ("final", final, _FINAL)):
        if not isinstance(value, str) or value not in known:
            choice(value, name, known)
    if state is not None and not (isinstance(state, Mapping) and {"samples", "seed", "x", "node"} <= state.keys()):
        raise SolverError(f"state must be what Run.state handed out, got {written(state)}")


def _solver(asked: str | Solver, form: str | None, problem: Problem) -> Solver:
    """The solver, in the form that is asked for."""
    solver = named_solver(asked) if isinstance(asked, str) else get_solver(asked)
    if form is None:
        return solver
    if not isinstance(form, str) or form not in FORMS:
        raise SolverError(f"unknown form {form!r}{did_you_mean(form, FORMS)}")
    if solver.form is None:
        raise SolverError(f"form = {form!r} was given, but {solver!r} is no method of a flow; leave it out")
    if not problem.forms:
        raise SolverError(f"form = {form!r} was given, but {type(problem).__name__} has its own; leave it out")
    if form == solver.form:
        return solver
    name = solver.name or type(solver).__name__
    named = f"{name[:-1]}, form={form})" if name.endswith(")") else f"{name}(form={form})"
    return solver.with_changes(form=form, name=named)


_MADE: dict[tuple[object, ...], tuple[Program, tuple[Solver, Grid, Form]]] = {}
"""Programs, each with what it was made of, so that no other takes its id."""


def prepared(solver: Solver, grid: Grid, field: RightHandSide, x: Tensor | None = None) -> Program:
    """`plan`, checked. A program is kept for the next run of the same solver object on the same grid and form.

    x: a state, on which a step that can't be traced is tried. Raises SolverError for a method that would leave out a
    part of the equation.
    """
    program = _kept(solver, grid, field)
    if x is not None and field.form.linear and not solver.traceable and leaves_linear_out(solver, field, program, x):
        raise _no_linear(solver, field)
    return program


def _kept(solver: Solver, grid: Grid, field: RightHandSide) -> Program:
    key: tuple[object, ...] = id(solver), id(grid), id(field.form), solver.steps_to_zero, field.constrained
    made = None if type(solver).plan is Solver.plan else plan(solver, grid, field)
    if made is not None:  # it may read more of the field than its form; a driver's has all of its spans in each
        key = (*key, id(made) if isinstance(solver, Driver) else made)
    key = (*key, field.traceable)
    if key not in _MADE:
        program = made or plan(solver, grid, field)
        _check_complete(solver, field, program)
        if made is not None and isinstance(solver, Driver):
            return program
        if len(_MADE) >= _MOST:
            del _MADE[next(iter(_MADE))]
        _MADE[key] = program, (solver, grid, field.form)
    return _MADE[key][0]


def _check_complete(solver: Solver, field: RightHandSide, program: Program) -> None:
    """Refuse a method that would leave out a part of the equation: the form's noise, or its linear part."""
    own = first_step(program)
    if not (own and solver.traceable and field.traceable):
        return
    span = own[0].span
    noise = field.form.noise_std(span.start, span.end)
    if not (field.form.linear or noise):
        return
    tape = record(solver, field, [own])
    if noise and not tape.draws and not solver.still_steps:
        raise SolverError(
            f"{solver!r} adds no noise, so it can't solve the reverse SDE; "
            "take a stochastic solver, eta = 0, or another form"
        )
    if field.form.linear and tape.start_factor == 1:
        raise _no_linear(solver, field)


def _no_linear(solver: Solver, field: RightHandSide) -> SolverError:
    return SolverError(
        f"{solver!r} leaves out the linear part of u' = {field.form.linear:g} u + f(u, s); "
        "add f.form.linear * u to each evaluation in its step, or take a form without one ('sigma', 'v', 'flow')"
    )
