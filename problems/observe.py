"""What is seen of an ODE's solution between its steps: its states at given times, and events."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from diffsolve import Driver, NonFiniteError, ProblemError, Run, SolverError, Span
from diffsolve.field import Evaluation
from diffsolve.problem import Event
from diffsolve.run import is_transformed
from diffsolve.solution import Occurrence, Trajectory, Visit, Watcher
from diffsolve.validate import finite

from .interpolant import Piece, hermite, own, refined
from .ode import GivenField, SemilinearODE
from .states import check_function

_LOOKS = 4  # at an event within a step, so that it may happen twice in one
_OUTSIDE = (
    "the calls of this run are answered from outside, so that its solution can't be seen between its steps; leave out "
    "events, and the times that were asked for"
)


def observers(
    problem: SemilinearODE, run: Run, events: Event | Sequence[Event] | None, tolerant: bool
) -> list[Watcher]:
    """What an ODE's run is watched by, where times or events are asked for; see `ODEProblem`."""
    solution, solver = run.solution, run.solver
    asked = tolerant and solution.grid.name != "uniform"
    if isinstance(solver, Driver):
        if events is not None:
            raise SolverError(f"{solver!r} takes its steps by itself, and events are found in ours; leave them out")
        if not asked or solution.trajectory is not None:
            return []
        solution.trajectory = [solution.x]
        return [Trajectory()]
    asked = asked and run.count is None
    if not asked and events is None:
        return []
    if solution.stats["execution"] != "eager":
        raise SolverError(f"events are not looked for in a {solution.stats['execution']}; leave execution out")
    if asked:
        solution.times = solution.grid.nodes.tolist()
        run.watchers[:] = [watcher for watcher in run.watchers if not isinstance(watcher, Trajectory)]
        solution.trajectory = solution.trajectory or [solution.x]
    if events is not None:
        solution.events = solution.events or []
    run.field = field = ObservedField(problem, run.field.nfe, run.mode.asked != "checkpoint")
    return [Observer(run, field, list(events) if isinstance(events, Sequence) else [] if events is None else [events])]


class ObservedField(GivenField):
    """The field of a run that is observed: it keeps the evaluations of a step, and may make the next one's first.

    held: which rows of the state stay as they are, (B,), None while none does.
    """

    def __init__(self, problem: SemilinearODE, nfe: int, ahead: bool) -> None:
        super().__init__(problem)
        self.nfe, self.ahead, self.held, self.recording = nfe, ahead, None, True
        self.made: list[tuple[Tensor, float, Tensor]] = []
        self._first: tuple[Tensor, float, Evaluation] | None = None
        self._answered = 0

    held: Tensor | None

    def holding(self, rows: Tensor) -> ObservedField:
        """The same with those rows held; another object, so that a step of before, taken again, is as it was."""
        changed = copy(self)
        changed.held, changed._first = rows, None
        changed.forget()
        self.recording = False
        return changed

    def evaluate(self, u: Tensor, s: float, /) -> Evaluation:
        if self._first is not None and self._first[0] is u and self._first[1] == s:
            return self._first[2]
        return super().evaluate(u, s)

    def answer(self, u: Tensor, s: float) -> Any:
        self._answered += 1
        return super().answer(u, s)

    def accept(self, u: Tensor, s: float, reply: object) -> Evaluation:
        found = super().accept(u, s, reply)
        if self.held is not None:  # there u' = linear u + N is 0
            mask = self.held.reshape(-1, *[1] * (u.ndim - 1))
            found = self.newest = Evaluation(torch.where(mask, -self.form.linear * u, found.value))
        if self.recording:
            self.made.append((u, s, found.value))
        return found

    def known(self, u: Tensor, s: float) -> Tensor | None:
        """u' at a state that this step has evaluated; a step that is answered from outside is taken again and again."""
        for state, at, value in self.made:
            if at == s and (state is u or (self._outside and torch.equal(state, u))):
                return self._whole(u, value)
        return None

    @property
    def _outside(self) -> bool:
        return len(self.made) > self._answered

    def rate(self, u: Tensor, s: float) -> Tensor:
        """u' at a state: what is known of it, or one evaluation."""
        known = self.known(u, s)
        if known is not None:
            return known
        if self._outside:
            raise SolverError(_OUTSIDE)
        found = self.evaluate(u, s)
        if self.ahead:
            self._first = u, s, found
        return self._whole(u, found.value)

    def slopes(self, count: int) -> list[Tensor]:
        """u' at the newest `count` evaluations."""
        return [self._whole(u, value) for u, _, value in self.made[-count:]] if count else []

    def forget(self) -> None:
        self.made, self._answered = [], 0

    def _whole(self, u: Tensor, value: Tensor) -> Tensor:
        return value + self.form.linear * u if self.form.linear else value


