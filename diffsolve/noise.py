"""Noise that is addressed, never consumed: normals keyed by (seed, sample, stream), and Brownian paths over them.

A counter-based generator in integer tensor arithmetic (SplitMix64, Steele et al. 2014) runs on any device, needs no
state, and gives sample i the same noise whatever batch it is computed in.

A path is a tree of normals, one (or two) for each halving of its range. Which of them an interval needs, and how much
of each, is worked out in float64 on the host, so that a query is one pass over each; those of the latest query are
kept, so that a walk makes each of them once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Generic, TypedDict, TypeVar, Unpack

import torch
from torch import Tensor

from .errors import SolverError

_GAMMA = 0x9E3779B97F4A7C15
_ALL = (1 << 64) - 1
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
PRIOR_STREAM = 1  # as all of `normals` near 0; a path's begin at an odd multiple of 2^32
LEVELS = 10  # of a path's tree have normals of their own: a step of a thousandth of the range is made of them
_ATOMS, _TURN = 1 << 12, 0x2545  # of the table below them


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


def _scrambled(key: int) -> int:
    """`_mix` for one number of the host's."""
    z = (key + 1) * _GAMMA & _ALL
    z = (z ^ (z >> 30)) * _M1 & _ALL
    z = (z ^ (z >> 27)) * _M2 & _ALL
    return z ^ (z >> 31)


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
def _points(device: torch.device) -> Tensor:
    """2^16 pairs of normals, each as one int64: on a spiral, every ring of it with the weight of the plane's normal."""
    i = torch.arange(1 << 16, dtype=torch.float64) + 0.5
    pairs = torch.polar(torch.sqrt(-2 * torch.log(i * 2.0**-16)), i * (math.pi * (math.sqrt(5) - 1)))
    pairs = torch.view_as_real(pairs - pairs.mean())
    return (pairs / pairs.square().mean(0).sqrt()).float().to(device).view(torch.int64).flatten()


@lru_cache(maxsize=4)
def _columns(device: torch.device) -> Tensor:
    """_ATOMS normals, twice over, of which any two turns [k : k + _ATOMS] are uncorrelated: their spectrum is flat."""
    quantiles = torch.special.ndtri((torch.arange(_ATOMS, dtype=torch.float64) + 0.5) / _ATOMS)
    z = normals(0, (0,), 0, (_ATOMS,), torch.float64, "cpu")[0]
    for _ in range(8):
        waves = torch.fft.rfft(quantiles[z.argsort().argsort()])
        waves[0] = 0
        z = torch.fft.irfft(waves / waves.abs().clamp(min=1e-9) * math.sqrt(_ATOMS))
    return torch.cat((z, z)).float().to(device)


class PathOptions(TypedDict, total=False):
    """Of a path. stream: another number, another path. depth: steps under 2^-depth of the range are refused."""

    dtype: torch.dtype
    device: torch.device | str
    stream: int
    depth: int


Part = TypeVar("Part")
"""What an interval has of a cell, as multiples of the cell's own normals."""


