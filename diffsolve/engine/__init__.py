"""Many solves at once, each with its own solver, steps and state; the network is called on what is active, together."""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch

from ..errors import SolverError
from ..problem import Call, Problem
from ..validate import choice, is_lacking, whole
from .lanes import Lane, Stackable, replies
from .request import Answer, Request

__all__ = ["Answer", "Many", "Request", "Stackable", "solve_many"]
Order = Literal["completion", "arrival"]


def solve_many(
    problem: Problem | Callable[..., Problem],
    requests: Iterable[Request | Mapping[str, Any]],
    *,
    max_batch: int = 8,
    rows: int | None = None,
    order: Order = "completion",
) -> Many:
    """Solve every request, its own way; iterating what it returns takes the steps, and gives the answers as they end.

    problem: what the requests have in common, or a model that makes a problem of what they say (`prompt=...`).
    requests: of any number, read as there is room for them; a mapping is `Request(**mapping)`.
    max_batch: samples under way at a time; what ends is replaced from the queue.
    rows: samples in a network call, copies of the last where there are fewer: as the last bits of a network's answer
    depend on the size of the batch alone, those of a sample do not depend on its company. By default at most 4 on a
    CPU, else max_batch; 0 makes calls of any size up to max_batch. Networks of different shapes are called apart; what
    fits into no memory is halved, with a warning.
    order: of the answers, in which they end or in which they came.
    What goes wrong with one request is its answer's, and the others go on. Raises SolverError for the other arguments.
    """
    return Many(problem, requests, max_batch, rows, order)


class Many(Iterator[Answer]):
    """The answers of `solve_many`, and what is under way."""

    def __init__(
        self, problem: Problem | Callable[..., Problem], requests: Iterable[Request | Mapping[str, Any]],
        max_batch: int, rows: int | None, order: str,
    ) -> None:  # fmt: skip
        if not isinstance(problem, Problem) and not callable(problem):
            raise SolverError(f"problem must be a Problem, or a model that makes one, got {type(problem).__name__}")
        if isinstance(requests, Request | Mapping | str) or not isinstance(requests, Iterable):
            raise SolverError(f"requests must be a list of Request or of mappings, got {type(requests).__name__}")
        choice(order, "order", get_args(Order))
        self.problem, self.order = problem, order
        self.max_batch = whole(max_batch, "max_batch", SolverError)
        on_cpu = torch.device(getattr(problem, "device", None) or "cpu").type == "cpu"
        fixed = min(4, self.max_batch) if on_cpu else self.max_batch
        self.rows = fixed if rows is None else whole(rows, "rows", SolverError, 0)
        self.most = self.rows or self.max_batch  # samples in a call
        self.calls = self.samples = 0  # how often the network was called, and on how many samples without copies
        self._queue = enumerate(requests)
        self._lanes: list[Lane] = []
        self._ended: deque[Answer] = deque()
        self._early: dict[int, Answer] = {}  # those that others have to come before
        self._next, self._cancelled, self._closed = 0, set[int](), False

    @property
    def active(self) -> list[int]:
        """Which requests are under way."""
        return [lane.index for lane in self._lanes]

    def cancel(self, index: int) -> None:
        """End a request where it is, or before it begins; one that has been answered stays as it is."""
        self._cancelled.add(index)

    def close(self) -> None:
        """End them all; what is under way is dropped, and the queue is read no further."""
        self._closed = True
        for lane in self._lanes:
            lane.calls.close()
        self._lanes = []

    def __next__(self) -> Answer:
        while not self._ended:
            if not self._fill():
                raise StopIteration
            if self._lanes:
                self._round()
        return self._ended.popleft()

    def _fill(self) -> bool:
        """Begin what there is room for; whether there is anything to wait for."""
        for lane in [lane for lane in self._lanes if lane.index in self._cancelled]:
            self._end(lane, lane.answer("cancelled"))
        while not self._closed and sum(lane.rows for lane in self._lanes) < self.max_batch:
            index, request = next(self._queue, (-1, None))
            if request is None:
                break
            self._begin(index, request)
        return bool(self._lanes or self._ended)

    def _begin(self, index: int, asked: Request | Mapping[str, Any]) -> None:
        request = asked if isinstance(asked, Request) else Request()
        if index in self._cancelled:
            self._tell(Answer(index, request, "cancelled", "before it began"))
            return
        try:
            if isinstance(asked, Mapping):
                request = Request(**asked)
            elif not isinstance(asked, Request):
                raise SolverError(f"a request is a Request or a mapping, got {type(asked).__name__}")
            lane = Lane(index, request, request.begin(self.problem))
        except Exception as error:  # whatever it is, the others go on
            self._tell(Answer(index, request, "refused", str(error) or repr(error), None, error))
            return
        self._lanes.append(lane)
        if lane.call is None:
            self._end(lane, lane.answer())

    def _round(self) -> None:
        """One call for each lane."""
        groups: dict[Any, list[Lane]] = {}
        for lane in self._lanes:
            groups.setdefault(lane.key(), []).append(lane)
        for group in groups.values():
            self._call_all(group)

    def _call_all(self, lanes: Sequence[Lane], most: int = sys.maxsize, pad: bool = True) -> None:
        """Answer these lanes' calls, at most so many at a time."""
        done = 0
        while done < len(lanes):
            end = done + 1
            while end < min(len(lanes), done + most) and sum(lane.rows for lane in lanes[done : end + 1]) <= self.most:
                end += 1
            self._call(lanes[done:end], self.rows if pad else 0)
            done = end

    def _call(self, lanes: Sequence[Lane], rows: int) -> None:
        """Answer these lanes' calls together, or in halves where that fails: the fault may be one's own."""
        try:
            with torch.no_grad():
                answers = replies(lanes, rows)
        except Exception as error:
            size, lacking = max(sum(lane.rows for lane in lanes), rows), is_lacking(error)
            if size == lanes[0].rows:
                self._go_on(lanes[0], partial(lanes[0].calls.throw, error))
                return
            if lacking:
                self.most = size // 2
                self.rows = min(self.rows, self.most)
                warnings.warn(f"a call of {size} samples did not fit into memory; now {self.most} at a time",
                              stacklevel=2)  # fmt: skip
            self._call_all(lanes, sys.maxsize if lacking else max(1, len(lanes) // 2), lacking or len(lanes) > 1)
            return
        self.calls, self.samples = self.calls + 1, self.samples + sum(lane.rows for lane in lanes)
        for lane, answer in zip(lanes, answers, strict=True):
            self._go_on(lane, partial(lane.calls.send, answer))

    def _go_on(self, lane: Lane, take: Callable[[], Call]) -> None:
        """Let a lane have its answer, and end it where it ends."""
        try:
            with torch.no_grad():
                lane.call = take()
        except StopIteration:
            self._end(lane, lane.answer())
        except Exception as error:
            self._end(lane, lane.answer(error=error))

    def _end(self, lane: Lane, answer: Answer) -> None:
        lane.calls.close()
        self._lanes.remove(lane)
        self._tell(answer)

    def _tell(self, answer: Answer) -> None:
        if self.order == "completion":
            self._ended.append(answer)
            return
        self._early[answer.index] = answer
        while self._next in self._early:
            self._ended.append(self._early.pop(self._next))
            self._next += 1
