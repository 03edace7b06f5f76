"""A grid fitted to a model: the nodes with which a solver ends nearest to the flow, found from a few trajectories.

The nodes' steps in log sigma are the unknowns, and what is made small is the distance at the end, by Gauss and
Newton's iterations on finite differences: no training, some twenty solves of a batch for every step of the grid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve import GridError, ProbabilityFlow, ProblemError, Solver, SolverError, get_schedule, get_solver, solve
from diffsolve.grid import Grid, Nodes, Tabulated, steps_of
from diffsolve.registry import GRID_FILE
from diffsolve.validate import whole

RULES = ("karras", "ays", "exponential", "linspace", "simple", "beta")
"""Where the search may begin, at whichever is best; the first two are what it is measured against."""
REFERENCE = ("dpmpp_2m", "karras", 100)
MOST = 200  # steps: each round takes a solve for every one of them
LEAST = 0.02  # of an even share of log sigma: what a step keeps
STARTS = 16  # with 8 of Fashion a grid of ten steps is 1.15 times ays on others, with 16 it is 0.71
DIFFERENCE, LONGEST = 0.03, 0.7  # of log lengths: for the slopes, and at most in a round
TRIES, SETTLED = 4, 0.01  # of longer dampings in a round; a gain in the mean log error that is not worth another


@dataclass(frozen=True)
class TunedGrid:
    """The nodes, and the errors that they were chosen by.

    sigmas: the nodes, and the end of the trained range, whose place a 0 takes. fitted, held: median errors at the end
    relative to the flow's, by grid, on the starts that the nodes were fitted to and on others; "tuned" is this one.
    provenance: of what and by what.
    """

    sigmas: tuple[float, ...]
    solver: str
    fitted: Mapping[str, float]
    held: Mapping[str, float]
    solves: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def schedule(self) -> Tabulated:
        """For `solve(schedule=)`; the same as the name of the file that `to_json` makes."""
        return Tabulated(self.sigmas)

    @property
    def gain(self) -> float:
        """The error on starts that it has not seen, over that of the better of the rules it is measured against."""
        return self.held["tuned"] / min(self.held[name] for name in RULES[:2])

    def to_json(self) -> str:
        """What `schedule="file.json"` reads."""
        told = {"solver": self.solver, "steps": len(self.sigmas) - 1, "fitted": dict(self.fitted),
                "held_out": dict(self.held), "solves": self.solves} | dict(self.provenance)  # fmt: skip
        return json.dumps({GRID_FILE: 1, "sigmas": list(self.sigmas), "made": told}, indent=1) + "\n"

    def __str__(self) -> str:
        lines = [f"{len(self.sigmas) - 1} steps of {self.solver}, from {self.solves} solves; median errors at the end",
                 f"  {'grid':<12} {'fitted':>9} {'held out':>9}"]  # fmt: skip
        lines += [f"  {name:<12} {self.fitted[name]:9.2e} {error:9.2e}" for name, error in self.held.items()]
        return "\n".join([*lines, f"  held out, {self.gain:.2f} times the better of {' and '.join(RULES[:2])}"])


@torch.no_grad()
def tune(
    problem: ProbabilityFlow,
    solver: str | Solver | None = None,
    n: int = 10,
    *,
    batch: int = STARTS,
    held: ProbabilityFlow | None = None,
    seed: int = 0,
    rounds: int = 6,
    reference: tuple[str, str, int] = REFERENCE,
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[str], object] = bool,
) -> TunedGrid:
    """Fit the grid of `n` steps from sigma_max to sigma_min, and to 0, on `batch` starts of the problem's prior.

    held: what the result is judged on, other prompts than the problem's, say; by default the same with other starts.
    rounds: of Gauss and Newton, n + 2 solves each. reference: solver, schedule and steps of what stands for the flow.
    A stochastic solver is fitted at eta = 0. Raises SolverError or ProblemError for what can't be solved, and
    GridError for n.
    """
    if not isinstance(problem, ProbabilityFlow):
        raise ProblemError(f"a grid is fitted to a diffusion's flow, got {type(problem).__name__}")
    method, n = method_of(problem.default_solver if solver is None else solver, n), steps_of(n)
    many = whole(batch, "batch", ProblemError)
    fit = Fit(problem, method, n, range(many), seed, reference)
    judge = Fit(held or problem, method, n, range(many, 2 * many), seed, reference)
    rules = {name: problem.grid(get_schedule(name)[0], n, final="denoise", sigma_min=None, sigma_max=None, name=name)
             for name in RULES}  # fmt: skip
    gaps = {name: fit.gaps(grid.nodes) for name, grid in rules.items()}
    found = {name: _error(each) for name, each in gaps.items()}
    best = min(found, key=lambda name: found[name])
    progress(f"begins from {best}: {found[best]:.2e}")
    nodes, ends = fitted(fit, rules[best].nodes, gaps[best], rounds, progress)
    held_out = {name: _error(judge.gaps(grid.nodes)) for name, grid in rules.items()}
    return TunedGrid(
        (*nodes.tolist(), fit.low), method.name or type(method).__name__, found | {"tuned": _error(ends)},
        held_out | {"tuned": _error(judge.gaps(nodes))}, fit.solves + judge.solves, provenance or {},
    )


def method_of(solver: str | Solver, n: int) -> Solver:
    """The solver whose grid of n steps is to be fitted. Raises SolverError and GridError for what has no such grid."""
    method = get_solver(solver)
    if method.controller is not None:
        raise SolverError(f"{method!r} chooses its steps as it goes, so there is no grid to fit; give it rtol instead")
    whole(n, "the number of steps of a grid that is fitted", GridError, 2, MOST)
    return method


class Fit:
    """What ends where, of some starts."""

    def __init__(
        self, problem: ProbabilityFlow, solver: Solver, n: int, samples: range, seed: int,
        reference: tuple[str, str, int],
    ) -> None:  # fmt: skip
        self.problem, self.solver, self.n, self.samples, self.seed, self.solves = problem, solver, n, samples, seed, 0
        self.eta = 0.0 if solver.stochastic else None
        self.low = problem.process.sigma_min
        name, schedule, steps = reference
        self.truth = solve(problem, name, schedule, steps, batch=samples, seed=seed).x.double()
        self.size = self.truth.flatten(1).norm(dim=1)

    def gaps(self, nodes: Nodes) -> Tensor:
        """From the flow's end, over its size: (B, d)."""
        self.solves += 1
        grid = Grid(nodes, "tuned", "denoise")
        x = solve(self.problem, self.solver, grid, batch=self.samples, seed=self.seed, eta=self.eta).x
        return (x.double() - self.truth).flatten(1) / self.size[:, None]

    def nodes(self, lengths: Nodes, first: float) -> Nodes:
        """Those with steps of such lengths in log sigma from the first, which end no lower than the trained range."""
        room = math.log(first / self.low) * (1 - LEAST / self.n)
        lengths = np.maximum(np.exp(lengths), LEAST * room / self.n)
        lengths *= min(1.0, room / lengths.sum())
        return np.concatenate([[first], first * np.exp(-np.cumsum(lengths))])


