"""A network call as a value: D(y, sigma) = E[x_0 | y] in VE coordinates, with what else one call can tell.

A `Denoiser` is any function (y, sigma) -> Output. `NetworkDenoiser` makes one of a network, in two pure halves between
which the network call stands, so that somebody else may make it; `Guidance` is a denoiser around a denoiser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import ProblemError
from .prediction import Prediction, Scaling, as_prediction
from .process import Process, as_process
from .register import F, Owner, Register, make, parse
from .validate import flag

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


class FunctionDenoiser:
    """The denoiser of a plain function (y, sigma: float) -> D; one that takes a level a sample is called a row at a
    time."""

    def __init__(self, function: Callable[[Tensor, float], Tensor], inside: Denoiser | None = None) -> None:
        self.function, self.inside = function, inside  # inside: what the function may be made of

    def __call__(self, y: Tensor, sigma: Sigma) -> Output:
        levels = on_host(sigma)
        if isinstance(levels, float):
            return Output(self.function(y, levels))
        per_sample(sigma, y)
        rows = np.broadcast_to(levels, len(y)).tolist()
        return Output(torch.cat([self.function(y[i : i + 1], level) for i, level in enumerate(rows)]))


class NetworkDenoiser:
    """A trained network as a denoiser, D = c_skip y + c_out raw with raw = network(c_in y, c_noise).

    network: (x, t) -> raw, with x of shape (B, *shape) and t a float tensor (B,); or -> (conditional, unconditional),
    for `Guidance`. process, prediction: see there, or their names. learned_range: raw has twice the channels, and the
    second half is v of Nichol & Dhariwal 2021, eq. 15, from -1 (the smaller variance of DDPM's step) to 1 (the larger).

    `output(y, network(*inputs(y, sigma)), sigma)` is what a call does; whoever owns the network uses the halves.
    """

    fresh = True

    def __init__(
        self,
        network: Network,
        process: str | Process = "sd",
        prediction: str | Prediction = "eps",
        learned_range: bool = False,
    ) -> None:
        if not callable(network):
            raise ProblemError(f"network must be a function (x, t) -> raw, got {type(network).__name__}")
        self.network, self.learned_range = network, flag(learned_range, "learned_range", ProblemError)
        self.process, self.prediction = as_process(process), as_prediction(prediction)
        self._scalings: dict[float, Scaling[float]] = {}

    def scaling(self, sigma: Sigma) -> Scaling[Any]:
        """The coefficients at a noise level; those of a float are kept."""
        if not isinstance(sigma, float):
            return self.prediction.scaling(on_host(sigma), self.process)
        if len(self._scalings) > 4096:
            self._scalings.clear()
        made = self._scalings[sigma] = self.prediction.scaling(sigma, self.process)
        return made

    def inputs(self, y: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """(x, t): what the network is given at the state y (B, *shape); t is (B,), of y's dtype."""
        if isinstance(sigma, float):
            k = self._scalings.get(sigma) or self.scaling(sigma)
            return y * k.c_in, torch.full((y.shape[0],), k.c_noise, dtype=y.dtype, device=y.device)
        k = self.scaling(sigma)
        t = torch.as_tensor(k.c_noise).to(y).expand(len(y)).contiguous()
        return y * per_sample(k.c_in, y), t

    def output(self, y: Tensor, raw: Raw, sigma: Sigma) -> Output:
        """What the network's answer means at y. Raises ProblemError where it has not y's shape, dtype and device."""
        if isinstance(raw, tuple):
            conditional, unconditional = raw
            return self.output(y, conditional, sigma)._replace(
                unconditional=self.output(y, unconditional, sigma).denoised
            )
        variance = None
        if self.learned_range:
            raw, share = self.halves(raw, y, sigma)
            variance = None if share is None else (share + 1) / 2
        else:
            check_like(raw, y, "the network at sigma = {:g}" if isinstance(sigma, float) else "the network", sigma)
        if isinstance(sigma, float):
            k = self._scalings.get(sigma) or self.scaling(sigma)
            out = raw * k.c_out
            return Output(out.add_(y, alpha=k.c_skip) if k.c_skip else out, None, variance)
        k = self.scaling(sigma)
        return Output(raw * per_sample(k.c_out, y) + y * per_sample(k.c_skip, y), None, variance)

    def halves(self, raw: Tensor, y: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor | None]:
        """One answer like y, and v of the variance where that is learned. Raises ProblemError as `output` does."""
        variance, at = None, " at sigma = {:g}" if isinstance(sigma, float) else ""
        if self.learned_range:
            check_like(raw, torch.cat([y, y], 1), f"the network of twice the channels{at}", sigma)
            raw, variance = raw.chunk(2, 1)
        check_like(raw, y, f"the network{at}", sigma)
        return raw, variance

    def __call__(self, y: Tensor, sigma: Sigma) -> Output:
        x, t = self.inputs(y, sigma)
        return self.output(y, self.network(x, t), sigma)


class Guidance(ABC):
    """A denoiser around one that tells two sides, a conditional and an unconditional estimate, as `mix` mixes them.

    denoiser: a NetworkDenoiser whose network returns (conditional, unconditional), or any denoiser with an
    `unconditional`. Of a network, its raw answers are mixed, as the field does. Raises ProblemError where the denoiser
    tells but one side.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        if not callable(denoiser):
            raise ProblemError(f"guidance goes around a denoiser (y, sigma) -> Output, got {type(denoiser).__name__}")
        self.denoiser, self.fresh = denoiser, bool(getattr(denoiser, "fresh", False))

    @abstractmethod
    def mix(self, conditional: Tensor, unconditional: Tensor, sigma: Sigma) -> Tensor:
        """The guided one of two tensors of one shape (B, ...), both left as they are."""

    @property
    def network(self) -> NetworkDenoiser:
        """The denoiser inside, where it has a network call to hand out."""
        if not isinstance(self.denoiser, NetworkDenoiser):
            raise ProblemError(f"{type(self.denoiser).__name__} has no network call to hand out")
        return self.denoiser

    def needs_both(self, sigma: Sigma) -> bool:
        """Whether the unconditional side counts at a noise level."""
        return True

    def called(self, sigma: Sigma) -> Network:
        """The network to call there: its `one_side`, (x, t) -> the conditional answer, where that is enough."""
        network = self.network.network
        alone: Network | None = getattr(network, "one_side", None)
        return network if alone is None or self.needs_both(sigma) else alone

    def sides(self, sigma: Sigma) -> int:
        """How many samples a network call evaluates for one of the batch."""
        inside = self.denoiser
        return 1 if isinstance(inside, NetworkDenoiser) and self.called(sigma) is not inside.network else 2

    def inputs(self, y: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """The inputs of the network inside, to be called for either side."""
        return self.network.inputs(y, sigma)

    def output(self, y: Tensor, raw: Raw, sigma: Sigma) -> Output:
        """What the network's pair of answers, (conditional, unconditional), means at y."""
        mixed, unconditional = self.pair(raw, sigma)
        inside = self.network
        denoised, _, variance = inside.output(y, mixed, sigma)
        return Output(denoised, inside.output(y, unconditional, sigma).denoised, variance)

    def pair(self, raw: Raw, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """(guided, unconditional) raw answers of the network's pair, or of one answer where one is enough."""
        if isinstance(raw, Tensor) and not self.needs_both(sigma):
            return raw, raw
        if not isinstance(raw, tuple):
            raise ProblemError("guidance needs (conditional, unconditional) of the network, got one answer")
        conditional, unconditional = raw
        if conditional.shape != unconditional.shape:
            shapes = tuple(conditional.shape), tuple(unconditional.shape)
            raise ProblemError(f"the network's two answers have different shapes, {shapes[0]} and {shapes[1]}")
        return self.mix(conditional, unconditional, sigma), unconditional

    def __call__(self, y: Tensor, sigma: Sigma) -> Output:
        inside = self.denoiser
        if isinstance(inside, NetworkDenoiser):
            x, t = inside.inputs(y, sigma)
            return self.output(y, self.called(sigma)(x, t), sigma)
        return self.guided(inside(y, sigma), sigma)

    def guided(self, out: Output, sigma: Sigma) -> Output:
        """What a call of the denoiser inside comes to."""
        if out.unconditional is None:
            name = type(self.denoiser).__name__
            raise ProblemError(f"{name} tells no unconditional estimate to guide away from")
        return out._replace(denoised=self.mix(out.denoised, out.unconditional, sigma))


def register_guidance(name: str) -> Callable[[F], F]:
    """Decorate a Guidance class, or a function (denoiser, scale, ...) that makes one, to give it a name."""
    return GUIDANCE.decorator(name, Owner.calling())


def _maker(name: str, found: object, owner: Owner) -> Callable[..., Guidance]:
    if not callable(found):
        raise ProblemError(f"it names a {type(found).__name__}, expected a Guidance class or what makes one")
    return found


GUIDANCE = Register[Callable[..., Guidance]]("guidance", "diffsolve.guidance", ProblemError, _maker)
"""name -> what makes guidance around a denoiser; "cfg" is what a number alone stands for."""


def guided(denoiser: Denoiser, guidance: float | str) -> Guidance:
    """A denoiser under guidance: a scale, or a name with options, "cfg(scale=7.5, rescale=0.7)"."""
    name, options = parse(guidance) if isinstance(guidance, str) else ("cfg", {"scale": guidance})
    found = make(GUIDANCE.find(name), {"denoiser": denoiser, **options}, f"guidance {name!r}", ProblemError)
    if not isinstance(found, Guidance):
        raise ProblemError(f"guidance {name!r} made a {type(found).__name__}, expected a Guidance")
    return found
