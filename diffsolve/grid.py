"""Where the steps go: schedules make grids, and a grid is float64 nodes on the host, in the order they are visited."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import GridError, did_you_mean, finite, whole
from .process import VP, Process

Nodes = NDArray[np.float64]
Final = Literal["denoise", "none", "step"]
_SLACK = 1e-6  # relative: nodes that were printed in float32 are still inside the trained range


@dataclass(frozen=True, eq=False)
class Grid:
    """Strictly monotone nodes (sigma for a diffusion, t for an ODE) and what follows the last one.

    final: "denoise" (one Euler step on to sigma = 0, as k-diffusion appends 0), "step" (the solver's own step to 0
    where it has one, else the same), or "none". A slice of a grid is a grid, over the nodes that it visits: `grid[5:]`
    starts from the sixth, and `grid[:-1]` leaves out the last step.
    """

    nodes: Nodes
    name: str = "explicit"
    final: Final = "none"

    def __post_init__(self) -> None:
        nodes = np.array(self.nodes, np.float64)
        nodes.setflags(write=False)
        object.__setattr__(self, "nodes", nodes)
        if self.final not in get_args(Final):
            raise GridError(f"final must be 'denoise', 'none' or 'step', got {self.final!r}")
        if nodes.ndim != 1 or len(nodes) < (2 if self.final == "none" else 1):
            raise GridError(
                f"a grid is a flat list of two or more nodes (one where a step to 0 follows), got shape {nodes.shape}"
            )
        if not np.isfinite(nodes).all():
            bad = int(np.argmin(np.isfinite(nodes)))
            raise GridError(f"node {bad} of the grid is {nodes[bad]}; every node must be a finite number")
        visited = self.sigmas
        steps = np.diff(visited) * (np.sign(visited[-1] - visited[0]) or 1)
        if steps.min() <= 0:
            bad = int(np.argmax(steps <= 0))
            kind = "repeats" if visited[bad] == visited[bad + 1] else "turns back"
            raise GridError(
                f"node {bad + 1} {kind}: {visited[bad]:g} -> {visited[bad + 1]:g}; nodes must be strictly monotone. "
                "Sort them and drop the repeated ones"
            )

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.nodes) - (self.final == "none")

    def __getitem__(self, part: slice) -> Grid:
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise GridError(f"a grid is cut with a slice of step 1, such as grid[5:], got {part!r}")
        visited = self.sigmas
        start, stop, _ = part.indices(len(visited))
        to_zero = self.final != "none" and stop == len(visited)
        return replace(self, nodes=visited[start : stop - to_zero], final=self.final if to_zero else "none")

    def strength(self, strength: float) -> Grid:
        """The last `strength` share of the steps (0 < strength <= 1), for img2img; at least one step is kept."""
        if not 0 < (finite(strength) or 0) <= 1:
            raise GridError(f"strength must be above 0 and at most 1, got {strength!r}")
        return self[len(self) - max(1, round(len(self) * strength)) :]

    @property
    def sigmas(self) -> Nodes:
        """Every node that is visited, the 0 that "denoise" and "step" end at included."""
        return self.nodes if self.final == "none" else np.append(self.nodes, 0.0)

    def check_range(self, low: float, high: float) -> None:
        """Raise GridError where a node lies outside [low, high], the range that the model was trained on."""
        top, bottom = float(self.nodes.max()), float(self.nodes.min())
        for value in (top, bottom):
            if not low * (1 - _SLACK) <= value <= high * (1 + _SLACK):
                raise GridError(
                    f"sigma = {value:g} is outside the trained range [{low:g}, {high:g}]; "
                    "pass sigma_min and sigma_max inside it, or a problem with another process"
                )


class Schedule(ABC):
    """A rule that places `count` nodes from `high` down to `low` (sigmas) for a process.

    zero_last: whether the 0 that a grid ends at takes the place of the rule's last node, rather than follow it.
    """

    zero_last = False

    @abstractmethod
    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        """`count` >= 1 strictly decreasing sigmas in [low, high]; the first is `high` unless the rule says otherwise.

        A rule that keeps one training step of distance from an end need not reach it.
        """

    def _positive(self, **options: Any) -> None:
        for name, value in options.items():
            if (finite(value) or 0) <= 0:
                raise GridError(f"{type(self).__name__}: {name} must be a finite number above 0, got {value!r}")


def _ramp(count: int) -> Nodes:
    return np.linspace(0, 1, count) if count > 1 else np.zeros(1)


def _between(high: float, low: float, ramp: Nodes) -> Nodes:
    """high at ramp 0 and low at ramp 1, to the last bit."""
    return np.where(ramp == 1, low, high + ramp * (low - high))


@dataclass(frozen=True)
class Karras(Schedule):
    """sigma^(1/rho) evenly spaced (Karras et al. 2022, eq. 5)."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        self._positive(rho=self.rho)

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        nodes = _between(high ** (1 / self.rho), low ** (1 / self.rho), _ramp(count)) ** self.rho
        return _pin(nodes, low, high)


