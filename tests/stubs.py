"""What the contract tests share: the registry as parameters, tiny exact problems, and problems that watch a solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import diffsolve as ds
from diffsolve import problems
from diffsolve.field import Evaluation
from diffsolve.form import Form
from diffsolve.program import Advance
from diffsolve.registry import SolverEntry

torch.set_num_threads(1)  # the problems are tiny; threads would only wait for each other

# A solver with a controller takes what steps it will: test_adaptive.py.
ENTRIES = [entry for entry in ds.list_solvers() if entry.form is not None and entry.solver.controller is None]
SOLVERS = [entry.name for entry in ENTRIES]
DETERMINISTIC = [entry.name for entry in ENTRIES if not entry.stochastic]
STOCHASTIC = [entry.name for entry in ENTRIES if entry.stochastic]
TRACEABLE = [name for name in SOLVERS if ds.get_solver(name).traceable]
ONE_STEP = [entry.name for entry in ENTRIES if "one-step" in entry.tags]  # of the state alone, wherever in the run


def kind(entry: SolverEntry) -> tuple[object, ...]:
    """What rows of one kind have in common: the class, the rule of its weights, where its noise is from, its form's."""
    solver, form = entry.solver, ds.FORMS[entry.form]
    rule = getattr(getattr(solver, "rule", None), "__qualname__", None)
    return type(solver), rule, solver.history > 0, solver.stochastic, form.stochastic, bool(form.linear)


KINDS: dict[tuple[object, ...], str] = {}  # the first row of each, by name
for _entry in ENTRIES:
    KINDS.setdefault(kind(_entry), _entry.name)
ONE_OF_EACH = list(KINDS.values())
ONE_OF_EACH_KIND = ["rk4", "dpm_solver_3", "dpmpp_2m", "lms", "plms", "unipc", "damped_abm"]  # of methods of the flow


slow = partial(pytest.param, marks=pytest.mark.slow)
"""A parameter of the slow set."""


def rows(names: Sequence[str], fast: Sequence[str] = ONE_OF_EACH) -> list[Any]:
    """Names as parameters: those of `fast`, by default one row of each kind, in the fast set, the rest in the slow."""
    return [name if name in fast else slow(name) for name in names]


def kinds(names: Sequence[str]) -> list[Any]:
    """The same for what is dear: a few kinds of methods in the fast set."""
    return rows(names, ONE_OF_EACH_KIND[:-1])  # the last is the dearest


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
        super().__init__(process=inner.process, shape=inner.shape, dtype=inner.dtype)
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


class StubForm(Form):
    """u' = linear u + N in the state and the variable as they are, noise of one deviation over every interval."""

    name = "stub"

    def __init__(self, linear: float, noise: float) -> None:
        super().__init__(ds.EDM())
        self.linear, self._noise = linear, noise

    def variable(self, sigma: float) -> float:
        return sigma

    def sigma(self, s: float) -> float:
        return s

    def scale(self, sigma: float) -> float:
        return 1.0

    def weights(self, sigma: float) -> tuple[float, float]:
        return 0.0, -1 / sigma

    def noise_std(self, start: float, end: float) -> float:
        return self._noise

    def diffusion(self, s: float) -> float:
        return self._noise


class Stub(ds.Field):
    """A solver's `f` over any kind of number."""

    nfe = 0

    def __init__(self, linear: float, noise: float = 0.0) -> None:
        self.form, self.eta = StubForm(linear, noise), float(noise > 0)
        self.one: Any = 1.0

    def evaluate(self, u: Any, s: float, /) -> Evaluation:
        self.one = u * 0.0 + 1.0
        return Evaluation(u * u * (0.3 * s) - u * 0.5)

    def normal(self, span: ds.Span, kind: ds.Noise = ds.Noise.INCREMENT) -> Any:
        return self.one * (0.2 + span.start)


def spans(nodes: Sequence[float]) -> list[ds.Span]:
    return [ds.Span(a, b, i, len(nodes) - 1) for i, (a, b) in enumerate(pairwise(nodes))]


def advances(steps: Sequence[ds.Span]) -> list[tuple[Advance]]:
    """The program that takes a solver's own step over each."""
    return [(Advance(span, span.end),) for span in steps]


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
