"""Checks of schedules, processes and problems."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch

from .. import ProbabilityFlow
from ..errors import DiffsolveError
from ..grid import Schedule, make_grid
from ..integrate import solve
from ..problem import Problem
from ..process import PROCESSES, Process, as_process
from ..registry import get_schedule
from .needs import of
from .world import gap

LEVELS = 33


def _rule(schedule: str | Schedule) -> Schedule:
    rule = get_schedule(schedule)[0]
    assert isinstance(rule, Schedule), f"expected a Schedule, got a {type(rule).__name__}"
    return rule


@of("schedule")
def check_nodes(schedule: str | Schedule) -> None:
    """On every process, 1 to 40 steps: as many nodes as asked for, finite, falling, from sigma_max to sigma_min."""
    rule = _rule(schedule)
    for name, process in PROCESSES.items():
        for n in (1, 2, 3, 10, 40):
            grid = make_grid(rule, n, process)
            nodes, where = grid.nodes, f"{name}, n = {n}"
            assert len(grid) == n, where
            assert nodes.dtype == np.float64, where
            assert np.isfinite(nodes).all(), where
            assert all(a > b for a, b in pairwise(nodes.tolist())), f"{where}: nodes don't fall"
            assert nodes[-1] > 0, where
            low, high = process.sigma_min / (1 + 1e-9), process.sigma_max * (1 + 1e-9)
            assert low <= nodes[-1] <= nodes[0] <= high, f"{where}: out of range"


@of("schedule")
def check_bounds(schedule: str | Schedule) -> None:
    """Narrower bounds are kept, and the same question has the same answer."""
    rule, process = _rule(schedule), as_process("vp")
    grids = [make_grid(rule, 5, process, sigma_min=0.1, sigma_max=20.0) for _ in range(2)]
    assert 0.1 / (1 + 1e-9) <= grids[0].nodes[-1] < grids[0].nodes[0] <= 20.0 * (1 + 1e-9)
    assert grids[0].nodes.tolist() == grids[1].nodes.tolist()


@of("schedule")
def check_solves(schedule: str | Schedule) -> None:
    """A solve takes its steps there."""
    from .world import mixture

    solution = solve(mixture(), "heun", _rule(schedule), 6)
    assert solution.x.isfinite().all()
    assert solution.steps == 6


def _levels(process: Process) -> np.ndarray:
    return np.geomspace(process.sigma_min * 1.001, process.sigma_max / 1.001, LEVELS)


@of("process")
def check_inverse(process: str | Process) -> None:
    """sigma(t) rises, or falls, all along; t(sigma) is its inverse, and the ends are those of the trained range."""
    made = as_process(process)
    sigmas = _levels(made)
    times = np.array([made.t(float(sigma)) for sigma in sigmas])
    steps = np.diff(times)
    assert (steps > 0).all() or (steps < 0).all(), "t(sigma) turns"
    back = np.array([made.sigma(float(t)) for t in times])
    assert np.allclose(back, sigmas, rtol=1e-9), "t is not the inverse of sigma"
    assert 0 < made.sigma_min < made.sigma_max < math.inf


@of("process")
def check_arrays(process: str | Process) -> None:
    """Each map takes a number and a numpy array, and says the same: floats of floats, float64 arrays of arrays."""
    made = as_process(process)
    sigmas = _levels(made)
    for name, values in (("t", sigmas), ("alpha", sigmas), ("c_noise", sigmas), ("sigma", made.t(sigmas))):
        function = getattr(made, name)
        whole, single = function(values), [function(float(value)) for value in values]
        assert isinstance(whole, np.ndarray), f"{name} of an array is a {type(whole).__name__}"
        assert whole.dtype == np.float64, f"{name} of an array has dtype {whole.dtype}"
        assert all(isinstance(one, float) for one in single), f"{name} of a float is no float"
        assert np.allclose(whole, single, rtol=1e-12), f"{name} of an array differs from its floats"


@of("process")
def check_rates(process: str | Process) -> None:
    """alpha lies in (0, 1] or is what scales the state; the rates are the maps' slopes, by finite differences."""
    made = as_process(process)
    for sigma in _levels(made)[1:-1].tolist():
        assert made.alpha(sigma) > 0, f"alpha at sigma = {sigma:g}"
        step = sigma * 1e-5
        slope = (math.log(made.alpha(sigma + step)) - math.log(made.alpha(sigma - step))) / (2 * step)
        rate = made.log_alpha_rate(sigma)
        assert abs(slope - rate) <= 1e-4 * max(abs(rate), abs(slope), 1e-6 / sigma), f"log_alpha_rate at {sigma:g}"
    inside = np.linspace(0.11, 0.87, 7) * (made.t_max - made.t_min) + made.t_min
    for t in inside.tolist():
        step = 1e-5 * abs(made.t_max - made.t_min)
        slope = (made.sigma(t + step) - made.sigma(t - step)) / (2 * step)
        rate = made.sigma_rate(t)
        assert abs(slope - rate) <= 1e-2 * abs(slope), f"sigma_rate at t = {t:g}: {rate:.6g}, the slope is {slope:.6g}"


