"""How the networks of a loaded model are called: its UNet with a prompt, its VAE between latents and pictures.

Compiled, with channels last, in halves where a batch does not fit into memory.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffsolve import ModelError, ProblemError
from diffsolve.run import is_transformed
from diffsolve.validate import check_dense, check_room, finite, flag, is_lacking, out_of_memory

from . import pictures
from .states import rounds_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from .stable_diffusion import StableDiffusion

Said = dict[str, object]
CHUNK = 16  # pictures through the VAE at a time: its activations are the largest of the whole run


class Calling:
    """The calls of one network, a module (x, ...) -> y, or -> (y, ...), with a row of each tensor for a row of x.

    compile: by torch.compile, for the shapes as they are, where that can be; what speaks against it is a warning, and
    `reason`. channels_last: weights and x in that layout. What does not fit into memory is halved, with a warning, and
    so are the calls that follow: `most` rows at a time, 0 while all fit. Raises ProblemError where one row does not.
    """

    def __init__(self, compile: bool = False, channels_last: bool = False) -> None:
        self.compile, self.channels_last = (
            flag(value, name, ModelError) for name, value in (("compile", compile), ("channels_last", channels_last))
        )
        self.most, self.reason = 0, ""
        self._made: tuple[nn.Module, Callable[..., object]] | None = None

    def __call__(self, module: nn.Module, x: Tensor, *more: Tensor, **named: object) -> Tensor:
        rows = len(x)
        x = x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.ndim == 4 else x
        while True:
            size = min(rows, self.most or rows)
            try:
                if size == rows:
                    return self._run(module, (x, *more), named).contiguous()
                parts = [self._run(module, *of) for of in _split((x, *more), named, rows, size)]
                return torch.cat(parts).contiguous()
            except (MemoryError, RuntimeError) as error:
                if not is_lacking(error):
                    raise
                if size == 1:
                    what = f"the {type(module).__name__} on {tuple(x[:1].shape)}"
                    raise out_of_memory(what, "take a smaller height or width", error) from error
            self._halve(x, rows, size)  # out of the handler, which keeps what was made until then alive

    def _halve(self, x: Tensor, rows: int, size: int) -> None:
        self.most = -(-size // 2)
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(f"a network call of {size} samples did not fit into memory; now {self.most} at a time",
                      stacklevel=2)

    def _run(self, module: nn.Module, tensors: tuple[Tensor, ...], named: Said) -> Tensor:
        fault, found = "", None
        if self.compile and not self.reason:
            try:
                found = self._compiled(module)(*tensors, **named)
            except Exception as error:
                if is_lacking(error):
                    raise
                fault = _brief(error)
        found = module(*tensors, **named) if found is None else found
        if fault:  # and it was the compiler's, for the network itself can be called
            self.reason = fault
            warnings.warn(f"compile=True can't be: {fault}; the network is called as it is", stacklevel=2)
        answer = found[0] if isinstance(found, tuple) else found
        assert isinstance(answer, Tensor)
        return answer

    def _compiled(self, module: nn.Module) -> Callable[..., object]:
        if self._made is None or self._made[0] is not module:
            self._made = module, torch.compile(module, dynamic=False)
        return self._made[1]

    def laid_out(self, module: nn.Module) -> None:
        """Put the weights where the calls want them."""
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def told(self) -> Said:
        """What there is to say of it in Solution.stats."""
        said: Said = {"compiled": self.reason or True} if self.compile else {}
        return said | ({"rows": self.most} if self.most else {})


class Prompted:
    """A model's UNet with a prompt: (x, t) -> what it says; with a negative prompt (with the prompt, with that alone).

    conditional, negative: embeddings of the prompts, (prompts, context, features), negative of the same shape or None.
    guidance: what a network that is told its guidance is given of it, (features,).
    """

    def __init__(
        self, model: StableDiffusion, conditional: Tensor, negative: Tensor | None,
        guidance: Tensor | None = None,
    ) -> None:
        self.model, self.conditional, self.negative = model, conditional, negative
        self.guidance = None if guidance is None else guidance.to(model.device, model.dtype)
        self._repeated: tuple[int, Tensor] | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        model, inputs, embeddings = self.model, x.to(self.model.dtype), self._embeddings(len(x))
        if self.negative is not None:
            inputs, t = torch.cat([inputs, inputs]), torch.cat([t, t])
        told = None if self.guidance is None else self.guidance.expand(len(inputs), -1)
        raw = model.calling(
            model.unet, inputs, t, encoder_hidden_states=embeddings, timestep_cond=told, return_dict=False
        ).to(x.dtype)
        if self.negative is None:
            return raw
        without, with_prompt = raw.chunk(2)
        return with_prompt, without

    def told(self) -> Said:
        """What there is to say of its calls in Solution.stats."""
        return self.model.calling.told()

    @cached_property
    def one_side(self) -> Prompted | None:
        """The network that is told the prompt alone; None where this is one."""
        return None if self.negative is None else Prompted(self.model, self.conditional, None, self.guidance)

    def stack_key(self) -> Hashable:
        """What networks have in common whose calls go together: the model, the length of a prompt, a negative one."""
        return self.model, self.conditional.shape[1:], self.negative is None, self.guidance is None

    def stacked(self, parts: Sequence[tuple[Prompted, int]]) -> Prompted:
        """The network of a batch with so many rows of each, in this order."""
        whole = [(part, rounds_of(rows, len(part.conditional), "prompts")) for part, rows in parts]
        conditional = torch.cat([part.conditional.repeat(rounds, 1, 1) for part, rounds in whole])
        negative = guidance = None
        if self.negative is not None:
            negative = torch.cat([p.negative.repeat(rounds, 1, 1) for p, rounds in whole if p.negative is not None])
        if self.guidance is not None:
            guidance = torch.cat([p.guidance.expand(rows, -1) for p, rows in parts if p.guidance is not None])
        return Prompted(self.model, conditional, negative, guidance)

    def _embeddings(self, rows: int) -> Tensor:
        """The embeddings for so many rows, the negative ones first; repeated once a solve."""
        if self._repeated is None or self._repeated[0] != rows:
            rounds = rounds_of(rows, len(self.conditional), "prompts")
            sides = [side for side in (self.negative, self.conditional) if side is not None]
            self._repeated = rows, torch.cat([side.repeat(rounds, 1, 1) for side in sides])
        return self._repeated[1]


def guidance_embedding(guidance: float, width: int) -> Tensor:
    """What a network that is told its guidance w is given: sines and cosines of 1000 (w - 1) (Luo et al. 2023)."""
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))
    angles = 1000 * (guidance - 1) * rates
    return torch.cat([angles.sin(), angles.cos(), torch.zeros(width - 2 * half)])


class Latents:
    """Between pictures and latents, by a model's VAE.

    factor: pixels of a latent's side.
    """

    vae: Any
    device: torch.device
    factor: int

    def encode(self, images: Image | Sequence[Image] | Tensor) -> Tensor:
        """Latents at sigma 0, (B, C, height/factor, width/factor) float32: the VAE's posterior means, scaled.

        images: PIL pictures of one size and any mode (transparent parts become white), or a tensor (B, 3, height,
        width) in [-1, 1], whose gradient is followed. Raises ProblemError for sides that are no multiple of the VAE's
        factor.
        """
        pixels = pictures.as_pixels(images)
        self._check_size(*pixels.shape[2:])
        chunks = pixels.to(self.device, self.vae.dtype).split(CHUNK)
        with _graph_of(pixels):
            means = torch.cat([self.vae.encode(x).latent_dist.mean.to(torch.float32, copy=True) for x in chunks])
        return (means - self._shift) * self.vae.config.scaling_factor

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents at sigma 0, (B, C, h, w), decoded: (B, 3, factor h, factor w) float32, about [-1, 1], not clipped.

        Keeps a graph where the latents carry a gradient; the VAE's own weights alone do not count. Raises
        ProblemError where a latent, or what the VAE makes of it, is NaN or infinite.
        """
        channels = self.vae.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ProblemError(f"latents have the shape {tuple(latents.shape)}; expected (B, {channels}, h, w)")
        check_dense(latents, "the tensor of latents")
        _check_finite(latents, "latents", "take more steps, less guidance or a solver with a larger stability region")
        scaled = latents / self.vae.config.scaling_factor + self._shift
        chunks = scaled.to(self.device, self.vae.dtype).split(CHUNK)
        with _graph_of(latents):
            pixels = torch.cat([self.vae.decode(x).sample.to(torch.float32, copy=True) for x in chunks])
        _check_finite(pixels, "decoded pictures", f"the VAE overflows in {self.vae.dtype}: load the model in float32")
        return pixels

    def decode(self, latents: Tensor) -> list[Image]:
        """Latents at sigma 0, (B, C, h, w), as 8-bit pictures of factor h by factor w pixels. Raises as `pixels`."""
        from PIL import Image

        levels = (self.pixels(latents.detach()) / 2 + 0.5).clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
        return [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in levels]

    @property
    def _shift(self) -> float:
        return float(self.vae.config.get("shift_factor") or 0.0)

    def _check_size(self, height: Any, width: Any) -> None:
        for name, side in (("height", height), ("width", width)):
            if not isinstance(side, Integral) or isinstance(side, bool) or side < 1 or side % self.factor:
                near = self.factor * max(1, round((finite(side) or 0) / self.factor))
                raise ProblemError(f"{name} is {side!r}; expected a multiple of {self.factor} pixels, such as {near}")
        size = 3 * 4 * int(height) * int(width)
        check_room(size, f"the {height} x {width} pixels of a picture", "take a smaller height or width", self.device)


def _graph_of(x: Tensor) -> torch.set_grad_enabled:
    """Grad mode for the VAE: where x carries a gradient; its weights, which ask for one when loaded, do not count."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and (x.requires_grad or is_transformed()))


def _check_finite(x: Tensor, what: str, remedy: str) -> None:
    bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise ProblemError(f"{what} {', '.join(map(str, bad))} of {len(x)} hold NaN or infinity; {remedy}")


def _split(
    tensors: tuple[Tensor, ...], named: dict[str, object], rows: int, size: int
) -> list[tuple[tuple[Tensor, ...], Said]]:
    """The arguments of calls of `size` rows."""

    def part(value: object, start: int) -> object:
        of_rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
        return value[start : start + size] if of_rows else value  # type: ignore[index]

    return [
        (tuple(t[start : start + size] for t in tensors), {k: part(v, start) for k, v in named.items()})
        for start in range(0, rows, size)
    ]


def _brief(error: Exception) -> str:
    """The line of a compiler's long story that names the fault."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "Error" in line or "not " in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {told}"[:200]
