"""What the checks solve: tiny problems whose answers are known, and problems that watch a solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from .. import ProbabilityFlow, normals
from ..denoiser import Sigma
from ..engine.quality import relative_gaps
from ..field import Evaluation, Field, Noise, Vector
from ..form import PlainForm
from ..grid import Final
from ..problem import RightHandSide
from ..problems import Gaussian, GaussianMixture
from ..problems.processes import EDM
from ..program import Advance
from ..solver import Past, Solver, Span, Step

FINALS: tuple[Final, ...] = ("denoise", "step", "none")


def numbers(*shape: int, stream: int = -7) -> Tensor:
    """Fixed normals, float64."""
    return normals(11, (0,), stream, shape, torch.float64, "cpu")[0]


def mixture(
    shape: Sequence[int] = (2,), process: str = "sd", dtype: torch.dtype = torch.float64
) -> GaussianMixture:
    """Three components, so that the flow is nonlinear."""
    return GaussianMixture(numbers(3, *shape), [0.3, 0.5, 0.2], [1, 2, 3], process, dtype=dtype)


def gaussian(shape: Sequence[int] = (2,), process: str = "sd", dtype: torch.dtype = torch.float64) -> Gaussian:
    """A Gaussian of any shape, () too: its flow is known exactly."""
    return Gaussian(numbers(*shape), 0.5 + 0.1 * numbers(*shape, stream=-8).abs(), process, dtype=dtype)


def gap(a: Tensor, b: Tensor) -> float:
    """The distance of a from b relative to b, of all their numbers."""
    return float(relative_gaps(a[None], b[None]))


def swing(t: float, u: Tensor) -> Tensor:
    """A right-hand side that reads the time, the state and both its numbers."""
    return torch.cos(u * t).flip(0) + t * t


@cache
def swung(linear: float, start: float = 0.5, end: float = 2.0) -> Tensor:
    """Where u' = linear u + swing(t, u) leads from (0.3, -0.8), to 13 digits."""

    def full(t: float, u: np.ndarray) -> np.ndarray:
        rate: np.ndarray = linear * u + swing(t, torch.from_numpy(u)).numpy()
        return rate

    run = solve_ivp(full, (start, end), [0.3, -0.8], "DOP853", rtol=1e-13, atol=1e-13)
    return torch.from_numpy(run.y[:, -1])


class Watched(ProbabilityFlow):
    """Another problem, with every evaluation counted and every state that was handed out remembered.

    at: {evaluation number: function of the denoised tensor}, what to do instead at the k-th evaluation (from 1).
    """

    def __init__(self, inner: ProbabilityFlow, at: dict[int, Callable[[Tensor], Tensor]] | None = None) -> None:
        super().__init__(process=inner.process, shape=inner.shape, dtype=inner.dtype)
        self.inner, self.at, self.calls = inner, at or {}, 0
        self.seen: list[tuple[Tensor, Tensor]] = []

    def denoise(self, y: Tensor, sigma: Sigma) -> Tensor:
        self.calls += 1
        self.seen.append((y, y.clone()))
        out = self.inner.denoise(y, sigma)
        return self.at[self.calls](out) if self.calls in self.at else out

    @property
    def untouched(self) -> bool:
        """Whether the states that were evaluated still hold what they held then."""
        return all(torch.equal(state, copy) for state, copy in self.seen)


class OneBuffer(ProbabilityFlow):
    """Another problem, whose every answer is the same memory."""

    def __init__(self, inner: ProbabilityFlow, batch: int) -> None:
        self.inner, self.buffer = inner, torch.empty(batch, *inner.shape, dtype=inner.dtype)
        super().__init__(process=inner.process, shape=inner.shape, dtype=inner.dtype)

    def denoise(self, y: Tensor, sigma: Sigma) -> Tensor:
        return self.buffer.copy_(self.inner.denoise(y, sigma))


class StubForm(PlainForm):
    """u' = linear u + N in the state and the variable as they are, noise of one deviation over every interval."""

    name = "stub"

    def __init__(self, linear: float, noise: float) -> None:
        super().__init__(EDM())
        self.linear, self._noise = linear, noise

    def weights(self, sigma: float) -> tuple[float, float]:
        return 0.0, -1 / sigma

    def noise_std(self, start: float, end: float) -> float:
        return self._noise

    def diffusion(self, s: float) -> float:
        return self._noise


class Stub(Field):
    """A solver's `f` over any kind of number: N = 0.3 s u^2 - u/2."""

    nfe = 0

    def __init__(self, linear: float, noise: float = 0.0) -> None:
        self.form, self.eta = StubForm(linear, noise), float(noise > 0)
        self.one: Vector = 1.0

    def evaluate(self, u: Vector, s: float, /) -> Evaluation:
        self.one = u * 0.0 + 1.0
        return Evaluation(u * u * (0.3 * s) - u * 0.5)

    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Vector:
        return self.one * (0.2 + span.start)


def spans(nodes: Sequence[float]) -> list[Span]:
    return [Span(a, b, i, len(nodes) - 1) for i, (a, b) in enumerate(pairwise(nodes))]


def advances(steps: Sequence[Span]) -> list[tuple[Advance]]:
    """The program that takes a solver's own step over each."""
    return [(Advance(span, span.end),) for span in steps]


def by_hand(solver: Solver, f: Field, y: Vector, steps: Sequence[Span], keep: int | None = None) -> list[Vector]:
    """The states of a solver that is stepped without the loop; keep: how much of `past` it is handed back."""
    past: Past = ()
    states = []
    for span in steps:
        done = solver.step(f, y, span, past)
        y, past = done.y, done.past if keep is None else done.past[max(len(done.past) - keep, 0) :]
        states.append(y)
    return states


def knows_linear(solver: Solver) -> bool:
    """Whether a step takes the linear part of u' = L u + f(u, s) in; one that does not is refused there."""

    class Nothing(Stub):
        def evaluate(self, u: Vector, s: float, /) -> Evaluation:
            return Evaluation(u * 0.0)

    one = torch.ones(1, 2, dtype=torch.float64)
    try:
        done = solver.step(Nothing(-1.0), one, Span(0.0, 1.0), ())
    except Exception:  # a step that asks for more than this field has
        return True
    return not isinstance(done, Step) or not torch.equal(done.y, one)


__all__ = [
    "FINALS", "OneBuffer", "RightHandSide", "Stub", "StubForm", "Watched", "advances", "by_hand", "gap", "gaussian",
    "knows_linear", "mixture", "numbers", "spans", "swing", "swung",
]  # fmt: skip
