"""Checks of what is handed in: numbers and choices, states and which samples, and whether the memory is there.

What they accept comes back as it is to be used, the rest raises the error given.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from errno import EFBIG, EINVAL
from functools import cache
from numbers import Real
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .errors import Kind, ProblemError, SolverError, did_you_mean

N = TypeVar("N", int, float)
Samples = Sequence[int]
Device = torch.device | str
A_SAMPLE, A_NUMBER = 200, 32  # bytes that drawing a sample's noise takes at its height, and each number of it
_LACKING = ("can't allocate memory", "not enough memory", "out of memory")  # as the errors of torch's allocators say it


def written(value: object) -> str:
    """repr(value), cut where it is very long; whole numbers beyond what Python writes out by their length."""
    try:
        text = repr(value)
    except ValueError:  # of more than 4,300 digits
        return f"a number of about {math.log10(abs(value)):.0f} digits" if isinstance(value, int) else "..."
    return text if len(text) <= 200 else f"{text[:60]}... ({len(text)} characters)"


def finite(value: object) -> float | None:
    """`value` as a float, or None where it is not one finite real number."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # of a whole number
        return None
    return number if math.isfinite(number) else None


def without_gradient(what: str, error: Kind, *values: object) -> None:
    """Refuse numbers with a gradient where it would be dropped."""
    if any(getattr(value, "requires_grad", False) for value in values):
        raise error(f"{what} carries a gradient, and a solve has none in it; detach it")


def index(value: object) -> int | None:
    """`value` as an integer, or None where it is none, or yes or no."""
    try:
        return None if isinstance(value, bool | np.bool_) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # of tensors
        return None


