"""Checks of what is solved: the right equation in every form, both ways, its noise, its order and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal
from unittest import SkipTest

import torch
from torch import Tensor

from ..errors import SolverError
from ..form import FORMS
from ..integrate import solve
from ..problems import Gaussian, GaussianMixture, ODEProblem, SemilinearODE
from ..registry import SOLVERS
from ..solver import Solver
from .needs import of_solvers
from .world import FINALS, gap, gaussian, knows_linear, mixture, numbers, swing, swung

WEIGHT = numbers(2, 2, stream=-9)
MODES: tuple[Literal["backprop", "checkpoint"] | None, ...] = (None, "backprop", "checkpoint")


def _equation(linear: float, span: tuple[float, float], x0: Tensor) -> ODEProblem | SemilinearODE:
    return SemilinearODE(linear, swing, span, x0) if linear else ODEProblem(swing, span, x0)


def _low(solver: Solver) -> bool:
    return (solver.order_as_started or solver.order or 0) < 2


def _soon(solver: Solver) -> bool:
    """Whether few steps show that it converges: they are dear, and there is no start to get over."""
    return not solver.history and not _low(solver)


def _linears(solver: Solver) -> tuple[float, ...]:
    return (0.0, -2.0, 0.7) if knows_linear(solver) else (0.0,)


@of_solvers("no noise")
def check_ode(solver: Solver) -> None:
    """It solves an ordinary differential equation, with a linear part too where a step takes it in."""
    x0, counts = torch.tensor([0.3, -0.8], dtype=torch.float64), (32, 64) if _soon(solver) else (64, 128)
    for linear in _linears(solver):
        problem = _equation(linear, (0.5, 2.0), x0)
        runs = [solve(problem, solver, n=n) for n in counts]
        _halves([gap(run.x, swung(linear)) for run in runs], 0.02, f"linear part {linear:g}")
        assert runs[1].sigmas[[0, -1]].tolist() == [0.5, 2.0]
        if solver.traceable:
            assert gap(solve(problem, solver, n=counts[0], execution="tape").x, runs[0].x) < 1e-12


@of_solvers("no noise")
def check_backwards(solver: Solver) -> None:
    """It goes back in time, and what it encodes it decodes."""
    low = _low(solver)
    for linear in _linears(solver):
        problem = _equation(linear, (2.0, 0.5), swung(linear))
        ends = [solve(problem, solver, n=n).x for n in (64, 128)]
        began = torch.tensor([0.3, -0.8], dtype=torch.float64)
        # backwards errors grow e^3-fold under L = -2: CAB's, larger by its weight of 0.9 for 5/12, to 0.023
        high = 0.02 if linear >= 0 else 0.025
        _halves([gap(x, began) for x in ends], 0.5 if low else high, f"linear part {linear:g}")
    flow = mixture()
    x, errors = flow.noised(flow.sample(8), flow.process.sigma_min), []
    for n in (32, 64):
        latents = solve(flow.reversed(), solver, n=n, x=x).x
        errors.append(gap(solve(flow, solver, n=n, x=latents, final="none").x, x))
    row = SOLVERS.entries.get(solver.name)
    # a reversible method has another root, which grows where steps do
    least = 1e-2 if row is not None and "reversible" in row.tags else 2e-3
    _halves(errors, 0.08 if low else least, "encoded and decoded")


def _halves(errors: Sequence[float], least: float, what: str) -> None:
    """Twice the steps are better, and good enough."""
    coarse, fine = errors
    assert fine < least, f"{what}: the error is {fine:.2g}, expected less than {least:g}"
    better = fine < 0.65 * coarse or fine < 1e-11
    assert better, f"{what}: twice the steps take the error from {coarse:.2g} to {fine:.2g}"


@of_solvers("no noise")
def check_forms(solver: Solver) -> None:
    """Every form is the same flow; those with a linear part where a step takes it in."""
    problem = gaussian((2,), "vp")
    x, counts = problem.prior(2, sigma=20.0), (40, 80) if _soon(solver) else (60, 120)
    exact = problem.exact(x, 20.0, 0.1)
    for name, form in FORMS.items():
        if form.stochastic or (form.linear and not knows_linear(solver)):
            continue
        method = solver.with_changes(form=name)
        asked = {"x": x, "sigma_max": 20.0, "sigma_min": 0.1, "final": "none"}
        errors = [gap(solve(problem, method, "lambda", n, **asked).x, exact) for n in counts]
        _halves(errors, 0.1, f"form {name}")


@of_solvers("no noise")
def check_data(solver: Solver) -> None:
    """It reaches the data of a Gaussian, however it ends."""
    problem = gaussian((2,))
    x = problem.prior(3, seed=1)
    for final in FINALS:
        solution = solve(problem, solver, "karras", 80, x=x, final=final)
        end = 0.0 if final != "none" else problem.process.sigma_min
        found = gap(solution.x, problem.exact(x, problem.process.sigma_max, end))
        assert found < 0.03, f"final={final!r}: off by {found:.2g}"
        assert abs(solution.sigmas[-1] - end) < 1e-12


@of_solvers()
def check_noise(solver: Solver) -> None:
    """A stochastic method draws by the seed, by default at eta = 1, and nothing at eta = 0; an ODE's draws nothing."""
    problem = mixture()

    def ends(eta: float | None) -> list[Tensor]:
        return [solve(problem, solver, n=8, x=problem.prior(2, seed=9), eta=eta, seed=seed).x for seed in (0, 1)]

    if not solver.stochastic:
        assert torch.equal(*ends(None)), "it is not declared stochastic, and the seed changes its run"
        return
    assert torch.equal(*ends(0.0)), "at eta = 0 the seed changes the run"
    assert gap(*ends(None)) > 1e-2, "the seed does not change the run"
    assert torch.equal(ends(solver.eta)[0], ends(None)[0])


