"""Ways to play a pass, and to measure what a rule wants to know of a sample: by torch, and in C."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from ctypes import memmove
from typing import NamedTuple

import torch
from torch import Tensor

from ..field import blend
from .instructions import NOTHING, Measure, Pass
from .native import native

_WHERE = Tensor.data_ptr
FEW = 32
"""Samples up to which a rule's numbers are worked out one by one."""
Passing = Callable[[Pass, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], int]
"""Plays a pass on its inputs, outputs and shares; the answer has the bits of the watched outputs that are known not to
be finite."""


def of_samples(item: Pass, table: Tensor, shares: Sequence[Tensor]) -> Tensor:
    """The table (B, outputs, inputs and outputs) of each sample, of `table`, that of the item."""
    factors, wide = [torch.ones_like(shares[0].flatten(), dtype=table.dtype)], len(item.inputs) + len(item.outputs)
    for before, share in item.factors:
        factors.append(factors[before] * shares[share].flatten())
    made = table[:, :wide].repeat(len(factors[0]), 1, 1)
    for column, (i, factor) in enumerate(item.products, wide):
        made[:, :, i] += factors[factor][:, None] * table[:, column]
    return made


def torch_pass(
    item: Pass, inputs: Sequence[Tensor], outputs: Sequence[Tensor], shares: Sequence[Tensor] = ()
) -> int:
    """The same by torch, a pass over memory for each term."""
    bad, tensors = 0, [tensor.detach() for tensor in (*inputs, *outputs)]
    tables = of_samples(item, torch.from_numpy(item.table).to(shares[0].device), shares) if item.products else None
    for j, (out, row) in enumerate(zip(outputs, item.table.tolist(), strict=True)):
        out.zero_()
        for k, tensor in enumerate(tensors[: len(inputs) + j]):
            if tables is not None:
                out.addcmul_(tensor, tables[:, j, k].to(out.dtype).view(-1, *[1] * (out.ndim - 1)))
            elif row[k]:
                out.add_(tensor, alpha=row[k])
        if item.watched >> j & 1 and not bool(torch.isfinite(out.sum())):
            bad |= 0 if bool(out.isfinite().all()) else 1 << j
    return bad


def torch_share(item: Measure, vectors: Sequence[Tensor], before: Tensor | None, share: Tensor) -> None:
    """The share of each sample into `share`. vectors: the inputs and outputs of the item's pass."""
    share.copy_(blend(share, share, [vectors[i] for i in item.seen], item.rule, before)[1])


class Measured(NamedTuple):
    """What was measured in a step: the vectors that the next one may have again, all products, the shares, and these
    as they were rounded."""

    vectors: tuple[Tensor, ...]
    products: list[list[float]]
    share: Tensor
    numbers: list[float] | None


class CompiledPass:
    """A pass in C; the answer has the bits of the watched outputs that are not finite."""

    def __init__(self, x: Tensor) -> None:
        library = native().library
        assert library is not None
        self._call = library.combine_float if x.dtype == torch.float32 else library.combine_double
        whole, self._samples = x.numel(), x.shape[0]
        self._one, self._each = (whole, 1), (whole // self._samples, self._samples)
        self._found, self._kind = array("d"), "f" if x.dtype == torch.float32 else "d"

    def __call__(
        self, item: Pass, inputs: Sequence[Tensor], outputs: Sequence[Tensor], shares: Sequence[Tensor] = ()
    ) -> int:
        return self.play(item, (*shares, *inputs, *outputs))

    def play(self, item: Pass, tensors: Sequence[Tensor], normal: int = 0) -> int:
        """Its pass. tensors: shares, inputs and outputs. normal: the job of the one among them that is NOTHING."""
        if normal:  # stands at an odd address
            where = iter([normal + 1 if tensor is NOTHING else tensor.data_ptr() for tensor in tensors])
        else:
            where = map(_WHERE, tensors)
        found: int = self._call(item.job(item.told, *(self._each if item.shares else self._one), 0, *where))
        return found

    def measure(
        self, item: Measure, tensors: Sequence[Tensor], before: Tensor | None, share: Tensor, last: Measured | None
    ) -> Measured:
        """Its pass on shares, inputs and outputs, one of NOTHING being nowhere, and the share of each sample into
        `share`. last: what was measured in the step before."""
        samples, numbers, vectors, known = self._samples, item.numbers, item.places(tensors), None
        if last is not None and all(vectors[i] is v for (i, _), v in zip(item.same, last.vectors, strict=True)):
            known = last.products
        kept = tuple([vectors[j] for _, j in item.same])
        found = self.products(item, tensors, known)
        if numbers is None or samples > FEW:
            size = len(item.seen)
            products = torch.zeros(samples, size, size, dtype=torch.float64)
            for (i, j), column in zip(item.measured, zip(*found, strict=True), strict=True):
                products[:, i, j] = products[:, j, i] = torch.tensor(column, dtype=torch.float64)
            made = item.rule(products, None if before is None else before.flatten())
            share.copy_(made.view(share.shape))
            return Measured(kept, found, share, None)
        was: Sequence[float | None] = [None] * samples
        if before is not None:
            was = (last and last.share is before and last.numbers) or before.flatten().tolist()
        rounded = array(self._kind, map(numbers, found, was))
        memmove(share.data_ptr(), rounded.buffer_info()[0], samples * rounded.itemsize)
        return Measured(kept, found, share, rounded.tolist())

    def products(
        self, item: Measure, tensors: Sequence[Tensor], known: list[list[float]] | None = None
    ) -> list[list[float]]:
        """Its pass, and (B, pairs) inner products of the pairs of vectors. known: those of the step before."""
        samples, count = self._samples, len(item.measured) - (len(item.again) if known else 0)
        if len(self._found) < samples * count:
            self._found = array("d", bytes(8 * samples * count))
        told, found = item.told[known is not None], self._found.buffer_info()[0]
        self._call(item.rows.job(told, *self._each, found, *map(_WHERE, tensors)))
        made = self._found[: samples * count].tolist()
        rows = [made[i : i + count] for i in range(0, len(made), count)]
        for row, old in zip(rows, known or (), strict=False):
            for new, was in item.again:
                row.insert(new, old[was])
        return rows