def _error(gaps: Tensor) -> float:
    """The median over starts."""
    return float(gaps.norm(dim=1).median())


def fitted(
    fit: Fit, start: Nodes, gaps: Tensor, rounds: int, progress: Callable[[str], object] = bool
) -> tuple[Nodes, Tensor]:
    """Levenberg's and Marquardt's way down the mean log error of the starts, whose gaps are each over their size.

    From the start and its gaps to the nodes and theirs.
    """
    first, z = float(start[0]), np.log(-np.diff(np.log(start)))
    if not np.allclose(fit.nodes(z, first), start, rtol=1e-12):  # no room is left below it
        gaps = fit.gaps(fit.nodes(z, first))
    damping = 1e-2
    for i in range(rounds):
        size = gaps.norm(dim=1, keepdim=True)
        moved = [fit.gaps(fit.nodes(z + step, first)) for step in DIFFERENCE * np.eye(len(z))]
        slopes = np.stack([((each - gaps) / size).flatten().cpu().numpy() for each in moved], axis=1) / DIFFERENCE
        pull, normal = slopes.T @ (gaps / size).flatten().cpu().numpy(), slopes.T @ slopes
        for _ in range(TRIES):
            step = -np.linalg.solve(normal + damping * np.diag(normal.diagonal() + 1e-12), pull)
            trial = z + step * min(1.0, LONGEST / np.abs(step).max())
            there = fit.gaps(fit.nodes(trial, first))
            better = float((there.norm(dim=1) / size[:, 0]).log().mean())
            if better < 0:
                break
            damping *= 10
        else:
            break
        z, gaps, damping = trial, there, damping / 10
        progress(f"round {i + 1} of {rounds}: {_error(gaps):.2e}")
        if better > -SETTLED:
            break
    return fit.nodes(z, first), gaps
