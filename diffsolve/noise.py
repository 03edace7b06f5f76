"""Noise that is addressed, never consumed: normals keyed by (seed, sample, stream), and Brownian paths over them.

A counter-based generator in integer tensor arithmetic (SplitMix64, Steele et al. 2014) runs on any device, needs no
state, and gives sample i the same noise whatever batch it is computed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .errors import SolverError

_GAMMA = 0x9E3779B97F4A7C15
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_AT_ONCE = 1 << 20  # numbers drawn in one go, at most: a way down the tree of a large state goes in several
PRIOR_STREAM = 1  # streams 2, 3, ... are the nodes of the Brownian tree


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
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
    return _streams(seed, samples, (stream,), shape, dtype, device)[0]


def _streams(
    seed: int,
    samples: Sequence[int],
    streams: Sequence[int],
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """`normals` of several streams at once: (len(streams), len(samples), *shape)."""
    count = math.prod(shape)
    half = (count + 1) // 2
    rows = torch.tensor([_signed(int(i)) for i in samples], dtype=torch.int64, device=device)
    lanes = torch.tensor([_signed(stream * _GAMMA) for stream in streams], dtype=torch.int64, device=device)
    keys = _mix(_mix(_mix(rows + _signed(int(seed) * _M1)) ^ _signed(int(seed))) ^ lanes[:, None])
    bits = _mix(keys[..., None] + torch.arange(half, dtype=torch.int64, device=device) * _signed(_GAMMA))
    radius = torch.sqrt(-2 * torch.log((_shift(bits, 32).to(torch.float32) + 0.5) * 2.0**-32))
    angle = (bits & 0xFFFFFFFF).to(torch.float32) * (2 * math.pi * 2.0**-32)
    pairs = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pairs[..., :count].reshape(len(streams), len(samples), *shape).to(dtype)


class BrownianPath:
    """One Brownian path B(clock(s)) for each sample, over s in [low, high], that any grid refines.

    A dyadic tree of bridges in s: the value at a node is drawn from the stream that its place in the tree names, so the
    path is a function of (seed, sample) and not of the questions asked of it. s is resolved to 2^-depth of the range.

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
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        stream: int = 0,
        depth: int = 20,
    ) -> None:
        self.low, self.high, self.depth, self.clock = low, high, depth, clock

        shift = stream * (1 << depth + 2)  # past the streams of the other paths' nodes
        at_once = max(1, _AT_ONCE // max(1, len(samples) * math.prod(shape)))

        def keyed(streams: Sequence[int]) -> Iterator[Tensor]:
            for i in range(0, len(streams), at_once):
                own = [node + shift for node in streams[i : i + at_once]]
                yield from _streams(seed, samples, own, shape, dtype, device)

        self._normals = keyed
        total = math.sqrt(clock(high) - clock(low))
        end = next(self._normals((2,))) * total
        self._edges = {0: torch.zeros_like(end), 1 << depth: end}
        self._recent: dict[int, Tensor] = {}

    def _place(self, s: float) -> int:
        size = 1 << self.depth
        place = round((s - self.low) / (self.high - self.low) * size)
        if not -1 <= place <= size + 1:
            raise SolverError(f"noise was asked for at {s:g}, outside the path's range [{self.low:g}, {self.high:g}]")
        return min(max(place, 0), size)

    def _clock_at(self, place: int) -> float:
        return self.clock(self.low + (self.high - self.low) * place / (1 << self.depth))

    def _value(self, place: int) -> Tensor:
        known = {**self._edges, **self._recent}
        way = self._way(place)
        fresh = [bridge for bridge in way if bridge[1] not in known]
        for (left, middle, right, _), z in zip(fresh, self._normals([node for *_, node in fresh]), strict=True):
            a, m, b = self._clock_at(left), self._clock_at(middle), self._clock_at(right)
            low, high = known[left], known[right]
            mean = low + (high - low) * ((m - a) / (b - a))
            known[middle] = mean + z * math.sqrt((m - a) * (b - m) / (b - a))
        self._recent = {middle: known[middle] for _, middle, _, _ in way}  # the next step starts where this one ended
        return known[place]

    def _way(self, place: int) -> list[tuple[int, int, int, int]]:
        """The bridges from the root of the tree down to a place: (left, middle, right, node)."""
        left, right, node = 0, 1 << self.depth, 3
        way: list[tuple[int, int, int, int]] = []
        while place not in self._edges and (not way or way[-1][1] != place):
            middle = (left + right) // 2
            way.append((left, middle, right, node))
            left, right, node = (left, middle, 2 * node) if place < middle else (middle, right, 2 * node + 1)
        return way

    def increment(self, start: float, end: float) -> Tensor:
        """B(clock(end)) - B(clock(start)), of shape (len(samples), *shape)."""
        before = self._value(self._place(start))
        return self._value(self._place(end)) - before

    def draw(self, start: float, end: float) -> Tensor:
        """The standard normal that belongs to the interval: its increment over its standard deviation.

        Raises SolverError where the interval is shorter than the path resolves.
        """
        a, b = self._place(start), self._place(end)
        if a == b:
            least = (self.high - self.low) / (1 << self.depth)
            raise SolverError(
                f"the step from {start:g} to {end:g} is shorter than the Brownian path's resolution, {least:g}; "
                "take fewer steps, or drop nodes that all but repeat"
            )
        variance = self._clock_at(b) - self._clock_at(a)
        before = self._value(a)
        return (self._value(b) - before) / math.sqrt(variance)