class _Path(ABC, Generic[Part]):
    """What the paths share: a tree over s in [low, high], whose cells are halved again and again.

    Node k has the children 2k and 2k + 1, and adds the normals of keys 2k and 2k + 1. The upper `levels` levels, halved
    in s, have normals of their own. Below them a cell is halved in time, and its inside is one of 2^14 paths: the
    normals of its nodes are columns of one table, read at a row that is drawn for the cell.
    """

    levels = LEVELS

    def __init__(
        self,
        seed: int,
        samples: Sequence[int],
        shape: Sequence[int],
        clock: Callable[[float], float],
        low: float,
        high: float,
        **options: Unpack[PathOptions],
    ) -> None:
        depth, sign = options.get("depth", 20), 1 if clock(high) >= clock(low) else -1
        self.low, self.high, self.least, self._floor = low, high, abs(high - low) * 2.0**-depth, depth + 2
        self.dtype, self.device = options.get("dtype", torch.float32), torch.device(options.get("device", "cpu"))
        self._address = seed, samples, (2 * options.get("stream", 0) + 1) << 32
        self._shape, self._count = (len(samples), *shape), math.prod(shape)
        self._bits = _bits(*self._address, (self._count + 3) // 4, self.device)
        self._kept: dict[int, Tensor] = {}
        self._time = lru_cache(maxsize=8 * self.levels)(lambda s: sign * clock(s))
        self._known = lru_cache(maxsize=4)(self._shares)

    def _times(self, start: float, end: float, least: float = 0.0) -> tuple[float, float]:
        """The times of an interval's ends. Raises SolverError out of the range, and for what is shorter than `least`."""
        low, high = sorted((self.low, self.high))
        for s in (start, end):
            if not low - self.least <= s <= high + self.least:
                raise SolverError(f"noise was asked for at {s:g}, outside the path's range [{self.low:g}, {self.high:g}]")
        if abs(end - start) < least * (1 - 1e-6):
            raise SolverError(
                f"the step from {start:g} to {end:g} is shorter than the Brownian path's resolution, {least:g}; "
                "take fewer steps, or drop nodes that all but repeat"
            )
        return self._time(min(max(start, low), high)), self._time(min(max(end, low), high))

    def _shares(self, a: float, b: float) -> dict[int, Part]:
        """How much of each node's normals is in the path from time a to time b; node 0 is the root's own."""
        shares: dict[int, Part] = {}
        shares[0] = self._part(1, (self.low, self.high, self._time(self.low), self._time(self.high)), a, b, shares)
        return shares

    def _part(
        self, node: int, cell: tuple[float, float, float, float], a: float, b: float, shares: dict[int, Part]
    ) -> Part:
        low, high, first, last = cell
        h, start, end, level = last - first, max(a, first), min(b, last), node.bit_length() - 1
        middle = (low + high) / 2
        time = self._time(middle) if level < self.levels else (first + last) / 2
        if end - start == h or level == self._floor or not first < time < last:
            return self._whole(h, (start - first) / h, (end - start) / h, b - end)
        left = self._part(2 * node, (low, middle, first, time), a, b, shares) if start < time else None
        right = self._part(2 * node + 1, (middle, high, time, last), a, b, shares) if end > time else None
        part, shares[node] = self._joined((time - first) / h, left, right)
        return part

    @abstractmethod
    def _whole(self, h: float, start: float, length: float, beyond: float) -> Part:
        """That of a cell of length h that is not halved, from a share `start` of it on. beyond: time left after it."""

    @abstractmethod
    def _joined(self, share: float, left: Part | None, right: Part | None) -> tuple[Part, Part]:
        """In the cell's normals and in the node's, from what it is in those of its halves."""

    def _sum(self, shares: Mapping[int, float]) -> Tensor:
        """The sum of share x normal, in an order that does not depend on what was asked before."""
        made, self._kept = self._kept, {}
        tables: dict[int, Tensor] = {}
        columns = _columns(self.device)
        total = torch.zeros(self._shape, dtype=self.dtype, device=self.device)
        for key in sorted(shares):
            below = (key >> 1).bit_length() - self.levels
            if below <= 0:
                self._kept[key] = made[key] if key in made else self._normals(key)
                total.add_(self._kept[key], alpha=shares[key])
                continue
            cell, place = key >> below, key & (1 << below) - 1 | 1 << below
            if cell not in tables:
                tables[cell] = torch.zeros(_ATOMS, device=self.device)
            turn = place * _TURN % _ATOMS
            tables[cell].add_(columns.narrow(0, turn, _ATOMS), alpha=shares[key])
        for cell, table in tables.items():
            rows = self._kept[-cell] = made[-cell] if -cell in made else self._rows(-cell, self._count) >> 4
            total.add_(table.index_select(0, rows).reshape(self._shape))
        return total

    def _normals(self, key: int) -> Tensor:
        """Standard normals in float32: 2^16 pairs of them, and the 2^32 of `normals` for the roots."""
        if key < 2:
            seed, samples, stream = self._address
            return normals(seed, samples, stream + 1 + key, self._shape[1:], torch.float32, self.device)
        pairs = _points(self.device).index_select(0, self._rows(key, (self._count + 1) // 2))
        return pairs.view(torch.float32).reshape(self._shape[0], -1)[:, : self._count].reshape(self._shape)

    def _rows(self, key: int, count: int) -> Tensor:
        """Uniform integers under 2^16, `count` for each sample: four of 64 bits that are mixed with the key."""
        x = self._bits[:, : (count + 3) // 4] ^ _signed(_scrambled(key))
        x *= _signed(_M1)
        x ^= x >> 32
        x *= _signed(_M2)
        return x.view(torch.uint16)[:, :count].int().flatten()


class BrownianPath(_Path[float]):
    """One Brownian path B(clock(s)) for each sample, over s in [low, high], that any grid refines.

    A tree of bridges (Levy's construction): the path is a function of (seed, sample) and not of the questions asked.

    clock: the variance that has run up to s; it grows from low to high.
    """

    def _whole(self, h: float, start: float, length: float, beyond: float) -> float:
        return math.sqrt(h) * length

    def _joined(self, share: float, left: float | None, right: float | None) -> tuple[float, float]:
        r, q, w, v = math.sqrt(share), math.sqrt(1 - share), left or 0.0, right or 0.0
        return r * w + q * v, q * w - r * v

    def _between(self, a: float, b: float, scale: float = 1.0) -> Tensor:
        before, after = (self._known(self._time(self.low), time) for time in (a, b))
        return self._sum({2 * k: (after.get(k, 0.0) - before.get(k, 0.0)) * scale for k in before | after})

    def increment(self, start: float, end: float) -> Tensor:
        """B(clock(end)) - B(clock(start)), of shape (len(samples), *shape)."""
        return self._between(*self._times(start, end))

    def draw(self, start: float, end: float) -> Tensor:
        """The standard normal that belongs to the interval: its increment over its standard deviation.

        Raises SolverError where the interval is shorter than the path resolves.
        """
        a, b = self._times(start, end, self.least)
        return self._between(a, b, 1 / math.sqrt(b - a))


Two = tuple[float, float]
_NOTHING: tuple[Two, Two] = ((0.0, 0.0), (0.0, 0.0))
_BEND = math.sqrt(3)


class SpaceTimePath(_Path[tuple[Two, Two]]):
    """A Brownian path W(s) over s from low to high, with its integral over s; one for each sample, for any grid.

    A tree of (W, H) over intervals, H = int (W(s) - W(start)) ds / h - W/2 being independent of the increment W: the
    halves follow from the whole and two normals more (Foster, Lyons & Oberhauser 2020, arXiv 1904.06998, th. 6.1).

    clock: what s is at a place of [low, high], where that is not s itself; it may run either way.
    """

    levels = LEVELS - 2  # H too is known of a cell, which leaves a quarter to its inside

    def __init__(
        self,
        seed: int,
        samples: Sequence[int],
        shape: Sequence[int],
        low: float,
        high: float,
        clock: Callable[[float], float] = float,
        **options: Unpack[PathOptions],
    ) -> None:
        super().__init__(seed, samples, shape, clock, low, high, **options)

    def _whole(self, h: float, start: float, length: float, beyond: float) -> tuple[Two, Two]:
        # (W, int W up to the interval's end) in multiples of the cell's W and H, each over its standard deviation
        x, h_on_w, h_on_area = math.sqrt(h) * length, _BEND * (1 - 2 * start - length), _BEND * (0.5 - start - length / 3)
        area = x * h * length
        return (x, x * h_on_w), (beyond * x + area / 2, beyond * x * h_on_w + area * h_on_area)

    def _joined(
        self, share: float, left: tuple[Two, Two] | None, right: tuple[Two, Two] | None
    ) -> tuple[tuple[Two, Two], tuple[Two, Two]]:
        (w, area), (v, more) = left or _NOTHING, right or _NOTHING
        (on_w, of_w), (on_area, of_area) = _turned(share, w, v), _turned(share, area, more)
        return (on_w, on_area), (of_w, of_area)

    def _between(self, start: float, end: float, which: int) -> Tensor:
        """The standard normal of W (0) or of H (1) over the interval."""
        a, b = self._times(start, end, self.least)
        h, shares = b - a, {}
        for node, (w, area) in self._known(a, b).items():
            for i in (0, 1):
                shares[2 * node + i] = math.sqrt(12 / h) * (area[i] / h - w[i] / 2) if which else w[i] / math.sqrt(h)
        return self._sum(shares)

    def wiener(self, start: float, end: float) -> Tensor:
        """The standard normal z of W(end) - W(start) = sqrt(|h|) z, of shape (len(samples), *shape).

        Raises SolverError where the interval is shorter than the path resolves.
        """
        return self._between(start, end, 0)

    def area(self, start: float, end: float) -> Tensor:
        """The standard normal z2 of int (W(s) - W(start)) ds = |h|^{3/2} (z/2 + z2/(2 sqrt 3)), z that of `wiener`."""
        return self._between(start, end, 1)


def _turned(share: float, left: Two, right: Two) -> tuple[Two, Two]:
    """From multiples of the halves' (W, H) to those of the whole's and of the node's two normals: a rotation."""
    r, q = math.sqrt(share), math.sqrt(1 - share)
    g, k = _BEND * r * q, math.sqrt(1 - 3 * share * (1 - share))
    x, y = r**3 / k, q**3 / k
    w, h = q * left[0] - r * right[0], x * left[1] + y * right[1]
    return (r * left[0] + q * right[0], g * w + k * h), (k * w - g * h, y * left[1] - x * right[1])
