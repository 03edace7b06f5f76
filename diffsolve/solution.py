"""What a solve hands back, and what watches it on its way: small objects that are shown each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from .errors import NonFiniteError, ProblemError, SolverError
from .field import Evaluation
from .grid import Grid, Nodes
from .problem import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from .run import Run


class Occurrence(TypedDict):
    """An event that happened: which one it is, when, to which row of the batch (None: to all of it), the state then.

    time is t as a tensor, which carries a gradient where the state does.
    """

    event: int
    t: float
    sample: int | None
    x: Tensor
    time: Tensor


@dataclass
class Solution:
    """The result of `solve`.

    x: (B, *shape), data coordinates at sigma 0, or VE coordinates at sigma_min with final="none".
    nfe: denoiser calls a sample. nodes: those visited so far, the start included. trajectory: the state at each of
    them, with save="all", else None. reason: "end", or why it stopped before ("stopped" by the callback, "interrupted",
    "failed", "max_nfe"); `status` says it in words. seconds: wall time. stats: `execution`, how it ran; eta, where
    there was noise; samples: of a guided one, those that its network evaluated for one of the batch (two a call,
    one where guidance is off); network: of a loaded model, what came of `compile`, and whether a batch was halved.
    Of a run whose steps were chosen by their error, how many were accepted and rejected (the calls of both are in
    nfe), and of the accepted ones the lengths h, in the form's variable, and the errors, 1 being what is tolerated;
    its grid is that of the accepted steps. times: of an ODE whose steps were chosen so, the times that were asked
    for, where there are any; the trajectory is then that of `t`, those that were reached. events: what happened, in
    time, of what was asked for.
    """

    x: Tensor
    nfe: int
    grid: Grid
    problem: Problem
    solver: str
    schedule: str
    steps: int
    seed: int = 0
    trajectory: list[Tensor] | None = None
    reason: str = "end"
    seconds: float = 0.0
    stats: dict[str, Any] = field(default_factory=dict)
    nodes: list[float] = field(default_factory=list)
    times: list[float] | None = None
    events: list[Occurrence] | None = None

    @property
    def status(self) -> str:
        """How it ended, in words: where, at what cost, and where that was not the end, why and what to do."""
        from .execution.words import status

        return status(self)

    @property
    def n(self) -> int:
        """The number of steps of the grid; `steps` is how many were taken."""
        return len(self.grid)

    @property
    def sigmas(self) -> Nodes:
        """The nodes of the grid, float64, the final 0 included (for an ODE: its times)."""
        return self.grid.sigmas

    @property
    def visited(self) -> Nodes:
        """The nodes where the state was, in order, float64: the grid's, and again where a solver went back up."""
        return np.asarray(self.nodes, np.float64)

    @property
    def t(self) -> Nodes:
        """The times of an ODE's solution, and of its trajectory: those that it visited, or that were asked for."""
        if self.times is None or self.trajectory is None:
            return self.visited
        return np.asarray(self.times[: len(self.trajectory)], np.float64)

    def images(self) -> list[Image]:
        """PIL images of x. Raises ProblemError where the problem has no pictures."""
        decode = getattr(self.problem, "decode", None)
        if self.problem is None:  # of a solution that was loaded without one
            raise ProblemError("this solution was loaded without its problem; pass it: load_solution(path, problem)")
        if decode is None:
            raise ProblemError(f"{type(self.problem).__name__} has no pictures; read Solution.x")
        pictures: list[Image] = decode(self.x)
        return pictures

    def save(self, path: str | Path) -> Path:
        """Write it, without its problem, as one .safetensors file, which `ds.load_solution` reads; its path.

        Raises OutputError; an older file stays as it was until the new one is whole.
        """
        from .app.stored import save_solution

        return save_solution(self, path)

    @property
    def log_probs(self) -> Tensor:
        """log p of each step that added noise, (steps, B), of a solve with save="all"; see `diffsolve.interop.rl`."""
        from .interop.rl import log_probs

        with torch.no_grad():
            return log_probs(self)

    def plot(self) -> Figure:
        """A matplotlib figure: the noise levels of the steps and, with save="all", the size of the state along them."""
        from .app.plot import plot_solution

        figure: Figure = plot_solution(self)
        return figure

    def __repr__(self) -> str:
        return (
            f"Solution({self.solver} on {self.schedule}, {self.steps} of {self.n} steps, {self.nfe} NFE, "
            f"x {tuple(self.x.shape)} {self.x.dtype}, {self.reason}, {self.seconds:.2f} s)"
        )


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


Callback = Callable[[Visit], object]


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
        answer = self.callback(visit)
        if answer is None or isinstance(answer, bool | np.bool_):
            return answer
        if isinstance(answer, Tensor) and answer.dtype == torch.bool and not answer.ndim:
            return answer
        raise SolverError(f"callback returned {type(answer).__name__}; True ends the run, None or False goes on")


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
    x = x.detach() if x.requires_grad else x
    return math.isfinite(float(x.sum())) or bool(x.isfinite().all())  # the sum tells all but an overflow, in one pass


def non_finite(x: Tensor, what: str, remedy: str) -> NonFiniteError:
    nan = int(x.isnan().sum())
    infinite = int((~x.isfinite()).sum()) - nan
    return NonFiniteError(f"{what} has {nan} NaN and {infinite} infinite values of {x.numel()}. {remedy}")