@of("process")
def check_flow(process: str | Process) -> None:
    """In its own time, as in sigma, the flow of a Gaussian is the known one."""
    from .world import gaussian

    problem = gaussian((2,), as_process(process))  # type: ignore[arg-type]
    x = problem.prior(2)
    for form in ("sigma", "time"):
        end = solve(problem, f"heun(form={form})", "lambda", 200, x=x, final="none").x
        off = gap(end, problem.exact(x, *problem.span))
        assert off < 2e-2, f"in the form {form!r} it is off by {off:.2g}"


@of("problem")
def check_solve(problem: Problem) -> None:
    """It is solved by its default, finite, the same again, and its own x is left as it is."""
    first, again = (solve(problem, n=4, seed=3) for _ in range(2))
    assert first.x.isfinite().all()
    assert torch.equal(first.x, again.x)


def _flow(problem: Problem) -> ProbabilityFlow | None:
    return problem if isinstance(problem, ProbabilityFlow) else None


@of("problem")
def check_denoiser(problem: Problem) -> None:
    """A diffusion's denoiser: of the state's shape and dtype, y untouched, a level a sample as levels one by one."""
    flow = _flow(problem)
    if flow is None:
        return
    y = flow.prior(3, seed=2)
    before = y.clone()
    levels = np.geomspace(flow.process.sigma_min * 1.1, flow.process.sigma_max * 0.9, 3)
    whole = flow.denoiser(y, torch.from_numpy(levels)).denoised
    assert whole.shape == y.shape
    assert whole.dtype == y.dtype
    assert torch.equal(y, before), "the state was changed"
    for i, level in enumerate(levels.tolist()):
        one = flow.denoiser(y[i : i + 1], level).denoised
        assert gap(one, whole[i : i + 1]) < 1e-4, f"sigma = {level:g}: a level a sample is another answer"


@of("problem")
def check_samples(problem: Problem) -> None:
    """A sample does not know its batch."""
    flow = _flow(problem)
    if flow is None:
        return
    whole, alone = (solve(flow, "heun", n=4, batch=batch, seed=3).x for batch in (4, [2]))
    assert gap(alone, whole[2:3]) < 1e-4


@of("problem")
def check_record(problem: Problem) -> None:
    """Its reverse SDE and its reverse are problems of the same class, and it is left as it is."""
    flow = _flow(problem)
    if flow is None:
        return
    for other in (flow.sde(0.5), flow.reversed(), flow.sde(0.5).reversed()):
        assert type(other) is type(flow)
    assert (flow.eta, flow.upward) == (flow.replace().eta, flow.replace().upward)
    noisy = solve(flow.sde(0.5), "euler_ancestral", n=4, seed=1)
    assert noisy.x.isfinite().all()
    start = flow.noised(noisy.x, flow.process.sigma_min)
    assert solve(flow.reversed(), "heun", n=4, x=start).x.isfinite().all()


@of("problem")
def check_exact(problem: Problem) -> None:
    """Where it knows its flow, solvers find it."""
    flow = _flow(problem)
    if flow is None or not hasattr(flow, "exact"):
        return
    x = flow.prior(2, seed=4)
    try:
        end = flow.exact(x, *flow.span)
    except DiffsolveError:
        return
    errors = [gap(solve(flow, "heun", "lambda", n, x=x, final="none").x, end) for n in (100, 200)]
    assert errors[1] < min(0.05, errors[0]), f"off by {errors[1]:.2g} at 200 steps, {errors[0]:.2g} at 100"
