"""The network calls of a run, worked out before the first of them."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ... import ProbabilityFlow
from ...denoiser import Output
from ...errors import SolverError
from ...field import Evaluation, Noise
from ...grid import Grid
from ...integrate import prepared, start
from ...problem import RightHandSide
from ...program import External, FixedLoop, Program, State
from ...run import Answered
from ...solver import Solver, Span
from ...tape import Evaluate, record
from .calls import Call, Nature, Units, absent, c_in, network_of
from .compile import compiled


class Recipe(NamedTuple):
    """What a plan is made of: the arguments of `start`."""

    nature: Nature
    solver: Solver
    schedule: str | object
    nfe: int | None
    final: str
    sigma_min: float | None = None
    sigma_max: float | None = None
    eta: float | None = None


class Plan:
    """The network calls of a run in their order. Immutable; `tail(step)` is that of the steps from one on.

    base: how many steps of the recipe's own plan come before it.
    """

    def __init__(
        self, recipe: Recipe, grid: Grid, field: RightHandSide, program: Program, base: int = 0
    ) -> None:  # fmt: skip
        self.recipe, self.grid, self.field, self.program, self.base = recipe, grid, field, program, base
        self.network = network_of(recipe.nature)
        self.units = Units(field.form, self.network, recipe.nature.clip)
        tape = record(recipe.solver, field, program) if recipe.solver.traceable and field.traceable else None
        self.traced = tape is not None and tape.linear
        if tape is not None and tape.linear:
            self.calls = tuple(compiled(tape, self.units))
        else:
            self.calls = tuple(self._probed())
        self.starts = [i for i, call in enumerate(self.calls) if call.first]
        self.end = program.nodes[-1]
        self.tail = lru_cache(maxsize=None)(self._tail)

    def __len__(self) -> int:
        return len(self.calls)

    @property
    def stochastic(self) -> bool:
        """Whether noise may be drawn."""
        return bool(self.recipe.solver.stochastic)

    def told(self, index: int, t: float) -> bool:
        """Whether that is what the network is told in a call, as float32 has it."""
        own = self.calls[index].t
        return abs(own - t) <= 2e-7 * abs(own)

    def begin(self, index: int) -> int:
        """The call nearest to call `index` that is the first of its step; the later of two."""
        return min(self.starts, key=lambda start: (abs(start - index), -start))

    def _tail(self, step: int) -> Plan:
        """The plan of the steps from `step` on, begun afresh."""
        if step == 0:
            return self
        grid = self.grid[self.grid.sigmas.tolist().index(self.program.nodes[step]) :]
        return Plan(self.recipe, grid, self.field, prepared(self.recipe.solver, grid, self.field), self.base + step)

    def step_of(self, index: int) -> int:
        """Which step of the recipe's own plan a call is of."""
        return self.base + self.calls[index].step

    def problem(self, shape: tuple[int, ...], x: Tensor) -> ProbabilityFlow:
        """The problem whose states are like x, with nobody in the network's place."""
        return ProbabilityFlow(
            denoiser=self.network, process=self.network.process, shape=shape, dtype=x.dtype, device=x.device
        )

    def field_of(self, x: Tensor, seeds: list[int]) -> RightHandSide:
        """The field of states like x (B, *shape), its noise keyed by the seed of each sample."""
        return self.problem(tuple(x.shape[1:]), x).field(self.recipe.solver, x, seeds, 0, self.recipe.eta)

    @cached_property
    def unmixed(self) -> bool:
        """Whether the solver would read the answer without guidance, which a pipeline does not hand on."""
        if not self.traced:
            return False
        guided = copy(self.field)
        guided.guided = True
        try:
            ops = [line.op for line in record(self.recipe.solver, guided, self.program.steps[:1]).operations]
        except SolverError:  # it asks to be told more of the guidance
            return True
        return any(name == "unconditional" for op in ops if isinstance(op, Evaluate) for name, _ in op.parts)

    def _probed(self) -> Iterator[Call]:
        """The calls of a solver that can't be traced: those of a run in which the network answers 0."""
        loop, state = FixedLoop(self.recipe.solver, self.program), State(self.program.start, torch.ones(1, 1))
        while not state.ended:
            probe = _Probe(self.field)
            after = loop.next(state, probe)
            for i, s in enumerate(probe.asked):
                sigma = self.field.form.sigma(s)
                yield Call(sigma, self.units.told(sigma), state.steps, i == 0)
            state = after


@lru_cache(maxsize=64)
def make_plan(recipe: Recipe) -> Plan:
    """The plan of a recipe. Raises SolverError for a solver whose calls can't be told ahead, and as `start` does."""
    nature, solver = recipe.nature, recipe.solver
    if solver.controller is not None:
        raise SolverError(
            f"{solver!r} chooses its steps as it goes, so a scheduler can't list their times; "
            "call diffsolve.interop.diffusers.run(pipe, solver=..., rtol=...)"
        )
    if solver.form is None:
        raise SolverError(f"{solver!r} is no method of a flow; take one such as 'dpmpp_2m'")
    problem = ProbabilityFlow(absent, nature.process, nature.prediction, shape=(1,))
    run = start(
        problem, solver, recipe.schedule, nfe=recipe.nfe, final=recipe.final, sigma_min=recipe.sigma_min,  # type: ignore[arg-type]
        sigma_max=recipe.sigma_max, eta=recipe.eta, x=torch.zeros(1, 1),
    )  # fmt: skip
    program = prepared(solver, run.solution.grid, run.field)
    if any(isinstance(op, External) for op, *_ in program):
        raise SolverError(
            f"{solver!r} makes its calls by itself; call diffsolve.interop.diffusers.run(pipe, solver=...)"
        )
    return Plan(recipe, run.solution.grid, run.field, program)


class _Probe(Answered):
    """A field whose network answers 0 and which draws no noise; it notes where it was asked."""

    def __init__(self, f: RightHandSide) -> None:
        super().__init__(f, ())
        self.asked: list[float] = []

    def evaluate(self, u: Tensor, s: float, /) -> Evaluation:
        self.asked.append(s)
        zero = torch.zeros_like(u)
        return Evaluation(zero, zero, zero)

    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Tensor:
        return torch.zeros(1, 1)


def answered(plan: Plan, raw: Tensor, x: Tensor, sigma: float) -> Output:
    """What the network's answer means at x: `NetworkDenoiser.output`, clipped where the data estimate is."""
    output = plan.network.output(x / c_in(plan.network, sigma), raw, sigma)
    clip = plan.units.clip
    return output if clip is None else output._replace(denoised=clip(output.denoised))
