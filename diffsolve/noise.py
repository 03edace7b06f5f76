"""Noise that is addressed, never consumed: normals keyed by (seed, sample, stream), and Brownian paths over them.

A counter-based generator in integer tensor arithmetic (SplitMix64, Steele et al. 2014) runs on any device, needs no
state, and gives sample i the same noise whatever batch it is computed in.

A path is a tree of normals. Which of them an interval needs, and how much of each, is worked out in float64 on the
host, so that a query is one pass over each; those of the latest query are kept, so that a walk makes each of them once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .errors import SolverError

_GAMMA = 0x9E3779B97F4A7C15
_ALL = (1 << 64) - 1
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
PRIOR_STREAM = 1  # streams 2, 3, ... are those of paths
LEVELS = 10  # of a path's tree: a step of a thousandth of the range is still made of several normals
_ROOTS = (0, 1)  # keys of the normals that a whole path hangs on


def _signed(value: int) -> int:
    value &= _ALL
    return value - (1 << 64) if value >> 63 else value


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # logical: torch's own >> copies the sign bit


def _mix(z: Tensor) -> Tensor:
    z = z + _signed(_GAMMA)
    z = (z ^ _shift(z, 30)) * _signed(_M1)
    z = (z ^ _shift(z, 27)) * _signed(_M2)
    return z ^ _shift(z, 31)


def normals(
    seed: int, samples: Sequence[int], stream: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Standard normals of shape (len(samples), *shape); row i depends on (seed, samples[i], stream) alone.

    Box-Muller on 32-bit uniforms in float32, cast to `dtype`: a float64 run sees the same noise as a float32 one.
    """
    count = math.prod(shape)
    bits = _bits(seed, samples, stream, (count + 1) // 2, device)
    radius = torch.sqrt(-2 * torch.log((_shift(bits, 32).to(torch.float32) + 0.5) * 2.0**-32))
    angle = (bits & 0xFFFFFFFF).to(torch.float32) * (2 * math.pi * 2.0**-32)
    pairs = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pairs[..., :count].reshape(len(samples), *shape).to(dtype)


def _bits(seed: int, samples: Sequence[int], stream: int, count: int, device: torch.device | str) -> Tensor:
    """(len(samples), count) random 64-bit integers."""
    rows = torch.tensor([_signed(int(i)) for i in samples], dtype=torch.int64, device=device)
    keys = _mix(_mix(_mix(rows + _signed(int(seed) * _M1)) ^ _signed(int(seed))) ^ _signed(stream * _GAMMA))
    return _mix(keys[:, None] + torch.arange(count, dtype=torch.int64, device=device) * _signed(_GAMMA))


@lru_cache(maxsize=4)
def _quantiles(device: torch.device) -> Tensor:
    """2^16 normals of equal probability, scaled to variance 1."""
    z: Tensor = torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) * 2.0**-16)
    return (z / z.square().mean().sqrt()).float().to(device)


