"""A draw of noise in one pass: every normal that it is made of looked up and summed where the number stands."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffsolve.execution.native import native
from diffsolve.validate import transformed

_MOST = 64  # tensors given, and terms of a sum, as in kernels.c
_KEYS = 4096
_POINTS, _MEMBERS = (1 << 16) - 1, (1 << 13) - 1  # the random bits that name a normal, and a member of a leaf

Leaf = tuple[int, float, int]
"""A leaf, the place in it, and which of its tables: W's or its integral's."""


class Shares(NamedTuple):
    """What the outputs of a draw have: output 0 of the tensors given, each of the normals of keys, and of leaves."""

    given: list[float]
    keys: dict[int, list[float]]
    leaves: dict[tuple[int, Leaf], list[float]]

    def add(self, j: int, c: float, key: int, leaf: Leaf | None = None) -> None:
        row = self.keys.setdefault(key, [0.0] * 3) if leaf is None else self.leaves.setdefault((key, leaf), [0.0] * 3)
        row[j] += c


class Recipe:
    """A draw whose numbers lie ready: `m` outputs, the draw and what the next one begins with."""

    def __init__(self, shares: Shares, m: int) -> None:
        normals: list[tuple[int, list[float], Leaf | None]] = [(key, row, None) for key, row in shares.keys.items()]
        normals += [(key, row, leaf) for (key, leaf), row in shares.leaves.items()]
        normals.sort(key=lambda normal: any(normal[1][1:]))  # those of the draw alone come first
        self.m, self._n, self._count = m, len(shares.given), len(normals)
        self._alone = sum(not any(row[1:]) for _, row, _ in normals)
        self.able = self._n <= _MOST and 0 < self._count <= _KEYS
        self.leaves = list(dict.fromkeys(leaf[:2] for _, leaf in shares.leaves))
        of = list(shares.leaves)
        self._table = [-1 if leaf is None else of.index((key, leaf)) for key, _, leaf in normals]
        words = ctypes.c_uint64 * self._count
        self._mixed = words(*[key for key, _, _ in normals])
        self._masks = words(*[_POINTS if leaf is None else _MEMBERS for _, _, leaf in normals])
        self._given = (ctypes.c_double * self._n)(*shares.given)
        self._shares = (ctypes.c_double * (3 * self._count))(*[c for _, row, _ in normals for c in row])

    def drawn(self, bits: Tensor, given: Sequence[Tensor], points: Tensor, tables: Sequence[Tensor]) -> list[Tensor]:
        """The outputs, each (B, numbers). bits: (..., B, words) random bits, 16 numbers for each word."""
        library = native().library
        assert library is not None
        call = library.draw_float if points.dtype == torch.float32 else library.draw_double
        made = [torch.empty(bits.shape[-2], 16 * bits.shape[-1], dtype=points.dtype) for _ in range(self.m)]
        pointers = ctypes.c_void_p * self._count
        places = [*(table.data_ptr() for table in tables), points.data_ptr()]
        call(
            bits.numel(), self.m, self._n, (ctypes.c_void_p * self._n)(*[t.data_ptr() for t in given]), self._given,
            self._count, self._alone, bits.data_ptr(), self._mixed, pointers(*[places[i] for i in self._table]),
            self._masks, self._shares,
            (ctypes.c_void_p * self.m)(*[t.data_ptr() for t in made]),
        )  # fmt: skip
        return made


def able(x: Tensor) -> bool:
    """Whether this machine and this kind of tensor has a compiled draw; inside torch.func's transforms none has."""
    return x.device.type == "cpu" and type(x) is Tensor and not transformed() and native().library is not None


class Rows:
    """Two sums of parts of a book's rows, each `size` numbers: (row, at which turn, share, share in the second).

    The rows are of a book of tensors, and where a part begins is told with each call.
    """

    def __init__(self, rows: Sequence[tuple[int, int, float, float]], size: int) -> None:
        wide = [c for j in (2, 3) for c in (*(row[j] for row in rows), 0.0, 0.0)]
        self._rows, self._size, self._table = [row[:2] for row in rows], size, (ctypes.c_double * len(wide))(*wide)
        self._head = [size, 1, len(rows), 2, ctypes.addressof(self._table), 0, 0, 0, 0]
        self._job = ctypes.c_uint64 * (len(rows) + 11)

    def __call__(self, book: Sequence[Tensor], turns: Sequence[int]) -> Tensor:
        library, like = native().library, book[0]
        assert library is not None
        call = library.combine_float if like.dtype == torch.float32 else library.combine_double
        made, wide = torch.empty(2 * self._size, dtype=like.dtype), like.element_size()
        first = made.data_ptr()
        parts = [book[j].data_ptr() + turns[i] * wide for j, i in self._rows]
        call(self._job(*self._head, *parts, first, first + self._size * wide))
        return made
