"""Schedules of the web interfaces and of flow models, and a shift for any other. See schedules.py.

Levels that a rule puts past an end of the range are spread out before it, so that nodes never repeat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffsolve import GridError, Process, RectifiedFlow, Schedule, get_schedule
from diffsolve.grid import Nodes
from diffsolve.registry import register_schedule
from diffsolve.validate import between, whole

from .schedules import Beta


def _inside(sigmas: Nodes, low: float, high: float, last: float | None = None) -> Nodes:
    """The first at `high`, the last at `last` or where it is, and those between at their place if that is between."""
    logs = np.log(np.maximum(sigmas, 1e-300))
    end = math.log(low if last is None else min(max(last, low), high))
    kept = [i for i in range(1, len(logs) - 1) if end < logs[i] < math.log(high)]
    places = np.interp(np.arange(len(logs)), [0, *kept, len(logs) - 1], [math.log(high), *logs[kept], end])
    nodes = np.exp(places)
    nodes[0] = high
    if len(nodes) > 1 and last is None:
        nodes[-1] = low
    return nodes


def _as_told(shares: Nodes, low: float, high: float, process: Process) -> Nodes:
    """Shares 1 to 0 of ComfyUI's sigma: the straight path's time of a flow, the noise level of another process."""
    if not isinstance(process, RectifiedFlow):
        return _inside(high * shares, low, high)
    t = shares * (high / (1 + high))
    return _inside(t / (1 - t), low, high)


@register_schedule(
    "linear_quadratic", source="Mochi (genmo 2024): even steps over the first noise, then growing ones",
    aliases={"ComfyUI": "linear_quadratic"},
)  # fmt: skip
@dataclass(frozen=True)
class LinearQuadratic(Schedule):
    """Half of the steps evenly over the first `threshold` of the way, the rest with lengths that grow evenly.

    Of the way in t for a flow, in sigma else. threshold: above 0 and below 1.
    """

    threshold: float = 0.025
    zero_last = True

    def __post_init__(self) -> None:
        between(self.threshold, "LinearQuadratic: threshold", 1e-6, 1 - 1e-6, GridError)

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        steps = count - 1
        if steps < 2:
            return _as_told(np.linspace(1, 0, count), low, high, process)
        even = steps // 2
        first, late = self.threshold / even, np.arange(even, steps) - even
        growth = (1 - self.threshold - first * (steps - even)) / (steps - even) ** 2
        way = [*(first * np.arange(even)), *(self.threshold + first * late + growth * late**2), 1.0]
        return _as_told(1 - np.asarray(way), low, high, process)


@register_schedule(
    "bong_tangent", source="RES4LYF 2025: two arcs of the arctangent", aliases={"RES4LYF": "bong_tangent"},
)  # fmt: skip
@dataclass(frozen=True)
class BongTangent(Schedule):
    """Two arctangents, from 1 to `middle` and on to 0, of t for a flow, of sigma/sigma_max else.

    pivots: where of all steps each is steepest; slopes: how steep, for 40 steps.
    """

    middle: float = 0.5
    pivot_1: float = 0.6
    pivot_2: float = 0.6
    slope_1: float = 0.2
    slope_2: float = 0.2
    zero_last = True

    def __post_init__(self) -> None:
        self.check_above_zero(slope_1=self.slope_1, slope_2=self.slope_2)
        for name in ("middle", "pivot_1", "pivot_2"):
            between(getattr(self, name), f"BongTangent: {name}", 0.01, 0.99, GridError)

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        total = count + 1  # the middle is in both arcs
        first = min(max(int(total * (self.pivot_1 + self.pivot_2) / 2), 1), total - 1)
        one = _arc(first, self.slope_1 * 40 / total, int(total * self.pivot_1), 1.0, self.middle)
        two = _arc(total - first, self.slope_2 * 40 / total, int(total * self.pivot_2) - first, self.middle, 0.0)
        return _as_told(np.append(one[:-1], two)[:count], low, high, process)


def _arc(count: int, slope: float, pivot: int, start: float, end: float) -> Nodes:
    """`count` values from start to end along -atan(slope (i - pivot))."""
    bends = -np.arctan(slope * (np.arange(count) - pivot))
    return start + (end - start) * (bends[0] - bends) / (bends[0] - bends[-1] or 1.0)


@register_schedule(
    "laplace", source="Hang et al. 2024 (arXiv 2407.03297): quantiles of a Laplace law of log sigma",
    aliases={"ComfyUI": "LaplaceScheduler"},
)  # fmt: skip
@dataclass(frozen=True)
class Laplace(Schedule):
    """log sigma at the quantiles of Laplace(mu, beta), cut to the range."""

    mu: float = 0.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        self.check_above_zero(beta=self.beta)
        between(self.mu, "Laplace: mu", -700, 700, GridError)

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        x = np.linspace(0, 1, count) - 0.5
        logs = self.mu + self.beta * np.sign(x) * np.log(1 - 2 * np.abs(x) + 1e-5)
        return _inside(np.exp(np.clip(logs, -700, 700)), low, high)


@register_schedule(
    "flux2", source="FLUX.2 (Black Forest Labs 2025): even times, shifted by the picture's size and the steps",
    aliases={"ComfyUI": "Flux2Scheduler", "diffusers": "Flux2Pipeline"},
)  # fmt: skip
@dataclass(frozen=True)
class Flux2(Schedule):
    """sigma = e^mu t/(1 - t) at even t, mu fitted to the number of tokens (a token is 16 x 16 pixels) and of steps."""

    width: int = 1024
    height: int = 1024
    zero_last = True

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            whole(getattr(self, name), f"Flux2: {name}", GridError, 16)

    def mu(self, steps: int) -> float:
        tokens = (self.width // 16) * (self.height // 16)
        late = 0.00016927 * tokens + 0.45666666  # at 200 steps
        early = 8.73809524e-05 * tokens + 1.89833333  # at 10
        return late if tokens > 4300 else late + (early - late) * (200 - steps) / 190

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        steps = max(count - 1, 1)
        t = np.clip(1 - np.arange(count) / steps, 1e-12, 1 - 1e-12)
        return _inside(math.exp(self.mu(steps)) * t / (1 - t), low, high)


@register_schedule("shift", source="Esser et al. 2024 (arXiv 2403.03206), eq. 23, on any schedule")
@dataclass(frozen=True)
class Shift(Schedule):
    """`schedule` with every sigma multiplied by `shift`: t of a flow becomes shift t/(1 + (shift - 1) t).

    schedule: a name or a Schedule. The first node stays where the noise begins.
    """

    schedule: str | Schedule = "linspace"
    shift: float = 3.0

    def __post_init__(self) -> None:
        self.check_above_zero(shift=self.shift)
        inside = get_schedule(self.schedule)[0]
        if not isinstance(inside, Schedule):
            raise GridError(f"Shift takes the name of a schedule, or a Schedule, got {self.schedule!r}")
        object.__setattr__(self, "schedule", inside)

    @property
    def zero_last(self) -> bool:  # type: ignore[override]
        return self.schedule.zero_last  # type: ignore[union-attr]

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        placed = self.schedule.nodes(count, low, high, process)  # type: ignore[union-attr]
        return _inside(self.shift * placed, low, high, last=float(self.shift * placed[-1]))


register_schedule(
    "beta57", source="Beta(0.5, 0.7) quantiles of t; RES4LYF 2025", aliases={"RES4LYF": "beta57"},
)(lambda: Beta(0.5, 0.7))  # fmt: skip
