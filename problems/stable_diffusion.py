"""Text-to-image latent diffusion as a probability flow: a model, called with a prompt, is a problem to solve."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from diffsolve import (
    PREDICTIONS,
    ModelError,
    Prediction,
    ProblemError,
    Process,
)
from diffsolve.errors import did_you_mean
from diffsolve.prediction import as_prediction
from diffsolve.process import as_process
from diffsolve.validate import check_dense, finite

from . import checkpoints, single_file
from .calling import Calling, Latents, Prompted, guidance_embedding
from .configs import read_scheduler_config
from .diffusion import ProbabilityFlow
from .guidance import Guided, NetworkDenoiser

if TYPE_CHECKING:
    pass


EMBEDDED = Path(__file__).parent / "emoji" / "model"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
WEIGHTS = re.compile(  # of A1111's kind: (word:1.2), ((word)), [from:to:0.5], <lora:name:1>
    r"\([^()]*[^\d\s()]\s*:\s*[+-]?\d*\.?\d+\s*\)|\({2}.*?\){2}|\[[^\[\]]*:[^\[\]]*:\s*\d*\.?\d+\]|<\w+:[^<>]*>")
Prompt = str | Sequence[str] | torch.Tensor
MOST_GUIDANCE = 1e6


class StableDiffusion(Latents):
    """A latent text-to-image model of Stable Diffusion's kind; `model("a red apple")` is a problem for `solve`.

    dtype, where it is a parameter: of the network, "float32" (None), "float16", "bfloat16", "float64" or a torch.dtype;
    the state that is integrated stays in float32 or better. device: "cpu" (None), "cuda", "cuda:1", "mps". compile: the
    UNet, for the shapes that it is called with; where there is no compiler it is called as it is, with a warning that
    names the reason. channels_last: the layout of its weights. A batch that does not fit into memory goes through it in
    halves, and says so by a warning and in Solution.stats["network"].
    """

    def __init__(
        self, components: checkpoints.Components, process: str | Process | None = None,
        prediction: str | Prediction | None = None, *, compile: bool = False, channels_last: bool = False,
    ) -> None:
        self.unet, self.vae = components.unet, components.vae
        self.text_encoder, self.tokenizer = components.text_encoder, components.tokenizer
        self.source, self.calling = components.source, Calling(compile, channels_last)
        self.calling.laid_out(self.unet)
        self.process, self.prediction = _nature(components, process, prediction)
        self.dtype, self.device = self.unet.dtype, self.unet.device
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)  # pixels of a latent's side
        self.context = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @classmethod
    def from_pretrained(
        cls, name: str | Path | None = "emoji", *, dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None, allow_pickle: bool = False, revision: str | None = None,
        local_files_only: bool = False, process: str | Process | None = None,
        prediction: str | Prediction | None = None, compile: bool = False, channels_last: bool = False,
    ) -> Self:
        """The model in a diffusers folder or behind a hub id "owner/name"; "emoji" (or None) comes with diffsolve.

        allow_pickle: also read .bin weights where there is no safetensors file. revision, local_files_only: of the hub.
        process, prediction: of the network, by default what the scheduler's config says, see `read_scheduler_config`.
        Raises ModelError: no such model, a part of it missing, broken, refused or of another kind, no such device.
        """
        where = EMBEDDED if name in (None, "emoji") else name
        nature = _given_nature(process, prediction)
        parts = checkpoints.from_folder_or_hub(
            where, dtype=_dtype(dtype), device=_device(device), allow_pickle=allow_pickle, revision=revision,
            local_files_only=local_files_only)
        return cls(replace(parts, source="emoji") if where is EMBEDDED else parts, *nature, compile=compile,
                   channels_last=channels_last)

    @classmethod
    def from_single_file(
        cls, path: str | Path, *, config: str | Path | None = None, dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None, allow_pickle: bool = False, revision: str | None = None,
        local_files_only: bool = False, process: str | Process | None = None,
        prediction: str | Prediction | None = None, compile: bool = False, channels_last: bool = False,
    ) -> Self:
        """The model in one .safetensors file of Stable Diffusion 1.x's original layout (A1111, ComfyUI).

        config: what such a file lacks (architecture, tokenizer, noise schedule), from a diffusers folder or hub id or
        "emoji"; by default Stable Diffusion 1.5's, from the hub or its cache. revision: of the config's hub id.
        process, prediction: of the network, by default what the file says of itself, else the config. Raises
        ModelError.
        """
        nature = _given_nature(process, prediction)
        return cls(single_file.from_single_file(
            path, config=EMBEDDED if config == "emoji" else config, dtype=_dtype(dtype), device=_device(device),
            allow_pickle=allow_pickle, revision=revision, local_files_only=local_files_only),
            *nature, compile=compile, channels_last=channels_last)

    def __call__(
        self, prompt: Prompt, negative_prompt: Prompt = "", guidance: float | None = 7.5, height: int | None = None,
        width: int | None = None, interval: tuple[float, float] | None = None,
    ) -> Text2Image:
        """The problem of drawing `prompt`; with a list, row i of the batch draws prompt i % len(prompt).

        prompt, negative_prompt: text, or what the UNet is told in its place, (prompts, tokens, features), such as
        `embed` returns. guidance: w in eps = eps(negative) + w (eps(prompt) - eps(negative)); 1 or None leaves the
        negative out and costs half. A model that is told w itself (LCM) takes one call and no negative prompt.
        height, width: in pixels, by default what the model was trained on. interval: the noise levels sigma, (low,
        high), outside which there is no guidance, and the negative prompt is not evaluated either.
        Raises ProblemError; warns, naming what is cut, where a prompt is longer than the text encoder's context, and
        where it holds weights such as "(word:1.2)", which are read as they stand.
        """
        return Text2Image(self, prompt, negative_prompt, guidance, height, width, interval)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        predicts = self.prediction if isinstance(self.prediction, str) else self.prediction.name
        return f"StableDiffusion({self.source!r}, dtype={dtype}, device={self.device}, predicts {predicts})"

    def embed(self, prompts: Prompt) -> torch.Tensor:
        """What the UNet is told of each prompt: (prompts, context, features) in the network's dtype."""
        texts = self._prompts(prompts, "prompt")
        if isinstance(texts, torch.Tensor):
            return texts.to(self.device, self.unet.dtype, copy=True)
        for text in texts:
            _warn_of_weights(text)
            self._warn_of_cut(text)
        ids = self.tokenizer(texts, padding="max_length", max_length=self.context, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden: torch.Tensor = self.text_encoder(ids.input_ids.to(self.device)).last_hidden_state
        return hidden.clone()  # its own, should the encoder return one buffer each time

    def _prompts(self, given: Prompt, what: str) -> list[str] | torch.Tensor:
        """The prompts as a list, or the embeddings of them. Raises ProblemError."""
        if not isinstance(given, torch.Tensor):
            return _texts(given, what)
        check_dense(given, what)
        features = self.unet.config.cross_attention_dim
        if given.ndim != 3 or 0 in given.shape or given.shape[2] != features:
            raise ProblemError(f"{what} has the shape {tuple(given.shape)}; expected embeddings (prompts, tokens, "
                               f"{features})")
        if not given.is_floating_point() or not torch.isfinite(given).all():
            raise ProblemError(f"{what} holds embeddings of {given.dtype}; expected finite floats")
        return given

    def _warn_of_cut(self, text: str) -> None:
        tokens = self.tokenizer(text, verbose=False)
        if len(tokens.input_ids) <= self.context:
            return
        first = self.context - 1  # the last place is the end mark's
        cut = (text[tokens.token_to_chars(first).start:] if self.tokenizer.is_fast
               else self.tokenizer.decode(tokens.input_ids[first:-1]))
        warnings.warn(f"the prompt has {len(tokens.input_ids)} tokens, the text encoder reads {self.context}; cut off: "
                      f"{cut!r}", stacklevel=5)


class Text2Image(ProbabilityFlow):
    """The flow that ends in latents of the prompt's picture; made by calling a StableDiffusion.

    States are (B, C, height/factor, width/factor); B is a multiple of the number of prompts. `prompt`,
    `negative_prompt`, `guidance`, `height`, `width`, `interval` and `model` are kept as they were given or filled in.
    """

    def __init__(
        self, model: StableDiffusion, prompt: Prompt, negative_prompt: Prompt, guidance: float | None,
        height: int | None, width: int | None, interval: tuple[float, float] | None = None,
    ) -> None:
        prompts, negatives = model._prompts(prompt, "prompt"), model._prompts(negative_prompt, "negative_prompt")
        if len(negatives) not in (1, len(prompts)):
            raise ProblemError(f"there are {len(prompts)} prompts and {len(negatives)} negative prompts; expected one "
                               "negative prompt, or one for each prompt")
        self.guidance = 1.0 if guidance is None else _guidance(guidance)
        width_of_w = model.unet.config.time_cond_proj_dim
        if width_of_w is not None and not (isinstance(negatives, list) and set(negatives) == {""}):
            raise ProblemError("this model is told its guidance and has no negative prompt; leave negative_prompt out")
        if width_of_w is not None and interval is not None:
            raise ProblemError(f"interval is {interval!r}, but this model is told its guidance; leave interval out")
        size = model.unet.config.sample_size
        high, wide = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
        if None in (height, width) and not isinstance(high, int):
            raise ProblemError(f"the model's sample_size is {size!r}, which is no size; pass height= and width=")
        self.height = model.factor * high if height is None else height
        self.width = model.factor * wide if width is None else width
        model._check_size(self.height, self.width)
        self.model, self.prompt, self.negative_prompt, self.interval = model, prompt, negative_prompt, interval
        self.default_batch = len(prompts)
        conditional = model.embed(prompts)
        negative = None if self.guidance == 1 or width_of_w is not None else model.embed(negatives)
        if negative is not None and negative.shape[1] != conditional.shape[1]:
            raise ProblemError(f"the prompt has {conditional.shape[1]} tokens and the negative prompt "
                               f"{negative.shape[1]}; give both as embeddings of as many")
        if negative is not None:
            negative = negative.expand_as(conditional)
        told = None if width_of_w is None else guidance_embedding(self.guidance, width_of_w)
        network = NetworkDenoiser(Prompted(model, conditional, negative, told), model.process, model.prediction)
        super().__init__(
            process=model.process, device=str(model.device),
            shape=(model.unet.config.in_channels, self.height // model.factor, self.width // model.factor),
            dtype=torch.promote_types(model.dtype, torch.float32), codec=model,
            denoiser=network if negative is None else Guided(network, self.guidance, interval))

    def replace(self, **changes: object) -> Self:
        """The same problem with other values of its fields, or another `prompt`, `negative_prompt`, `guidance`,
        `height`, `width` or `interval`. Raises ProblemError."""
        asked = ("prompt", "negative_prompt", "guidance", "height", "width", "interval")
        given = {name: changes.pop(name) for name in asked if name in changes}
        if not given:
            return super().replace(**changes)
        made = type(self)(self.model, **{name: getattr(self, name) for name in asked} | given)
        kept = {name: getattr(self, name) for name in ("dtype", "eta", "upward", "constraint", "codec")}
        return made.replace(**kept | changes)


def _given_nature(
    process: str | Process | None, prediction: str | Prediction | None
) -> tuple[Process | None, Prediction | None]:
    return (None if process is None else as_process(process)), (
        None if prediction is None else as_prediction(prediction))


def _nature(
    parts: checkpoints.Components, process: str | Process | None, prediction: str | Prediction | None
) -> tuple[Process, str | Prediction]:
    """What is given of the network's nature, the scheduler's config telling the rest; a known prediction by name."""
    wanted, said = _given_nature(process, prediction)
    if wanted is None or said is None:
        try:
            by_config = read_scheduler_config(parts.scheduler_config)
        except ModelError as error:
            raise ModelError(f"{parts.source}: {error}") from error
        wanted, said = wanted or by_config[0], said or by_config[1]
    return wanted, said.name if PREDICTIONS.get(said.name) is said else said


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


def _warn_of_weights(text: str) -> None:
    found = WEIGHTS.search(text)
    if found:
        warnings.warn(f"the prompt holds {found[0]!r}: weights and switches in prompts are not understood here, the "
                      "text encoder reads them as they stand", stacklevel=5)


def _texts(given: object, what: str) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
    if not texts or not all(isinstance(t, str) for t in texts):
        raise ProblemError(f"{what} is {given!r}; expected a string or a list of at least one")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ProblemError(f"{what} is {text!r}, which is no text: a half of a character stands alone") from None
    return texts


def _guidance(value: object) -> float:
    number = finite(value)
    if number is None or not 0 <= number <= MOST_GUIDANCE:
        raise ProblemError(f"guidance is {value!r}; expected a number of at least 0 (7.5 is usual; 1: no guidance)")
    return number