def whole(value: object, what: str, error: Kind = SolverError, least: int = 1, most: int | None = None) -> int:
    """`value` as an integer from `least` to `most`; `error` names what it is and what was given."""
    number = index(value)
    if number is None or number < least or (most is not None and number > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise error(f"{what} must be a whole number {span}, got {written(value)}")
    return number


def at_most(number: N, what: str, most: float, error: Kind = SolverError) -> N:
    """A number that is no more than `most`."""
    if number > most:
        raise error(f"{what} must be at most {most:g}, got {written(number)}")
    return number


def at_least(
    value: object, what: str, error: Kind = SolverError, least: float = 0.0, infinite: bool = False
) -> float:
    """`value` as a float of at least `least`: finite, or else infinity where that is meant."""
    number = math.inf if infinite and isinstance(value, float) and value == math.inf else finite(value)
    if number is None or number < least:
        raise error(f"{what} must be a finite number of at least {least:g}, got {written(value)}")
    return number


def above_zero(value: object, what: str, error: Kind = SolverError, infinite: bool = False) -> float:
    """`value` as a float above 0: finite, or else infinity where that is meant."""
    number = math.inf if infinite and isinstance(value, float) and value == math.inf else finite(value)
    if number is None or number <= 0:
        raise error(f"{what} must be a finite number above 0, got {written(value)}")
    return number


def between(value: object, what: str, low: float, high: float, error: Kind = SolverError) -> float:
    """`value` as a float from `low` to `high`."""
    number = finite(value)
    if number is None or not low <= number <= high:
        raise error(f"{what} must be a number from {low:g} to {high:g}, got {written(value)}")
    return number


def flag(value: object, what: str, error: Kind = SolverError) -> bool:
    """`value` as yes or no."""
    try:
        if isinstance(value, str):  # "False" is true
            raise TypeError
        return bool(value)
    except (TypeError, ValueError, RuntimeError):  # of arrays
        raise error(f"{what} must be True or False, got {written(value)}") from None


def choice(value: object, what: str, choices: Iterable[str], error: Kind = SolverError) -> str:
    """`value` where it is one of the names, else an error with the nearest of them."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        near = did_you_mean(value, known).partition("; choose")[0]
        raise error(f"{what} must be one of {', '.join(map(repr, known))}, got {written(value)}{near}")
    return value


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
        raise ProblemError(f"the state is float32 or float64, got {dtype}; a network in half precision casts inside")
    return dtype


def check_like(value: object, state: Tensor, what: str, *at: object) -> None:
    """Raise ProblemError unless `value` is a tensor of the state's shape, dtype and device; `what.format(*at)` is."""
    if (
        isinstance(value, Tensor)
        and value.shape == state.shape
        and value.dtype == state.dtype
        and value.device == state.device
    ):
        return
    what = what.format(*at)
    if not isinstance(value, Tensor):
        raise ProblemError(f"{what} returned {type(value).__name__}, expected a tensor of shape {tuple(state.shape)}")
    for trait in ("shape", "dtype", "device"):
        got, expected = getattr(value, trait), getattr(state, trait)
        if got != expected:
            got, expected = (tuple(got), tuple(expected)) if trait == "shape" else (got, expected)
            raise ProblemError(f"{what} returned {trait} {got}, expected {expected}, the state's")


@contextmanager
def unchanged(state: Tensor, what: str, *at: object) -> Iterator[None]:
    """Raise ProblemError where what is called inside changes the state in place; `what.format(*at)` is what."""
    before = 0 if state.is_inference() else state._version
    yield
    if not state.is_inference() and state._version != before:
        raise ProblemError(f"{what.format(*at)} changes the state it is given in place; let it work on a copy")


def transformed() -> bool:
    """Whether a transform of torch.func is at work: no value of its tensors can be read, and none has memory."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def placed(device: Device) -> torch.device:
    """The device as a tensor on it reports it ("cuda" -> "cuda:0"). Raises ProblemError where it can't be used."""
    try:
        found = torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ProblemError(f"device {device!r} can't be used here: {reason}") from error
    if found.type == "meta":
        raise ProblemError("device 'meta' can't be used here: its tensors hold no numbers; take another")
    return found


def check_dense(x: Tensor, what: str) -> Tensor:
    """x. Raises ProblemError for a tensor without numbers (meta), a sparse or a nested one."""
    if x.is_meta or x.is_nested or x.is_quantized or x.layout != torch.strided:
        kind = "nested" if x.is_nested else "quantized" if x.is_quantized else f"of layout {x.layout}"
        kind = "on meta, without numbers" if x.is_meta else kind
        raise ProblemError(f"{what} is {kind}; expected a dense tensor")
    return x


def shape_of(shape: object) -> tuple[int, ...]:
    """One sample's shape as whole numbers of at least 1. Raises ProblemError."""
    if not isinstance(shape, Sequence) or isinstance(shape, str | bytes):
        raise ProblemError(f"shape is one sample's shape, such as (4, 64, 64), got {shape!r}")
    return tuple(whole(size, "each size in shape", ProblemError) for size in shape)


def seed_of(seed: object, what: str = "seed") -> int:
    number = index(seed)
    if number is None or not -(1 << 63) <= number < 1 << 64:  # beyond, one would have the noise of another
        raise ProblemError(f"{what} must be a whole number, got {written(seed)}; from -2^63 to 2^64 - 1")
    return number


def samples_of(batch: int | Sequence[int] | None, x: Tensor | None = None, default: int = 1) -> Sequence[int]:
    """The samples that batch names, or so many as it says; None is as many as x has, without x the default."""
    if batch is None:
        batch = default if x is None else 1
    if isinstance(x, Tensor) and x.is_nested:
        check_dense(x, "x")
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        check_batch(_length(batch))
        samples: Sequence[int] = [seed_of(i, "each sample named by batch") for i in batch]
        if not samples or (isinstance(x, Tensor) and x.ndim and len(samples) != x.shape[0]):
            raise ProblemError(
                f"batch names {len(samples)} samples; it must name one for each row of x, and at least one"
            )
        return samples
    count = whole(batch, "batch", ProblemError)
    if isinstance(x, Tensor) and x.ndim:
        if count not in (1, x.shape[0]):
            raise ProblemError(f"batch is {count}, but x has {x.shape[0]} samples; leave batch out where x is given")
        count = x.shape[0]
    check_batch(count)
    return range(count)


def _length(batch: Sequence[int]) -> int:
    try:
        return len(batch)
    except OverflowError:  # of a range
        return sys.maxsize


def available(device: torch.device | str = "cpu") -> float:
    """Bytes of memory that the device has, used or not; infinite where that can't be told."""
    kind = torch.device(device)
    if kind.type == "cuda":
        return float(torch.cuda.get_device_properties(kind).total_memory)
    return _installed() if kind.type == "cpu" else math.inf


@cache
def _installed() -> float:
    return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


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
    if size <= available(device):
        return
    what = f"the noise of a batch of {written(count)}" + (f" samples of shape {tuple(shape)}" if shape else "")
    check_room(size, what, "take a smaller batch or shape", device)


def check_trajectory(x: Tensor, states: int) -> None:
    """Raise ProblemError where so many states like x would be too much to keep."""
    what = f"save='all' keeps {states} states of shape {tuple(x.shape)}, which"
    remedy = "leave it out, and keep what you need in a callback"
    check_room(states * x.numel() * x.element_size(), what, remedy, x.device)


def is_lacking(error: BaseException) -> bool:
    """Whether it was raised, by torch, numpy or a problem, because memory is lacking."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _LACKING)


def out_of_memory(what: str, remedy: str, error: BaseException) -> ProblemError:
    """What to raise for an error of torch's or numpy's where memory is lacking: it says what it was needed for."""
    reason = str(error).partition("\n")[0][-120:]
    return ProblemError(f"{what}: there is not enough memory ({reason}); {remedy}")


def on_disk(path: str | Path) -> Path:
    """The path, its ~ written out. Raises OSError for a device or a pipe, which may have no end."""
    file = Path(path).expanduser()
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise OSError(EINVAL, "it is a device or a pipe, expected a file")
    return file


def text_of(path: str | Path, most: int = 1 << 26) -> str:
    """The UTF-8 text of a file. Raises OSError for what is no file on disk, or has more than `most` bytes."""
    file = on_disk(path)
    if file.is_file() and (size := file.stat().st_size) > most:
        raise OSError(EFBIG, f"it has {size} bytes, expected at most {most}")
    return file.read_text(encoding="utf-8")
