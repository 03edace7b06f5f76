"""Diffusion problems whose denoiser is known in closed form: what orders, parity and references are measured on."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from diffsolve import Output, ProblemError, Process
from diffsolve.denoiser import Sigma, per_sample
from diffsolve.validate import Device, finite, index

from .diffusion import ProbabilityFlow
from .guidance import Guided
from .noise import normals

if TYPE_CHECKING:
    from PIL.Image import Image

DATA_STREAM, CHOICE_STREAM = -1, -2  # of the keyed noise; the prior and the Brownian path use positive streams


def _tensor(value: ArrayLike, what: str, dtype: torch.dtype, device: Device) -> Tensor:
    """A copy of `value`, which is the caller's."""
    try:
        tensor = torch.as_tensor(value, dtype=dtype, device=device).clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProblemError(f"{what} must be a tensor or nested numbers, got {value!r}: {error}") from error
    if not bool(tensor.isfinite().all()):
        raise ProblemError(f"{what} must be finite numbers, got {value!r}")
    return tensor


def _log_normal(gap: Tensor, variance: Tensor) -> Tensor:
    """log N(gap; 0, diag(variance)) over the last dimension."""
    return -0.5 * (gap * gap / variance + (2 * math.pi * variance).log()).sum(-1)


class GaussianDenoiser:
    """E[x_0 | y] of data N(mean, diag(variance))."""

    fresh = True

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        self.mean, self.variance = mean, variance

    def __call__(self, y: Tensor, sigma: Sigma) -> Output:
        mean, variance, level = self.mean.to(y), self.variance.to(y), per_sample(sigma, y)
        return Output(mean + (y - mean) * (variance / (variance + level**2)))


class Gaussian(ProbabilityFlow):
    """Data N(mean, diag(std^2)), with its exact flow.

    mean: a tensor or nested list of one sample's shape. std: a number, or of the mean's shape, >= 0. Computed in
    float64 unless `dtype` says otherwise. Raises ProblemError for values that can't be a mean or a std.
    """

    def __init__(
        self,
        mean: ArrayLike,
        std: ArrayLike = 1.0,
        process: str | Process = "sd",
        *,
        dtype: torch.dtype = torch.float64,
        device: Device = "cpu",
    ) -> None:
        self.mean = _tensor(mean, "mean", dtype, device)
        scale = _tensor(std, "std", dtype, device)
        if bool((scale < 0).any()):
            raise ProblemError(f"std must be at least 0, got {std!r}")
        try:
            self.variance = (scale**2).expand(self.mean.shape)
        except RuntimeError as error:
            raise ProblemError(f"std has shape {tuple(scale.shape)}, the mean {tuple(self.mean.shape)}") from error
        denoiser = GaussianDenoiser(self.mean, self.variance)
        super().__init__(process=process, shape=self.mean.shape, dtype=dtype, device=device, denoiser=denoiser)

    def exact(self, y: Tensor, s0: float, s1: float) -> Tensor:
        """The state at sigma = s1 of the flow through y at sigma = s0."""
        mean, variance = self.mean.to(y), self.variance.to(y)
        return mean + (y - mean) * torch.sqrt((variance + s1**2) / (variance + s0**2))

    def log_density(self, y: Tensor, sigma: float = 0.0) -> Tensor:
        """log of the density of data + sigma noise at y (B, *shape), in nats, (B,)."""
        return _log_normal((y - self.mean.to(y)).flatten(1), (self.variance.to(y) + sigma**2).flatten())

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """`count` draws of the data, (count, *shape)."""
        z = normals(seed, range(count), DATA_STREAM, self.shape, self.dtype, self.device)
        return self.mean + self.variance.sqrt() * z


