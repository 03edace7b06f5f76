"""What a problem must offer to be solved, and the generic problems with the user's own right-hand side."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .errors import ProblemError, SolverError
from .field import Evaluation, Field
from .grid import Final, Grid
from .io.memory import check_batch
from .solver import Solver, Span
from .validate import index, whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from .run import Run
    from .watch import Watcher

Samples = Sequence[int]
Device = torch.device | str
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

    nfe counts the evaluations made so far, `newest` is the last of them. traceable: whether a step of it can be
    recorded; guided: whether an evaluation has an unconditional part; constrained: whether `project` changes the state.
    """

    traceable = True
    guided = False
    constrained = False
    nfe = 0
    newest: Evaluation | None = None

    def evaluate(self, u: Tensor, s: float, /) -> Evaluation:
        if not isinstance(u, Tensor):
            raise SolverError(SWAPPED.format(type(u).__name__))
        return self.accept(u, s, self.answer(u, s))

    @abstractmethod
    def answer(self, u: Tensor, s: float) -> Any:
        """The problem's own answer to the call at (u, s)."""

    @abstractmethod
    def accept(self, u: Tensor, s: float, reply: Any) -> Evaluation:
        """What an answer means, checked and counted; the problem's own, or one from outside."""

    def request(self, u: Tensor, s: float) -> Call:
        """What the outside is asked for at (u, s)."""
        return Call(u, torch.full((len(u) if u.ndim else 1,), s, dtype=u.dtype, device=u.device), u, s, u, s)

    def project(self, u: Tensor, span: Span, node: float) -> Tensor:
        """What the problem's constraint makes of the state after a step, such as putting back what is known of it."""
        return u


class Constraint(Protocol):
    """What holds of a state at every node, such as a part of it that is known."""

    def check(self, shape: tuple[int, ...], samples: int) -> None:
        """Raise ProblemError unless it goes with a batch of `samples` states of `shape`."""

    def project(self, y: Tensor, sigma: float, span: Span, seed: int, samples: Samples) -> Tensor:
        """The state y (B, *shape), in VE coordinates at the noise level sigma, as the constraint will have it."""


class Codec(Protocol):
    """Between data coordinates and pictures."""

    def decode(self, x: Tensor, /) -> list[Image]: ...

    def encode(self, images: Image | Sequence[Image], /) -> Tensor: ...


class Problem(ABC):
    """What `solve` asks of a problem, in this order: a grid, a start, a right-hand side.

    A problem is a frozen record.
    """

    default_solver: str
    adaptive_solver = ""  # the default where a tolerance is given and no solver; "": the same
    default_schedule: str
    remedy = "Look at the model's output there; half precision and too high a guidance scale are the usual causes"
    forms = True  # whether a solve may choose the form, see `diffsolve.form`
    weights_count = True  # whether a solve keeps a graph where the right-hand side alone carries a gradient

    @abstractmethod
    def grid(
        self, schedule: Any, n: int, *, final: Final, sigma_min: float | None, sigma_max: float | None, name: str
    ) -> Grid:
        """The nodes to visit; `schedule` has been looked up already, `name` is how it was called."""

    @abstractmethod
    def start(
        self, x: Any, samples: Samples, seed: int, node: float, dtype: torch.dtype | None, device: Device | None
    ) -> Tensor:
        """The checked state at the first node: the caller's `x`, or the problem's own."""

    @abstractmethod
    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> RightHandSide:
        """The right-hand side in the form that `solver` is written for."""

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


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
        raise ProblemError(f"the state is float32 or float64, got {dtype}; a network in half precision casts inside")
    return dtype


def shown_shape(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def checked_state(x: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """x. Raises ProblemError unless it is a batch of states of that shape there."""
    inside = shown_shape(shape)
    if not isinstance(x, Tensor):
        raise ProblemError(f"x must be a tensor of shape (B, {inside}), got {type(x).__name__}")
    if x.is_nested or x.layout != torch.strided:
        check_dense(x, "x")
    if x.ndim != len(shape) + 1 or tuple(x.shape[1:]) != shape or x.shape[0] < 1:
        raise ProblemError(f"x has shape {tuple(x.shape)}, expected (B, {inside})")
    if x.dtype not in (torch.float32, torch.float64):
        raise ProblemError(f"x has dtype {x.dtype}; the state is kept in float32 or float64, so pass x.float()")
    if x.device != device:
        raise ProblemError(f"x is on {x.device}, the problem on {device}; pass x.to({str(device)!r})")
    return x


def check_noise(x: Tensor, sigma: float) -> None:
    """Raise ProblemError for a state of many numbers that are too small to have noise of deviation sigma in them."""
    if x[0].numel() < 256 or torch._C._functorch.peek_interpreter_stack() is not None:
        return
    size = float(torch.linalg.vector_norm(x.detach())) / math.sqrt(x.numel())
    if size < sigma / 2:
        raise ProblemError(
            f"x has a root mean square of {size:.3g}, at sigma = {sigma:g} the noise in it alone has {sigma:g}; pass "
            f"noise of deviation 1 as x * {sigma:.6g}, latents of a diffusers pipeline as "
            "ds.problems.from_latents(x, problem.process, sigma), clean data as problem.noised(x, sigma)"
        )


def placed(device: Device) -> torch.device:
    """The device as a tensor on it reports it ("cuda" -> "cuda:0"). Raises ProblemError where it can't be used."""
    try:
        found = torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ProblemError(f"device {device!r} can't be used here: {reason}") from error
    if found.type == "meta":
        raise ProblemError("device 'meta' can't be used here: its tensors hold no numbers; take another")
    return found


def check_dense(x: Tensor, what: str) -> Tensor:
    """x. Raises ProblemError for a tensor without numbers (meta), a sparse or a nested one."""
    if x.is_meta or x.is_nested or x.layout != torch.strided:
        kind = "on meta, without numbers" if x.is_meta else "nested" if x.is_nested else f"of layout {x.layout}"
        raise ProblemError(f"{what} is {kind}; expected a dense tensor")
    return x


def shape_of(shape: object) -> tuple[int, ...]:
    """One sample's shape as whole numbers of at least 1. Raises ProblemError."""
    if not isinstance(shape, Sequence) or isinstance(shape, str | bytes):
        raise ProblemError(f"shape is one sample's shape, such as (4, 64, 64), got {shape!r}")
    return tuple(whole(size, "each size in shape", ProblemError) for size in shape)


def seed_of(seed: object, what: str = "seed") -> int:
    number = index(seed)
    if number is None:
        raise ProblemError(f"{what} must be a whole number, got {seed!r}")
    return number


def samples_of(batch: int | Sequence[int], x: Tensor | None = None) -> Sequence[int]:
    if isinstance(x, Tensor) and x.is_nested:
        check_dense(x, "x")
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        check_batch(_length(batch))
        samples: Sequence[int] = [seed_of(i, "each sample named by batch") for i in batch]
        if not samples or (isinstance(x, Tensor) and x.ndim and len(samples) != x.shape[0]):
            raise ProblemError(
                f"batch names {len(samples)} samples; it must name one for each row of x, and at least one"
            )
        return samples
    count = batch if type(batch) is int and batch > 0 else whole(batch, "batch", ProblemError)
    if isinstance(x, Tensor) and x.ndim:
        if count not in (1, x.shape[0]):
            raise ProblemError(f"batch is {count}, but x has {x.shape[0]} samples; leave batch out where x is given")
        count = x.shape[0]
    check_batch(count)
    return range(count)


def _length(batch: Sequence[int]) -> int:
    try:
        return len(batch)
    except OverflowError:  # of a range
        return sys.maxsize
