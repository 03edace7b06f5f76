"""Where a Brownian path's cells end, and what its draws are made of: float64, and the same for every seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from diffsolve import SolverError

from .noise_draw import Recipe, Rows, Shares

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


Storey = tuple[int, tuple[tuple[tuple[int, float], ...], ...]]
"""The part of a member that a place is in, and for W (and its integral) which rows of the book it has how much of."""


@lru_cache(maxsize=8192)
def storeys(width: int, count: int, t: float) -> tuple[list[Storey], list[Rows]]:
    """What a place in a leaf has of each storey, and the same for a compiled sum: even storeys plus and minus odd."""
    h, scales, storeys = 1 / PARTS, (1.0, 1.0), list[Storey]()
    for _ in range(count):
        k = int(t * PARTS)
        t = t * PARTS - k
        of = zip(inside(width, t, h), scales, strict=False)
        storeys.append((k, tuple(tuple((j, scale * c) for j, c in enumerate(row, width * k)) for row, scale in of)))
        scales = scales[0] * h**0.5, scales[1] * h**1.5
    sums = [
        Rows([(j, i, c, -c if i % 2 else c) for i, (_, rows) in enumerate(storeys) for j, c in rows[component]],
             4 * MEMBERS)
        for component in range(width)
    ]  # fmt: skip
    return storeys, sums


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
        return Place(cell, (time - first) / (last - first), time)

    def recipe(self, width: int, a: Place, b: Place, step: float, area: float, known: bool) -> Recipe:
        """A draw as `_Path._between` says it, of what is left of a's cell; and what is left of b's, if not known.

        What is left of a cell from a place on: W at its end less W there, and the integral of that (output 1, 2). With
        the same place twice, that alone. The sums are in one order, whatever was asked before.
        """
        key = width, a, b, step, area, known
        made = self._recipes.get(key)
        if made is None:
            if len(self._recipes) > 4096:
                self._recipes.clear()
            shares = Shares([], {}, {})
            for cell in range(a.cell, b.cell + 1) if a != b else ():
                self._of_cell(shares, width, cell, a, b, (step, area))
            if not known:
                self._rest(shares, width, b)
            made = self._recipes[key] = Recipe(shares, 1 if known else 1 + width)
        return made

    def _of_cell(self, shares: Shares, width: int, cell: int, a: Place, b: Place, of: tuple[float, float]) -> None:
        """What the draw has of one cell: w of W, and i of its integral."""
        start, end = a.share if cell == a.cell else 0.0, b.share if cell == b.cell else 1.0
        first, last = self.edges[cell : cell + 2]
        h, root = last - first, math.sqrt(last - first)
        w, i = (of[0] + of[1] * (b.time - first - h * end)) * root, of[1] * h * root
        if cell == b.cell:
            self._add(shares, 0, width, b, w, i)
        elif cell != a.cell:
            self._add_whole(shares, 0, width, cell, w, i)
        if cell == a.cell == b.cell:  # W(a) is the cell's less what is left, and its integral likewise
            w = w + i * (end - start) - i * (1 - start)
            self._add_whole(shares, 0, width, cell, -w, -i)
        if cell == a.cell:
            shares.given.extend((w, i)[:width])

    def _rest(self, shares: Shares, width: int, b: Place) -> None:
        self._add_whole(shares, 1, width, b.cell, 1.0, 0.0)
        self._add(shares, 1, width, b, -1.0, 0.0)
        if width > 1:
            self._add_whole(shares, 2, width, b.cell, 0.0, 1.0)
            self._add(shares, 2, width, b, b.share - 1, -1.0)

    @staticmethod
    def _add_whole(shares: Shares, j: int, width: int, cell: int, w: float, i: float) -> None:
        """To output j, w of a cell's W and i of its integral."""
        for k, c in zip(range(width), (w + i / 2, i * 12**-0.5), strict=False):
            shares.add(j, c, scrambled((cell << 8) + k))

    @staticmethod
    def _add(shares: Shares, j: int, width: int, place: Place, w: float, i: float) -> None:
        """To output j, w of W at a place, and i of its integral, both from the cell's start."""
        found, leaf = shares_of(width, place)
        for k, share in zip(range(width), (w, i), strict=False):
            for key, c in found[k].items():
                shares.add(j, c * share, scrambled(key))
            for key, (t, scales) in leaf.items():
                shares.add(j, scales[k] * share, scrambled(key), (key, t, k))


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
        lengths = [max(b - a, 1e-300) for a, b in pairwise(edges[:-1])]
        if max(abs(math.log(b / a)) for a, b in pairwise(lengths)) <= 2:
            break
    return edges
