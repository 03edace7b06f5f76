"""Runs turned inside out whose calls go to the network together."""

from __future__ import annotations

import time
from collections.abc import Generator, Hashable, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from ..denoiser import GuidedCall, Network, NetworkCall, Output
from ..errors import SolverError
from ..problem import Call
from ..run import Reply, Run
from .request import Answer, Request


class Stackable(Protocol):
    """A network that can be called together with others of its kind, such as one with a prompt of its own."""

    def stack_key(self) -> Hashable:
        """Networks that have the same go together."""

    def stacked(self, parts: Sequence[tuple[Self, int]]) -> Network:
        """The network of a batch that has so many rows of each, in this order."""


class Lane:
    """A request that is under way: its run inside out, and the call that is due."""

    def __init__(self, index: int, request: Request, run: Run) -> None:
        self.index, self.request, self.run, self.began = index, request, run, time.perf_counter()
        self.calls: Generator[Call, Reply, None] = run.calls()
        with torch.no_grad():
            self.call: Call | None = next(self.calls, None)
        self.rows = len(run.solution.x)
        denoiser = run.field.denoiser
        self.guidance = denoiser if isinstance(denoiser, GuidedCall) else None
        self.inside = denoiser if self.guidance is None else self.guidance.denoiser
        self._called = isinstance(self.inside, NetworkCall)  # asked once: it looks at every member of the protocol

    @property
    def network(self) -> Any:
        """The network of the call that is due; None where the denoiser is no network's."""
        if not self._called:
            return None
        if self.guidance is None or self.call is None:
            return self.inside.network  # type: ignore[union-attr]
        return self.guidance.called(self.call.sigma)

    def key(self) -> Hashable:
        """Lanes that have the same are called together; unlike any other where there is nothing to call."""
        if self.inside is None or self.call is None:
            return id(self)
        own: Any = self.inside if self.network is None else self.network
        name = own.stack_key() if hasattr(own, "stacked") else id(own)
        return name, self.network is None, self.call.x.shape[1:], self.call.x.dtype, self.call.x.device

    def answer(self, status: str | None = None, error: Exception | None = None) -> Answer:
        """How it ended."""
        solution, own = self.run.solution, "failed" if error else self.run.solution.reason
        solution.seconds = time.perf_counter() - self.began
        if status == "cancelled":
            solution.reason = status
            self.run.close(check=False)
        told = "" if error is None else f"{error}" if str(error) else repr(error)
        words = {"max_nfe": f"{solution.nfe} evaluations were spent at {solution.nodes[-1]:g}",
                 "cancelled": f"after {solution.steps} steps", "stopped": "by a callback"}  # fmt: skip
        message = told or words.get(status or own, "")
        return Answer(self.index, self.request, status or own, message, solution, error, self.run.denoised)


def replies(lanes: Sequence[Lane], rows: int) -> Sequence[Reply]:
    """The answers to the calls that are due, of one network call on at least `rows` rows, the last repeated."""
    calls = [lane.call for lane in lanes if lane.call is not None]
    first, sizes = lanes[0], [lane.rows for lane in lanes]
    if first.inside is None or (len(lanes) == 1 and sum(sizes) >= rows):
        return [lane.run.field.answer(lane.call.u, lane.call.s) for lane in lanes if lane.call is not None]
    parts = list(zip(lanes, calls, strict=True))
    while sum(sizes) + lanes[-1].rows <= rows:
        parts.append(parts[-1])
        sizes.append(lanes[-1].rows)
    if first.network is None:
        levels = np.concatenate([np.full(lane.rows, call.sigma) for lane, call in parts])
        out = first.inside(torch.cat([call.y for _, call in parts]), levels)
        split = [Output(*each) for each in zip(*(_split(part, sizes) for part in out), strict=True)]
        return [each if lane.guidance is None else lane.guidance.guided(each, call.sigma)
                for (lane, call), each in zip(parts[: len(lanes)], split, strict=False)]  # fmt: skip
    network = first.network
    if hasattr(network, "stacked"):
        network = network.stacked([(lane.network, lane.rows) for lane, _ in parts])
    raw = network(torch.cat([call.x for _, call in parts]), torch.cat([call.t for _, call in parts]))
    if isinstance(raw, tuple):
        return list(zip(*(_split(side, sizes) for side in raw), strict=True))[: len(lanes)]
    return list(_split(raw, sizes))[: len(lanes)]


def _split(x: Tensor | None, sizes: Sequence[int]) -> Sequence[Any]:
    if x is None:
        return [None] * len(sizes)
    if not isinstance(x, Tensor) or x.ndim == 0 or len(x) != sum(sizes):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise SolverError(f"the network was given {sum(sizes)} samples and returned {got}")
    return torch.split(x, list(sizes))
