"""Where the noise of a diffusion comes from: Brownian paths over the noise levels, for each visit of them."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

from .field import Noise
from .form import Form
from .noise import LEVELS, BrownianPath, SpaceTimePath
from .problem import Samples
from .process import Process
from .solver import Span

_STREAM = {Noise.INCREMENT: 0, Noise.RENOISE: 1, Noise.WIENER: 2, Noise.LEVY_AREA: 2}
"""Which path a kind of noise is on; a visit has paths of its own."""


class _Options(TypedDict):
    dtype: torch.dtype
    device: torch.device
    stream: int


class NoiseSource:
    """The standard normals of intervals in one form, of shape, dtype and device of x; keyed by seed and samples."""

    def __init__(
        self, form: Form, process: Process, upward: bool, x: Tensor, samples: Samples, seed: int
    ) -> None:
        self.form, self.process, self.sense = form, process, 1 if upward else -1
        self.x, self.samples, self.seed = x, samples, seed
        self._paths: dict[int, BrownianPath] = {}
        self._space_time: dict[int, SpaceTimePath] = {}

    def normal(self, span: Span, kind: Noise) -> Tensor:
        """The normal of `kind` over a span, on the path of its visit."""
        if kind is Noise.WIENER:
            return self._wiener(span.visit).wiener(span.start, span.end)
        if kind is Noise.LEVY_AREA:
            return self._wiener(span.visit).area(span.start, span.end)
        start, end = self._position(span.start), self._position(span.end)
        return self._path(kind, span.visit).draw(min(start, end), max(start, end))

    def _ends(self) -> tuple[float, float]:
        """The range of positions of a path: log sigma along the solve, with half a unit for sigma = 0."""
        low, high = math.log(self.process.sigma_min), math.log(self.process.sigma_max)
        return (low, high) if self.sense > 0 else (-high, 0.5 - low)

    def _position(self, s: float) -> float:
        sigma = self.form.sigma(s)
        return self._ends()[1] if sigma == 0 else self.sense * math.log(sigma)

    def _options(self, kind: Noise, visit: int) -> _Options:
        return {"dtype": self.x.dtype, "device": self.x.device, "stream": _STREAM[kind] + 3 * visit}

    def _path(self, kind: Noise, visit: int) -> BrownianPath:
        """The path of a visit: one for every time that the solve passes over the same noise levels."""
        options = self._options(kind, visit)
        if options["stream"] not in self._paths:
            form, (low, high), sense = self.form, self._ends(), self.sense

            def variance(position: float) -> float:
                at_zero = sense < 0 and position == high and form.stochastic and form.finite_at_zero
                return form.variance_at(form.variable(0.0 if at_zero else math.exp(sense * position)))

            self._paths[options["stream"]] = BrownianPath(
                self.seed, self.samples, self.x.shape[1:], variance, low, high, depth=LEVELS + 16, **options
            )
        return self._paths[options["stream"]]

    def _wiener(self, visit: int) -> SpaceTimePath:
        if visit not in self._space_time:
            low, high, variable = self.process.sigma_min, self.process.sigma_max, self.form.variable
            first, last = (variable(low), variable(high)) if self.sense > 0 else (variable(high), variable(low))
            # as many cells as it takes for 1/256 of the range of log sigma to be one, at the fine end
            least = abs(variable(low) - variable(low * math.exp((0.5 + math.log(high / low)) / 256)))
            levels = min(max(math.ceil(math.log2(abs(last - first) / least)), LEVELS - 2), 22)
            self._space_time[visit] = SpaceTimePath(
                self.seed, self.samples, self.x.shape[1:], first, last, depth=levels + 16, levels=levels,
                **self._options(Noise.WIENER, visit),
            )  # fmt: skip
        return self._space_time[visit]
