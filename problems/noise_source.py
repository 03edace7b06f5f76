"""Where the noise of a diffusion comes from: Brownian paths over the noise levels, for each visit of them."""

from __future__ import annotations

import math
from functools import cached_property, lru_cache

from torch import Tensor

from diffsolve import Noise, SolverError, Span
from diffsolve.form import Form
from diffsolve.validate import Samples

from .noise import BrownianPath, PathOptions, SpaceTimePath
from .noise_layout import Layout

_STREAM = {Noise.INCREMENT: 0, Noise.RENOISE: 1, Noise.WIENER: 2, Noise.LEVY_AREA: 2}
"""Which path a kind of noise is on; a visit has paths of its own."""
_SPACE_TIME = Noise.WIENER, Noise.LEVY_AREA
_DEPTH = 20  # 2^-20 of the range of log sigma is the shortest step


def stream_of(kind: Noise, visit: int) -> int:
    return _STREAM[kind] + 3 * visit


class Clock:
    """Positions along a solve in one form, log sigma the way it goes, and what its paths are laid out by."""

    def __init__(self, form: Form, sense: int) -> None:
        self.form, self.sense = form, sense
        low, high = math.log(form.process.sigma_min), math.log(form.process.sigma_max)
        self.ends = (low, high) if sense > 0 else (-high, 0.5 - low)  # with half a unit for sigma = 0
        self.position = lru_cache(maxsize=4096)(self._position)

    def _position(self, s: float) -> float:
        sigma = self.form.sigma(s)
        return self.ends[1] if sigma == 0 else self.sense * math.log(sigma)

    def variable(self, position: float, to_zero: bool = True) -> float:
        """The form's variable at a position: at the last one that of sigma = 0, where it has a limit there."""
        at_zero = to_zero and self.sense < 0 and position == self.ends[1] and self.form.finite_at_zero
        return self.form.variable(0.0 if at_zero else math.exp(self.sense * position))

    def variance(self, position: float) -> float:
        return self.form.variance_at(self.variable(position, self.form.stochastic))

    @cached_property
    def brownian(self) -> Layout:
        return Layout(self.variance, *self.ends)

    @cached_property
    def space_time(self) -> Layout:
        return Layout(self.variable, *self.ends)


clock_of = lru_cache(maxsize=64)(Clock)


class NoiseSource:
    """The standard normals of intervals in one form, of shape, dtype and device of x; keyed by seed and samples.

    areas: whether W may be asked for its Levy areas; one that is not is a path of half as many normals.
    """

    def __init__(
        self, form: Form, upward: bool, x: Tensor, samples: Samples, seed: int, areas: bool = True
    ) -> None:
        self._areas = areas
        self.clock, self.x, self.samples, self.seed = clock_of(form, 1 if upward else -1), x, samples, seed
        self._made: dict[tuple[Noise, int], BrownianPath | SpaceTimePath] = {}

    def normal(self, span: Span, kind: Noise) -> Tensor:
        """The normal of `kind` over a span, on the path of its visit."""
        position = self.clock.position
        start, end = position(span.start), position(span.end)
        path = self._made.get((kind, span.visit)) or self._path(kind, span.visit)
        if isinstance(path, BrownianPath):
            return path.draw(start, end) if start <= end else path.draw(end, start)
        return path.area(start, end) if kind is Noise.LEVY_AREA else path.wiener(start, end)

    def job(self, span: Span, kind: Noise) -> int:
        """Where a pass in compiled code reads how to draw it; 0 where it can't. It holds until the next draw."""
        position = self.clock.position
        start, end = position(span.start), position(span.end)
        path = self._made.get((kind, span.visit)) or self._path(kind, span.visit)
        return path.job(start, end) if start <= end else path.job(end, start)

    def _path(self, kind: Noise, visit: int) -> BrownianPath | SpaceTimePath:
        """The path of a visit: one for every time that the solve passes over the same noise levels."""
        clock, x = self.clock, self.x
        options: PathOptions = {
            "dtype": x.dtype, "device": x.device, "stream": stream_of(kind, visit), "depth": _DEPTH
        }  # fmt: skip
        made: BrownianPath | SpaceTimePath
        if kind is Noise.WIENER and not self._areas:
            options["layout"] = clock.space_time
            made = self._made[kind, visit] = BrownianPath(
                self.seed, self.samples, x.shape[1:], clock.variable, *clock.ends, **options
            )
        elif kind in _SPACE_TIME:
            if not self._areas:
                raise SolverError("this solver has areas = False, and asks for a Levy area; leave it at True")
            options["layout"] = clock.space_time
            made = SpaceTimePath(self.seed, self.samples, x.shape[1:], *clock.ends, clock.variable, **options)
            self._made |= dict.fromkeys([(each, visit) for each in _SPACE_TIME], made)
        else:
            options["layout"] = clock.brownian
            made = BrownianPath(self.seed, self.samples, x.shape[1:], clock.variance, *clock.ends, **options)
            self._made[kind, visit] = made
        return made
