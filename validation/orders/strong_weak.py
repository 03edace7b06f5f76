"""Strong and weak orders of stochastic solvers: errors on a refined Brownian path, and errors of the distribution.

Strong: the same path on grids of n, 2n, ... steps, the RMS over many samples of the distance from a fine solution of
its own (or from the exact one), so the moments below must tell that it is the SDE's. Weak: on a Gaussian problem a
traced step is an affine map, so that the mean and the variance of what a solver computes follow from its tape without
sampling, and are compared with the SDE's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from diffsolve import Noise, ProbabilityFlow, Problem, Run, Solver, SolverError, Span, find_solver, get_solver
from diffsolve.problems import GaussianMixture, SDEProblem

from ..palette import COLOURS, MARKERS
from ..problems import SMOOTH, mixture
from ..report import as_json
from ..runs import begin, finish
from .moments import moment_errors
from .order import ABOVE, BELOW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["strong", "weak"]
Paths = tuple[Tensor, list[Tensor]]  # where each ends in the reference, and on each grid
NS, QUICK = (8, 16, 32, 64, 128), (8, 16, 32, 64)
FINER = 8  # the reference has this many times the steps of the finest grid
SAMPLES, RESAMPLES = 1000, 400
FIT = 3  # of the finest grids
EXACT = "Gaussian, exact moments"


@dataclass(frozen=True)
class Convergence:
    """Errors at ns steps, their 95 % intervals, and the slope over the finest grids with its own, by bootstrap."""

    ns: tuple[int, ...]
    errors: tuple[float, ...]
    bands: tuple[tuple[float, float], ...]
    slope: float
    low: float
    high: float
    sampled: bool = False

    def meets(self, order: float, below: float = BELOW, above: float = ABOVE) -> bool:
        """Whether the slope is at most `below` under the order and at most `above` over it.

        Where it was `sampled` from differences that noise all but hides, its interval has to reach there.
        """
        least, most = (self.high, self.low) if self.sampled else (self.slope, self.slope)
        return least >= order - below and most <= order + above

    def __str__(self) -> str:
        first = self.ns[max(0, len(self.ns) - FIT)]
        return f"{self.slope:.2f} [{self.low:.2f}, {self.high:.2f}] over n = {first}..{self.ns[-1]}"


@dataclass(frozen=True)
class StochasticReport:
    """What was claimed of a stochastic solver and what was measured, by the name of the problem.

    The measured order is the least over the problems: a method is as good as the problem that exposes it.
    consistent: False where the moments do not go to the SDE's, so that what it converges to is another one's solution.
    """

    name: str
    kind: Kind
    claimed: float
    eta: float
    runs: Mapping[str, Convergence]
    consistent: bool = True

    @property
    def measured(self) -> float:
        runs = self.runs.values()
        return min(run.slope for run in [run for run in runs if not run.sampled] or runs)

    @property
    def passed(self) -> bool:
        """Every problem shows at least the claim less 0.15, and one of them at most 0.6 over it."""
        runs = self.runs.values()
        met = all(run.meets(self.claimed, above=np.inf) for run in runs) and any(map(self._shows, runs))
        return self.consistent and met

    def _shows(self, run: Convergence) -> bool:
        return run.meets(self.claimed)

    def _title(self) -> str:
        return f"{self.name}: {self.kind} order {self.claimed:g} claimed, eta = {self.eta:g}"

    def __str__(self) -> str:
        verdict = f"measured {self.measured:.2f}: {'met' if self.passed else 'NOT met'}"
        rows = [f"  {name:<26} {run}" for name, run in self.runs.items()]
        if not self.consistent:
            rows.append("  its mean and variance on a Gaussian do not go to the SDE's: it solves another equation")
        return "\n".join([f"{self._title()}; {verdict}", *rows])

    def to_json(self) -> str:
        """The report as JSON; what is not a number is null."""
        return as_json({
            "solver": self.name, "kind": self.kind, "claimed": self.claimed, "eta": self.eta,
            "measured": self.measured, "passed": self.passed, "consistent": self.consistent,
            "problems": {k: vars(v) for k, v in self.runs.items()},
        })  # fmt: skip

    def plot(self) -> Figure:
        """log error against log steps with 95 % bars; the dashed line has the claimed slope."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log", xlabel="steps n", ylabel=f"{self.kind} error")
        axes.set_xscale("log", base=2)
        for colour, marker, (name, run) in zip(COLOURS, MARKERS, self.runs.items(), strict=False):
            errors, (low, high) = np.array(run.errors), np.array(run.bands).T
            bars = [np.maximum(errors - low, 0), np.maximum(high - errors, 0)]
            axes.errorbar(run.ns, errors, bars, color=colour, marker=marker, capsize=3, lw=1, label=f"{name}: {run}")
        run = next(iter(self.runs.values()))
        n = np.array(run.ns, float)
        axes.plot(n, 2 * run.errors[-1] * (n / n[-1]) ** -self.claimed, "--", color="0.5", lw=1, zorder=0,
                  label=f"order {self.claimed:g}, as claimed")  # fmt: skip
        axes.grid(alpha=0.25)
        axes.set_title(f"{self._title()}: {'met' if self.passed else 'NOT met'}", loc="left", fontsize=11)
        axes.legend(fontsize=9, frameon=False)
        return figure


