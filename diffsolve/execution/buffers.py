"""Where a fused run keeps its states: tensors that are used again, within a run and by the next one of its plan."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from .instructions import Plan

_USES = getattr(torch._C, "_storage_Use_Count", None)
_OWNERS = sys.getrefcount
Traits = tuple[torch.Size, torch.dtype, torch.device]
_MOST = 1 << 22  # bytes of a run that are kept: to make more of them takes no time beside filling them


class Buffers:
    """Tensors of a shape, each used again once nobody else has it, a view of it or its memory."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self._all: list[tuple[Tensor, torch.UntypedStorage, Callable[[], int], int]] = []
        self._idle: tuple[int, ...] = ()

    @property
    def made(self) -> int:
        """How many there are."""
        return len(self._all)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return self.made * self.shape.numel() * self.dtype.itemsize

    def take(self) -> Tensor:
        every, idle = self._all, self._idle
        for i, (tensor, _, handles, memory) in enumerate(every):
            if _OWNERS(tensor) == idle[0] and handles() == idle[1] and _USES(memory) == idle[2]:  # type: ignore[misc]
                every.append(every.pop(i))  # the one that was taken first is likely the next that is idle
                return tensor
        tensor = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        if _USES is not None and len(every) < 64:
            storage = tensor.untyped_storage()
            every.append((tensor, storage, tensor._use_count, storage._cdata))  # type: ignore[attr-defined]
            self._idle = idle or self._unowned()
        return tensor

    def _unowned(self) -> tuple[int, ...]:
        """The owners that `take` finds where there are none but its own: in Python, beside it (DLPack), of the memory
        (a view)."""
        for tensor, _, handles, memory in self._all:
            return _OWNERS(tensor) - 1, handles(), _USES(memory)  # type: ignore[misc] # without the one that made it
        return ()


class Pool:
    """Buffers of runs that are over, each for the next run of the same plan on states of the same shape.

    Small ones: an allocator that has lost much memory to them is slow for everybody.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Plan, Traits, Buffers, int]] = []

    def taken(self, plan: Plan, *of: *Traits) -> Buffers:
        """Those that are there, which are the caller's own from now on, or new ones; none in inference mode, whose
        tensors are of another kind."""
        if not torch.is_inference_mode_enabled():
            for one in [*self._kept]:
                if one[0] is plan and one[1] == of:
                    with suppress(ValueError):  # another thread has them
                        self._kept.remove(one)
                        return one[2]
        return Buffers(*of)

    def give(self, plan: Plan, buffers: Buffers, *of: *Traits) -> None:
        """Take them back; the oldest are let go where there are many."""
        size = buffers.size
        if of[2].type == "cpu" and size <= _MOST and not torch.is_inference_mode_enabled():
            self._kept.append((plan, of, buffers, size))
            while len(self._kept) > 64 or sum([one[3] for one in self._kept]) > 4 * _MOST:
                self._kept.pop(0)


POOL = Pool()
