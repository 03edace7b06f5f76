"""Where a Brownian path's cells end, and what its draws are made of: float64, and the same for every seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from diffsolve import SolverError

from .noise_draw import Recipe

_GAMMA = 0x9E3779B97F4A7C15
_ALL = (1 << 64) - 1
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
CELLS = 64  # of a path; a cell is halved HALVINGS times, and all its pieces have normals of their own
HALVINGS = 4
PARTS, MEMBERS, TURNS = 64, 1 << 12, 1 << 9  # of the book that is read below them


def scrambled(key: int) -> int:
    """SplitMix64 for one number of the host's."""
    z = (key + 1) * _GAMMA & _ALL
    z = (z ^ (z >> 30)) * _M1 & _ALL
    z = (z ^ (z >> 27)) * _M2 & _ALL
    return z ^ (z >> 31)


def mean(width: int, t: float) -> tuple[float, ...]:
    """The matrix, by rows, that takes W (or W and its integral) at 1 to their mean at t, for a path from 0."""
    return (t,) if width == 1 else (t * (3 * t - 2), 6 * t * (1 - t), t * t * (t - 1), t * t * (3 - 2 * t))


def inside(width: int, t: float, h: float) -> tuple[tuple[float, ...], ...]:
    """What W (and its integral) at t h, in a part of length h, have of both at its start and of both at its end."""
    if width == 1:
        return ((1 - t, t),)
    a, b, c, d = mean(2, t)
    return (1 - a - b, -b / h, a, b / h), (h * (t - c - d), 1 - d, h * c, d)


Draws = tuple[tuple[float, float], ...]
"""Of each draw `step` and `area`: what it has of W, and of its integral."""
Storey = tuple[int, tuple[tuple[float, ...], ...]]
"""The part of a member that a place is in, and what W (and its integral) there have of each of the part's rows."""


@lru_cache(maxsize=8192)
def storeys(width: int, count: int, t: float) -> list[Storey]:
    """What a place in a leaf has of each storey. A part's rows of the book begin at `width` times its number."""
    h, scales, found = 1 / PARTS, (1.0, 1.0), list[Storey]()
    for _ in range(count):
        k = int(t * PARTS)
        t = t * PARTS - k
        of = zip(inside(width, t, h), scales, strict=False)
        found.append((k, tuple(tuple(scale * c for c in row) for row, scale in of)))
        scales = scales[0] * h**0.5, scales[1] * h**1.5
    return found


class Place(NamedTuple):
    """A place of a path: its cell, the share of the cell's time that has run, and the time."""

    cell: int
    share: float
    time: float