def validate_strong(
    solver: str | Solver,
    problem: Problem | None = None,
    *,
    eta: float = 1.0,
    claimed: float | None = None,
    ns: Sequence[int] | None = None,
    samples: int = SAMPLES,
    quick: bool = False,
) -> StochasticReport:
    """Measure the strong order of `solver` against its claim: the RMS distance along the same Brownian paths.

    problem: an SDEProblem or a diffusion of the user's own; by default the reverse SDE of a mixture, and geometric
    Brownian motion for a row tagged "multiplicative". eta: of the reverse SDE. claimed: by default the row's.
    ns: rising step counts, each a multiple of the one before. samples: of a diffusion.

    Raises SolverError where nothing is claimed, or for ns that don't refine one another.
    """
    method, claim = _claimed(solver, "strong", claimed)
    return _strong_report(method, claim, problem, eta, _counts(ns, quick), samples // 2 if quick else samples)


def _strong_report(
    method: Solver, claim: float, problem: Problem | None, eta: float, counts: tuple[int, ...], samples: int,
    paths: Paths | None = None, known: Mapping[int, float] | None = None,
) -> StochasticReport:  # fmt: skip
    """paths: of the mixture, at least as many as `samples`. known: errors of the moments that have been found."""
    if problem is not None:
        cases = {type(problem).__name__: problem}
    else:
        cases = {"mixture 2-D": mixture().problem}
        if "multiplicative" in _tags(method):
            cases["geometric Brownian motion"] = geometric(samples)
    runs = {
        name: _strong(paths if paths and case is mixture().problem else _paths(method, case, counts, eta, samples),
                      counts, samples)
        for name, case in cases.items()
    }  # fmt: skip
    consistent = problem is not None or _consistent(method, eta, known or {})
    return StochasticReport(method.name, "strong", claim, eta, runs, consistent)


def validate_weak(
    solver: str | Solver,
    *,
    eta: float = 1.0,
    claimed: float | None = None,
    ns: Sequence[int] | None = None,
    samples: int = 2 * SAMPLES,
    quick: bool = False,
) -> StochasticReport:
    """Measure the weak order of `solver` against its claim: the error of the first two moments.

    On the reverse SDE of a Gaussian they are propagated exactly through the tape, without sampling (a solver that can't
    be traced is not measured there); on that of a mixture by Monte Carlo, as differences from a fine run on the same
    paths. Arguments and errors as `validate_strong`.
    """
    method, claim = _claimed(solver, "weak", claimed)
    counts = _counts(ns, quick)
    paths = _paths(method, mixture().problem, counts, eta, samples // 2 if quick else samples)
    return _weak_report(method, claim, eta, counts, paths)


def _weak_report(
    method: Solver, claim: float, eta: float, counts: tuple[int, ...], paths: Paths
) -> StochasticReport:  # fmt: skip
    runs = {}
    if method.traceable:
        errors = [float(np.hypot(*moment_errors(method, n, eta))) for n in counts]
        pairs = -np.diff(np.log(errors[-FIT:])) / np.diff(np.log(counts[-FIT:]))
        bands = tuple((error, error) for error in errors)
        ends = float(pairs.min()), float(pairs.max())  # nothing is random here: how far neighbours differ
        runs[EXACT] = Convergence(counts, tuple(errors), bands, _slope(counts, errors), *ends)
    reference, ends_at = paths
    truth = _moments(reference)
    runs["mixture 2-D, sampled"] = _sampled(counts, np.array([_moments(x) - truth for x in ends_at]))
    return StochasticReport(method.name, "weak", claim, eta, runs)


def validate_both(solver: str | Solver, *, quick: bool = False) -> list[StochasticReport]:
    """`validate_strong` and `validate_weak` of what the solver claims, with one set of the mixture's paths for both."""
    method, half = get_solver(solver), 2 if quick else 1
    counts, paths = _counts(None, quick), None
    reports, known = [], dict[int, float]()
    if method.weak is not None:
        paths = _paths(method, mixture().problem, counts, 1.0, 2 * SAMPLES // half)
        reports.append(_weak_report(method, float(method.weak), 1.0, counts, paths))
        if EXACT in reports[-1].runs:
            known = dict(zip(counts, reports[-1].runs[EXACT].errors, strict=True))
    if method.strong is not None:
        reports.append(_strong_report(method, float(method.strong), None, 1.0, counts, SAMPLES // half, paths, known))
    return reports


def _consistent(method: Solver, eta: float, known: Mapping[int, float]) -> bool:
    """Whether eight times the steps leave less than half the error of the moments, as any order but 0 does."""
    if not method.traceable:
        return True
    coarse, fine = (known.get(n) or float(np.hypot(*moment_errors(method, n, eta))) for n in (8, 64))
    return fine < coarse / 2


def _moments(x: Tensor) -> np.ndarray:
    """(samples, functions): the components of x (samples, d) and their products."""
    flat = x.flatten(1)
    i, j = torch.triu_indices(flat.shape[1], flat.shape[1])
    return torch.cat([flat, flat[:, i] * flat[:, j]], 1).numpy()


def _sampled(counts: Sequence[int], gaps: np.ndarray, seed: int = 0) -> Convergence:
    """Norms of the mean gaps (ns, samples, functions); the slope is that of the grids whose gap stands out of noise."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, gaps.shape[1], (RESAMPLES, gaps.shape[1]))
    drawn = np.array([[np.linalg.norm(gap[pick].mean(0)) for pick in picks] for gap in gaps])
    errors = np.linalg.norm(gaps.mean(1), axis=-1)
    noise = np.sqrt(gaps.var(1).sum(-1) / gaps.shape[1])
    seen = int((errors > 3 * noise).sum())
    clear = max(2, seen)  # the coarse ones
    fit = [_slope(counts[:clear], column[:clear]) for column in drawn.T]
    low, high = np.quantile(fit, [0.025, 0.975]) if seen > 1 else (-math.inf, math.inf)  # noise hides the slope
    bands = tuple((float(a), float(b)) for a, b in np.quantile(drawn, [0.025, 0.975], axis=1).T)
    return Convergence(
        tuple(counts), tuple(map(float, errors)), bands, _slope(counts[:clear], errors[:clear]),
        float(low), float(high), sampled=True,
    )  # fmt: skip


def geometric(samples: int = SAMPLES, drift: float = 0.5, noise: float = 0.6) -> SDEProblem:
    """dx = drift x dt + noise x dW on (0, 1) from 1: the noise depends on the state, and the solution is known."""

    def exact(x: Tensor, t: float, s: float, w: Tensor) -> Tensor:
        return x * torch.exp((drift - noise * noise / 2) * (s - t) + noise * w)

    x0 = torch.ones(samples, 1, dtype=torch.float64)
    return SDEProblem(lambda t, x: drift * x, lambda t, x: noise * x, (0.0, 1.0), x0, exact)


def _tags(method: Solver) -> tuple[str, ...]:
    return find_solver(method.name.partition("(")[0]).tags if method.name else ()


def _claimed(solver: str | Solver, kind: Kind, claimed: float | None) -> tuple[Solver, float]:
    method = get_solver(solver)
    row = find_solver(method.name.partition("(")[0]) if method.name else None
    claim = claimed or (getattr(row, kind) if row else None)
    if claim is None:
        raise SolverError(f"{method!r} claims no {kind} order; register it with {kind}=, or pass claimed=")
    return method, float(claim)


def _counts(ns: Sequence[int] | None, quick: bool) -> tuple[int, ...]:
    counts = tuple(ns or (QUICK if quick else NS))
    if len(counts) < 2 or any(b <= a or b % a for a, b in pairwise(counts)):
        raise SolverError(f"ns must rise, each a multiple of the one before, so that grids refine; got {counts}")
    return counts


@torch.no_grad()
def _paths(method: Solver, problem: Problem, counts: tuple[int, ...], eta: float, samples: int) -> Paths:
    """The reference, exact where it is known, and the ends on grids of `counts` steps, along the same paths."""
    finest = FINER * counts[-1]
    given: float | None = eta
    if isinstance(problem, SDEProblem):
        x, (start, end), given = problem.x0.double(), problem.span, None
        nodes = np.linspace(start, end, finest + 1)
    elif isinstance(problem, ProbabilityFlow):
        known: GaussianMixture | None = mixture().problem if problem is mixture().problem else None
        start, end = SMOOTH if known else problem.span
        nodes = np.linspace(start ** (1 / 7), end ** (1 / 7), finest + 1) ** 7
        nodes[0], nodes[-1] = start, end
        x = known.noised(known.sample(samples), start) if known else problem.prior(samples, sigma=start)
    else:
        raise SolverError(f"orders of SDE methods are measured on an SDEProblem or a diffusion, got {problem!r}")

    def run(n: int) -> Run:
        return begin(problem, method, nodes[:: finest // n], x, given)

    ends = [finish(run(n)) for n in counts]
    exact = getattr(problem, "exact_path", None)
    if exact is None:
        return finish(run(finest)), ends
    w = run(counts[0]).field.normal(Span(start, end), Noise.WIENER) * abs(end - start) ** 0.5
    return exact(x, start, end, w), ends


def _strong(paths: Paths, counts: tuple[int, ...], samples: int) -> Convergence:
    reference, ends = paths
    squares = [(x - reference)[:samples].square().flatten(1).sum(1).numpy() for x in ends]
    return bootstrap(counts, np.array(squares))


def bootstrap(counts: Sequence[int], squares: np.ndarray, seed: int = 0) -> Convergence:
    """RMS errors from squared ones (ns, samples), with 95 % intervals of them and of their slope by resampling."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, squares.shape[1], (RESAMPLES, squares.shape[1]))
    drawn = np.sqrt(squares[:, picks].mean(-1))
    slopes = [_slope(counts, errors) for errors in drawn.T]
    errors = np.sqrt(squares.mean(1))
    low, high = np.quantile(slopes, [0.025, 0.975])
    bands = tuple((float(a), float(b)) for a, b in np.quantile(drawn, [0.025, 0.975], axis=1).T)
    return Convergence(tuple(counts), tuple(map(float, errors)), bands, _slope(counts, errors), float(low), float(high))


def _slope(counts: Sequence[int], errors: Sequence[float] | np.ndarray) -> float:
    return -float(np.polyfit(np.log(counts[-FIT:]), np.log(errors[-FIT:]), 1)[0])