class MixtureDenoiser:
    """E[x_0 | y] of a mixture of Gaussians with diagonal covariances.

    means, variances: (K, *shape). log_weights: (K,). conditional: those of a class, for what is then the conditional
    estimate beside the unconditional one.
    """

    fresh = True

    def __init__(
        self, means: Tensor, variances: Tensor, log_weights: Tensor, conditional: Tensor | None = None
    ) -> None:
        self.means, self.variances, self.log_weights, self.conditional = means, variances, log_weights, conditional

    def __call__(self, y: Tensor, sigma: Sigma) -> Output:
        misfit, centre = self._components(y, sigma)
        free = _weighed(y, self.log_weights, misfit, centre)
        if self.conditional is None:
            return Output(free)
        return Output(_weighed(y, self.conditional, misfit, centre), unconditional=free)

    def _components(self, y: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """-log of each component's density at y but for a constant, (B, K); the mean given y and it, (B, K, d)."""
        flat = y.reshape(y.shape[0], 1, -1)
        means = self.means.to(y).flatten(1)
        variances = self.variances.to(y).flatten(1)
        total = variances + per_sample(sigma, flat) ** 2
        gap = flat - means
        return 0.5 * (gap * gap / total + total.log()).sum(-1), means + gap * (variances / total)


def _weighed(y: Tensor, log_weights: Tensor, misfit: Tensor, centre: Tensor) -> Tensor:
    """The mean of x_0 given y (B, *shape) where the components have these weights."""
    logits = log_weights.to(y) - misfit
    # Not softmax: torch 2.13 runs it on every thread whatever its size, milliseconds for 20 numbers on busy cores.
    shares = (logits - logits.amax(-1, keepdim=True)).exp()
    shares = shares / shares.sum(-1, keepdim=True)
    return (shares.unsqueeze(-1) * centre).sum(1).reshape(y.shape)


class GaussianMixture(ProbabilityFlow):
    """Data from K Gaussians with diagonal covariances; the denoiser and the score are exact.

    means: (K, *shape), usually (K, d). stds: (K,) or (K, *shape), >= 0. weights: (K,), positive, normalised here; equal
    by default. labels: (K,) whole numbers, the class of each component, for `guided`. Computed in float64 unless
    `dtype` says otherwise. Raises ProblemError for values or shapes that can't be a mixture.
    """

    def __init__(
        self,
        means: ArrayLike,
        stds: ArrayLike,
        weights: ArrayLike | None = None,
        process: str | Process = "sd",
        *,
        labels: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float64,
        device: Device = "cpu",
    ) -> None:
        self.means = _tensor(means, "means", dtype, device)
        if self.means.ndim < 2:
            raise ProblemError(f"means must be (K, d) or (K, *shape), got shape {tuple(self.means.shape)}")
        count = len(self.means)
        stds_ = _tensor(stds, "stds", dtype, device)
        if stds_.ndim <= 1:
            stds_ = stds_.expand(count) if stds_.ndim == 0 else stds_
            stds_ = stds_.reshape(-1, *[1] * (self.means.ndim - 1))
        if stds_.shape[0] != count or bool((stds_ < 0).any()):
            raise ProblemError(f"stds must be (K,) or (K, *shape) with K = {count}, at least 0; got {stds!r}")
        try:
            self.variances = (stds_**2).expand(self.means.shape)
        except RuntimeError as error:
            raise ProblemError(f"stds must be (K,) or (K, *shape), the means' {tuple(self.means.shape)}") from error
        self.weights = torch.ones(count, dtype=dtype) if weights is None else _tensor(weights, "weights", dtype, "cpu")
        if self.weights.shape != (count,) or bool((self.weights <= 0).any()):
            raise ProblemError(f"weights must be {count} positive numbers, got {weights!r}")
        self.weights = (self.weights / self.weights.sum()).to(device)
        try:
            self.labels = None if labels is None else [operator.index(label) for label in labels]
        except (TypeError, ValueError, RuntimeError) as error:
            raise ProblemError(f"labels must be whole numbers, got {labels!r}") from error
        if self.labels is not None and len(self.labels) != count:
            raise ProblemError(f"labels must name a class for each of the {count} components, got {len(self.labels)}")

        denoiser = MixtureDenoiser(self.means, self.variances, self.weights.log())
        super().__init__(process=process, shape=self.means.shape[1:], dtype=dtype, device=device, denoiser=denoiser)

    def log_density(self, y: Tensor, sigma: float = 0.0) -> Tensor:
        """log of the density of data + sigma noise at y (B, *shape), in nats, (B,)."""
        gap = y.reshape(y.shape[0], 1, -1) - self.means.to(y).flatten(1)
        parts = _log_normal(gap, (self.variances.to(y) + sigma**2).flatten(1))
        return torch.logsumexp(parts + self.weights.log().to(y), -1)

    def guided(self, label: int, guidance: float = 7.5) -> GuidedMixture:
        """The flow of D + guidance (D(label) - D): classifier-free guidance towards the components of a class."""
        return GuidedMixture(self, label, guidance)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """`count` draws of the data, (count, *shape)."""
        u = torch.special.ndtr(normals(seed, range(count), CHOICE_STREAM, (1,), torch.float64, self.device)).squeeze(1)
        pick = torch.searchsorted(self.weights.double().cumsum(0), u).clamp(max=len(self.means) - 1)
        z = normals(seed, range(count), DATA_STREAM, self.shape, self.dtype, self.device)
        return self.means[pick] + self.variances[pick].sqrt() * z


class GuidedMixture(ProbabilityFlow):
    """A GaussianMixture under classifier-free guidance; see `GaussianMixture.guided`. `unguided` is the mixture."""

    def __init__(self, mixture: GaussianMixture, label: int, guidance: float) -> None:
        if mixture.labels is None or index(label) not in mixture.labels:
            known = "none were given" if mixture.labels is None else f"it has {sorted(set(mixture.labels))}"
            raise ProblemError(f"the mixture has no component labelled {label!r}; {known}")
        scale = finite(guidance)
        if scale is None:
            raise ProblemError(f"guidance must be a finite number, got {guidance!r}")
        self.unguided, self.label, self.guidance = mixture, label, scale
        member = torch.tensor([k == label for k in mixture.labels], device=mixture.weights.device)
        log_weights = mixture.weights.log()
        sides = MixtureDenoiser(
            mixture.means, mixture.variances, log_weights, log_weights.masked_fill(~member, -torch.inf)
        )
        super().__init__(
            process=mixture.process, shape=mixture.shape, dtype=mixture.dtype, device=mixture.device,
            denoiser=Guided(sides, scale),
        )  # fmt: skip


class EmpiricalImages(ProbabilityFlow):
    """Data that is exactly a finite set of pictures: a mixture of point masses, the denoiser a softmax over them.

    images: (N, c, h, w) in [-1, 1], or a list of PIL images of one size. What a network that has memorised its training
    set would be. The posterior is computed in float64; the state is in `dtype`.
    """

    def __init__(
        self,
        images: Tensor | Sequence[Image],
        process: str | Process = "sd",
        *,
        dtype: torch.dtype = torch.float32,
        device: Device = "cpu",
    ) -> None:
        if not isinstance(images, Tensor):
            images = _from_pil(images)
        if images.ndim < 2 or len(images) == 0:
            raise ProblemError(f"images must be (N, c, h, w) with N >= 1, got shape {tuple(images.shape)}")
        self.data = _tensor(images, "images", torch.float64, device)
        super().__init__(
            process=process, shape=self.data.shape[1:], dtype=dtype, device=device, denoiser=PointsDenoiser(self.data),
            codec=PixelCodec(),
        )  # fmt: skip


class PointsDenoiser:
    """E[x_0 | y] of data that are points (N, *shape), in float64."""

    fresh = True

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __call__(self, y: Tensor, sigma: Sigma) -> Output:
        points = self.data.to(y.device).flatten(1)
        state = y.double().flatten(1)
        logits = (state @ points.T - 0.5 * points.square().sum(1)) / per_sample(sigma, state) ** 2
        return Output((logits.softmax(-1) @ points).reshape(y.shape).to(y.dtype))


class PixelCodec:
    """Pixels in [-1, 1] as they are: (B, c, h, w), c = 1 or 3; values outside are clipped to be shown."""

    def decode(self, x: Tensor, /) -> list[Image]:
        return to_pil(x)

    def encode(self, images: Image | Sequence[Image], /) -> Tensor:
        return _from_pil(images if isinstance(images, Sequence) else [images])


def _from_pil(images: Sequence[Image]) -> Tensor:
    import numpy as np

    try:
        arrays = [np.asarray(image.convert("RGB"), np.float64).transpose(2, 0, 1) / 127.5 - 1 for image in images]
        return torch.from_numpy(np.stack(arrays))
    except (AttributeError, TypeError, ValueError) as error:
        raise ProblemError(f"images must be a tensor (N, c, h, w) or PIL images of one size: {error}") from error


def to_pil(x: Tensor) -> list[Image]:
    """PIL images of pixels (B, c, h, w) in [-1, 1], c = 1 or 3; NaN raises ProblemError, the rest is clipped."""
    from PIL import Image

    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ProblemError(f"pictures are (B, c, h, w) with c = 1 or 3, got {tuple(x.shape)}")
    if bool(x.isnan().any()):
        raise ProblemError(f"{int(x.isnan().sum())} of {x.numel()} pixel values are NaN; there is no picture to show")
    pixels = ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(p.squeeze(-1) if p.shape[-1] == 1 else p) for p in pixels]
