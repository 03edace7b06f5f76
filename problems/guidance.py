"""Guidance: how a conditional estimate and an unconditional one are mixed."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from diffsolve import ProblemError
from diffsolve.denoiser import Denoiser, Guidance, Sigma, on_host, per_sample, register_guidance
from diffsolve.validate import finite, is_interval


@register_guidance("cfg")
class Guided(Guidance):
    """Classifier-free guidance around a denoiser that tells both sides: D' + scale (D - D') (Ho & Salimans 2022).

    interval: of sigma, (low, high), outside which there is no guidance (Kynkaanniemi et al. 2024): a network that has
    an answer of one side is asked for that alone, and both sides are then the same. rescale: how far the guided
    estimate is scaled back to the conditional one's deviation (Lin et al. 2024, eq. 16). Raises ProblemError for
    numbers that can't be.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, interval: tuple[float, float] | None = None, rescale: float = 0.0
    ) -> None:
        super().__init__(denoiser)
        for name, value in (("scale", scale), ("rescale", rescale)):
            if finite(value) is None:
                raise ProblemError(f"guidance {name} must be a finite number, got {value!r}")
        if not 0 <= rescale <= 1:
            raise ProblemError(f"guidance rescale is a share from 0 to 1, got {rescale!r}")
        if interval is not None and not is_interval(interval):
            raise ProblemError(f"guidance interval is (low, high) of sigma with 0 <= low < high, got {interval!r}")
        self.scale, self.interval, self.rescale = float(scale), interval, float(rescale)

    def needs_both(self, sigma: Sigma) -> bool:
        if self.interval is None:
            return True
        low, high = self.interval
        levels = np.asarray(on_host(sigma))
        return bool(np.any((levels >= low) & (levels <= high)))

    def mix(self, conditional: Tensor, unconditional: Tensor, sigma: Sigma) -> Tensor:
        scale = self.scale if self.interval is None else self._scale_at(sigma, self.interval, conditional)
        guided = unconditional + scale * (conditional - unconditional)
        if not self.rescale:
            return guided
        dims = tuple(range(1, guided.ndim))
        wanted, got = conditional.std(dims, keepdim=True), guided.std(dims, keepdim=True)
        return guided * (self.rescale * wanted / got + (1 - self.rescale))

    def _scale_at(self, sigma: Sigma, interval: tuple[float, float], like: Tensor) -> float | Tensor:
        low, high = interval
        levels = on_host(sigma)
        if isinstance(levels, float):
            return self.scale if low <= levels <= high else 1.0
        return per_sample(np.where((levels >= low) & (levels <= high), self.scale, 1.0), like)
