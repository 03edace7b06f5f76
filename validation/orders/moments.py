"""The mean and the variance of what a traced solver computes on a Gaussian problem, without sampling.

The denoiser of a Gaussian is affine, so every register of the tape is an affine function of the start and of the draws,
component by component; the draws are jointly normal with known covariances.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffsolve import DiffusionField, Grid, Solver, SolverError, Span, Tape, as_form, problems, record, spans_of

from .problems import SMOOTH

MEAN, STD = (0.7, -1.2, 0.3), (0.5, 1.0, 1.6)
OFF, NARROW = 1.0, 0.25  # the start: this many deviations from the marginal's mean, and this share of its variance


def moment_errors(solver: Solver, n: int, eta: float = 1.0) -> tuple[float, float]:
    """Relative errors, in deviations and in variances of the end, of the mean and of the variance after n steps.

    Raises SolverError for a solver that can't be traced, or draws noise whose covariances are not known here.
    """
    problem = problems.Gaussian(MEAN, STD, process="vp")
    start, end = SMOOTH
    x = torch.zeros(1, len(MEAN), dtype=torch.float64)
    field = problem.field(solver, x, (0,), 0, eta)
    assert isinstance(field, DiffusionField)
    nodes = np.linspace(start ** (1 / 7), end ** (1 / 7), n + 1) ** 7
    nodes[0], nodes[-1] = start, end
    tape = record(solver, field, solver.plan(spans_of(Grid(nodes), field), field))
    mean, variance = np.array(MEAN), np.array(STD) ** 2
    total = variance + start**2
    first = mean + OFF * np.sqrt(total), NARROW * total
    got = _propagate(tape, field, mean, variance, *first, start, end)
    true = _exact(solver, field, mean, variance, *first, start, end)
    return (
        float(np.abs((got[0] - true[0]) / np.sqrt(true[1])).max()),
        float(np.abs(got[1] / true[1] - 1).max()),
    )


def _propagate(
    tape: Tape, field: DiffusionField, mean: Any, variance: Any, m: Any, v: Any, start: float, end: float
) -> tuple[Any, Any]:
    draws: list[Any] = [op for op in tape.operations if hasattr(op, "kind")]
    place = {op.out: i for i, op in enumerate(draws)}
    # each register: (component, [1, start, draw 1, ...])
    size = 2 + len(draws)
    rows: dict[int, Any] = {0: np.zeros((len(mean), size))}
    rows[0][:, 1] = field.form.scale(start)
    out = rows[0]
    for step in tape.steps:
        operations: Any = step.operations
        for op in operations:
            if op.out in place:
                rows[op.out] = np.zeros((len(mean), size))
                rows[op.out][:, 2 + place[op.out]] = 1
                continue
            total = sum(c * rows[register] for register, c in op.row)
            if hasattr(op, "s"):
                total = _evaluated(field, mean, variance, total, op.s, op.final)
                if op.plain is not None:
                    rows[op.plain] = total
            rows[op.out] = total
        out = rows[step.out]
    y = out / field.form.scale(end)
    noise = y[:, 2:]
    spread = (noise @ _covariances(field, [(op.kind, op.span) for op in draws]) * noise).sum(1)
    return y[:, 0] + y[:, 1] * m, y[:, 1] ** 2 * v + spread


def _evaluated(field: DiffusionField, mean: Any, variance: Any, u: Any, s: float, final: bool) -> Any:
    sigma = field.form.sigma(s)
    share = variance / (variance + sigma**2)
    denoised = u / field.form.scale(sigma) * share[:, None]
    denoised[:, 0] += mean * (1 - share)
    if final:
        return denoised
    on_state, on_denoised = field.form.weights(sigma)
    return on_state * u + on_denoised * denoised


def _covariances(field: DiffusionField, draws: list[tuple[str, Span]]) -> Any:
    """Of standard normals that belong to intervals of the same Brownian path, or to paths of their own."""
    covariance = np.eye(len(draws))
    for i, (kind, span) in enumerate(draws):
        for j, (other, before) in enumerate(draws[:i]):
            if (kind, span.up, span.visit) == (other, before.up, before.visit):
                covariance[i, j] = covariance[j, i] = _overlap(field, kind, span, before)
    return covariance


def _overlap(field: DiffusionField, kind: str, one: Span, two: Span) -> float:
    if kind == "draw":
        (a, b), (c, d) = (sorted(field.form.clock(s) for s in (span.start, span.end)) for span in (one, two))
        return max(0.0, min(b, d) - max(a, c)) / float(np.sqrt((b - a) * (d - c)))
    if (one.start, one.end) == (two.start, two.end):
        return 1.0
    way = 1 if one.h > 0 else -1
    if max(way * one.start, way * two.start) >= min(way * one.end, way * two.end):
        return 0.0
    raise SolverError(f"the covariance of {kind!r} over intervals that overlap in part is not known")


def _exact(
    solver: Solver, field: DiffusionField, mean: Any, variance: Any, m: Any, v: Any, start: float, end: float
) -> tuple[Any, Any]:
    """mean' = a mean + b and variance' = 2 a variance + g^2 of the form's own SDE, to 1e-12."""
    from scipy.integrate import solve_ivp

    form = field.form if field.form.stochastic else as_form("sde", field.problem.process, field.eta)
    k = len(mean)

    def rate(s: float, both: Any) -> Any:
        sigma = form.sigma(s)
        share = variance / (variance + sigma**2)
        on_state, on_denoised = form.weights(sigma)
        a = form.linear + on_state + on_denoised * share / form.scale(sigma)
        # a falling variable runs the SDE backwards: its noise still adds variance
        noise = form.diffusion(s) ** 2 * np.sign(last - first)
        return np.concatenate([a * both[:k] + on_denoised * mean * (1 - share), 2 * a * both[k:] + noise])

    first, last = form.variable(start), form.variable(end)
    scale = form.scale(start)
    run = solve_ivp(rate, (first, last), np.concatenate([m * scale, v * scale**2]), "DOP853", rtol=1e-12, atol=1e-13)
    scale = form.scale(end)
    return run.y[:k, -1] / scale, run.y[k:, -1] / scale**2
