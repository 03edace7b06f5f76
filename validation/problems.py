"""Problems that can expose a wrong method: nonlinear, time-dependent, vector-valued, each with a trusted reference.

A linear or autonomous problem is blind to wrong nodes, a scalar one to some trees from order 5 on. Seeds and dimensions
are parameters, so that nothing can be tuned to one case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from diffsolve import ProbabilityFlow, Problem, ProblemError, Solver, SolverError, normals
from diffsolve.form import as_form
from diffsolve.problems import Gaussian, GaussianMixture, ODEProblem, SemilinearODE

from .runs import begin, on

Nodes = np.ndarray
STREAM = -16  # of the keyed normals that coefficients and starting points are drawn from
STRETCH = 1.0  # an uneven grid of an ODE grows its steps by e^STRETCH from end to end
STARTS = 16  # over many, terms of neighbouring orders can't cancel at one n and bend the slope
JAG = 0.25  # of a step: how far a jagged grid's nodes are moved, to and fro, so that neighbouring steps are as 3 to 1
SMOOTH = (8.0, 0.5)  # sigma: where a mixture's asymptotic regime begins before the rounding floor
GRIDS = ("uneven", "uniform", "jagged")


class Case:
    """A problem with its start, its end (as grid nodes: t, or sigma) and the exact state at any node.

    x: the state at `start`, (B, *shape). exact: node -> state, where it is known; else the reference is integrated by
    DOP853 (in log sigma for a flow) and kept. resolution: relative errors under it can't be told from the reference's.
    """

    def __init__(
        self,
        name: str,
        problem: Problem,
        start: float,
        end: float,
        x: Tensor,
        *,
        exact: Callable[[float], Tensor] | None = None,
        rtol: float = 1e-13,
        atol: float = 1e-14,
    ) -> None:
        self.name, self.problem, self.start, self.end, self.x = name, problem, start, end, x
        self.rtol, self.atol, self.resolution = rtol, atol, rtol
        self._exact = exact
        self._known = {start: x}

    @property
    def flow(self) -> ProbabilityFlow:
        """The problem, where it is a diffusion. Raises ProblemError where it is none."""
        if not isinstance(self.problem, ProbabilityFlow):
            raise ProblemError(f"expected a flow of noise levels, got {type(self.problem).__name__}")
        return self.problem

    def at(self, node: float) -> Tensor:
        """The exact state at a node, before `start` too."""
        if node not in self._known:
            self._known[node] = self._exact(node) if self._exact else self._integrate(node)
        return self._known[node]

    def error(self, x: Tensor) -> float:
        """RMS error of x at the end over the RMS of the exact state."""
        exact = self.at(self.end)
        return float((x.double() - exact).norm() / exact.norm())

    def nodes(self, grid: str, solver: Solver, n: int, before: int = 0) -> Nodes:
        """`n` steps from start to end, and `before` steps of the same map ahead of them.

        grid: "uneven" (a smooth map: Karras' for a flow), "uniform" in the variable of the solver's form, or "jagged"
        (the uneven map of nodes that are moved to and fro: no smooth map has them). Ends are exact.
        """
        places = np.arange(-before, n + 1, dtype=float)
        if grid == "jagged":
            places += np.where((places == 0) | (places == n), 0, JAG * (-1) ** (np.arange(-before, n + 1) % 2))
        xi = places / n
        if isinstance(self.problem, ProbabilityFlow):
            nodes = self._flow_nodes(grid, solver, xi)
        elif grid == "uniform":
            nodes = self.start + xi * (self.end - self.start)
        else:
            nodes = self.start + (self.end - self.start) * np.expm1(STRETCH * xi) / math.expm1(STRETCH)
        nodes[before], nodes[-1] = self.start, self.end
        return nodes

    def _flow_nodes(self, grid: str, solver: Solver, xi: Nodes) -> Nodes:
        if grid == "uniform":
            form = as_form(solver.form or "sigma", self.flow.process)
            first, last = form.variable(self.start), form.variable(self.end)
            return np.array([form.sigma(float(s)) for s in first + xi * (last - first)])
        first, last = self.start ** (1 / 7), self.end ** (1 / 7)
        return (first + xi * (last - first)) ** 7

    def has_room(self, nodes: Nodes) -> bool:
        """Whether every node lies where the problem is defined."""
        steps = np.diff(nodes) * math.copysign(1, self.end - self.start)
        inside = bool(np.isfinite(nodes).all() and (steps > 0).all())
        if isinstance(self.problem, ProbabilityFlow):
            return inside and self.problem.process.sigma_max >= nodes.max() and nodes.min() > 0
        return inside

    def _rate(self, s: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat).reshape(self.x.shape)
        if isinstance(self.problem, ProbabilityFlow):  # dy/dlog sigma = sigma eps = y - D
            rate = x - self.problem.denoise(x, math.exp(s))
        else:
            assert isinstance(self.problem, SemilinearODE)
            rate = self.problem.f(s, x) + self.problem.linear * x
        return rate.double().numpy().ravel()

    def _integrate(self, node: float) -> Tensor:
        from scipy.integrate import solve_ivp

        nearest = min(self._known, key=lambda known: abs(known - node)) if self._before(node) else self.start
        ends = [math.log(s) if isinstance(self.problem, ProbabilityFlow) else s for s in (nearest, node)]
        begin = self._known[nearest].double().numpy().ravel()
        run = solve_ivp(self._rate, ends, begin, method="DOP853", rtol=self.rtol, atol=self.atol)
        if not run.success:
            raise ProblemError(f"no reference for {self.name} at {node:g}: {run.message}")
        return torch.from_numpy(run.y[:, -1]).reshape(self.x.shape)

    def _before(self, node: float) -> bool:
        return (node - self.start) * (self.end - self.start) < 0

    def __repr__(self) -> str:
        return f"<{self.name}: {self.start:g} -> {self.end:g}, x {tuple(self.x.shape)}>"


def _draw(seed: int, stream: int, *shape: int) -> Tensor:
    return normals(seed, (0,), STREAM - stream, shape, torch.float64, "cpu")[0]


def _named(name: str, seed: int) -> str:
    return f"{name}, seed {seed}" if seed else name


@lru_cache
def clocked_logistic(seed: int = 0, count: int = STARTS) -> Case:
    """x' = x (1 - x) cos t, whose solution is x = 1/(1 + c e^(-sin t)): scalar, from `count` starts."""
    x0 = torch.sigmoid(2 * _draw(seed, 0, count))
    odds = (1 - x0) / x0

    def exact(t: float) -> Tensor:
        return 1 / (1 + odds * math.exp(-math.sin(t)))

    problem = ODEProblem(lambda t, x: x * (1 - x) * math.cos(t), (0.0, 3.0), x0)
    return Case(_named("clocked logistic", seed), problem, 0.0, 3.0, x0, exact=exact)


@lru_cache
def neural(seed: int = 0, dim: int = 4, linear: float = 0.0, count: int = STARTS) -> Case:
    """x' = linear x + B sin(A x + w t + c) with A, B, w, c drawn: every derivative is there, no tree vanishes."""
    a, b = (_draw(seed, i, dim, dim) / math.sqrt(dim) for i in (1, 2))
    w, c = (_draw(seed, i, dim) for i in (3, 4))

    def f(t: float, x: Tensor) -> Tensor:
        return torch.sin(x @ a + (w * t + c)) @ b

    x = _draw(seed, 5, count, dim)
    problem = SemilinearODE(linear, f, (0.0, 3.0), x) if linear else ODEProblem(f, (0.0, 3.0), x)
    return Case(_named(f"{'semilinear' if linear else 'neural'} {dim}-D", seed), problem, 0.0, 3.0, x)


def semilinear(seed: int = 0, dim: int = 4, linear: float = -1.0) -> Case:
    """`neural` with a linear part: what tells phi_1/2 from phi_2."""
    return neural(seed, dim, linear)


def _mixture(seed: int, dim: int, modes: int) -> GaussianMixture:
    means = 1.5 * _draw(seed, 6, modes, dim)
    stds = torch.linspace(0.5, 0.9, modes, dtype=torch.float64)
    weights = torch.linspace(1.0, 2.0, modes, dtype=torch.float64)
    return GaussianMixture(means, stds, weights, process="vp", labels=[k % 2 for k in range(modes)])


def _starts(mixture: GaussianMixture, seed: int, count: int, sigma: float) -> Tensor:
    return mixture.noised(mixture.sample(count, seed), sigma, seed + 1)


@lru_cache
def mixture(seed: int = 0, dim: int = 2, modes: int = 5, count: int = STARTS) -> Case:
    """The flow of a Gaussian mixture over a range of sigma where it is smooth, so that its order can be seen."""
    problem = _mixture(seed, dim, modes)
    return Case(_named(f"mixture {dim}-D", seed), problem, *SMOOTH, _starts(problem, seed, count, SMOOTH[0]))


@lru_cache
def guided(seed: int = 0, dim: int = 2, modes: int = 5, count: int = STARTS, guidance: float = 3.0) -> Case:
    """The mixture under classifier-free guidance, over the same range."""
    free = _mixture(seed, dim, modes)
    flow = free.guided(1, guidance)
    return Case(_named(f"guided {dim}-D", seed), flow, *SMOOTH, _starts(free, seed, count, SMOOTH[0]))


@lru_cache
def gaussian(seed: int = 0, dim: int = 8, count: int = STARTS) -> Case:
    """The flow of a Gaussian with deviations of 0.5 to 2, which is known exactly."""
    flow = Gaussian(_draw(seed, 7, dim), torch.linspace(0.5, 2.0, dim, dtype=torch.float64), process="vp")
    start, end = SMOOTH
    x = flow.noised(flow.sample(count, seed), start, seed + 1)
    return Case(_named(f"gaussian {dim}-D", seed), flow, start, end, x, exact=lambda s: flow.exact(x, start, s))


def problem_set(solver: Solver, quick: bool = False) -> list[Case]:
    """What an order is measured on: ODEs with and without a linear part, mixtures with and without guidance.

    quick: the two that expose the most. A stochastic solver lives on diffusions alone, and one that leaves out the
    linear part (which solve refuses where it counts) on problems without one. On the Gaussian an order above 7 meets
    rounding before its leading term rules.
    """
    flows = [mixture(), guided(), mixture(dim=64, modes=10, count=4)]
    flows += [gaussian()] if (solver.order or 0) <= 7 else []
    if solver.stochastic:
        return flows[:1] if quick else flows
    odes = [semilinear(), neural(), clocked_logistic()] if _keeps_linear(solver) else [neural(), clocked_logistic()]
    return [odes[0], flows[0]] if quick else [*odes, *flows]


@torch.no_grad()
def _keeps_linear(solver: Solver) -> bool:
    """Whether a step of u' = -u moves; `start` refuses one that is seen not to."""
    decay = SemilinearODE(-1.0, lambda t, x: 0 * x, (0.0, 1.0), torch.ones(1, dtype=torch.float64))
    try:
        with on("u' = -u"):
            visit = begin(decay, solver, [0.0, 1.0], decay.x0).step()
    except SolverError:
        return False
    return visit is not None and bool(visit.x != decay.x0)


def as_case(problem: Problem | Case, seed: int = 0, rtol: float = 1e-13) -> Case:
    """A user's problem with a reference: an ODE over its span, a flow over the trained range from two of its priors."""
    if isinstance(problem, Case):
        return problem
    name = type(problem).__name__
    if isinstance(problem, SemilinearODE):
        first, last = problem.span
        return Case(name, problem, first, last, problem.x0.double(), rtol=rtol)
    if isinstance(problem, ProbabilityFlow):
        start, end = problem.span
        return Case(name, problem, start, end, problem.prior(2, seed), rtol=rtol)
    raise ProblemError(f"an order is measured on a diffsolve Problem with a reference, got {name}")
