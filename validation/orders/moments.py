"""The mean and the variance of what a traced solver computes on a Gaussian problem, without sampling.

The denoiser of a Gaussian is affine, so every register of the tape is an affine function of the start and of the draws,
component by component; the draws are jointly normal with known covariances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from diffsolve import Grid, Noise, Solver, SolverError, Span, plan, record
from diffsolve.form import Form, as_form
from diffsolve.problems import Gaussian
from diffsolve.problems.diffusion import DiffusionField
from diffsolve.tape import Combine, Draw, Evaluate, Line, Tape

from ..problems import SMOOTH

MEAN, STD = (0.7, -1.2, 0.3), (0.5, 1.0, 1.6)
OFF, NARROW = 1.0, 0.25  # the start: this many deviations from the marginal's mean, and this share of its variance

Array = NDArray[np.float64]
Moments = tuple[Array, Array]
"""Mean and variance, each by component."""


@dataclass(frozen=True)
class _Data:
    """The Gaussian's data, and its denoiser on affine functions (component, [1, start, draw 1, ...])."""

    mean: Array
    variance: Array

    def evaluated(self, form: Form, part: str, u: Array, s: float) -> Array:
        sigma = form.sigma(s)
        share = self.variance / (self.variance + sigma**2)
        denoised: Array = u / form.scale(sigma) * share[:, None]
        denoised[:, 0] += self.mean * (1 - share)
        if part == "denoised":
            return denoised
        on_state, on_denoised = form.weights(sigma)
        value: Array = on_state * u + on_denoised * denoised
        return value


def moment_errors(solver: Solver, n: int, eta: float = 1.0) -> tuple[float, float]:
    """Relative errors, in deviations and in variances of the end, of the mean and of the variance after n steps.

    Raises SolverError for a solver that can't be traced, or draws noise whose covariances are not known here.
    """
    problem = Gaussian(MEAN, STD, process="vp")
    start, end = SMOOTH
    x = torch.zeros(1, len(MEAN), dtype=torch.float64)
    field = problem.field(solver, x, (0,), 0, eta)
    assert isinstance(field, DiffusionField)
    nodes = np.linspace(start ** (1 / 7), end ** (1 / 7), n + 1) ** 7
    nodes[0], nodes[-1] = start, end
    tape = record(solver, field, plan(solver, Grid(nodes), field))
    data = _Data(np.array(MEAN), np.array(STD) ** 2)
    total = data.variance + start**2
    first = data.mean + OFF * np.sqrt(total), NARROW * total
    got = _propagated(tape, field.form, data, first, start, end)
    true = _exact(field, data, first, start, end)
    return (
        float(np.abs((got[0] - true[0]) / np.sqrt(true[1])).max()),
        float(np.abs(got[1] / true[1] - 1).max()),
    )


def _propagated(tape: Tape, form: Form, data: _Data, first: Moments, start: float, end: float) -> Moments:
    draws = [line for line in tape.operations if isinstance(line.op, Draw)]
    shape = len(data.mean), 2 + len(draws)

    def unit(column: int, size: float = 1.0) -> Array:
        row = np.zeros(shape)
        row[:, column] = size
        return row

    rows = {0: unit(1, form.scale(start))}
    drawn = 0
    for line in tape.operations:
        op = line.op
        if isinstance(op, Draw):
            rows[op.out] = unit(2 + drawn)
            drawn += 1
            continue
        total: Array = sum((c * rows[r] for r, c in zip(op.row, line.coefficients, strict=True)), np.zeros(shape))
        if isinstance(op, Evaluate):
            rows.update({out: data.evaluated(form, part, total, line.s) for part, out in op.parts})
        elif isinstance(op, Combine):
            rows[op.out] = total
        else:
            raise SolverError(f"what {op} does to a state is not known here")
    y = rows[tape.structure[-1].out] / form.scale(end)
    noise = y[:, 2:]
    spread = (noise @ _covariances(form, draws) * noise).sum(1)
    return y[:, 0] + y[:, 1] * first[0], y[:, 1] ** 2 * first[1] + spread


def _covariances(form: Form, draws: list[Line]) -> Array:
    """Of standard normals that belong to intervals of the same Brownian path, or to paths of their own."""
    covariance = np.eye(len(draws))
    for i, one in enumerate(draws):
        for j, two in enumerate(draws[:i]):
            covariance[i, j] = covariance[j, i] = _covariance(form, one, two)
    return covariance


def _covariance(form: Form, one: Line, two: Line) -> float:
    assert isinstance(one.op, Draw)
    assert isinstance(two.op, Draw)
    assert one.span is not None
    assert two.span is not None
    same = one.op.kind is two.op.kind and one.span.visit == two.span.visit
    return _overlap(form, one.op.kind, one.span, two.span) if same else 0.0


def _overlap(form: Form, kind: Noise, one: Span, two: Span) -> float:
    if kind in (Noise.INCREMENT, Noise.RENOISE):
        (a, b), (c, d) = (sorted(form.variance_at(s) for s in (span.start, span.end)) for span in (one, two))
        return max(0.0, min(b, d) - max(a, c)) / math.sqrt((b - a) * (d - c))
    if (one.start, one.end) == (two.start, two.end):
        return 1.0
    sense = 1 if one.h > 0 else -1
    if max(sense * one.start, sense * two.start) >= min(sense * one.end, sense * two.end):
        return 0.0
    raise SolverError(f"the covariance of {kind.value!r} over intervals that overlap in part is not known")


def _exact(field: DiffusionField, data: _Data, first: Moments, start: float, end: float) -> Moments:
    """mean' = a mean + b and variance' = 2 a variance + g^2 of the form's own SDE, to 1e-12."""
    from scipy.integrate import solve_ivp

    form = field.form if field.form.stochastic else as_form("sde", field.problem.process, field.eta)
    k, s0, s1 = len(data.mean), form.variable(start), form.variable(end)

    def rate(s: float, both: Array) -> Array:
        sigma = form.sigma(s)
        share = data.variance / (data.variance + sigma**2)
        on_state, on_denoised = form.weights(sigma)
        a = form.linear + on_state + on_denoised * share / form.scale(sigma)
        # a falling variable runs the SDE backwards: its noise still adds variance
        noise = form.diffusion(s) ** 2 * np.sign(s1 - s0)
        return np.concatenate([a * both[:k] + on_denoised * data.mean * (1 - share), 2 * a * both[k:] + noise])

    scale = form.scale(start)
    begin = np.concatenate([first[0] * scale, first[1] * scale**2])
    run = solve_ivp(rate, (s0, s1), begin, "DOP853", rtol=1e-12, atol=1e-13)
    scale = form.scale(end)
    return run.y[:k, -1] / scale, run.y[k:, -1] / scale**2
