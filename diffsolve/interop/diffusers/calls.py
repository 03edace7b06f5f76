"""What a network is, what one call of it is, and the units between a solver and a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ... import NetworkDenoiser
from ...errors import SolverError
from ...field import Noise
from ...form import Form
from ...prediction import Prediction
from ...process import Process
from ...solver import Span

# the network's input, its answer, a step's start; what is kept has the numbers of the tape's registers
X, ANSWER, START = -1, -2, -3
Sum = dict[int, float]
Terms = tuple[tuple[int, float], ...]


class Clip(NamedTuple):
    """What a data estimate is held within, [-limit, limit]; ratio: of each sample's pixels, see `__call__`."""

    limit: float
    ratio: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """With a ratio, of Imagen's dynamic thresholding: within its quantile, 1 to limit, and scaled down to 1."""
        if self.ratio is None:
            return x.clamp(-self.limit, self.limit)
        reach = x.flatten(1).abs().quantile(self.ratio, 1).clamp(1, max(1.0, self.limit))
        reach = reach.reshape(-1, *[1] * (x.ndim - 1))
        return x.clamp(-reach, reach) / reach


class Nature(NamedTuple):
    """What a network is: see NetworkDenoiser. clip: of the data estimate."""

    process: Process
    prediction: Prediction
    learned_range: bool = False
    clip: Clip | None = None

    @property
    def flow(self) -> bool:
        """Whether it is a rectified flow's, whose grids are given in times from 0 to 1."""
        return hasattr(self.process, "shift")


@dataclass(frozen=True)
class Call:
    """One network call at `sigma`, which the network is told as `t`, and what follows it up to the next.

    step: which step it belongs to; first: whether it is that step's first. draws: (vector, span, kind) of the noise to
    make. keep: (vector, sum) of what else is needed after the next call; stay: what is kept on; out: x of the next.
    moves: (vector, factor) by which what is kept moves with an edit of x; None where no edit can be followed.
    """

    sigma: float
    t: float
    step: int
    first: bool
    draws: tuple[tuple[int, Span, Noise], ...] = ()
    keep: tuple[tuple[int, Terms], ...] = ()
    stay: tuple[int, ...] = ()
    out: Terms = ()
    moves: tuple[tuple[int, float], ...] | None = ()


def network_of(nature: Nature) -> NetworkDenoiser:
    """The network's two halves, with nobody between them."""
    return NetworkDenoiser(absent, nature.process, nature.prediction, nature.learned_range)


def c_in(network: NetworkDenoiser, sigma: float) -> float:
    """x over y; at sigma = 0 they are one."""
    return float(network.scaling(sigma).c_in) if sigma > 0 else 1.0


def absent(x: Tensor, t: Tensor) -> Tensor:
    """In the place of the network. Raises SolverError."""
    raise SolverError("the network is the pipeline's")


class Units:
    """Between the solver's variables and what a pipeline has in hand, at a noise level."""

    def __init__(self, form: Form, network: NetworkDenoiser, clip: Clip | None = None) -> None:
        self.form, self.network, self.clip = form, network, clip

    def told(self, sigma: float) -> float:
        """What the network is told."""
        return float(self.network.scaling(sigma).c_noise)

    def from_form(self, sigma: float) -> float:
        """x over u."""
        return c_in(self.network, sigma) / (self.form.scale(sigma) if sigma > 0 else 1.0)

    def denoised(self, sigma: float) -> Sum:
        """D as a sum of x and the network's answer; where it is clipped it stands for the answer itself."""
        if self.clip is not None:
            return {ANSWER: 1.0}
        k = self.network.scaling(sigma)
        return tidy({X: k.c_skip / k.c_in, ANSWER: k.c_out})

    def part(self, name: str, sigma: float) -> Sum:
        """A part of an evaluation as such a sum."""
        denoised = self.denoised(sigma)
        if name == "denoised":
            return denoised
        on_state, on_denoised = self.form.weights(sigma)
        both = on_state / self.from_form(sigma), on_denoised * denoised.get(X, 0.0)
        on_x = sum(both)
        if abs(on_x) < 1e-14 * max(map(abs, both)):  # N is the answer itself, but for the last bit
            on_x = 0.0
        return tidy({X: on_x, ANSWER: on_denoised * denoised[ANSWER]})


def tidy(terms: Sum) -> Sum:
    """The sum without what does not count."""
    return {key: c for key, c in terms.items() if c}
