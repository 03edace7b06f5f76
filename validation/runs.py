"""Runs on given nodes, begun and put right by the public API: what every measurement here makes its steps with."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
from torch import Tensor

from diffsolve import Grid, Problem, Run, Solver, start
from diffsolve.problem import freeze
from diffsolve.problems import SemilinearODE


def begin(
    problem: Problem, solver: Solver, nodes: Sequence[float] | np.ndarray, x: Tensor, eta: float | None = None
) -> Run:
    """A run over `nodes` from x, (B, *shape) at the first of them; one that would choose its own steps takes these."""
    if isinstance(problem, SemilinearODE) and nodes[0] != problem.span[0]:  # an exact past lies before the span
        problem = copy(problem)
        freeze(problem, span=(float(nodes[0]), float(nodes[-1])))
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