class Layout:
    """Where the cells of a path end, and what its draws are made of: the same for every seed, so it is kept."""

    def __init__(self, clock: Callable[[float], float], low: float, high: float) -> None:
        sign = 1 if clock(high) >= clock(low) else -1
        self.time: Callable[[float], float] = lambda s: sign * clock(s)
        self.low, self.high, self.edges = low, high, _edges(self.time, low, high)
        self.place: Callable[[float], Place] = lru_cache(maxsize=4096)(self._find)
        self._recipes: dict[tuple[object, ...], Recipe] = {}

    def _find(self, s: float) -> Place:
        """Raises SolverError out of the range."""
        share = (s - self.low) / (self.high - self.low)
        if not -1e-6 <= share <= 1 + 1e-6:
            raise SolverError(f"noise was asked for at {s:g}, outside the path's range [{self.low:g}, {self.high:g}]")
        cell = min(max(int(share * (len(self.edges) - 1)), 0), len(self.edges) - 2)
        first, last = self.edges[cell : cell + 2]
        time = min(max(self.time(s), first), last)
        return Place(cell, (time - first) / (last - first or 1.0), time)

    def recipe(self, width: int, count: int, a: Place, b: Place, draws: Draws, rest: bool) -> Recipe:
        """Draws as `_Path._between` says them, of what is left of a's cell, and where asked for what is left of b's.

        What is left of a cell from a place on: W at its end less W there, and the integral of that. The sums
        are in one order, whatever was asked before. count: storeys of a leaf.
        """
        key = width, count, a, b, draws, rest
        made = self._recipes.get(key)
        if made is None:
            if len(self._recipes) > 4096:
                self._recipes.clear()
            made = self._recipes[key] = self._recipe(*key)
        return made

    def _recipe(self, width: int, count: int, a: Place, b: Place, draws: Draws, rest: bool) -> Recipe:
        of, leaf = shares_of(width, b)
        inner = {key: [row.get(key, 0.0) for row in of] for key in dict.fromkeys(key for row in of for key in row)}
        between = range(a.cell + 1, b.cell)
        alone = {(cell << 8) + k: [0.0] * len(draws) for cell in between for k in range(width)}
        rows, zeros = list[list[float]](), [0.0] * width
        for lane, (step, area) in enumerate(draws):
            for cell in between:
                for k, c in enumerate(_of_whole(width, *self._parts(step, area, cell, 1.0, b))):
                    alone[(cell << 8) + k][lane] = c
            at, normals = self._parts(step, area, b.cell, b.share, b), zeros
            if a.cell < b.cell:
                left = self._parts(step, area, a.cell, 1.0, b)
            else:  # W(a) is the cell's less what is left, and its integral likewise
                left = at[0] + at[1] * (b.share - a.share) - at[1] * (1 - a.share), at[1]
                normals = [-c for c in _of_whole(width, *left)]
            rows.append([*at[:width], *normals, *left[:width]])
        if rest:
            rows.append([*(-1.0, 0.0)[:width], *(1.0, 0.0)[:width], *zeros])
        if rest and width > 1:
            rows.append([b.share - 1, -1.0, 0.5, 12**-0.5, *zeros])
        found = next(((scrambled(key), key, scales[:width], storeys(width, count, t))
                      for key, (t, scales) in leaf.items()), None)  # fmt: skip
        return Recipe(
            width, len(draws), {scrambled(key): row for key, row in alone.items()},
            {scrambled(key): row for key, row in inner.items()}, found, rows, (MEMBERS, TURNS),
        )  # fmt: skip

    def _parts(self, step: float, area: float, cell: int, end: float, b: Place) -> tuple[float, float]:
        """What a draw that ends at b has of a cell's W, up to the share `end` of it, and of the integral of that."""
        first, last = self.edges[cell : cell + 2]
        h, root = last - first, math.sqrt(last - first)
        return (step + area * (b.time - first - h * end)) * root, area * h * root


def _of_whole(width: int, w: float, i: float) -> tuple[float, ...]:
    """What w of a cell's W, and i of its integral, are of its normals."""
    return (w + i / 2, i * 12**-0.5)[:width]


def shares_of(width: int, place: Place) -> tuple[list[dict[int, float]], dict[int, tuple[float, tuple[float, float]]]]:
    """What W (and its integral) have of each normal, and of the leaf: {key: (place in it, scales)}."""
    key, t, node, scales = place.cell << 8, place.share, 1, (1.0, 1.0)
    if width == 1:  # of a cell W = z, and in the middle of a piece that is 0 at both ends z/2
        shares, middle = [{key: t}], (0.5, 0.0)
    else:  # int W = z/2 + z2/sqrt 12, and in the middle W = z/4 and int W = z2/sqrt 192
        (a, b, c, d), middle = mean(2, t), (0.25, 192**-0.5)
        shares = [{key: a + b / 2, key + 1: b * 12**-0.5}, {key: c + d / 2, key + 1: d * 12**-0.5}]
    for _ in range(HALVINGS):
        if t in (0, 1):
            break
        right = int(2 * t)
        t = 2 * t - right
        for share, row, scale in zip(shares, inside(width, t, 0.5), scales, strict=False):
            for k in range(width):
                share[key + 2 * node + k] = scale * row[k if right else width + k] * middle[k]
        scales, node = (scales[0] * 0.5**0.5, scales[1] * 0.5**1.5), 2 * node + right
    return shares, {} if t in (0, 1) else {~(key + node): (t, scales)}


def _edges(time: Callable[[float], float], low: float, high: float) -> list[float]:
    """The times where cells begin and end: so many of them that one's is at most e^2 times its neighbour's."""
    for cells in (CELLS << k for k in range(8)):
        edges = [time(low + (high - low) * k / cells) for k in range(cells)] + [time(high)]
        lengths = [b - a for a, b in pairwise(edges) if b > a][:-1]  # where time stands still no noise is asked for
        if max(abs(math.log(b / a)) for a, b in pairwise(lengths)) <= 2:
            break
    return edges