class _Keyed:
    """Random numbers by key; sample i's depend on (seed, i, stream, key) alone.

    Each sample and place has 64 random bits of its own; a key, mixed in with two multiplications, makes of them 16 bits
    for each of four places. The roots, which every increment has a share of, have the 32 bits of `normals`.
    """

    def __init__(
        self, seed: int, samples: Sequence[int], stream: int, shape: Sequence[int], device: torch.device | str
    ) -> None:
        self.seed, self.samples, self.stream, self.shape = seed, samples, stream, shape
        self.count, self.device = math.prod(shape), torch.device(device)
        self.bits = _bits(seed, samples, stream, (self.count + 3) // 4, self.device)

    def places(self, key: int) -> Tensor:
        """Uniform int16, of shape (len(samples), *shape)."""
        x = self.bits ^ _scrambled(key)
        x *= _signed(_M1)
        x ^= x >> 32
        x *= _signed(_M2)
        return x.view(torch.int16)[:, : self.count].reshape(len(self.samples), *self.shape)

    def normals(self, key: int) -> Tensor:
        """Standard normals in float32."""
        if key in _ROOTS:
            stream = -(2 * self.stream + key + 1) << 32
            return normals(self.seed, self.samples, stream, self.shape, torch.float32, self.device)
        index = self.places(key).view(torch.uint16).long()
        return _quantiles(self.device).index_select(0, index.flatten()).reshape(index.shape)


def _scrambled(key: int) -> int:
    """`_mix` for one number of the host's."""
    z = (key + 1) * _GAMMA & _ALL
    z = (z ^ (z >> 30)) * _M1 & _ALL
    z = (z ^ (z >> 27)) * _M2 & _ALL
    return _signed(z ^ (z >> 31))


Leaf = tuple[int, float, tuple[float, float, float]]
"""(key, t, multiples of 1{U <= t} - t, of max(t - U, 0) - t^2/2 and of U - 1/2), U uniform and t a share of a cell."""


class _Path:
    """What the paths share: a dyadic tree of `levels` levels over s in [low, high], which may run either way.

    A place is s in units of 2^-depth of the range. Node k of the tree has the children 2k and 2k + 1, and its normals
    are those of keys 2k and 2k + 1. Inside a cell at the tree's foot the path deviates from its mean by a function of
    one uniform number U whose covariances are those of Brownian motion (for the bridge 1{U <= t} - t, the empirical
    process): exact in the second moments for any grid, and normal in steps that are longer than a cell.
    """

    def __init__(
        self,
        seed: int,
        samples: Sequence[int],
        shape: Sequence[int],
        low: float,
        high: float,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        stream: int = 0,
        depth: int = 20,
        levels: int = LEVELS,
    ) -> None:
        self.low, self.high, self.depth, self.levels, self.dtype = low, high, depth, levels, dtype
        self._keyed = _Keyed(seed, samples, PRIOR_STREAM + 1 + stream, shape, device)
        self._kept: dict[int, Tensor] = {}

    def _at(self, place: int) -> float:
        return self.low + (self.high - self.low) * place / (1 << self.depth)

    def _place(self, s: float) -> int:
        size = 1 << self.depth
        place = round((s - self.low) / (self.high - self.low) * size)
        if not -1 <= place <= size + 1:
            raise SolverError(f"noise was asked for at {s:g}, outside the path's range [{self.low:g}, {self.high:g}]")
        return min(max(place, 0), size)

    def _places(self, start: float, end: float) -> tuple[int, int]:
        """Raises SolverError where the interval is shorter than the path resolves."""
        a, b = self._place(start), self._place(end)
        if a == b:
            least = abs(self.high - self.low) / (1 << self.depth)
            raise SolverError(
                f"the step from {start:g} to {end:g} is shorter than the Brownian path's resolution, {least:g}; "
                "take fewer steps, or drop nodes that all but repeat"
            )
        return a, b

    def _way(self, place: int) -> tuple[list[tuple[int, int, int, int]], tuple[int, int, int]]:
        """The bisections (left, middle, right, node) from the root to a place, and the (left, right, node) they end in.

        They end at the tree's foot, or where the place is the end of an interval.
        """
        left, right, node = 0, 1 << self.depth, 1
        way: list[tuple[int, int, int, int]] = []
        while left < place < right and len(way) < self.levels:
            middle = (left + right) // 2
            way.append((left, middle, right, node))
            left, right, node = (left, middle, 2 * node) if place <= middle else (middle, right, 2 * node + 1)
        return way, (left, right, node)

    def _sum(self, shares: Mapping[int, float], leaves: Sequence[Leaf]) -> Tensor:
        """The sum of share x normal and of the leaves, in an order that does not depend on what was asked before."""
        made, kept = self._kept, {}
        for key in sorted(shares):
            kept[key] = made[key] if key in made else self._keyed.normals(key)
        for key, *_ in leaves:
            kept[key] = made[key] if key in made else self._keyed.places(key)
        self._kept = kept
        (first, share), *rest = sorted(shares.items())
        total = kept[first].to(self.dtype) * share
        for key, share in rest:
            total.add_(kept[key], alpha=share)
        for key, t, weights in sorted(leaves):
            _add_leaf(total, kept[key], t, *weights)
        return total


def _add_leaf(total: Tensor, place: Tensor, t: float, step: float, ramp: float, level: float) -> None:
    edge = min(max(round(t * (1 << 16)) - (1 << 15), 1 - (1 << 15)), (1 << 15) - 1)
    total.add_(place.clamp(edge - 1, edge).sub_(edge), alpha=-step).sub_(step * t)
    if ramp or level:
        u = place.to(torch.float32).add_((1 << 15) + 0.5).mul_(2.0**-16)
        total.add_(u - 0.5, alpha=level).add_((t - u).clamp_(min=0), alpha=ramp).sub_(ramp * t * t / 2)


class BrownianPath(_Path):
    """One Brownian path B(clock(s)) for each sample, over s in [low, high], that any grid refines.

    A dyadic tree of bridges in s (Levy's construction): the path is a function of (seed, sample) and not of the
    questions asked of it. s is resolved to 2^-depth of the range.

    clock: the variance that has run up to s; it grows from low to high. stream: another number, another path.
    """

    def __init__(
        self,
        seed: int,
        samples: Sequence[int],
        shape: Sequence[int],
        clock: Callable[[float], float],
        low: float,
        high: float,
        **options: Any,
    ) -> None:
        super().__init__(seed, samples, shape, low, high, **options)
        self._clock = lru_cache(maxsize=4 * self.levels)(lambda place: clock(self._at(place)))
        self._weights = lru_cache(maxsize=4)(self._weigh)

    def _weigh(self, place: int) -> tuple[dict[int, float], list[Leaf]]:
        """What each normal is multiplied by in B at a place: Schauder's hat functions of the clock."""
        clock = self._clock
        first, now, last = clock(0), clock(place), clock(1 << self.depth)
        shares = {0: (now - first) / math.sqrt(last - first)}
        way, (left, right, node) = self._way(place)
        for low, middle, high, parent in way:
            a, m, b = clock(low), clock(middle), clock(high)
            hat = (now - a) / (m - a) if place <= middle else (b - now) / (b - m)
            shares[2 * parent] = hat * math.sqrt((m - a) * (b - m) / (b - a))
        if not left < place < right:
            return shares, []
        a, b = clock(left), clock(right)
        return shares, [(2 * node, (now - a) / (b - a), (math.sqrt(b - a), 0.0, 0.0))]

    def _between(self, a: int, b: int, scale: float = 1.0) -> Tensor:
        (before, first), (after, second) = self._weights(a), self._weights(b)
        shares = {key: (after.get(key, 0.0) - before.get(key, 0.0)) * scale for key in before | after}
        return self._sum(shares, _scaled(first, -scale) + _scaled(second, scale))

    def increment(self, start: float, end: float) -> Tensor:
        """B(clock(end)) - B(clock(start)), of shape (len(samples), *shape)."""
        return self._between(self._place(start), self._place(end))

    def draw(self, start: float, end: float) -> Tensor:
        """The standard normal that belongs to the interval: its increment over its standard deviation.

        Raises SolverError where the interval is shorter than the path resolves.
        """
        a, b = self._places(start, end)
        return self._between(a, b, 1 / math.sqrt(self._clock(b) - self._clock(a)))


def _scaled(leaves: Sequence[Leaf], scale: float) -> list[Leaf]:
    return [(key, t, (scale * step, scale * ramp, scale * level)) for key, t, (step, ramp, level) in leaves]


Two = tuple[float, float]
_ZERO: Two = (0.0, 0.0)


class SpaceTimePath(_Path):
    """A Brownian path W(s) over s from low to high, with its integral over s; one for each sample, for any grid.

    A tree of (W, H) over dyadic intervals, H = int (W(s) - W(start)) ds / h - W/2 being independent of the increment W:
    the halves follow from the whole and two normals more (Foster, Lyons & Oberhauser 2020, arXiv 1904.06998, th. 6.1).
    """

    def __init__(self, *address: Any, levels: int = LEVELS - 2, **options: Any) -> None:
        # two levels less than a path of W alone: H too is known of a cell, which leaves a quarter to its inside
        super().__init__(*address, levels=levels, **options)
        self._weights = lru_cache(maxsize=4)(self._weigh)

    def _weigh(self, place: int) -> tuple[dict[int, Two], list[tuple[int, float, float, int, Two]]]:
        """What each normal is multiplied by in W(place) and in its integral up to there, s being counted in places.

        The leaf: (key, t, sqrt h, h, multiples of sqrt h (U - 1/2)) of a cell of length h.
        """
        shares: dict[int, Two] = {}
        way, (left, right, node) = self._way(place)
        h = right - left
        t = (place - left) / h
        bump, rise = 6 * t * (1 - t), h * t * t * (3 - 2 * t)
        leaf = [(2 * node, t, math.sqrt(h), h, (bump, rise))] if 0 < t < 1 else []
        # (W, int W) up to the place, in multiples of its interval's own W and H: carried from the foot to the root
        on_w: Two = (t, h * t * t / 2)
        on_h: Two = (bump, rise)
        for low, middle, high, parent in reversed(way):
            h = high - low
            if place <= middle:
                halves = tuple(zip(on_w, on_h, _ZERO, _ZERO, strict=True))
            else:
                halves = tuple(zip((1.0, h / 4 + place - middle), (0.0, h / 2), on_w, on_h, strict=True))
            z, n = math.sqrt(h / 16), math.sqrt(h / 12)
            shares[2 * parent] = _two((a - c - (b + d) / 2) * z for a, b, c, d in halves)
            shares[2 * parent + 1] = _two((b - d) / 2 * n for a, b, c, d in halves)
            on_w = _two((a + c) / 2 for a, b, c, d in halves)
            on_h = _two(1.5 * (a - c) + (b + d) / 4 for a, b, c, d in halves)
        h = 1 << self.depth
        shares[0], shares[1] = _two(w * math.sqrt(h) for w in on_w), _two(w * math.sqrt(h / 12) for w in on_h)
        return shares, leaf

    def _between(self, start: float, end: float, which: int) -> Tensor:
        """The standard normal of W (0) or of H (1) over the interval."""
        a, b = self._places(start, end)
        (before, first), (after, second), h = self._weights(a), self._weights(b), b - a
        # of (W, int W) at the start and at the end: W_b - W_a, or the area under W - W_a less half of h (W_b - W_a)
        at_start, at_end = ((-1.0, 0.0), (1.0, 0.0)) if which == 0 else ((-0.5, -1 / h), (-0.5, 1 / h))
        unit = math.sqrt((12 if which else 1) / h)
        shares = {
            key: unit * (_dot(at_start, before.get(key, _ZERO)) + _dot(at_end, after.get(key, _ZERO)))
            for key in before | after
        }
        leaves = [
            (key, t, (unit * w * root, unit * i * root * size, unit * root * _dot((w, i), level)))
            for (w, i), ends in ((at_start, first), (at_end, second))
            for key, t, root, size, level in ends
        ]
        return self._sum(shares, leaves)

    def wiener(self, start: float, end: float) -> Tensor:
        """The standard normal z of W(end) - W(start) = sqrt(|h|) z, of shape (len(samples), *shape).

        Raises SolverError where the interval is shorter than the path resolves.
        """
        return self._between(start, end, 0)

    def area(self, start: float, end: float) -> Tensor:
        """The standard normal z2 of int (W(s) - W(start)) ds = |h|^{3/2} (z/2 + z2/(2 sqrt 3)), z that of `wiener`."""
        return self._between(start, end, 1)


def _dot(a: Two, b: Two) -> float:
    return a[0] * b[0] + a[1] * b[1]


def _two(values: Iterable[float]) -> Two:
    first, second = values
    return first, second
