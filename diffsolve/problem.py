"""What a problem must offer to be solved: a grid, a start, a right-hand side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from .errors import ProblemError, SolverError, did_you_mean
from .field import Evaluation, Field
from .grid import Final, Grid
from .solver import Solver, Span
from .validate import Device, Samples

if TYPE_CHECKING:

    from .denoiser import Denoiser
    from .run import Run
    from .solution import Watcher

Event = Callable[[float, Tensor], Tensor | float]
"""(t, x) -> a number, or one for each row of x, (B,): what crosses 0 happens."""
SWAPPED = "f(y, s) takes the state first, then the form's variable; got {} first"


@dataclass(frozen=True, eq=False)
class Call:
    """One network call that somebody else is to make: `network(x, t)`, with what it is about.

    x, t: the network's inputs, t of shape (B,). y, sigma: the state in VE coordinates and its noise level, for who
    answers with an Output (of an ODE: x, t itself). u, s: the same in the form of the solver.
    """

    x: Tensor
    t: Tensor
    y: Tensor
    sigma: float
    u: Tensor
    s: float


class RightHandSide(Field):
    """A field on tensors, of one solve of one problem.

    nfe counts the evaluations made so far, `newest` is the last of them. samples: evaluated by a guided network, for
    one of the batch. denoiser: where an evaluation is the form's `weights` of the state and of what this tells of it,
    and nothing else, so that both may be folded into a step's coefficients. traceable: whether a step of it can be
    recorded; constrained: whether `project` changes the state.
    """

    denoiser: Denoiser | None = None
    traceable = True
    constrained = False
    nfe = samples = 0
    newest: Evaluation | None = None

    def count(self, sigma: float) -> None:
        """One evaluation more, at a noise level or time."""
        self.nfe += 1

    def told(self) -> dict[str, object]:
        """What there is to say of a run that is over, for `Solution.stats`."""
        return {}

    def evaluate(self, u: Tensor, s: float, /) -> Evaluation:
        if not isinstance(u, Tensor):
            raise SolverError(SWAPPED.format(type(u).__name__))
        return self.accept(u, s, self.answer(u, s))

    @abstractmethod
    def answer(self, u: Tensor, s: float) -> Any:
        """The problem's own answer to the call at (u, s)."""

    @abstractmethod
    def accept(self, u: Tensor, s: float, reply: object) -> Evaluation:
        """What an answer means, checked and counted; the problem's own, or one from outside."""

    def request(self, u: Tensor, s: float) -> Call:
        """What the outside is asked for at (u, s)."""
        return Call(u, torch.full((len(u) if u.ndim else 1,), s, dtype=u.dtype, device=u.device), u, s, u, s)

    def project(self, u: Tensor, span: Span, node: float) -> Tensor:
        """What the problem's constraint makes of the state after a step, such as putting back what is known of it."""
        return u


class Problem(ABC):
    """What `solve` asks of a problem, in this order: a grid, a start, a right-hand side.

    A problem is a frozen record.
    """

    default_solver: str
    adaptive_solver = ""  # the default where a tolerance is given and no solver; "": the same
    default_schedule: str
    remedy = "Look at the model's output there; half precision and too high a guidance scale are the usual causes"
    default_batch = 1  # prompts or labels, one a row: a batch is a multiple of it, and this where nothing is said
    forms = True  # whether a solve may choose the form, see `diffsolve.form`
    weights_count = True  # whether a solve keeps a graph where the right-hand side alone carries a gradient

    @abstractmethod
    def grid(
        self, schedule: object, n: int, *, final: Final, sigma_min: float | None, sigma_max: float | None, name: str
    ) -> Grid:
        """The nodes to visit; `schedule` has been looked up already, `name` is how it was called."""

    @abstractmethod
    def start(
        self, x: object, samples: Samples, seed: int, node: float, dtype: torch.dtype | None, device: Device | None
    ) -> Tensor:
        """The checked state at the first node: the caller's `x`, or the problem's own."""

    @abstractmethod
    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> RightHandSide:
        """The right-hand side in the form that `solver` is written for."""

    def replace(self, **changes: object) -> Self:
        """The same problem, of the same class, with other values of its fields.

        Raises ProblemError for unknown ones.
        """
        known = list(getattr(self, "__dataclass_fields__", ()))
        for name in changes:
            if name not in known:
                raise ProblemError(f"{type(self).__name__} has no field {name!r}{did_you_mean(name, known)}")
        changed = copy(self)
        freeze(changed, **changes)
        return changed

    def watchers(self, run: Run, events: Event | Sequence[Event] | None, tolerant: bool) -> list[Watcher]:
        """What watches a run that begins, or goes on. tolerant: whether a tolerance is kept. Raises DiffsolveError."""
        if events is not None:
            raise ProblemError("events are of an ODE's solution; for a diffusion pass callback= and look at each Visit")
        return []


class Uniform:
    """Evenly spaced nodes over an ODE's span: the schedule of generic problems."""


def freeze(record: object, **values: object) -> None:
    """Set the fields of a frozen record while it is made."""
    for name, value in values.items():
        object.__setattr__(record, name, value)