@dataclass
class Watched:
    """An event under way: the signs at the newest look, one or one for each row, and how often it has happened.

    after: the number of times after which it ends the run, or its row's part in it; 0: never.
    """

    index: int
    function: Event
    direction: float
    after: int
    by_row: bool
    signs: list[int]
    counts: list[int]

    @classmethod
    def of(cls, index: int, event: object, t: float, x: Tensor) -> Watched:
        """The function as it is asked for; its attributes `terminal` and `direction` mean what they do in scipy."""
        check_function(event, f"event {index}", 2, "(t, x)")
        direction, terminal = getattr(event, "direction", 0), getattr(event, "terminal", False)
        if finite(direction) is None:
            raise ProblemError(f"event {index} has the direction {direction!r}; expected 1 (rising), -1 or 0 (both)")
        if not isinstance(terminal, bool | int) or terminal < 0:
            raise ProblemError(f"event {index} is terminal={terminal!r}; expected True, False, or after how many")
        value = cast(Event, event)(t, x.detach())
        by_row = isinstance(value, Tensor) and value.ndim == 1 and x.ndim > 0
        watched = cls(index, cast(Event, event), float(direction), int(terminal), by_row, [], [])
        watched.signs = [_sign(v) for v in watched.values(t, x)]
        watched.counts = [0] * len(watched.signs)
        return watched

    def values(self, t: float, x: Tensor) -> list[float]:
        """Its value, or values by row. Raises ProblemError, or NonFiniteError for NaN."""
        value = self.function(t, x.detach())
        if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
            raise ProblemError(f"event {self.index} returned a condition; return what crosses 0, x[0] - 1 for x[0] > 1")
        if not isinstance(value, Tensor):
            if not isinstance(value, float) and finite(value) is None:
                raise ProblemError(f"event {self.index} returned {type(value).__name__}; expected a tensor or a number")
            found = [float(value)]
        elif value.is_complex() or value.is_meta:
            raise ProblemError(f"event {self.index} returned {value.dtype} on {value.device}; expected real numbers")
        elif value.shape == ((len(x),) if self.by_row else ()):
            found = value.detach().double().reshape(-1).tolist()
        else:
            rows = f", or one for each row, ({len(x)},)" if x.ndim else ""
            raise ProblemError(
                f"event {self.index} returned shape {tuple(value.shape)} at t = {t:g}; expected one number, (){rows}"
            )
        if any(math.isnan(v) for v in found):
            raise NonFiniteError(f"event {self.index} is NaN at t = {t:g}; let it be a number wherever the state is")
        return found

    def happens(self, row: int, value: float) -> bool:
        """Whether it has since the look before, whose sign is then replaced. A zero to begin with is none."""
        before, now = self.signs[row], _sign(value)
        self.signs[row] = now
        return before != 0 and now != before and self.direction * before <= 0


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


