"""What the contract tests share: the registry as parameters, tiny exact problems, and problems that watch a solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import diffsolve as ds
from diffsolve import problems

torch.set_num_threads(1)  # the problems are tiny; threads would only wait for each other

# A solver with a controller takes what steps it will: test_adaptive.py.
ENTRIES = [entry for entry in ds.list_solvers() if entry.form in ds.FORMS and entry.build().controller is None]
SOLVERS = [entry.name for entry in ENTRIES]
DETERMINISTIC = [entry.name for entry in ENTRIES if not entry.stochastic]
STOCHASTIC = [entry.name for entry in ENTRIES if entry.stochastic]
TRACEABLE = [name for name in SOLVERS if ds.get_solver(name).traceable]
ONE_STEP = [entry.name for entry in ENTRIES if "one-step" in entry.tags]  # of the state alone, wherever in the run
ONE_OF_EACH_KIND = ["rk4", "dpm_solver_3", "dpmpp_2m", "lms", "plms", "unipc", "damped_abm"]
SCHEDULES = [entry.name for entry in ds.list_schedules() if entry.name != "uniform"]
PROCESSES = list(ds.PROCESSES)
FINALS = ("denoise", "step", "none")
BAD = float("nan")


def numbers(*shape: int, stream: int = -7) -> Tensor:
    """Fixed normals, float64."""
    return ds.normals(11, (0,), stream, shape, torch.float64, "cpu")[0]


def mixture(shape: Sequence[int] = (2,), process: str = "sd", dtype: torch.dtype = torch.float64) -> Any:
    """Three components, so that the flow is nonlinear."""
    return problems.GaussianMixture(numbers(3, *shape), [0.3, 0.5, 0.2], [1, 2, 3], process, dtype=dtype)


def gaussian(shape: Sequence[int] = (2,), process: str = "sd", dtype: torch.dtype = torch.float64) -> Any:
    """A Gaussian of any shape, () too: its flow is known exactly."""
    return problems.Gaussian(numbers(*shape), 0.5 + 0.1 * numbers(*shape, stream=-8).abs(), process, dtype=dtype)


class Watched(ds.ProbabilityFlow):
    """Another problem, with every evaluation counted and every state that was handed out remembered.

    at: {evaluation number: function of the denoised tensor}, what to do instead at the k-th evaluation (from 1).
    """

    def __init__(self, inner: Any, at: dict[int, Callable[[Tensor], Any]] | None = None) -> None:
        super().__init__(None, inner.process, "x0", shape=inner.shape, dtype=inner.dtype)
        self.inner, self.at, self.calls = inner, at or {}, 0
        self.seen: list[tuple[Tensor, Tensor]] = []

    def denoise(self, y: Tensor, sigma: float) -> Any:
        self.calls += 1
        self.seen.append((y, y.clone()))
        out = self.inner.denoise(y, sigma)
        return self.at[self.calls](out) if self.calls in self.at else out

    @property
    def untouched(self) -> bool:
        """Whether the states that were evaluated still hold what they held then."""
        return all(torch.equal(state, copy) for state, copy in self.seen)


class Stub(ds.Field):
    """A solver's `f` over any kind of number: u' = linear u + N, noise 0.3 of the kind's own 1."""

    finite_at_zero = True

    def __init__(self, linear: float, noise: float = 0.0) -> None:
        self.linear, self._noise = linear, noise
        self.eta = float(noise > 0)
        self.one: Any = 1.0

    def __call__(self, y: Any, s: float) -> Any:
        self.one = y * 0.0 + 1.0
        return y * y * (0.3 * s) - y * 0.5

    def draw(self, span: ds.Span) -> Any:
        return self.one * (0.2 + span.start)

    wiener = area = draw

    def noise(self, span: ds.Span) -> float:
        return self._noise

    def diffusion(self, s: float) -> float:
        return self._noise

    def denoise(self, y: Any, s: float) -> Any:
        raise AssertionError("no span of these tests ends at 0")


def spans(nodes: Sequence[float]) -> list[ds.Span]:
    return [ds.Span(a, b, i, len(nodes) - 1) for i, (a, b) in enumerate(pairwise(nodes))]


def by_hand(solver: ds.Solver, f: Any, y: Any, steps: Sequence[ds.Span], keep: int | None = None) -> list[Any]:
    """The states of a solver that is stepped without the loop; keep: how much of `past` it is handed back."""
    past: tuple[Any, ...] = ()
    states = []
    for span in steps:
        done = solver.step(f, y, span, past)
        y, past = done.y, done.past if keep is None else done.past[max(len(done.past) - keep, 0) :]
        states.append(y)
    return states


def gap(a: Tensor, b: Tensor) -> float:
    """The distance of a from b relative to b."""
    return float((a.double() - b.double()).norm() / b.double().norm())
