"""Noise that is addressed, never consumed: normals keyed by (seed, sample, stream), and Brownian paths over them.

A counter-based generator in integer tensor arithmetic (SplitMix64, Steele et al. 2014) runs on any device, needs no
state, and gives sample i the same noise whatever batch it is computed in.

A path is a tree of normals, ten levels deep, and below them it is read in a book of paths. What a place has of each is
worked out in float64 on the host. A normal is a look-up by 16 random bits for every four numbers of a state; those of
the latest place are kept, so that a walk makes each of them once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffsolve import SolverError, combine
from diffsolve.validate import seed_of

from .noise_draw import Drawing, Recipe, able
from .noise_layout import MEMBERS, PARTS, TURNS, Draws, Layout, Place, mean, scrambled, shares_of, storeys

_GAMMA = 0x9E3779B97F4A7C15
_ALL = (1 << 64) - 1
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
PRIOR_STREAM = 1  # as all of `normals` near 0; a path's is an odd multiple of 2^41
_BOOKS = 0, -880 << 33, -4 << 33  # streams of books, by width, in which the fourth moments are all but a normal's
_WIDE = "cpu", "cuda"  # devices that have complex128; others may lack float64 too
LEVELS = 10  # of a path: its cells, and how often each is halved


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
    bits = _bits(seed_of(seed), samples, stream, (count + 1) // 2, device)
    radius = torch.sqrt(-2 * torch.log((_shift(bits, 32).to(torch.float32) + 0.5) * 2.0**-32))
    angle = (bits & 0xFFFFFFFF).to(torch.float32) * (2 * math.pi * 2.0**-32)
    pairs = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pairs[..., :count].reshape(len(samples), *shape).to(dtype)


def _bits(seed: int, samples: Sequence[int], stream: int, count: int, device: torch.device | str) -> Tensor:
    """(len(samples), count) random 64-bit integers."""
    if torch.device(device).type == "cpu":  # by numpy, whose small arrays take a fraction of the time
        places = np.arange(count, dtype=np.uint64) * np.uint64(_GAMMA)
        keys = np.array([int(i) & _ALL for i in samples], np.uint64) + np.uint64(int(seed) * _M1 & _ALL)
        keys = _mixed(_mixed(_mixed(keys) ^ np.uint64(int(seed) & _ALL)) ^ np.uint64(stream * _GAMMA & _ALL))
        return torch.from_numpy(_mixed(keys[:, None] + places).view(np.int64))
    rows = torch.tensor([_signed(int(i)) for i in samples], dtype=torch.int64, device=device)
    of_rows = _mix(_mix(_mix(rows + _signed(int(seed) * _M1)) ^ _signed(int(seed))) ^ _signed(stream * _GAMMA))
    return _mix(of_rows[:, None] + torch.arange(count, dtype=torch.int64, device=device) * _signed(_GAMMA))


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_M1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_M2)
    return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=8)
def _points(device: torch.device, dtype: torch.dtype) -> Tensor:
    """2^16 times four normals: quantiles of equal probability, in the order of a lattice (Korobov's) of good pairs."""
    place = torch.arange(1 << 16)[:, None] * torch.tensor([pow(50355, k, 1 << 16) for k in range(4)]) % (1 << 16)
    z = torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) * 2.0**-16)
    points: Tensor = (z / z.square().mean().sqrt()).float()[place].to(device, dtype).flatten()
    return points


