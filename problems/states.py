"""States of a diffusion beside its flow: what holds of them, pictures of them, and whether one is usable as a start."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from diffsolve import ProblemError, Span
from diffsolve.validate import Samples, check_dense, transformed

if TYPE_CHECKING:
    from PIL.Image import Image


class Constraint(Protocol):
    """What holds of a state at every node, such as a part of it that is known."""

    def check(self, shape: tuple[int, ...], samples: int) -> None:
        """Raise ProblemError unless it goes with a batch of `samples` states of `shape`."""

    def project(self, y: Tensor, sigma: float, span: Span, seed: int, samples: Samples) -> Tensor:
        """The state y (B, *shape), in VE coordinates at the noise level sigma, as the constraint will have it."""


class Codec(Protocol):
    """Between data coordinates and pictures."""

    def decode(self, x: Tensor, /) -> list[Image]: ...

    def encode(self, images: Image | Sequence[Image], /) -> Tensor: ...


def check_function(value: object, what: str, count: int, said: str) -> None:
    """Raise ProblemError unless it is a function that takes `count` arguments by position."""
    if not callable(value):
        raise ProblemError(f"{what} must be a function {said}, got {type(value).__name__}")
    try:
        inspect.signature(value.forward if isinstance(value, nn.Module) else value).bind(*range(count))
    except ValueError:  # builtins tell nothing
        pass
    except TypeError as error:
        raise ProblemError(f"{what} must be a function {said}, and this one can't be called so: {error}") from None


def shown_shape(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def checked_state(x: object, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """x. Raises ProblemError unless it is a batch of states of that shape there."""
    if not isinstance(x, Tensor):
        raise ProblemError(f"x must be a tensor of shape (B, {shown_shape(shape)}), got {type(x).__name__}")
    if x.is_nested or x.layout != torch.strided:
        check_dense(x, "x")
    if x.ndim != len(shape) + 1 or x.shape[1:] != shape or x.shape[0] < 1:
        raise ProblemError(f"x has shape {tuple(x.shape)}, expected (B, {shown_shape(shape)})")
    if x.dtype not in (torch.float32, torch.float64):
        raise ProblemError(f"x has dtype {x.dtype}; the state is kept in float32 or float64, so pass x.float()")
    if x.device != device:
        raise ProblemError(f"x is on {x.device}, the problem on {device}; pass x.to({str(device)!r})")
    return x


def rounds_of(rows: int, known: int, what: str = "prompts or labels") -> int:
    """How often a batch of `rows` has all of so many prompts. Raises ProblemError where it is no multiple of them."""
    if rows % known:
        raise ProblemError(f"the batch is {rows}, but there are {known} {what}, one a row; expected batch={known} or a "
                           "multiple of it")  # fmt: skip
    return rows // known


def check_rows(y: object, what: str, shape: tuple[int, ...], strict: bool = False) -> None:
    """Raise ProblemError unless y is a dense tensor of real numbers, (B, *shape) if strict, else of as many sizes."""
    if not isinstance(y, Tensor):
        got: object = type(y).__name__
    elif y.is_floating_point() and check_dense(y, what).ndim == len(shape) + 1 and y.shape[0]:
        if not strict or y.shape[1:] == shape:
            return
        got = f"one of {tuple(y.shape)}"
    else:
        got = f"one of {tuple(y.shape)}, {y.dtype}"
    raise ProblemError(f"{what} must be a float tensor of shape (B, {shown_shape(shape)}), got {got}")


def check_noise(x: Tensor, sigma: float) -> None:
    """Raise ProblemError for a state of many numbers that are too small to have noise of deviation sigma in them."""
    if x.numel() < 64 * x.shape[0] or transformed():
        return
    size = float(torch.linalg.vector_norm(x.detach())) / math.sqrt(x.numel())
    if size < sigma / 2:
        raise ProblemError(
            f"x has a root mean square of {size:.3g}, at sigma = {sigma:g} the noise in it alone has {sigma:g}; pass "
            f"noise of deviation 1 as x * {sigma:.6g}, latents of a diffusers pipeline as "
            "ds.problems.from_latents(x, problem.process, sigma), clean data as problem.noised(x, sigma)"
        )
