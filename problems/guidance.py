"""Denoisers of a function and of a network, and guidance: how a conditional and an unconditional estimate are mixed.

`NetworkDenoiser` has two pure halves between which the network call stands, so that somebody else may make it;
`Guidance` is a denoiser around a denoiser.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve import Prediction, ProblemError, Process, Solver, SolverError
from diffsolve.denoiser import GUIDANCE, Denoiser, Network, Output, Raw, Sigma, on_host, per_sample, register_guidance
from diffsolve.prediction import Scaling, as_prediction
from diffsolve.process import as_process
from diffsolve.register import make, parse
from diffsolve.validate import check_like, finite, flag

from .states import check_function


def _is_interval(value: object) -> bool:
    """Whether it is (low, high) with 0 <= low < high, which may be infinite."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(end, Real) for end in value):
        return False
    return bool(0 <= value[0] < value[1])


class FunctionDenoiser:
    """The denoiser of a plain function (y, sigma: float) -> D; one that takes a level a sample is called a row at a
    time."""

    def __init__(self, function: Callable[[Tensor, float], Tensor], inside: Denoiser | None = None) -> None:
        self.function, self.inside = function, inside  # inside: what the function may be made of

    def __call__(self, y: Tensor, sigma: Sigma) -> Output:
        if type(sigma) is float:
            return Output(self.function(y, sigma))
        levels = on_host(sigma)
        if isinstance(levels, float):
            return Output(self.function(y, levels))
        per_sample(sigma, y)
        rows = np.broadcast_to(levels, len(y)).tolist()
        return Output(torch.cat([self.function(y[i : i + 1], level) for i, level in enumerate(rows)]))


BEYOND = (
    "the step asks for the network at sigma = {:g}, and there is no noise level below 0: a stage of it lies beyond its "
    "end; keep its nodes inside of the step, or take form='noise' or 'data', where 0 is never reached"
)


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
        check_function(network, "network", 2, "(x, t) -> raw")
        self.network, self.learned_range = network, flag(learned_range, "learned_range", ProblemError)
        self.process, self.prediction = as_process(process), as_prediction(prediction)
        self._scalings: dict[float, Scaling[float]] = {}

    def scaling(self, sigma: Sigma) -> Scaling[Any]:
        """The coefficients at a noise level; those of a float are kept."""
        if not isinstance(sigma, float):
            return self.prediction.scaling(on_host(sigma), self.process)
        if sigma < 0:
            raise SolverError(BEYOND.format(sigma))
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
            if len(raw) != 2:
                raise ProblemError(f"the network returned a tuple of {len(raw)}, expected a tensor, or two of them: "
                                   "(conditional, unconditional)")  # fmt: skip
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

    @property
    def folded(self) -> NetworkDenoiser | None:
        """This, where nothing but its coefficients stands between the state and the network."""
        return self if type(self) is NetworkDenoiser else None

    def __call__(self, y: Tensor, sigma: Sigma) -> Output:
        x, t = self.inputs(y, sigma)
        return self.output(y, self.network(x, t), sigma)


class Guidance(ABC):
    """A denoiser around one that tells two sides, a conditional and an unconditional estimate, as `mix` mixes them.

    denoiser: a NetworkDenoiser whose network returns (conditional, unconditional), or any denoiser with an
    `unconditional`. Of a network, its raw answers are mixed, as the field does. Raises ProblemError where the denoiser
    tells but one side.
    """

    one_sided = False  # whether there are noise levels where `needs_both` says no

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
        alone: Network | None = getattr(network, "one_side", None) if self.one_sided else None
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
        inside = self.denoiser if isinstance(self.denoiser, NetworkDenoiser) else self.network
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

    @property
    def folded(self) -> NetworkDenoiser | None:
        """The network's denoiser inside, where nothing but `pair` comes between."""
        own, inside = type(self), self.denoiser
        plain = (own.inputs, own.output, own.__call__) == (Guidance.inputs, Guidance.output, Guidance.__call__)
        return inside.folded if plain and isinstance(inside, NetworkDenoiser) else None

    def __call__(self, y: Tensor, sigma: Sigma) -> Output:
        inside = self.denoiser
        if isinstance(inside, NetworkDenoiser):
            x, t = inside.inputs(y, sigma)
            network = self.called(sigma) if self.one_sided else inside.network
            return self.output(y, network(x, t), sigma)
        return self.guided(inside(y, sigma), sigma)

    def guided(self, out: Output, sigma: Sigma) -> Output:
        """What a call of the denoiser inside comes to."""
        if out.unconditional is None:
            name = type(self.denoiser).__name__
            raise ProblemError(f"{name} tells no unconditional estimate to guide away from")
        return out._replace(denoised=self.mix(out.denoised, out.unconditional, sigma))


def check_scale(solver: Solver, denoiser: Denoiser) -> None:
    """Warn where the scale of guidance is none that the method is made for."""
    scale = getattr(denoiser, "scale", None)
    if solver.guidance_range is None or scale is None:
        return
    least, usual, most = solver.guidance_range
    if not least <= scale <= most:
        warnings.warn(
            f"{solver.name or repr(solver)} is made for guidance from {least:g} to {most:g}, and this problem's is "
            f"{scale:g}, which burns pictures; make the problem with guidance={usual:g}",
            stacklevel=4,
        )


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
        if interval is not None and not _is_interval(interval):
            raise ProblemError(f"guidance interval is (low, high) of sigma with 0 <= low < high, got {interval!r}")
        self.scale, self.interval, self.rescale = float(scale), interval, float(rescale)
        self.one_sided = interval is not None

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


def guided(denoiser: Denoiser, guidance: float | str) -> Guidance:
    """A denoiser under guidance: a scale, or a name with options, "cfg(scale=7.5, rescale=0.7)"."""
    name, options = parse(guidance) if isinstance(guidance, str) else ("cfg", {"scale": guidance})
    found = make(GUIDANCE.find(name), {"denoiser": denoiser, **options}, f"guidance {name!r}", ProblemError)
    if not isinstance(found, Guidance):
        raise ProblemError(f"guidance {name!r} made a {type(found).__name__}, expected a Guidance")
    return found
