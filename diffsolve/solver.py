"""The Solver contract: what a method is given, what it hands back, and what it declares.

A step is algebra on opaque vectors: sums of float multiples of states, evaluations and noises. It runs on tensors, and
on symbols when it is traced, so it imports no torch, takes its scalar functions from `diffsolve.scalars`, and branches
on `span` and on the length of `past`, never on values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .errors import SolverError

if TYPE_CHECKING:
    from .control import Controller

Vector = Any
"""A tensor, or anything else that can be added and multiplied by a float."""

Past = tuple[tuple[float, Vector], ...]
"""(node, evaluation) pairs, oldest first; a step is handed it and hands the next one back."""


@dataclass(frozen=True)
class Span:
    """One interval of the grid in the form's variable: from `start` to `end`, the `index`-th of `count`.

    `up` marks a span that a plan takes back up in noise, `visit` counts how often its interval was passed before: both
    key fresh noise.
    `last` is true where the step ends at sigma = 0, `own` where the solver may take that step itself (final="step");
    `adaptive` where an error estimate is wanted at any cost. `stop` is where the run ends, before its step to 0.
    """

    start: float
    end: float
    index: int = 0
    count: int = 1
    last: bool = False
    own: bool = False
    adaptive: bool = False
    up: bool = False
    visit: int = 0
    stop: float | None = None

    @property
    def h(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Step:
    """What a step hands back: the new state, an estimate of its local error (or None), the history to go on with.

    mean: the state before noise was added to it, where the error is to be judged by that; None is y.
    """

    y: Vector
    error: Vector | None = None
    past: Past = field(default=())
    mean: Vector | None = None


class Field(ABC):
    """The only door from a step to the outside: u' = linear u + f(u, s), plus noise.

    u = scale(s) y, with y the state in VE coordinates. What is not abstract is the generic ODE's: its variable is its
    own, and it has no noise.
    """

    linear: Any = 0.0
    eta: float = 0.0
    traceable = True  # whether a step of it can be recorded
    additive = True  # whether its noise does not depend on the state
    finite_at_zero = False
    settles = False  # whether `settle` does anything

    @abstractmethod
    def __call__(self, y: Vector, s: float, /) -> Vector:
        """N of the chosen form at state `y` and variable `s`. Each call is one network evaluation."""

    def both(self, y: Vector, s: float, /) -> tuple[Vector, Vector]:
        """N with guidance and without, of one evaluation; the same where the problem has no guidance."""
        value = self(y, s)
        return value, value

    def sigma(self, s: float) -> float:
        """The noise level at variable `s`."""
        return s

    def variable(self, node: float) -> float:
        """The form's variable at a noise level, or at a grid node."""
        return node

    def time(self, s: float) -> float:
        """The process's time at variable `s`."""
        return s

    def alpha(self, s: float) -> float:
        """alpha of the process at variable `s`: x_t = alpha y."""
        return 1.0

    def at_time(self, t: float) -> float:
        """The variable at the process's time `t`."""
        return t

    def eps_slope(self, s: float) -> float:
        """d eps / d N at variable `s`: what a change of N is in the noise estimate eps = (y - D)/sigma."""
        return 1.0

    def state_slope(self, s: float) -> float:
        """d N / d u at variable `s` with the denoised state held fast; 0 where there is none."""
        return 0.0

    def scale(self, s: float) -> float:
        """The factor from y to u at variable `s`."""
        return 1.0

    def rescale(self, start: float, end: float) -> float:
        """The factor from u at `start` to the u of the same y at `end`."""
        return self.scale(end) / self.scale(start)

    def settle(self, y: Vector, span: Span) -> Vector:
        """What the problem makes of the state after a step, such as putting back what is known of it."""
        return y

    def noise(self, span: Span) -> float:
        """The standard deviation of the noise that the form adds over the interval; 0 for an ODE."""
        return 0.0

    def climb(self, span: Span) -> float:
        """The standard deviation, in u at its end, of the noise that takes the state up a span."""
        raise SolverError("only a diffusion problem can go back up in noise")

    def diffusion(self, s: float) -> float:
        """g of the form's SDE du = (linear u + f) ds + g dW; 0 for an ODE."""
        return 0.0

    def spread(self, y: Vector, s: float, z: Vector) -> Vector:
        """g(s, y) z, elementwise: what noise z is multiplied by. The state is read where the noise is not additive."""
        return combine((self.diffusion(s), z))

    def milstein(self, y: Vector, s: float) -> Vector:
        """g dg/dy at (s, y), elementwise; 0 where the noise is additive."""
        return y * 0.0

    def draw(self, span: Span) -> Vector:
        """The standard normal that belongs to the interval."""
        raise SolverError(_NO_NOISE)

    def learned(self, span: Span) -> Vector:
        """`draw` times the deviation, in u at the span's end, that the network told of in the newest evaluation."""
        raise SolverError(_NO_NOISE)

    def wiener(self, span: Span) -> Vector:
        """The standard normal z of dW = sqrt(|h|) z over the interval."""
        raise SolverError(_NO_NOISE)

    def area(self, span: Span) -> Vector:
        """A second one, z2: int (W(s) - W(start)) ds over the interval is |h|^{3/2} (z/2 + z2/(2 sqrt 3))."""
        raise SolverError(_NO_NOISE)


class FieldView:
    """A field with something changed: what a subclass does not say is the field's own. For solvers around solvers."""

    def __init__(self, f: Any) -> None:
        self._f = f

    def __getattr__(self, name: str) -> Any:
        return getattr(self._f, name)

    def __call__(self, y: Vector, s: float) -> Vector:
        return self._f(y, s)


_NO_NOISE = "this problem has no noise; use a solver that is not stochastic"


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
    eta: float = 1.0  # of a solve that is given none, where the solver is stochastic
    traceable: bool = True
    controller: Controller | None = None  # where it has one, it chooses its own steps in every solve
    scale_free: bool = True  # whether a step's weights, over h, depend on its length through linear * h alone
    steps_to_zero: bool = False  # may end a step at sigma = 0, where its form is finite there
    source: str = ""

    @abstractmethod
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        """One step from span.start to span.end in the variable of the solver's form."""

    def plan(self, spans: Sequence[Span], f: Field) -> Sequence[Span]:
        """The spans in the order in which they are passed: a wrapper may go back up (span.up) and pass some again."""
        return spans

    def __repr__(self) -> str:
        return f"<{self.name or type(self).__name__}: order {self.order}, {self.form} form>"


class Driver(Solver):
    """A solver that takes the whole run in hand, as other libraries do; it is given the spans rather than one."""

    traceable = False

    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        *_, end = self.run(f, y, [span])
        return Step(end)

    @abstractmethod
    def run(self, f: Any, y: Vector, spans: Sequence[Span]) -> Iterator[Vector]:
        """Yields the state after each span; the last step to sigma = 0 is not among them."""


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
