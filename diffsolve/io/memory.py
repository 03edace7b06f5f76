"""How much memory there is, and errors that name what would not go into it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ..errors import DiffsolveError, ProblemError

A_SAMPLE, A_NUMBER = 200, 32  # bytes that drawing a sample's noise takes at its height, and each number of it
_LACKING = ("can't allocate memory", "not enough memory", "out of memory")  # as the errors of torch's allocators say it


def available(device: torch.device | str = "cpu") -> float:
    """Bytes of memory that the device has, used or not; infinite where that can't be told."""
    kind = torch.device(device)
    if kind.type == "cuda":
        return float(torch.cuda.get_device_properties(kind).total_memory)
    if kind.type != "cpu" or not hasattr(os, "sysconf"):
        return math.inf
    return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")


def shown(size: float) -> str:
    """ "12.3 GB"."""
    return f"{min(size, 10**300) / 1e9:.3g} GB"


def check_room(size: float, what: str, remedy: str, device: torch.device | str = "cpu") -> None:
    """Raise ProblemError where `what` would take more bytes than the device has."""
    if size > available(device):
        raise ProblemError(
            f"{what} would take {shown(size)} of memory, and there are {shown(available(device))}; {remedy}"
        )


def check_batch(count: int, shape: Sequence[int] = (), device: torch.device | str = "cpu") -> None:
    """Raise ProblemError where the noise of so many samples of a shape would be too large to draw."""
    size = count * (A_SAMPLE + A_NUMBER * math.prod(shape))
    what = f"the noise of a batch of {count}" + (f" samples of shape {tuple(shape)}" if shape else "")
    check_room(size, what, "take a smaller batch or shape", device)


def check_trajectory(x: torch.Tensor, states: int) -> None:
    """Raise ProblemError where so many states like x would be too much to keep."""
    what = f"save='all' keeps {states} states of shape {tuple(x.shape)}, which"
    remedy = "leave it out, and keep what you need in a callback"
    check_room(states * x.numel() * x.element_size(), what, remedy, x.device)


def is_lacking(error: BaseException) -> bool:
    """Whether it was raised, by torch, numpy or `named`, because memory is lacking."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _LACKING)


@contextmanager
def named(what: str, remedy: str, error: type[DiffsolveError] = ProblemError) -> Iterator[None]:
    """Turn what torch and numpy raise where memory is lacking into `error`, saying what it was needed for."""
    try:
        yield
    except (MemoryError, RuntimeError) as lacking:
        if not is_lacking(lacking):
            raise
        reason = str(lacking).partition("\n")[0][-120:]
        raise error(f"{what}: there is not enough memory ({reason}); {remedy}") from lacking
