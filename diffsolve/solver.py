"""The Solver contract: what a method is given, what it hands back, and what it declares.

A step is algebra on opaque vectors: sums of float multiples of states, evaluations and noises. It runs on tensors, and
on symbols when it is traced, so it imports no torch, takes its scalar functions from `diffsolve.scalars`, and branches
on `span` and on the length of `past`, never on values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from .deprecated import adopt_former, former_attribute
from .errors import SolverError
from .field import Field, Vector

if TYPE_CHECKING:
    from .control import Controller

Past = tuple[tuple[float, Vector], ...]
"""(node, evaluation) pairs, oldest first; a step is handed it and hands the next one back."""


@dataclass(frozen=True)
class Span:
    """One interval of the grid in the form's variable: from `start` to `end`, the `index`-th of `count`.

    `visit` counts how often its interval was passed before, and keys fresh noise. `last` is true where the step ends at
    sigma = 0; `adaptive` where an error estimate is wanted at any cost; `stop` is where the run ends, before it goes on
    to 0.
    """

    start: float
    end: float
    index: int = 0
    count: int = 1
    visit: int = 0
    last: bool = False
    adaptive: bool = False
    stop: float | None = None
    h: float = field(init=False, compare=False)  # end - start

    def __post_init__(self) -> None:
        object.__setattr__(self, "h", self.end - self.start)


@dataclass(frozen=True)
class Renoise:
    """A span of a plan that is passed upwards: noise takes the state from its start up to its end, at `node`."""

    span: Span
    node: float | None = None


@dataclass(frozen=True)
class Step:
    """What a step hands back: the new state, an estimate of its local error (or None), the history to go on with.

    mean: the state before noise was added to it, where the error is to be judged by that; None is y.
    """

    y: Vector
    error: Vector | None = None
    past: Past = field(default=())
    mean: Vector | None = None


class Solver(ABC):
    """A numerical method. Subclass it, write `step`, and register it; or use a declarative kind of `diffsolve.solvers`.

    order: the order of convergence with an exact start, None for what is no integrator or tells none;
    order_as_started: as started from a single state (the same for one-step methods). strong, weak: orders on the
    reverse SDE, None where none is claimed. stages: evaluations a step, None where that can't be told. history: pairs
    of `past` that a step reads. form: see `diffsolve.form`, None for a method of a problem whose states are not of a
    flow.
    """

    name: str = ""
    order: int | None = None
    order_as_started: int | None = None
    strong: float | None = None
    weak: float | None = None
    form: str | None = "sigma"
    adaptive_form: str | None = None  # a better one for a diffusion where its steps are chosen by their error
    stages: int | None = 1
    history: int = 0
    stochastic: bool = False
    still_steps: bool = False  # takes some steps of a reverse SDE without noise, as its options say
    eta: float = 1.0  # of a solve that is given none, where the solver is stochastic
    traceable: bool = True
    controller: Controller | None = None  # where it has one, it chooses its own steps in every solve
    scale_free: bool = True  # whether a step's weights, over h, depend on its ends through linear * h alone
    guidance_range: tuple[float, float, float] | None = None  # (least, usual, most), where it is not that of others
    steps_to_zero: bool = False  # may end a step at sigma = 0, where its form is finite there
    source: str = ""

    started = former_attribute("started", "order_as_started")

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        adopt_former(cls, {"started": "order_as_started"})

    @abstractmethod
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        """One step from span.start to span.end in the variable of the solver's form."""

    def plan(self, spans: Sequence[Span], f: Field) -> Sequence[Span | Renoise]:
        """The spans in the order in which they are passed: a wrapper may go back up in noise and pass some again."""
        return spans

    def evaluations(self, span: Span, known: int) -> int | None:
        """Network calls of the step over `span` where `known` steps were taken before it since the last fresh start.

        None: not declared; the kernel then traces the steps to count them.
        """
        return None

    def noiseless(self) -> Solver:
        """What it comes to at eta = 0, to count its evaluations there."""
        return self

    def continuous(self) -> Sequence[Sequence[float]] | None:
        """The solution within a step, of a method that has it: u_0 + h sum_i (sum_k B_ik theta^k) F_i, k from 1, as B.

        Its rows are of the stages that the step's end reads, in their order, and of F at the end.
        """
        return None

    def with_changes(self, **changes: object) -> Self:
        """A copy with other attributes (name, form, order, ...); the solver itself stays as it is."""
        changed = copy(self)
        for name, value in changes.items():
            setattr(changed, name, value)
        return changed

    def __repr__(self) -> str:
        order = "of no order" if self.order is None else f"order {self.order}"
        return f"<{self.name or type(self).__name__}: {order}{f', {self.form} form' if self.form else ''}>"


class Driver(Solver):
    """A solver that takes the whole run in hand, as other libraries do; it is given the spans rather than one."""

    traceable = False

    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        *_, end = self.run(f, y, [span])
        return Step(end)

    def tolerating(self, rtol: float | None, atol: float | None, controller: Controller | None) -> Self:
        """The same method with those tolerances for steps of its own choice. Raises SolverError where it has none."""
        raise SolverError(f"{self!r} plans its own steps; leave rtol, atol and controller out")

    @abstractmethod
    def run(self, f: Field, y: Vector, spans: Sequence[Span]) -> Iterator[Vector]:
        """Yields the state after each span; the last step to sigma = 0 is not among them."""

    def evaluations(self, span: Span, known: int) -> int | None:
        return self.stages
