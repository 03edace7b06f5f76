"""The times of a plan's calls as pipelines read them: a tensor whose slices begin and end where steps do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .plan import Plan


@dataclass(frozen=True)
class Tick:
    """A time that a pipeline was handed: of which call of which plan it is."""

    plan: Plan
    index: int
    t: Tensor


class Clock:
    """The times of a plan and of its tails, on one device. Knows a time that it handed out by its object, unread."""

    def __init__(self, plan: Plan, device: torch.device | str | int | None) -> None:
        self.plan, self.device = plan, device
        self._ticks: dict[int, Tick] = {}
        self._whole: dict[int, Timesteps] = {}

    def timesteps(self, step: int = 0) -> Timesteps:
        """Those of the plan from a step on."""
        if step not in self._whole:
            plan = self.plan.tail(step)
            made = torch.tensor([call.t for call in plan.calls], dtype=torch.float32, device=self.device)
            times = made.as_subclass(Timesteps)
            times.clock, times.plan, times.first, times.ticks = self, plan, 0, list(made.unbind())
            self._ticks.update({id(t): Tick(plan, i, t) for i, t in enumerate(times.ticks)})
            self._whole[step] = times
        return self._whole[step]

    @cached_property
    def known_levels(self) -> dict[float, float]:
        """Time -> noise level of the plan's calls, as float32 has the times."""
        return {float(np.float32(call.t)): call.sigma for call in self.plan.calls}

    def known(self, t: object) -> Tick | None:
        """What a time is of, where it is one of those handed out."""
        tick = self._ticks.get(id(t))
        return tick if tick is not None and tick.t is t else None


class Timesteps(Tensor):
    """float32 times, one a call. A slice [k:] begins with the step that call k is of, a slice [:k] ends where one does.

    What an operation makes of it is a plain tensor.
    """

    clock: Clock
    plan: Plan
    first: int  # of the plan's calls
    ticks: list[Tensor]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.ticks)

    def __getitem__(self, part: Any) -> Tensor:
        if isinstance(part, int):
            return self.ticks[part]
        if not isinstance(part, slice) or part.step not in (None, 1) or not len(self.ticks):
            return super().__getitem__(part)
        start, stop, _ = part.indices(len(self.ticks))
        if part.stop is None and start < len(self.ticks):
            return self._from(start)
        if part.start in (None, 0) and 1 < stop < len(self.ticks):
            begun = self.plan.begin(self.first + stop) - self.first
            return self._cut(0, begun if begun > 0 else self._end_of_first())
        return super().__getitem__(part)

    def _from(self, start: int) -> Tensor:
        plan, index = self.plan, self.plan.begin(self.first + start)
        if index <= self.first:
            return self
        if self.first + len(self.ticks) < len(plan):  # an end was cut off before
            return self._cut(index - self.first, len(self.ticks))
        return self.clock.timesteps(plan.step_of(index))

    def _end_of_first(self) -> int:
        later = [i for i in self.plan.starts if i > self.first]
        return later[0] - self.first if later else len(self.ticks)

    def _cut(self, start: int, stop: int) -> Timesteps:
        cut = self.as_subclass(Tensor)[start:stop].as_subclass(Timesteps)
        cut.clock, cut.plan, cut.first, cut.ticks = self.clock, self.plan, self.first + start, self.ticks[start:stop]
        return cut
