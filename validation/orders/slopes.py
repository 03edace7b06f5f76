"""The order of a method from its errors: the slope of log error against log steps, where that slope means something."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LEAST = 4  # points in a window: three pairs, so that one bent pair shows
BENT = 0.1  # a coarser pair belongs to the asymptotic window while it is this near to the window's slope
CLEAR = 10.0  # a point is used while its error is this many times the rounding floor


@dataclass(frozen=True)
class Slope:
    """errors ~ n^-slope over `window`.

    pairs: the slope of each pair of neighbouring points, signed: an error that grows gives a negative one. window:
    (first, end) of the points used, empty where too few stand clear of the floor. low, high: the 95 % band of the
    regression. floor: where rounding (or the reference's own error) ends the fall, nan where it was not met.
    """

    ns: tuple[int, ...]
    errors: tuple[float, ...]
    pairs: tuple[float, ...]
    window: tuple[int, int]
    slope: float
    low: float
    high: float
    floor: float

    @property
    def found(self) -> bool:
        return self.window[1] - self.window[0] >= LEAST

    @property
    def settled(self) -> bool:
        """Whether the finest pairs of the window agree, so that a finer grid would show no other slope."""
        end = self.window[1]
        return self.found and bool(np.ptp(self.pairs[end - LEAST : end - 1]) <= BENT)

    @property
    def trend(self) -> float:
        """The mean of the window's two finest pairs: where the slope is going."""
        first, end = self.window
        return float(np.mean(self.pairs[max(first, end - 3) : end - 1])) if self.found else math.nan

    def meets(self, order: float, below: float = 0.15, above: float = math.inf) -> bool:
        """Whether the slope is at most `below` under `order`, the finest pairs say so too, and it is not above it."""
        return self.found and order - below <= self.slope <= order + above and self.trend >= order - 3 * below

    def __str__(self) -> str:
        if not self.found:
            return f"no asymptotic window in n = {self.ns[0]}..{self.ns[-1]}"
        first, end = self.window
        return f"{self.slope:.2f} [{self.low:.2f}, {self.high:.2f}] over n = {self.ns[first]}..{self.ns[end - 1]}"


def pair_slopes(ns: Sequence[int], errors: Sequence[float]) -> tuple[float, ...]:
    """-d log error / d log n between neighbours, with its sign."""
    log_n, log_e = np.log(np.asarray(ns, float)), _logs(errors)
    with np.errstate(invalid="ignore"):  # a run that blew up has no slope
        return tuple(float(s) for s in -np.diff(log_e) / np.diff(log_n))


def fit_slope(ns: Sequence[int], errors: Sequence[float], *, resolution: float = 0.0, rounding: float = 1e-10) -> Slope:
    """The order that `errors` at `ns` steps (rising) show.

    resolution: errors under it can't be told from the reference's own. rounding: where a fall that stops is taken for
    the rounding floor; one that stops above it is the method's failure, and stays in the window.

    The window is the finest run of points clear of the floor, extended to coarser ones while the slope holds: order is
    a limit, so a method that falls steeply at first and slowly later is as slow as it ends.
    """
    if len(ns) != len(errors) or len(ns) < 2 or any(a >= b for a, b in pairwise(ns)):
        raise ValueError(f"expected rising step counts with an error each, got ns = {ns!r}, errors = {errors!r}")
    pairs = pair_slopes(ns, errors)
    level = _stall(errors, pairs, rounding)
    met = resolution if min(errors) <= resolution else 0.0
    end = len(errors)
    while end and errors[end - 1] <= max(CLEAR * level, met):
        end -= 1
    floor = max(level, met) or math.nan
    first = end - LEAST
    if first < 0 or not all(map(math.isfinite, errors[first:end])):
        nan = math.nan
        return Slope(tuple(ns), tuple(errors), pairs, (end, end), nan, nan, nan, floor)
    fit = _regression(ns, errors, first, end)
    while first > 0 and abs(pairs[first - 1] - fit[0]) <= BENT:
        first -= 1
        fit = _regression(ns, errors, first, end)
    return Slope(tuple(ns), tuple(errors), pairs, (first, end), *fit, floor)


def _logs(errors: Sequence[float]) -> np.ndarray:
    return np.log(np.maximum(np.asarray(errors, float), 1e-300))


def _stall(errors: Sequence[float], pairs: Sequence[float], rounding: float) -> float:
    """The level at which the errors stop falling, if it is low enough to be rounding; 0 where there is none."""
    for i in range(2, len(errors)):
        if errors[i] <= rounding and pairs[i - 1] < np.median(pairs[: i - 1]) / 2:
            return max(errors[i:])
    return 0.0


def _regression(ns: Sequence[int], errors: Sequence[float], first: int, end: int) -> tuple[float, float, float]:
    from scipy.stats import linregress, t

    x, y = np.log(np.asarray(ns[first:end], float)), _logs(errors[first:end])
    fit = linregress(x, y)
    half = float(t.ppf(0.975, end - first - 2)) * float(fit.stderr)
    return -float(fit.slope), -float(fit.slope) - half, -float(fit.slope) + half