class Step:
    """One step that is looked into: the solution within it, made when it is asked for.

    start: the state there, with u' where that is known.
    """

    def __init__(
        self, run: Run, field: ObservedField, start: tuple[float, Tensor, Tensor | None], end: tuple[float, Tensor]
    ) -> None:
        self.run, self.field, self._made, self._is_refined = run, field, field.made, False
        (self.t0, self.u0, first), (self.t1, self.u1) = start, end
        self.slopes: tuple[Tensor | None, Tensor | None] = first, field.known(self.u1, self.t1)
        self._piece: Piece | None = None

    def at(self, t: float) -> Tensor:
        """u at t, as exactly as it is known by now."""
        return self.u1 if t == self.t1 else self.u0 if t == self.t0 else self.piece.at(t)

    @property
    def piece(self) -> Piece:
        if self._piece is None:
            self._piece = self._first_piece()
        return self._piece

    def refine(self) -> bool:
        """Make it as exact as the step; whether it was not so already."""
        before, order = self.piece, self.run.solver.order or 1
        if not self._is_refined:
            self._piece = refined(before, self.field.form.linear, order, (self.u0, self.u1), self._ends(), self._rate)
            self._is_refined = True
        return self._piece is not before

    def _rate(self, u: Tensor, s: float) -> Tensor:
        return self.field.rate(u, s)

    def _ends(self) -> tuple[Tensor, Tensor]:
        first, last = self.slopes
        first = self.field.rate(self.u0, self.t0) if first is None else first
        last = self.field.rate(self.u1, self.t1) if last is None else last
        self.slopes = first, last
        return first, last

    def _first_piece(self) -> Piece:
        solver, h, rule = self.run.solver, self.t1 - self.t0, self.run.solver.continuous()
        if rule is not None:
            calls = solver.evaluations(Span(self.t0, self.t1, adaptive=self.run.count is None), 0) or 1
            inner = self.field.slopes(calls - 1)[: len(rule) - 2]
            first, last = self._ends()
            if len(inner) == len(rule) - 2:
                return own(self.t0, h, self.u0, (first, *inner, last), rule)
        return hermite(self.t0, h, self.field.form.linear, (self.u0, self.u1), self._ends())