def _slope(f: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> float:
    """The derivative of a number along a direction, by central differences of order 4."""
    h = 1e-3
    with torch.no_grad():
        a, b, c, d = (float(f(at + k * h * along)) for k in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - d) / (12 * h)


def _agrees(f: Callable[[Tensor, str | None], Tensor], at: Tensor, along: Tensor, what: str) -> None:
    expected = _slope(lambda x: f(x, None), at, along)
    for mode in MODES:
        x = at.clone().requires_grad_()
        end = f(x, mode)
        assert end.requires_grad, f"gradient={mode!r} with respect to {what}: there is none"
        (gradient,) = torch.autograd.grad(end, x)
        off = abs(float((gradient * along).sum()) - expected) / max(abs(expected), 1e-2)
        assert off <= 1e-6, f"gradient={mode!r} with respect to {what}: off by {off:.2g}"


@of_solvers("order", "steps")
def check_gradient(solver: Solver) -> None:
    """The gradient with respect to the start, and an ODE's parameters, is that of finite differences in float64."""
    problem = mixture()

    def end(x: Tensor, mode: str | None) -> Tensor:
        return (solve(problem, solver, n=4, x=x, seed=2, gradient=mode).x * WEIGHT).sum()  # type: ignore[arg-type]

    _agrees(end, problem.prior(2), numbers(2, 2), "x")
    if solver.stochastic:
        return
    x0 = torch.tensor([0.5, -0.3], dtype=torch.float64)

    def of_parameters(p: Tensor, mode: str | None) -> Tensor:
        ode = ODEProblem(lambda t, x: torch.cos(p[:2] * x + t) * p[2], (0.0, 1.0), x0 + p[3])
        return solve(ode, solver, n=5, gradient=mode).x.sum()  # type: ignore[arg-type]

    at, along = torch.tensor([[0.7, 1.2, 0.9, 0.1], [1.0, -0.5, 0.3, 0.8]], dtype=torch.float64)
    _agrees(of_parameters, at, along, "parameters")


@of_solvers("order")
def check_order(solver: Solver) -> None:
    """The order that is claimed, by proof where there is one, and measured, as started and with an exact start."""
    from ..validation import validate_conditions, validate_order
    from ..validation.problems import problem_set

    proof = validate_conditions(solver)
    assert proof.passed is not False, f"\n{proof}"
    early = proof.passed is True
    if not solver.history:
        reports = [validate_order(solver, quick=True, early=early)]
    else:  # on a flow alone, for time; steps as one to three show weights of even ones
        row, flow = SOLVERS.entries.get(solver.name), problem_set(solver, quick=True)[-1]
        grid = "uneven" if row is not None and "even weights" in row.tags else "jagged"
        started = validate_order(solver, flow, early=early, quick=True)
        exact = validate_order(solver, flow, start="exact", grid=grid, early=early, quick=True)
        reports = [started, exact]
    for report in reports:
        assert report.passed, f"\n{report}"


@of_solvers("noise", "order")
def check_sde_orders(solver: Solver) -> None:
    """The strong and the weak order that are claimed on the reverse SDE, measured."""
    from ..validation.orders.strong_weak import validate_both

    reports = validate_both(solver, quick=True)
    if not reports:
        raise SkipTest("it claims no order on the SDE")
    for report in reports:
        assert report.passed, f"\n{report}"


@of_solvers("no noise")
def check_error_estimate(solver: Solver) -> None:
    """Where a step estimates its error, steps chosen by it are as good as they are asked to be."""
    problem: Gaussian | GaussianMixture = gaussian((3,))
    x = problem.prior(4)
    exact = problem.exact(x, *problem.span)
    try:
        coarse, fine = (gap(solve(problem, solver, rtol=r, x=x, final="none").x, exact) for r in (1e-2, 1e-5))
    except SolverError as error:
        if "gives no estimate of its error" in str(error) or "plans its own steps" in str(error):
            raise SkipTest(str(error)) from error
        raise
    assert coarse < 0.5, f"rtol = 1e-2 leaves {coarse:.2g}"
    assert fine < min(5e-3, coarse / 10), f"rtol = 1e-5 leaves {fine:.2g}, 1e-2 leaves {coarse:.2g}"
