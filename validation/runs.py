"""Runs on given nodes, begun and put right by the public API: what every measurement here makes its steps with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from diffsolve import Grid, Problem, Run, Solution, Solver, start
from diffsolve.problems import SemilinearODE


def begin(
    problem: Problem, solver: Solver, nodes: Sequence[float] | np.ndarray, x: Tensor, eta: float | None = None
) -> Run:
    """A run over `nodes` from x, (B, *shape) at the first of them; one that would choose its own steps takes these."""
    if isinstance(problem, SemilinearODE) and nodes[0] != problem.span[0]:  # an exact past lies before the span
        problem = problem.replace(span=(float(nodes[0]), float(nodes[-1])))
    fixed = solver.with_changes(controller=None)
    return start(problem, fixed, Grid(np.asarray(nodes)), x=x, final="none", eta=eta)


def begin_flow(problem: Problem, solver: Solver, nodes: Sequence[float] | np.ndarray, x: Tensor) -> Run:
    """The same of the ODE: a stochastic solver at eta = 0."""
    return begin(problem, solver, nodes, x, 0.0 if solver.stochastic else None)


def finish(run: Run) -> Tensor:
    """The state at the last node."""
    for _ in run:
        pass
    return run.solution.x


def go_on_from(run: Run, x: Tensor) -> None:
    """Put the state x in the place of the run's own where it stands; its history stays."""
    saved = run.state
    run.resume(saved | {"u": run.field.form.to_form(x, saved["node"])})


@contextmanager
def on(problem: str) -> Iterator[None]:
    """What is raised inside is said to be of that problem."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"on problem {problem}")
        raise


def failure(solver: str, kind: str, error: BaseException) -> str:
    """ "x: failed on problem mixture, step 3 of 20 (5 -> 4): KeyError: 'y'", or in what else it failed."""
    notes, said = getattr(error, "__notes__", []), f"{type(error).__name__}: {error}"
    names = [note.removeprefix("on problem ") for note in notes if note.startswith("on problem ")]
    solution = getattr(error, "solution", None)
    if not names and isinstance(solution, Solution):
        names = [type(solution.problem).__name__]
    places = [note.removeprefix("diffsolve: in ") for note in notes if note.startswith("diffsolve: in step")]
    if found := re.match(r"(step \d+[^()]*\([^()]*\)): (.*)", str(error), re.DOTALL):
        places, said = [found[1]], f"{type(error).__name__}: {found[2]}"
    where = f"on problem {names[0]}" if names else f"in {kind}"
    return f"{solver}: failed {where}{f', {places[0]}' if places else ''}: {said}"
