"""A draw of noise in one pass: every normal that it is made of looked up and summed where the number stands."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from diffsolve.execution.native import native
from diffsolve.validate import transformed

_KEYS = 4096  # as in kernels.c
_ALL = (1 << 64) - 1

Storeys = Sequence[tuple[int, Sequence[Sequence[float]]]]
"""Of each storey of a leaf its part, and for W (and its integral) what they have of the part's rows."""


class Recipe:
    """A draw whose numbers lie ready, as kernels.c has them.

    alone: {key: shares}, a share for each of `lanes` sums of what lies in cells of their own. inner: {key: shares} of W
    (and its integral) at a place, counted from where its cell begins, with the cell's own normals first; leaf: its key,
    name, shares and storeys. rows: of each output what it has of W (and its integral) at the place, of the cell's
    normals, and of what is given: what is left of the cell where the draws begin. Behind the draws, one a lane, comes
    what is left of the cell where they end.
    """

    def __init__(
        self,
        given: int,
        lanes: int,
        alone: dict[int, Sequence[float]],
        inner: dict[int, Sequence[float]],
        leaf: tuple[int, int, Sequence[float], Storeys] | None,
        rows: Sequence[Sequence[float]],
        book: tuple[int, int],
    ) -> None:
        width, numbers = len(next(iter(inner.values()))), list(chain(*alone.values(), *inner.values()))
        key, name, shares, storeys = leaf or (0, 0, (), ())
        parts = [part for part, _ in storeys]
        integers = [width, lanes, given, len(rows), len(alone), len(inner), len(parts), name & _ALL, *book, *parts]
        integers += [*alone, *inner, *([key] if leaf else [])]
        numbers += [*shares, *(c for k in range(width) if leaf for _, of in storeys for c in of[k]), *chain(*rows)]
        self._integers, self._numbers = np.array(integers, np.uint64), np.array(numbers, np.float64)
        self.into = struct.Struct(f"{9 + given + len(rows)}Q").pack_into
        self.head = self._integers.ctypes.data, self._numbers.ctypes.data
        self.able = lanes * len(alone) + width * (len(inner) + 1) <= 2 * _KEYS


    def __deepcopy__(self, memo: object) -> Recipe:
        return self  # it never changes, and kernels.c reads it where it is


class Drawing:
    """The draws of one path."""

    def __init__(self, bits: Tensor, points: Tensor, book: Sequence[Tensor], key: int) -> None:
        library = native().library
        assert library is not None
        self._call = library.draw_float if points.dtype == torch.float32 else library.draw_double
        self._kept = bits, points, book
        row = book[1].data_ptr() - book[0].data_ptr()
        self._head = bits.numel(), bits.data_ptr(), points.data_ptr(), book[0].data_ptr(), row, key & _ALL
        self._job = (ctypes.c_uint64 * 24)()
        self._address, self._end = ctypes.addressof(self._job), 0

    def job(self, recipe: Recipe, given: Sequence[Tensor], made: Sequence[Tensor | None]) -> int:
        """Where kernels.c reads what to make: outputs of 16 numbers for each random word. It holds until the next."""
        pointers = [tensor.data_ptr() for tensor in given]
        pointers += [0 if tensor is None else tensor.data_ptr() for tensor in made]
        recipe.into(self._job, 0, *self._head, *recipe.head, *pointers, 0)
        self._end = 8 + len(pointers)
        return self._address

    @property
    def done(self) -> bool:
        """Whether the latest job has been done."""
        return self._job[self._end] == 1

    def make(self, recipe: Recipe, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        self._call(self.job(recipe, given, made))


def able(x: Tensor) -> bool:
    """Whether this machine and this kind of tensor has a compiled draw; inside torch.func's transforms none has."""
    return x.device.type == "cpu" and type(x) is Tensor and not transformed() and native().library is not None
