"""A network call as a value: D(y, sigma) = E[x_0 | y] in VE coordinates, with what else one call can tell.

A `Denoiser` is any function (y, sigma) -> Output; those of networks, and guidance around them, are in problems/.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import ProblemError
from .prediction import Prediction, Scaling
from .process import Process
from .register import F, Owner, Register

Sigma = float | Tensor | NDArray[np.float64]
"""A noise level: one float, or one for each sample, (B,)."""
Raw = Tensor | tuple[Tensor, Tensor]
"""What a network returns; of a guided one the pair (conditional, unconditional)."""
Network = Callable[[Tensor, Tensor], Raw]


class Output(NamedTuple):
    """What one call tells. All are of y's shape, dtype and device.

    denoised: D(y, sigma). unconditional: D without guidance, where there is guidance. variance: where the log variance
    of DDPM's step lies, from the smaller (0) to the larger (1), of a network that tells it (Nichol & Dhariwal 2021).
    """

    denoised: Tensor
    unconditional: Tensor | None = None
    variance: Tensor | None = None


class Denoiser(Protocol):
    """(y, sigma) -> Output: y is (B, *shape) in VE coordinates, sigma a float, or one for each sample, (B,).

    What it hands back is its own and is copied, unless it says by an attribute `fresh = True` that every call hands
    back tensors that nobody else has, and that y is left as it is.
    """

    def __call__(self, y: Tensor, sigma: Sigma, /) -> Output: ...


@runtime_checkable
class NetworkCall(Denoiser, Protocol):
    """A network's denoiser, such as `NetworkDenoiser`: whoever owns the network call goes by this."""

    network: Network
    process: Process
    prediction: Prediction

    def scaling(self, sigma: Sigma, /) -> Scaling[Any]:
        """The coefficients of D = c_skip y + c_out raw at a noise level."""

    def halves(self, raw: Tensor, y: Tensor, sigma: Sigma, /) -> tuple[Tensor, Tensor | None]:
        """An answer like y, and what it says of the variance."""


@runtime_checkable
class GuidedCall(Denoiser, Protocol):
    """A denoiser under guidance, such as `Guided`, seen from outside: `denoiser` is the one inside."""

    denoiser: Denoiser

    def called(self, sigma: Sigma, /) -> Network:
        """The network to call at a noise level."""

    def pair(self, raw: Raw, sigma: Sigma, /) -> tuple[Tensor, Tensor]:
        """(guided, unconditional) of the network's answers."""

    def guided(self, out: Output, sigma: Sigma, /) -> Output:
        """What a call of the denoiser inside comes to."""


def on_host(sigma: Sigma) -> float | NDArray[np.float64]:
    """A noise level as a float, or as a float64 array (B,). Raises ProblemError for another shape."""
    if isinstance(sigma, float | int):
        return float(sigma)
    levels = np.asarray(sigma.detach().cpu() if isinstance(sigma, Tensor) else sigma, np.float64)
    if levels.ndim > 1:
        raise ProblemError(f"sigma is one number, or one for each sample, (B,); got shape {levels.shape}")
    return levels if levels.ndim else float(levels)


def per_sample(sigma: Sigma, y: Tensor) -> float | Tensor:
    """A float as it is; numbers (B,) as a tensor (B, 1, ..., 1) like y, to multiply it with."""
    levels = on_host(sigma)
    if isinstance(levels, float):
        return levels
    if len(levels) not in (1, len(y)):
        raise ProblemError(f"sigma has {len(levels)} levels, the batch {len(y)} samples; expected one, or as many")
    return torch.from_numpy(levels).to(y).reshape(-1, *[1] * (y.ndim - 1))


def register_guidance(name: str) -> Callable[[F], F]:
    """Decorate a Guidance class, or a function (denoiser, scale, ...) that makes one, to give it a name."""
    return GUIDANCE.decorator(name, Owner.calling())


def _maker(name: str, found: object, owner: Owner) -> Callable[..., Denoiser]:
    if not callable(found):
        raise ProblemError(f"it names a {type(found).__name__}, expected a Guidance class or what makes one")
    return found


GUIDANCE = Register[Callable[..., Denoiser]]("guidance", "diffsolve.guidance", ProblemError, _maker)
"""name -> what makes guidance around a denoiser; "cfg" is what a number alone stands for."""