class Observer(Watcher):
    """Fills in a solution's states at its `times`, and its events; ends the run at one that is to end it."""

    def __init__(self, run: Run, field: ObservedField, events: Sequence[Event]) -> None:
        self.run, self.field, solution = run, field, run.solution
        self.at: tuple[float, Tensor, Tensor | None] = (float(solution.nodes[-1]), solution.x, None)
        self.sense = 1.0 if solution.grid.nodes[-1] > solution.grid.nodes[0] else -1.0
        self.events = [Watched.of(i, event, *self.at[:2]) for i, event in enumerate(events)]
        self.stopped: dict[int, tuple[float, Tensor]] = {}  # by row: when, and as what
        self.ended = False
        for known in solution.events or () if events else ():  # of a run that goes on
            if known["event"] >= len(events):
                raise SolverError(f"the saved state is of a run with other events than these {len(events)}; pass those")
            self.ended |= self._count(self.events[known["event"]], known)
        self.ended |= self._all_stopped()
        self._hold()

    def see(self, visit: Visit, run: Run) -> bool:
        with torch.set_grad_enabled(run.mode.enabled()):
            return self._see(Step(run, self.field, self.at, (visit.node, visit.x)))

    def _see(self, step: Step) -> bool:
        solution, before = self.run.solution, len(self.stopped)
        end = self._look(step)
        if end is None and self._all_stopped():
            t = max((stop[0] for stop in self.stopped.values()), key=lambda t: self.sense * t)
            end = t, step.at(t)
        last = step.t1 if end is None else end[0]
        self._fill(step, last)
        if self.stopped or end is not None:
            solution.x = self._held(step.at(last) if end is None else end[1], last)
            solution.nodes[-1] = last
            if solution.trajectory is not None and solution.times is None:
                solution.trajectory[-1] = solution.x
        changed = end is not None or len(self.stopped) > before
        self.at = (step.t1, solution.x, None) if changed else (step.t1, step.u1, step.slopes[1])
        self.run.replace_state(self.at[1])
        if changed:
            self._hold()
        self.field.forget()
        solution.nfe = self.field.nfe
        self.ended = end is not None
        return self.ended

    def close(self, run: Run) -> None:
        solution, self.field.recording = run.solution, False
        if self.ended:
            solution.reason = "event"
        if solution.times is not None and solution.trajectory is not None:  # nothing of a step that was taken back
            del solution.trajectory[sum(self.sense * (t - solution.nodes[-1]) <= 0 for t in solution.times) :]

    # -- states

    def _fill(self, step: Step, last: float) -> None:
        """The states at the times that were asked for, up to `last`."""
        times, trajectory = self.run.solution.times, self.run.solution.trajectory
        while times and trajectory is not None and len(trajectory) < len(times):
            t = times[len(trajectory)]
            if self.sense * (t - last) > 0:
                return
            if t != step.t1:
                step.refine()
            trajectory.append(self._held(step.at(t), t))

    def _held(self, x: Tensor, t: float) -> Tensor:
        """The state at t, the rows that had stopped before as they were then."""
        for row, (at, state) in self.stopped.items():
            if self.sense * (at - t) <= 0:
                x = torch.cat([x[:row], state[None], x[row + 1 :]])
        return x

    def _all_stopped(self) -> bool:
        return bool(self.stopped) and len(self.stopped) == len(self.at[1])

    def _hold(self) -> None:
        if self.stopped:
            u = self.at[1]
            rows = torch.tensor([row in self.stopped for row in range(len(u))], device=u.device)
            self.run.field = self.field = self.field.holding(rows)

    # -- events

    def _look(self, step: Step) -> tuple[float, Tensor] | None:
        """Note the events of a step, in time; when, and as what, the run is to end, if it is."""
        happenings = [found for event in self.events for found in self._happenings(event, step)]
        for t, event, row in sorted(happenings, key=lambda found: self.sense * found[0]):
            if event.by_row and row in self.stopped:
                continue
            known = self._occurrence(step, t, event, row)
            assert self.run.solution.events is not None
            self.run.solution.events.append(known)
            if self._count(event, known):
                return t, known["x"]
        return None

    def _count(self, event: Watched, known: Occurrence) -> bool:
        """Whether it ends the run; where it is one row's, the row alone stops."""
        row = known["sample"]
        event.counts[row or 0] += 1
        if not event.after or event.counts[row or 0] < event.after:
            return False
        if row is not None:
            self.stopped[row] = known["t"], known["x"]
        return row is None

    def _happenings(self, event: Watched, step: Step) -> list[tuple[float, Watched, int]]:
        before = list(event.signs)
        found = list(self._changes(event, step))
        if found and step.refine():  # they may lie elsewhere
            event.signs = before
            found = list(self._changes(event, step))
        return [(self._root(step, low, high, event, row), event, row) for low, high, row in found]

    def _changes(self, event: Watched, step: Step) -> Iterator[tuple[float, float, int]]:
        """The intervals in which it happens, by row."""
        places = [step.t0 + (step.t1 - step.t0) * k / _LOOKS for k in range(_LOOKS)] + [step.t1]
        for low, high in pairwise(places):
            for row, value in enumerate(event.values(high, step.at(high))):
                if event.happens(row, value) and not (event.by_row and row in self.stopped):
                    yield low, high, row

    def _root(self, step: Step, low: float, high: float, event: Watched, row: int) -> float:
        """Where it is 0, to the last digits."""
        from scipy.optimize import brentq

        def value(t: float) -> float:
            return event.values(t, step.at(t))[row]

        if value(high) == 0:
            return high
        scale = max(abs(low), abs(high), abs(high - low))
        t = float(brentq(value, low, high, xtol=1e-15 * scale, rtol=1e-15))
        return t if t != step.t0 else math.nextafter(step.t0, step.t1)

    def _occurrence(self, step: Step, t: float, event: Watched, row: int) -> Occurrence:
        x, time = step.at(t), torch.tensor(t, dtype=torch.float64)
        if x.requires_grad or is_transformed():  # the time is where the event stays 0 as the state changes
            value = event.function(t, x)
            if isinstance(value, Tensor):
                value = value[row] if event.by_row else value
                h = (step.t1 - step.t0) * torch.finfo(x.dtype).eps ** (1 / 3)
                ahead, behind = (event.values(s, step.at(s))[row] for s in (t + h, t - h))
                shift = (value.detach() - value) / ((ahead - behind) / (2 * h))
                x, time = x + step.piece.slope(t) * shift, time + shift.to("cpu", torch.float64)
        sample = row if event.by_row else None
        return {"event": event.index, "t": t, "sample": sample, "x": x if sample is None else x[row], "time": time}