@dataclass(frozen=True)
class PolyExponential(Schedule):
    """log sigma polynomially spaced, uniform in lambda at rho = 1 (k-diffusion, get_sigmas_polyexponential)."""

    rho: float = 1.0

    def __post_init__(self) -> None:
        self._positive(rho=self.rho)

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        nodes = np.exp(math.log(low) + (1 - _ramp(count)) ** self.rho * math.log(high / low))
        return _pin(nodes, low, high)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Uniform in the angle atan(sigma), the time of a cosine process (Nichol & Dhariwal 2021)."""

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        return _pin(np.tan(_between(math.atan(high), math.atan(low), _ramp(count))), low, high)


def _pin(nodes: Nodes, low: float, high: float) -> Nodes:
    """The end nodes without the rounding of the map that placed them."""
    nodes[0] = high
    if len(nodes) > 1:
        nodes[-1] = low
    return nodes


class _InTime(Schedule):
    """Rules that place t; the process turns it into sigma."""

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        first, last = process.t(high), process.t(low)
        times = np.clip(self.times(count, first, last, process), last, first)  # an ulp of rounding at the ends
        return np.clip(process.sigma(np.asarray(times, np.float64)), low, high)

    @abstractmethod
    def times(self, count: int, first: float, last: float, process: Process) -> Nodes: ...


@dataclass(frozen=True)
class Linspace(_InTime):
    """t evenly spaced from end to end (diffusers' timestep_spacing="linspace", without its rounding)."""

    def times(self, count: int, first: float, last: float, process: Process) -> Nodes:
        return _between(first, last, _ramp(count))


def _unit(process: Process) -> float:
    """One training step in units of t: 1 for a discrete process, a thousandth of the range for a continuous one."""
    return 1.0 if isinstance(process, VP) else (process.t_max - process.t_min) / 999


def _stride(count: int, total: float) -> float:
    """Training steps from node to node: total/count, or less where `count` nodes would not fit among so few."""
    return min(total / count, (total - 1) / max(count - 1, 1))


@dataclass(frozen=True)
class Leading(_InTime):
    """t = offset + i floor(T/n), i = n - 1, ..., 0 (diffusers' "leading" with steps_offset): starts below the top."""

    offset: int = 1

    def __post_init__(self) -> None:
        if self.offset:
            whole(self.offset, "Leading: offset", GridError)

    def times(self, count: int, first: float, last: float, process: Process) -> Nodes:
        unit = _unit(process)
        total = (first - last) / unit + 1
        stride = float(round(total) // count) if unit == 1 and count <= total else _stride(count, total)
        offset = min(self.offset, max(total - 1 - (count - 1) * stride, 0))
        return np.asarray(last + unit * (offset + stride * np.arange(count)[::-1]))


@dataclass(frozen=True)
class Trailing(_InTime):
    """t = T - i T/n - 1 for i = 0, 1, ... (diffusers' "trailing", without its rounding): ends above the bottom."""

    def times(self, count: int, first: float, last: float, process: Process) -> Nodes:
        unit = _unit(process)
        total = (first - last) / unit + 1
        return np.asarray(first - unit * _stride(count, total) * np.arange(count))


@dataclass(frozen=True)
class Simple(_InTime):
    """Every (T/n)-th training timestep from the top, rounded down as ComfyUI's "simple" does where t is discrete."""

    def times(self, count: int, first: float, last: float, process: Process) -> Nodes:
        unit = _unit(process)
        total = (first - last) / unit + 1
        places = np.arange(count) * _stride(count, total)
        return np.asarray(first - unit * (np.floor(places) if unit == 1 and count <= total else places))


@dataclass(frozen=True)
class SgmUniform(Linspace):
    """t evenly spaced over n + 1 nodes, the last of which gives way to 0 (ComfyUI's "sgm_uniform")."""

    zero_last = True


@dataclass(frozen=True)
class Quadratic(_InTime):
    """sqrt(t) evenly spaced (DDIM's quadratic sub-sequence, Song et al. 2021, appendix D.2), from end to end."""

    def times(self, count: int, first: float, last: float, process: Process) -> Nodes:
        return _between(math.sqrt(first), math.sqrt(last), _ramp(count)) ** 2


@dataclass(frozen=True)
class Beta(_InTime):
    """t at the quantiles of Beta(a, b) (Lee et al. 2024, arXiv 2407.12173; ComfyUI's "beta", unrounded)."""

    a: float = 0.6
    b: float = 0.6

    def __post_init__(self) -> None:
        self._positive(a=self.a, b=self.b)

    def times(self, count: int, first: float, last: float, process: Process) -> Nodes:
        from scipy.stats import beta  # slow to import, used by this rule alone

        quantiles = beta.ppf(1 - np.arange(count) / count, self.a, self.b)
        return np.asarray(last + (first - last) * quantiles)


# Sabour et al. 2024 (arXiv 2404.14507), the sigmas published for 10 steps. The ends of the first two are Stable
# Diffusion's own, printed there as 14.615 and 0.029; unrounded, they leave the published nodes between them unmoved.
_SD_ENDS = (14.614646624923662, 0.02916753316555422)
_AYS = {
    "sd15": (_SD_ENDS[0], 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, _SD_ENDS[1]),
    "sdxl": (_SD_ENDS[0], 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, _SD_ENDS[1]),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


@dataclass(frozen=True)
class AlignYourSteps(Schedule):
    """The published 10-step table of `model` ("sd15", "sdxl", "svd"), log-linear in between for another count.

    A 0 takes the place of the table's last node. The table's ends are stretched to the ends asked for, in log sigma.
    """

    model: str = "sd15"
    zero_last = True

    def __post_init__(self) -> None:
        if self.model not in _AYS:
            raise GridError(f"no Align-Your-Steps table for {self.model!r}{did_you_mean(self.model, _AYS)}")

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        logs = np.log(_AYS[self.model])
        shape = (logs[0] - logs) / (logs[0] - logs[-1])
        places = np.interp(_ramp(count), np.linspace(0, 1, len(shape)), shape)
        return _pin(np.exp(_between(math.log(high), math.log(low), places)), low, high)


@dataclass(frozen=True, eq=False)
class Timesteps(Schedule):
    """Explicit decreasing times of the process, as diffusers' `timesteps=` takes them."""

    times: Sequence[float]

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        t = explicit(self.times)
        outside = ~((t >= process.t_min) & (t <= process.t_max))
        if outside.any():
            raise GridError(
                f"timestep {t[outside][0]:g} is outside [{process.t_min:g}, {process.t_max:g}], the range that "
                "the process was trained on"
            )
        return np.asarray(process.sigma(t))


def make_grid(
    schedule: Any,
    n: int,
    process: Process,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: Final = "denoise",
    name: str = "",
) -> Grid:
    """The grid of `n` steps over the process's range, or over [sigma_min, sigma_max] inside it.

    schedule: a Schedule, a Grid (returned as it is), or explicit decreasing sigmas (a 0 at the end means
    final="denoise"). With "denoise" or "step" the n-th step is the one to 0, so n nodes are placed; with "none", n + 1.
    Raises GridError for a count, a range, an order or a value that can't be used.
    """
    if isinstance(schedule, Schedule) and not isinstance(schedule, Timesteps):
        low, high = _ends(sigma_min, sigma_max, process)
        end = final == "none" or schedule.zero_last
        nodes = schedule.nodes(whole(n, "the number of steps n", GridError) + end, low, high, process)
        grid = Grid(nodes[:-1] if end and final != "none" else nodes, name or type(schedule).__name__, final)
    elif sigma_min is not None or sigma_max is not None:
        raise GridError("sigma_min and sigma_max bound a named schedule; explicit nodes have their own ends: cut those")
    elif isinstance(schedule, Grid):
        grid = schedule
    else:
        nodes = schedule.nodes(0, 0, 0, process) if isinstance(schedule, Timesteps) else explicit(schedule)
        if nodes.ndim == 1 and len(nodes) and nodes[-1] == 0:
            nodes, final = nodes[:-1], "denoise" if final == "none" else final
        if (nodes <= 0).any():
            raise GridError(f"sigma = {nodes[nodes <= 0][0]:g}: a noise level is above 0, and only the last may be 0")
        if nodes.ndim == 1 and len(nodes) > 1 and nodes[0] < nodes[-1]:
            raise GridError(
                f"sigmas rise from {nodes[0]:g} to {nodes[-1]:g}; sampling runs from high noise to low. "
                "Reverse the list"
            )
        grid = Grid(nodes, name or "explicit", final)
    grid.check_range(process.sigma_min, process.sigma_max)
    return grid


def _ends(sigma_min: float | None, sigma_max: float | None, process: Process) -> tuple[float, float]:
    """The range that a schedule is to cover, checked to be inside the trained one."""
    low = process.sigma_min if sigma_min is None else sigma_min
    high = process.sigma_max if sigma_max is None else sigma_max
    try:
        low, high = float(low), float(high)
    except (TypeError, ValueError) as error:
        raise GridError(f"sigma_min and sigma_max must be numbers, got {sigma_min!r} and {sigma_max!r}") from error
    if not 0 < low < high:
        raise GridError(f"expected 0 < sigma_min < sigma_max, got sigma_min = {low:g}, sigma_max = {high:g}")
    Grid(np.array([high, low])).check_range(process.sigma_min, process.sigma_max)
    return low, high


def explicit(values: Any) -> Nodes:
    """Nodes that were listed, as float64. Raises GridError for what is no list of numbers."""
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu()
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise GridError(f"a schedule is a name, a Schedule, a Grid or a list of sigmas, got {values!r}") from error
