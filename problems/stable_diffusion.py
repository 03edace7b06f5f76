"""Text-to-image latent diffusion as a probability flow: a model, called with a prompt, is a problem to solve."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from diffsolve import ModelError, ProbabilityFlow, ProblemError, did_you_mean

from . import checkpoints, single_file

if TYPE_CHECKING:
    from PIL.Image import Image

EMBEDDED = Path(__file__).parent / "emoji" / "model"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
CHUNK = 16  # pictures through the VAE at a time: its activations are the largest of the whole run


class StableDiffusion:
    """A latent text-to-image model of Stable Diffusion's kind; `model("a red apple")` is a problem for `solve`.

    dtype, where it is a parameter: of the network, "float32" (None), "float16", "bfloat16", "float64" or a torch.dtype;
    the state that is integrated stays in float32 or better. device: "cpu" (None), "cuda", "cuda:1", "mps".
    """

    def __init__(self, components: checkpoints.Components) -> None:
        self.unet, self.vae = components.unet, components.vae
        self.text_encoder, self.tokenizer = components.text_encoder, components.tokenizer
        self.source = components.source
        self.process, self.prediction = checkpoints.process_of(components.scheduler_config)
        self.dtype, self.device = self.unet.dtype, self.unet.device
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)  # pixels of a latent's side
        self.context = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @classmethod
    def from_pretrained(
        cls, name: str | Path | None = "emoji", *, dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None, allow_pickle: bool = False, revision: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """The model in a diffusers folder or behind a hub id "owner/name"; "emoji" (or None) comes with diffsolve.

        allow_pickle: also read .bin weights where there is no safetensors file. revision, local_files_only: of the hub.
        Raises ModelError: no such model, a part of it missing, broken, refused or of another kind, no such device.
        """
        where = EMBEDDED if name in (None, "emoji") else name
        parts = checkpoints.from_folder_or_hub(
            where, dtype=_dtype(dtype), device=_device(device), allow_pickle=allow_pickle, revision=revision,
            local_files_only=local_files_only)
        return cls(replace(parts, source="emoji") if where is EMBEDDED else parts)

    @classmethod
    def from_single_file(
        cls, path: str | Path, *, config: str | Path | None = None, dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None, allow_pickle: bool = False, local_files_only: bool = False,
    ) -> Self:
        """The model in one .safetensors file of Stable Diffusion 1.x's original layout (A1111, ComfyUI).

        config: what such a file lacks (architecture, tokenizer, noise schedule), from a diffusers folder or hub id or
        "emoji"; by default Stable Diffusion 1.5's, from the hub or its cache. Raises ModelError.
        """
        return cls(single_file.from_single_file(
            path, config=EMBEDDED if config == "emoji" else config, dtype=_dtype(dtype), device=_device(device),
            allow_pickle=allow_pickle, local_files_only=local_files_only))

    def __call__(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] = "", guidance: float | None = 7.5,
        height: int | None = None, width: int | None = None,
    ) -> Text2Image:
        """The problem of drawing `prompt`; with a list, row i of the batch draws prompt i % len(prompt).

        guidance: w in eps = eps(negative) + w (eps(prompt) - eps(negative)); 1 or None leaves the negative out and
        costs half. height, width: in pixels, by default what the model was trained on.
        Raises ProblemError; warns, naming what is cut, where a prompt is longer than the text encoder's context.
        """
        return Text2Image(self, prompt, negative_prompt, guidance, height, width)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"StableDiffusion({self.source!r}, dtype={dtype}, device={self.device}, predicts {self.prediction})"

    def embed(self, prompts: str | Sequence[str]) -> torch.Tensor:
        """What the UNet is told of each prompt: (prompts, context, features) in the network's dtype."""
        texts = _texts(prompts, "prompt")
        for text in texts:
            self._warn_of_cut(text)
        ids = self.tokenizer(texts, padding="max_length", max_length=self.context, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden: torch.Tensor = self.text_encoder(ids.input_ids.to(self.device)).last_hidden_state
        return hidden

    @torch.no_grad()
    def encode(self, images: Image | Sequence[Image] | torch.Tensor) -> torch.Tensor:
        """Latents at sigma 0, (B, C, height/factor, width/factor) float32: the VAE's posterior means, scaled.

        images: PIL pictures of one size (transparent parts become white), or a tensor (B, 3, height, width) in [-1, 1].
        Raises ProblemError for sides that are no multiple of the VAE's factor.
        """
        pixels = images if isinstance(images, torch.Tensor) else _as_tensor(images)
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ProblemError(f"images have the shape {tuple(pixels.shape)}; expected (B, 3, height, width)")
        self._check_size(*pixels.shape[2:])
        pixels = pixels.to(self.device, self.vae.dtype)
        means = torch.cat([self.vae.encode(x).latent_dist.mean for x in pixels.split(CHUNK)])
        return (means.float() - self._shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents at sigma 0, (B, C, h, w), decoded: (B, 3, factor h, factor w) float32, about [-1, 1], not clipped.

        Raises ProblemError where a latent, or what the VAE makes of it, is NaN or infinite.
        """
        channels = self.vae.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ProblemError(f"latents have the shape {tuple(latents.shape)}; expected (B, {channels}, h, w)")
        _check_finite(latents, "latents", "take more steps, less guidance or a solver with a larger stability region")
        scaled = latents / self.vae.config.scaling_factor + self._shift
        chunks = scaled.to(self.device, self.vae.dtype).split(CHUNK)
        pixels = torch.cat([self.vae.decode(x).sample.float() for x in chunks])
        _check_finite(pixels, "decoded pictures", f"the VAE overflows in {self.vae.dtype}: load the model in float32")
        return pixels

    def decode(self, latents: torch.Tensor) -> list[Image]:
        """Latents at sigma 0, (B, C, h, w), as 8-bit pictures of factor h by factor w pixels. Raises as `pixels`."""
        from PIL import Image

        levels = (self.pixels(latents) / 2 + 0.5).clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
        return [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in levels]

    @property
    def _shift(self) -> float:
        return float(self.vae.config.get("shift_factor") or 0.0)

    def _warn_of_cut(self, text: str) -> None:
        tokens = self.tokenizer(text, verbose=False)
        if len(tokens.input_ids) <= self.context:
            return
        first = self.context - 1  # the last place is the end mark's
        cut = (text[tokens.token_to_chars(first).start:] if self.tokenizer.is_fast
               else self.tokenizer.decode(tokens.input_ids[first:-1]))
        warnings.warn(f"the prompt has {len(tokens.input_ids)} tokens, the text encoder reads {self.context}; cut off: "
                      f"{cut!r}", stacklevel=5)

    def _check_size(self, height: Any, width: Any) -> None:
        for name, side in (("height", height), ("width", width)):
            if not hasattr(side, "__index__") or side < 1 or side % self.factor:
                near = self.factor * max(1, round(side / self.factor)) if isinstance(side, Real) else self.factor
                raise ProblemError(f"{name} is {side!r}; expected a multiple of {self.factor} pixels, such as {near}")


class Text2Image(ProbabilityFlow):
    """The flow that ends in latents of the prompt's picture; made by calling a StableDiffusion.

    States are (B, C, height/factor, width/factor); B is a multiple of the number of prompts. `prompt`,
    `negative_prompt`, `guidance`, `height`, `width` and `model` are kept as they were given or filled in.
    """

    def __init__(
        self, model: StableDiffusion, prompt: str | Sequence[str], negative_prompt: str | Sequence[str],
        guidance: float | None, height: int | None, width: int | None,
    ) -> None:
        prompts, negatives = _texts(prompt, "prompt"), _texts(negative_prompt, "negative_prompt")
        if len(negatives) not in (1, len(prompts)):
            raise ProblemError(f"there are {len(prompts)} prompts and {len(negatives)} negative prompts; expected one "
                               "negative prompt, or one for each prompt")
        self.guidance = 1.0 if guidance is None else _guidance(guidance)
        size = model.unet.config.sample_size
        high, wide = size if isinstance(size, list | tuple) else (size, size)
        self.height = model.factor * high if height is None else height
        self.width = model.factor * wide if width is None else width
        model._check_size(self.height, self.width)
        self.model, self.prompt, self.negative_prompt = model, prompt, negative_prompt
        self._conditional = model.embed(prompts)
        self._negative = None if self.guidance == 1 else model.embed(negatives).expand_as(self._conditional)
        self._kept: tuple[int, torch.Tensor] | None = None
        super().__init__(
            self._network, model.process, model.prediction, device=str(model.device),
            shape=(model.unet.config.in_channels, self.height // model.factor, self.width // model.factor),
            dtype=torch.promote_types(model.dtype, torch.float32))

    def encode(self, images: Image | Sequence[Image] | torch.Tensor) -> torch.Tensor:
        """Latents at sigma 0 of pictures, as `StableDiffusion.encode`: what `reversed()` takes on to their noise."""
        return self.model.encode(images)

    def decode(self, x: torch.Tensor) -> list[Image]:
        """Latents at sigma 0 as pictures. Raises ProblemError for NaN."""
        return self.model.decode(x)

    def denoise_both(self, y: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The denoised estimate with guidance and without (with the negative prompt alone), of one network call."""
        if self._negative is None:
            return super().denoise_both(y, sigma)
        k = self.prediction.scaling(sigma, self.process)
        t = torch.full((len(y),), k.c_noise, dtype=y.dtype, device=y.device)
        without, with_prompt = self._sides(y * k.c_in, t)
        guided = without + self.guidance * (with_prompt - without)
        return guided * k.c_out + y * k.c_skip, without * k.c_out + y * k.c_skip

    def _network(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        without, with_prompt = self._sides(x, t)
        return with_prompt if self._negative is None else without + self.guidance * (with_prompt - without)

    def _sides(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the UNet says without the prompt and with it; with it alone, twice, where there is no guidance."""
        prompts = len(self._conditional)
        if len(x) % prompts:
            raise ProblemError(f"the batch is {len(x)}, but there are {prompts} prompts; expected batch={prompts} or a "
                               "multiple of it")
        inputs, told = x.to(self.model.dtype), self._told(len(x) // prompts)
        if self._negative is None:
            alone = self._unet(inputs, t, told).to(x.dtype)
            return alone, alone
        without, with_prompt = self._unet(torch.cat([inputs, inputs]), torch.cat([t, t]), told).to(x.dtype).chunk(2)
        return without, with_prompt

    def _told(self, rounds: int) -> torch.Tensor:
        """The embeddings for a batch of `rounds` times the prompts, the negative ones first; kept for a solve."""
        if self._kept is None or self._kept[0] != rounds:
            sides = [side for side in (self._negative, self._conditional) if side is not None]
            self._kept = rounds, torch.cat([side.repeat(rounds, 1, 1) for side in sides])
        return self._kept[1]

    def _unet(self, x: torch.Tensor, t: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        raw: torch.Tensor = self.model.unet(x, t, encoder_hidden_states=told, return_dict=False)[0]
        return raw


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r} for a network{did_you_mean(name, DTYPES)}")
    return DTYPES[name]


def _device(device: str | torch.device | None) -> torch.device:
    usable = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    usable += ["mps"] if torch.backends.mps.is_available() else []
    try:
        found = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        raise ModelError(f"unknown device {device!r}; this machine has: {', '.join(usable)}") from None
    if str(found) not in usable and (":" in str(found) or f"{found.type}:0" not in usable):
        raise ModelError(f"device {str(found)!r} is not available; this machine has: {', '.join(usable)}")
    return found


def _texts(given: Any, what: str) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
    if not texts or not all(isinstance(t, str) for t in texts):
        raise ProblemError(f"{what} is {given!r}; expected a string or a list of at least one")
    return texts


def _guidance(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ProblemError(f"guidance is {value!r}; expected a number of at least 0 (7.5 is usual; 1: no guidance)")
    return float(value)


def _check_finite(x: torch.Tensor, what: str, remedy: str) -> None:
    bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise ProblemError(f"{what} {', '.join(map(str, bad))} of {len(x)} hold NaN or infinity; {remedy}")


def _as_tensor(images: Image | Sequence[Image]) -> torch.Tensor:
    import numpy as np
    from PIL import Image

    pictures = [images] if isinstance(images, Image.Image) else list(images)
    if len({p.size for p in pictures}) != 1:
        raise ProblemError(f"expected pictures of one size, got {sorted({p.size for p in pictures})}; resize them")
    arrays = []
    for picture in pictures:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        arrays.append(np.asarray(Image.alpha_composite(white, rgba).convert("RGB"), np.float32) / 127.5 - 1)
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
