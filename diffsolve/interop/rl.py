"""What reinforcement learning asks of a solve: the log-probabilities of its steps, under the model as it is now."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import SolverError
from ..field import EvaluationCache, Field, FieldView, Noise
from ..problem import Problem
from ..program import Advance, Denoise, plan
from ..registry import get_solver
from ..solution import Solution
from ..solver import Past, Renoise, Solver, Span

_MIDDLE = (
    "{!r} calls the network in the middle of its noise, so a step has no simple density; take a row of one evaluation "
    "a step, such as 'flow_grpo'"
)
Transition = tuple[Tensor, Tensor, Tensor | float]
"""(the state that was reached, the mean it was drawn about, the standard deviation), in the state of the form."""


def log_probs(
    solution: Solution, problem: Problem | None = None, solver: str | Solver | None = None, *, mean: bool = False
) -> Tensor:
    """log p(state | the states before it) of each step that adds noise, (steps, B), in order.

    solution: of a stochastic row of one evaluation a step, made with save="all". problem: the model to ask, the
    solution's own by default; a graph is kept where grad mode is on, so that ratios of two models, and their gradients,
    come from two calls. solver: where the solution's was no named row. mean: over a sample's numbers, as Flow-GRPO and
    DanceGRPO take it, rather than their sum. The density is that of the form's own state: x_t for flow_grpo.

    A step without noise has no density, and is left out: the last one to sigma = 0 as a rule. Raises SolverError.
    """
    rows = []
    for reached, middle, deviation in transitions(solution, problem, solver):
        spread = torch.as_tensor(deviation, dtype=reached.dtype, device=reached.device)
        density = -((reached - middle) ** 2) / (2 * spread**2) - spread.log() - math.log(2 * math.pi) / 2
        flat = density.expand_as(reached).reshape(len(reached), -1)
        rows.append(flat.mean(1) if mean else flat.sum(1))
    if not rows:
        raise SolverError(f"{solution.solver} added no noise in this solve; take a stochastic row, such as 'flow_grpo'")
    return torch.stack(rows)


def transitions(
    solution: Solution, problem: Problem | None = None, solver: str | Solver | None = None
) -> Iterator[Transition]:
    """(state reached, mean, standard deviation) of each step that adds noise, see `log_probs`."""
    states = solution.trajectory
    if states is None:
        raise SolverError("the states of the steps are needed: solve with save='all'")
    method = get_solver(solution.solver if solver is None else solver)
    if method.stages != 1:
        raise SolverError(_MIDDLE.format(method))
    asked = solution.problem if problem is None else problem
    field = asked.field(method, states[0], range(len(states[0])), solution.seed, solution.stats.get("eta"))
    past: Past = ()
    program = plan(method, solution.grid, field)
    for (op, *rest), node, x, after in zip(program, solution.nodes, states, states[1:], strict=False):
        if rest:
            raise SolverError("a constraint moves the states of this problem, so its steps have no simple density")
        u, reached = field.form.to_form(x, node), field.form.to_form(after, op.node or 0.0)
        if isinstance(op, Renoise):
            span, form = op.span, field.form
            past = ()
            yield reached, u * form.rescale(span.start, span.end), form.renoise_std(span.start, span.end)
        elif isinstance(op, Advance):
            known = EvaluationCache(field)
            quiet, loud = _Told(known, u, 0.0), _Told(known, u, 1.0)
            step, ahead = (method.step(view, u, op.span, past) for view in (quiet, loud))
            if len(known.known) > 1:
                raise SolverError(_MIDDLE.format(method))
            if quiet.told:
                yield reached, step.y, (ahead.y - step.y).detach()
            past = step.past
        elif not isinstance(op, Denoise):
            raise SolverError(f"{method!r} takes its steps by itself, so they have no density here")


class _Told(FieldView):
    """A field whose normals are one number."""

    def __init__(self, f: Field, like: Tensor, value: float) -> None:
        super().__init__(f)
        self.normals, self.told = torch.full_like(like, value), False

    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Tensor:
        self.told = True
        return self.normals
