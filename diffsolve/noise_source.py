"""Where the noise of a diffusion comes from: Brownian paths over the noise levels, for each visit of them."""

from __future__ import annotations

import math
from functools import lru_cache

from torch import Tensor

from .field import Noise
from .form import Form
from .noise import BrownianPath, PathOptions, SpaceTimePath
from .process import Process
from .solver import Span
from .validate import Samples

_STREAM = {Noise.INCREMENT: 0, Noise.RENOISE: 1, Noise.WIENER: 2, Noise.LEVY_AREA: 2}
"""Which path a kind of noise is on; a visit has paths of its own."""
_DEPTH = 20  # 2^-20 of the range of log sigma is the shortest step


class NoiseSource:
    """The standard normals of intervals in one form, of shape, dtype and device of x; keyed by seed and samples."""

    def __init__(
        self, form: Form, process: Process, upward: bool, x: Tensor, samples: Samples, seed: int
    ) -> None:
        self.form, self.process, self.sense = form, process, 1 if upward else -1
        self.x, self.samples, self.seed = x, samples, seed
        self._paths: dict[int, BrownianPath] = {}
        self._space_time: dict[int, SpaceTimePath] = {}
        self._variance, self._variable = lru_cache(maxsize=128)(self._variance_at), lru_cache(maxsize=128)(self._s_at)

    def normal(self, span: Span, kind: Noise) -> Tensor:
        """The normal of `kind` over a span, on the path of its visit."""
        start, end = self._position(span.start), self._position(span.end)
        if kind is Noise.WIENER:
            return self._wiener(span.visit).wiener(start, end)
        if kind is Noise.LEVY_AREA:
            return self._wiener(span.visit).area(start, end)
        return self._path(kind, span.visit).draw(min(start, end), max(start, end))

    def _ends(self) -> tuple[float, float]:
        """The range of positions of a path: log sigma along the solve, with half a unit for sigma = 0."""
        low, high = math.log(self.process.sigma_min), math.log(self.process.sigma_max)
        return (low, high) if self.sense > 0 else (-high, 0.5 - low)

    def _position(self, s: float) -> float:
        sigma = self.form.sigma(s)
        return self._ends()[1] if sigma == 0 else self.sense * math.log(sigma)

    def _s_at(self, position: float, to_zero: bool = True) -> float:
        """The form's variable at a position: at the last one that of sigma = 0, where it has a limit there."""
        at_zero = to_zero and self.sense < 0 and position == self._ends()[1] and self.form.finite_at_zero
        return self.form.variable(0.0 if at_zero else math.exp(self.sense * position))

    def _variance_at(self, position: float) -> float:
        return self.form.variance_at(self._s_at(position, self.form.stochastic))

    def _options(self, kind: Noise, visit: int) -> PathOptions:
        stream = _STREAM[kind] + 3 * visit
        return {"dtype": self.x.dtype, "device": self.x.device, "stream": stream, "depth": _DEPTH}

    def _path(self, kind: Noise, visit: int) -> BrownianPath:
        """The path of a visit: one for every time that the solve passes over the same noise levels."""
        options, (low, high) = self._options(kind, visit), self._ends()
        if options["stream"] not in self._paths:
            self._paths[options["stream"]] = BrownianPath(
                self.seed, self.samples, self.x.shape[1:], self._variance, low, high, **options
            )
        return self._paths[options["stream"]]

    def _wiener(self, visit: int) -> SpaceTimePath:
        if visit not in self._space_time:
            low, high = self._ends()
            self._space_time[visit] = SpaceTimePath(
                self.seed, self.samples, self.x.shape[1:], low, high, self._variable,
                **self._options(Noise.WIENER, visit),
            )  # fmt: skip
        return self._space_time[visit]
