"""The Solver contract: what a method is given, what it hands back, and what it declares.

A step is algebra on opaque vectors: sums of float multiples of states, evaluations and noises. It runs on tensors, and
on symbols when it is traced, so it imports no torch, takes its scalar functions from `diffsolve.scalars`, and branches
on `span` and on the length of `past`, never on values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

Vector = Any
"""A tensor, or anything else that can be added and multiplied by a float."""

Past = tuple[tuple[float, Vector], ...]
"""(node, evaluation) pairs, oldest first; a step is handed it and hands the next one back."""


@dataclass(frozen=True)
class Span:
    """One interval of the grid in the form's variable: from `start` to `end`, the `index`-th of `count`.

    `last` is true where the step ends at sigma = 0, `own` where the solver may take that step itself (final="step");
    `adaptive` where an error estimate is wanted at any cost.
    """

    start: float
    end: float
    index: int = 0
    count: int = 1
    last: bool = False
    own: bool = False
    adaptive: bool = False

    @property
    def h(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Step:
    """What a step hands back: the new state, an estimate of its local error (or None), the history to go on with."""

    y: Vector
    error: Vector | None = None
    past: Past = field(default=())


class Field(Protocol):
    """The only door from a step to the outside: u' = linear u + f(u, s), plus noise."""

    linear: float

    def __call__(self, y: Vector, s: float, /) -> Vector:
        """N of the chosen form at state `y` and variable `s`. Each call is one network evaluation."""

    def draw(self, span: Span) -> Vector:
        """The standard normal that belongs to the interval."""

    def noise(self, span: Span) -> float:
        """The standard deviation of the noise that the form adds over the interval; 0 for an ODE."""


class Solver(ABC):
    """A numerical method. Subclass it, write `step`, and register it; or use a declarative kind of `diffsolve.solvers`.

    order: the order of convergence with an exact start; `started`: as started from a single state (same for one-step
    methods). stages: evaluations a step. history: pairs of `past` that a step reads. form: see `diffsolve.form`.
    """

    name: str = ""
    order: int = 0
    started: int = 0
    form: str = "sigma"
    stages: int = 1
    history: int = 0
    stochastic: bool = False
    traceable: bool = True
    steps_to_zero: bool = False  # may end a step at sigma = 0, where its form is finite there
    source: str = ""

    @abstractmethod
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        """One step from span.start to span.end in the variable of the solver's form."""

    def __repr__(self) -> str:
        return f"<{self.name or type(self).__name__}: order {self.order}, {self.form} form>"


def combine(*terms: tuple[Any, Vector]) -> Vector:
    """The sum of coefficient x vector over the terms; for tensors one pass over memory a term, none for a leading 1."""
    (first, total), *rest = terms
    plain = isinstance(total, torch.Tensor) and all(isinstance(c, float) for c, _ in terms)
    if not plain:
        return sum((vector * c for c, vector in rest), total * first)
    if first == 1 and rest:
        (c, vector), *rest = rest
        total = total.add(vector, alpha=c)
    else:
        total = total * first
    for c, vector in rest:
        total.add_(vector, alpha=c)
    return total