@lru_cache(maxsize=8)
def _book(width: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """W (or W and its integral) of paths from 0 to 0 over [0, 1], at the ends of PARTS parts.

    width (PARTS + 1) rows of 4 (MEMBERS + TURNS): a member is of four paths, and the first members come again after
    the last. The normals that they are made of are uncorrelated over the members to rounding.
    """
    if (device.type, dtype) != ("cpu", torch.float32):
        return list(torch.stack(_book(width, torch.device("cpu"), torch.float32)).to(device, dtype))
    h = 1 / PARTS
    z = normals(0, range(4), _BOOKS[width], (width * PARTS, MEMBERS), dtype, device).flatten(0, 1)
    z = z - z.mean(1, keepdim=True)
    z = torch.linalg.inv(torch.linalg.cholesky(z @ z.mT / MEMBERS)) @ z
    z = z.unflatten(0, (4, width, PARTS)).permute(1, 2, 3, 0)
    steps = [z[0] * math.sqrt(h)]
    if width == 2:  # of int W over a part: h (W_start + W_end)/2 + sqrt(h^3/12) z
        steps.append(steps[0].cumsum(0) * h - steps[0] * (h / 2) + z[1] * math.sqrt(h**3 / 12))
    free = torch.nn.functional.pad(torch.stack(steps, 1).cumsum(0), (0, 0, 0, 0, 0, 0, 1, 0))
    means = torch.tensor([mean(width, k * h) for k in range(PARTS + 1)]).view(-1, width, width)
    book = (free - torch.einsum("kij,jmc->kimc", means, free[-1])).flatten(0, 1)
    book[-width:] = 0.0
    return list(torch.cat((book, book[:, :TURNS]), 1).flatten(1))


class PathOptions(TypedDict, total=False):
    """Of a path. stream: another number, another path. depth: steps under 2^-depth of the range are refused. layout: of
    the same clock and range, where it is at hand.
    """

    dtype: torch.dtype
    device: torch.device | str
    stream: int
    depth: int
    layout: Layout


class _Path:
    """What the paths share: cells of equal length in s over [low, high], and inside them equal parts of time.

    Each cell has the normal of its increment, and of each of its halves, and their halves (Levy's construction). Where
    that ends a piece goes on as a member of the book drawn for it, a part of a member as another member, shrunk, and so
    on down. So a path is known at every s, and its variances are exact for any grid.
    """

    width = 1  # of what is known at a place: W, or W and its integral

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
        depth, stream = options.get("depth", 20), options.get("stream", 0)
        self.low, self.high, self.least = low, high, abs(high - low) * 2.0**-depth
        self._short = self.least * (1 - 1e-6)
        self.dtype, self.device = options.get("dtype", torch.float32), torch.device(options.get("device", "cpu"))
        self._storeys = -(-(depth + 2 - LEVELS) // 6)
        self._layout = options.get("layout") or Layout(clock, low, high)
        self._edges, self._place = self._layout.edges, self._layout.place
        self._shape, self._count, self._key = (len(samples), *shape), math.prod(shape), seed ^ stream * _M1
        self._bits = _bits(seed, samples, (2 * stream + 1) << 41, -(-self._count // 16), self.device)
        self._whole = self._bits.shape[1] * 16 == self._count
        self._kept: dict[int, Tensor] = {}
        self._values: dict[Place, list[Tensor]] = {}
        self._rest: dict[Place, list[Tensor]] = {}
        self._compiled = able(self._bits)
        self._drawing: Drawing | None = None
        self._coming: tuple[Place, list[Tensor]] | None = None
        self._once, self._spent = True, Place(-1, 0.0, 0.0)  # whether no place is asked for again; whose rest is gone

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_drawing": None, "_coming": None}  # a copy's memory lies elsewhere

    def _ends(self, start: float, end: float) -> tuple[Place, Place, float]:
        """The ends of an interval and the time between. Raises SolverError where it is shorter than `least`."""
        a, b = self._place(start), self._place(end)
        if a[2] == b[2] or abs(end - start) < self._short:
            raise SolverError(
                f"the step from {start:g} to {end:g} is shorter than the Brownian path's resolution, {self.least:g}; "
                "take fewer steps, or drop nodes that all but repeat"
            )
        return a, b, b[2] - a[2]

    def _between(self, a: Place, b: Place, step: float, area: float = 0.0) -> Tensor:
        """`step` times W(b) - W(a), and `area` times the integral of W - W(a) from a to b."""
        if self._compiled and (made := self._in_one_pass(a, b, ((step, area),))) is not None:
            return self._shaped(made[0])
        self._evaluate((a, b), [(cell << 8) + k for cell in range(a.cell, b.cell) for k in range(self.width)])
        terms: list[tuple[float, Tensor]] = []
        for cell in range(a.cell, b.cell + 1):
            start, end = a.share if cell == a.cell else 0.0, b.share if cell == b.cell else 1.0
            first, last = self._edges[cell : cell + 2]
            h, root = last - first, math.sqrt(last - first)
            w, i = (step + area * (b.time - first - h * end)) * root, area * h * root
            if cell < b.cell:
                of_cell = [self._kept[(cell << 8) + k] for k in range(self.width)]
                terms += zip((w + i / 2, i * 12**-0.5), of_cell, strict=False)
            else:
                terms += zip((w, i), self._values[b], strict=False)
            if cell == a.cell:
                terms += zip((-w - i * (end - start), -i), self._values[a], strict=False)
        total: Tensor = combine(*((c, value) for c, value in terms if c))
        return self._shaped(total)

    def _shaped(self, total: Tensor) -> Tensor:
        return total.view(self._shape) if self._whole else total[:, : self._count].reshape(self._shape)

    def _in_one_pass(self, a: Place, b: Place, draws: Draws) -> list[Tensor] | None:
        """The same in compiled code, with what is left of b's cell for the draw after it; None for too many cells."""
        found = self._asked(a, b, draws)
        if found is None:
            return None
        recipe, given, left = found
        made = [torch.empty_like(given[0]) for _ in draws]
        assert self._drawing is not None
        self._drawing.make(recipe, given, made + left)
        return made

    def job(self, start: float, end: float) -> int:
        """Where a pass in compiled code reads how to make `draw` itself, as one of its inputs; 0 where it can't.

        It takes the place of what was left for it, as long as nobody asks for that again.
        """
        if not (self._compiled and self._whole and self.width == 1):
            return 0
        a, b, h = self._ends(start, end)
        found = self._asked(a, b, ((1 / math.sqrt(h), 0.0),), in_place=True)
        if found is None:
            return 0
        recipe, given, left = found
        assert self._drawing is not None
        return self._drawing.job(recipe, given, [None, *left])

    def _asked(
        self, a: Place, b: Place, draws: Draws, in_place: bool = False
    ) -> tuple[Recipe, list[Tensor], list[Tensor]] | None:
        """A draw's recipe, what it is given of a's cell, and room for what is left of b's where that isn't known."""
        if self._drawing is None:
            points, book = _points(self.device, self.dtype), _book(self.width, self.device, self.dtype)
            self._drawing = Drawing(self._bits, points, book, self._key)
        if self._coming is not None:  # what the draw before this one has left, if it came to pass
            (place, left), self._coming = self._coming, None
            if self._drawing.done:
                self._rest[place] = left
        rest, layout, known = self._rest, self._layout, b in self._rest
        recipe = layout.recipe(self.width, self._storeys, a, b, draws, not known)
        if not recipe.able:
            return None
        given = rest.get(a)
        if given is None:
            self._once = self._once and a != self._spent
            given = self._left(a, b)
            nothing = [torch.zeros_like(tensor) for tensor in given]
            alone = layout.recipe(self.width, self._storeys, a, a, ((0.0, 0.0),), True)
            self._drawing.make(alone, nothing, [torch.empty_like(given[0]), *given])
            rest[a] = given
        if known:
            return recipe, given, []
        if in_place and self._once:
            left, self._spent = rest.pop(a), a
        else:
            left = self._left(a, b)
        self._coming = b, left
        return recipe, given, left

    def _left(self, a: Place, b: Place) -> list[Tensor]:
        """Room for what is left of a cell: that of a place which is neither."""
        for place in self._rest:
            if place not in (a, b):
                return self._rest.pop(place)
        return [torch.empty(len(self._bits), 16 * self._bits.shape[1], dtype=self.dtype) for _ in range(self.width)]

    def _evaluate(self, places: Sequence[Place], keys: Sequence[int]) -> None:
        """Make the normals of keys, and W (and its integral) at places, counted from where their cells begin.

        What is of the latest places is kept, and the rest let go.
        """
        points, made, values = _points(self.device, self.dtype), self._kept, self._values
        found = {place: shares_of(self.width, place) for place in places if place not in values}
        wanted = [*keys, *(key for shares, leaf in found.values() for key in (*shares[0], *leaf))]
        new = [key for key in dict.fromkeys(wanted) if key not in made]
        for key, of in zip(new, self._mixed(new) if new else (), strict=True):
            made[key] = of.bitwise_and_(2 * MEMBERS - 1) if key < 0 else self._look(points, of)
        for place, (shares, leaf) in found.items():
            terms = [[(c, made[key]) for key, c in share.items()] for share in shares]
            for key, (t, scales) in leaf.items():
                for term, scale, value in zip(terms, scales, self._tables(key, t), strict=False):
                    term.append((scale, self._look(value, made[key])))
            values[place] = [combine(*term) for term in terms]
        if found:
            self._kept = {key: made[key] for key in wanted}
            self._values = {place: values[place] for place in places}

    def _tables(self, leaf: int, t: float) -> list[Tensor]:
        """W (and its integral) at t in a piece of length 1 that is 0 at both ends, for every pair of members."""
        book, size = _book(self.width, self.device, self.dtype), 4 * MEMBERS
        parts = storeys(self.width, self._storeys, t)
        turns, key = [0], scrambled(self._key + leaf)
        for k, _ in parts:
            turns.append(4 + 4 * ((key + k) % (TURNS - 3)))  # another one for each part
            key = scrambled(key + k)
        found = []
        for component in range(self.width):
            halves = [
                combine(*((c, book[j][turn : turn + size]) for (k, rows), turn in part
                          for j, c in enumerate(rows[component], self.width * k)))
                for part in (list(zip(parts, turns, strict=False))[i::2] for i in (0, 1))
            ]  # fmt: skip
            table = torch.empty(2, size, dtype=self.dtype, device=self.device)
            torch.add(halves[0], halves[1], out=table[0])
            torch.sub(halves[0], halves[1], out=table[1])
            found.append(table.flatten())
        return found

    def _mixed(self, keys: Collection[int]) -> Tensor:
        """Integers below 2^16 for each key and every four numbers."""
        mixed = torch.tensor([_signed(scrambled(key)) for key in keys], dtype=torch.int64).view(-1, 1, 1)
        x = self._bits ^ mixed.to(self.device, non_blocking=True)
        x *= _signed(_M1)
        x ^= x >> 32
        x *= _signed(_M2)
        return x.view(torch.uint16).int()

    def _look(self, table: Tensor, places: Tensor) -> Tensor:
        """The table's fours at places, of shape (samples, numbers)."""
        if table.dtype == torch.float32 and table.device.type in _WIDE:  # as one number of 16 bytes
            found = table.view(torch.complex128).index_select(0, places.flatten()).view(torch.float32)
        else:
            found = table.view(-1, 4).index_select(0, places.flatten())
        return found.view(self._shape[0], -1)


class BrownianPath(_Path):
    """One Brownian path B(clock(s)) for each sample, over s in [low, high], that any grid refines.

    It is a function of (seed, sample) and not of the questions asked of it. clock: the variance that has run up to s;
    it grows from low to high.
    """

    def increment(self, start: float, end: float) -> Tensor:
        """B(clock(end)) - B(clock(start)), of shape (len(samples), *shape)."""
        a, b = self._place(start), self._place(end)
        return self._between(a, b, 1.0) if a <= b else -self._between(b, a, 1.0)

    def draw(self, start: float, end: float) -> Tensor:
        """The standard normal that belongs to the interval: its increment over its standard deviation.

        Raises SolverError where the interval is shorter than the path resolves.
        """
        a, b, h = self._ends(start, end)
        return self._between(a, b, 1 / math.sqrt(h))


class SpaceTimePath(_Path):
    """A Brownian path W(s) over s from low to high, with its integral over s; one for each sample, for any grid.

    H = int (W(s) - W(start)) ds / h - W/2 of a piece is independent of its increment W, and the halves follow from the
    whole and two normals more (Foster, Lyons & Oberhauser 2020, arXiv 1904.06998, th. 6.1).
    clock: what s is at a place of [low, high], where that is not s itself; it may run either way.
    """

    width = 2
    _both: bool  # whether a step before has asked for both
    _ahead: tuple[Place, Place, Tensor] | None  # an area that was made with its W

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
        self._both, self._ahead = False, None

    def wiener(self, start: float, end: float) -> Tensor:
        """The standard normal z of W(end) - W(start) = sqrt(|h|) z, of shape (len(samples), *shape).

        Raises SolverError where the interval is shorter than the path resolves.
        """
        a, b, h = self._ends(start, end)
        root, self._both, self._ahead = 1 / math.sqrt(h), self._both and self._ahead is None, None
        if self._both and self._compiled:
            made = self._in_one_pass(a, b, ((root, 0.0), (-math.sqrt(3) * root, 2 * math.sqrt(3) * root / h)))
            if made is not None:
                self._ahead = a, b, made[1]
                return self._shaped(made[0])
        return self._between(a, b, root)

    def area(self, start: float, end: float) -> Tensor:
        """The standard normal z2 of int (W(s) - W(start)) ds = |h|^{3/2} (z/2 + z2/(2 sqrt 3)), z that of `wiener`."""
        a, b, h = self._ends(start, end)
        ahead, self._ahead, self._both = self._ahead, None, True  # from here on the two are made in one pass
        if ahead is not None and ahead[:2] == (a, b):
            return self._shaped(ahead[2])
        root = 1 / math.sqrt(h)
        return self._between(a, b, -math.sqrt(3) * root, 2 * math.sqrt(3) * root / h)
