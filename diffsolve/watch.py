"""What watches a run: small objects that are shown each step, and told when it is over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import NonFiniteError
from .field import Evaluation

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True)
class Visit:
    """A step that was taken: x is the state at `node`, in VE coordinates, or data where that is 0.

    index: of the step; count: the steps there will be, None where they are chosen on the way. share: how much of the
    way is done, from 0 to 1. error: the step's own estimate of its error, None where it makes none. nfe: evaluations so
    far. newest: the last of them.
    """

    index: int
    count: int | None
    share: float
    node: float
    x: Tensor
    error: Tensor | None
    nfe: int
    newest: Evaluation | None

    @property
    def sigma(self) -> float:
        """The node: the noise level that was reached."""
        return self.node

    @property
    def denoised(self) -> Tensor | None:
        """The newest data estimate: what a preview shows; None for an ODE."""
        if self.node == 0 or self.newest is None:
            return self.x
        found: Tensor | None = self.newest.denoised
        return found


Callback = Callable[[Visit], Any]


class Watcher:
    """Is shown each visit; a true answer stops the run, for the reason "stopped".

    `close` is called once, at the end.
    """

    def see(self, visit: Visit, run: Run) -> object:
        return None

    def close(self, run: Run) -> None:
        return None


class Trajectory(Watcher):
    """Keeps the state at every node."""

    def see(self, visit: Visit, run: Run) -> None:
        assert run.solution.trajectory is not None
        run.solution.trajectory.append(visit.x)


class Callbacks(Watcher):
    """The user's own."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback

    def see(self, visit: Visit, run: Run) -> object:
        return self.callback(visit)


class Finiteness(Watcher):
    """Stops at a state with NaN or infinite values.

    On an accelerator reading one is a sync, so it is read at the end.
    """

    def __init__(self, x: Tensor) -> None:
        if not is_finite(x):
            raise non_finite(x, "the starting state x", "Look at where x comes from")
        self.at_once, self.flags = on_host(x), list[Tensor]()
        self.good = x

    def see(self, visit: Visit, run: Run) -> None:
        x = visit.x
        if self.at_once:
            if not is_finite(x):
                raise non_finite(x, f"{run.label(visit.index)}: the state", run.solution.problem.remedy)
            return
        self.flags.append(x.isfinite().all() & (self.flags[-1] if self.flags else True))
        self.good = torch.where(self.flags[-1], x, self.good)

    def close(self, run: Run) -> None:
        if not self.flags or bool(self.flags[-1]):
            return
        solution, steps = run.solution, int(torch.stack(self.flags).sum())
        solution.x, solution.steps = self.good, steps
        del solution.nodes[steps + 1 :]
        if solution.trajectory is not None and solution.times is None:
            del solution.trajectory[steps + 1 :]
        raise NonFiniteError(f"{run.label(steps)}: the state has NaN or infinite values. {solution.problem.remedy}")


def on_host(x: Tensor) -> bool:
    return x.device.type == "cpu"


def is_finite(x: Tensor) -> bool:
    x = x.detach()
    return math.isfinite(float(x.sum())) or bool(x.isfinite().all())  # the sum tells all but an overflow, in one pass


def non_finite(x: Tensor, what: str, remedy: str) -> NonFiniteError:
    nan = int(x.isnan().sum())
    infinite = int((~x.isfinite()).sum()) - nan
    return NonFiniteError(f"{what} has {nan} NaN and {infinite} infinite values of {x.numel()}. {remedy}")
