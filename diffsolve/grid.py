"""Where the steps go: schedules make grids, and a grid is float64 nodes on the host, in the order they are visited."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import GridError
from .process import Process, as_process
from .validate import above_zero, choice, finite, shown, whole, without_gradient, written

Nodes = NDArray[np.float64]
Final = Literal["denoise", "none", "step"]
MOST_STEPS, BYTES_A_STEP = 10**6, 600  # of a grid, and of a plan over it, as measured
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
        nodes = np.array(explicit(self.nodes))
        nodes.setflags(write=False)
        object.__setattr__(self, "nodes", nodes)
        choice(self.final, "final", get_args(Final), GridError)
        if nodes.ndim != 1 or len(nodes) < (2 if self.final == "none" else 1):
            raise GridError(
                f"a grid is a flat list of two or more nodes (one where a step to 0 follows), got shape {nodes.shape}"
            )
        steps_of(len(nodes) - (len(nodes) > 1))
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
        ends = float(self.nodes[0]), float(self.nodes[-1])
        for value in (max(ends), min(ends)):
            if not low * (1 - _SLACK) <= value <= high * (1 + _SLACK):
                raise GridError(
                    f"sigma = {value:g} is outside the trained range [{low:g}, {high:g}]; "
                    "pass sigma_min and sigma_max inside it, or a problem with another process"
                )


def steps_of(n: object, what: str = "the number of steps n") -> int:
    """n as a number of steps, or of evaluations. Raises GridError for what is none, or is too many."""
    count = n if type(n) is int and n > 0 else whole(n, what, GridError)
    if count > MOST_STEPS:
        size = shown(count * BYTES_A_STEP)
        told = f"{what} is {written(count)}: a plan of so many steps would take {size}"
        raise GridError(f"{told}; the most is {MOST_STEPS}")
    return count


class Schedule(ABC):
    """A rule that places `count` nodes from `high` down to `low` (sigmas) for a process.

    zero_last: whether the 0 that a grid ends at takes the place of the rule's last node, rather than follow it.
    listed: whether it has nodes of its own, whatever is asked for.
    """

    zero_last = False
    listed = False

    @abstractmethod
    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        """`count` >= 1 strictly decreasing sigmas in [low, high]; the first is `high` unless the rule says otherwise.

        A rule that keeps one training step of distance from an end need not reach it.
        """

    def check_above_zero(self, **options: object) -> None:
        for name, value in options.items():
            object.__setattr__(self, name, above_zero(value, f"{type(self).__name__}: {name}", GridError))


@dataclass(frozen=True)
class Tabulated(Schedule):
    """A table of falling sigmas, log-linear in between for another count.

    A 0 takes the place of the table's last node. Its ends are stretched to the ends asked for, in log sigma. Raises
    GridError for a table that is no grid, or has no end above 0.
    """

    table: tuple[float, ...]
    zero_last = True

    def __post_init__(self) -> None:
        nodes = Grid(np.array(self.table), "a table").nodes
        if not nodes[0] > nodes[-1] > 0:
            raise GridError(f"a table of sigmas falls and ends above 0, got {_shown(nodes)}")

    def nodes(self, count: int, low: float, high: float, process: Process) -> Nodes:
        logs = np.log(self.table)
        shape = (logs[0] - logs) / (logs[0] - logs[-1])
        places = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(shape)), shape)
        nodes: Nodes = np.exp(np.log(high) + places * (np.log(low) - np.log(high)))
        nodes[0] = high
        if count > 1:
            nodes[-1] = low
        return nodes


def make_grid(
    schedule: object,
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
    if not isinstance(process, Process):
        process = as_process(process)
    if isinstance(schedule, str):
        raise GridError(f"make_grid takes a Schedule: get_schedule({schedule!r})[0]; solve() and start() take its name")
    if isinstance(schedule, Schedule) and not schedule.listed:
        low, high = process.sigma_min, process.sigma_max
        if sigma_min is not None or sigma_max is not None:
            low, high = _ends(sigma_min, sigma_max, process)
        steps = steps_of(n)
        made = _placed if _is_frozen(schedule, process) else _placed.__wrapped__
        return made(schedule, steps, low, high, process, final, name or type(schedule).__name__)
    elif sigma_min is not None or sigma_max is not None:
        raise GridError("sigma_min and sigma_max bound a named schedule; explicit nodes have their own ends: cut those")
    elif isinstance(schedule, Grid):
        grid = schedule
    else:
        nodes = schedule.nodes(0, 0, 0, process) if isinstance(schedule, Schedule) else explicit(schedule)
        if not isinstance(schedule, Schedule) and nodes.ndim == 1:
            _check_are_sigmas(nodes, process, final)
        if nodes.ndim == 1 and len(nodes) and nodes[-1] == 0:
            nodes, final = nodes[:-1], "denoise" if final == "none" else final
        if (nodes <= 0).any():
            raise GridError(f"sigma = {nodes[nodes <= 0][0]:g}: a noise level is above 0, and only the last may be 0")
        if nodes.ndim == 1 and len(nodes) > 1 and nodes[0] < nodes[-1]:
            rise = f"sigmas rise from {nodes[0]:g} to {nodes[-1]:g}"
            raise GridError(f"{rise}; sampling runs from high noise to low. Reverse the list")
        grid = Grid(nodes, name or "explicit", final)
    grid.check_range(process.sigma_min, process.sigma_max)
    return grid


def _check_are_sigmas(nodes: Nodes, process: Process, final: Final) -> None:
    """Raise GridError for a list that looks like times of the process, or like what its network is told."""
    same = (process.t_min, process.t_max) == (process.sigma_min, process.sigma_max)  # times are noise levels
    if same or not len(nodes) or not np.isfinite(nodes).all() or nodes[0] <= 0:
        return
    told, first = max(process.t_max, process.c_noise(process.sigma_max)), nodes[0]
    counts = (nodes == nodes.round()).all()
    most = 1000 if told <= 1 < first and counts else told  # a pipeline's count to 1000, whatever is told
    scaled = most > 1 and most / 2 <= first <= most * 1.002 and (process.t_max <= 1 or counts)
    if not scaled and not (process.t_max <= 1 and first <= 1):
        return
    shown, above = _shown(nodes), _shown(nodes[nodes > 0])
    times = f"ds.Timesteps({shown})" if first <= max(1, process.t_max) else f"ds.Timesteps, up to {process.t_max:g},"
    raise GridError(
        f"{shown} may be times, of which the network is told up to {told:g}, or noise levels sigma_t/alpha_t; "
        f"pass {times} for times, ds.Grid({above}, final={final!r}) for noise levels"
    )


def _shown(nodes: Nodes) -> str:
    return f"[{', '.join(f'{node:g}' for node in nodes[:3])}{', ...' if len(nodes) > 3 else ''}]"


@lru_cache(maxsize=128)
def _placed(
    schedule: Schedule, n: int, low: float, high: float, process: Process, final: Final, name: str
) -> Grid:
    """The grid of a named rule; grids are immutable, so that of an immutable rule and process is made once."""
    end = final == "none" or schedule.zero_last
    nodes = schedule.nodes(n + end, low, high, process)
    grid = Grid(nodes[:-1] if end and final != "none" else nodes, name, final)
    grid.check_range(process.sigma_min, process.sigma_max)
    return grid


def _is_frozen(*records: object) -> bool:
    return all(getattr(getattr(r, "__dataclass_params__", None), "frozen", False) for r in records)


def _ends(sigma_min: float | None, sigma_max: float | None, process: Process) -> tuple[float, float]:
    """The range that a schedule is to cover, checked to be inside the trained one."""
    low = process.sigma_min if sigma_min is None else sigma_min
    high = process.sigma_max if sigma_max is None else sigma_max
    without_gradient("sigma_min or sigma_max", GridError, low, high)
    try:
        if any(isinstance(end, str | bytes | bool) or getattr(end, "ndim", 0) for end in (low, high)):
            raise TypeError
        low, high = float(low), float(high)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        given = f"{written(sigma_min)} and {written(sigma_max)}"
        raise GridError(f"sigma_min and sigma_max must be numbers, got {given}") from error
    if not 0 < low < high:
        raise GridError(f"expected 0 < sigma_min < sigma_max, got sigma_min = {low:g}, sigma_max = {high:g}")
    Grid(np.array([high, low])).check_range(process.sigma_min, process.sigma_max)
    return low, high


def explicit(values: Any) -> Nodes:
    """Nodes that were listed, as float64. Raises GridError for what is no list of numbers."""
    without_gradient("a list of nodes", GridError, values, *(values if isinstance(values, list | tuple) else ()))
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu().numpy()
        if np.asarray(values).dtype.kind not in "iufO":
            raise TypeError("no real numbers")
        return np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        got = written(values)
        raise GridError(f"a schedule is a name, a Schedule, a Grid or a list of sigmas, got {got}") from error
