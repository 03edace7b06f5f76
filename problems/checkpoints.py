"""Loading Stable Diffusion's components from a diffusers folder or a hub id.

Weights are read from safetensors; a pickle is opened only on `allow_pickle=True`. Whatever can't be used is a
ModelError that names the file, what was expected and what to do. diffusers and transformers are imported on use.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import torch
from torch.overrides import TorchFunctionMode

from diffsolve import ModelError
from diffsolve.validate import finite

from .weights import DANGER, PICKLES, fill, path_of, read_json, read_weights, reported

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
             "LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline")
CLASSES = {"unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",), "text_encoder": ("CLIPTextModel",),
           "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast")}
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
CONFIGS = ("model_index.json", *(f"{part}/config.json" for part in WEIGHTS), "tokenizer/*", "scheduler/*.json")
# The names that the weights of a part may have, the first that is there being read; {} is the stem.
WHOLE, HALF = ("{}.safetensors", "{}.safetensors.index.json"), (
    "{}.fp16.safetensors", "{}.safetensors.index.fp16.json", "{}.fp16.safetensors.index.json")
SHARDS, HALF_SHARDS = ("{}-*-of-*.safetensors",), ("{}-*-of-*.fp16.safetensors", "{}.fp16-*-of-*.safetensors")
# What a UNet may want to be told beyond x, t and the prompt: the problem here has none of it to tell.
FURTHER_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
OLD_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers before 0.13
MOST, MOST_LAYERS = 10**6, 256  # of any number, and of layers, in a model's config
BOUNDS: dict[str, tuple[float, float]] = {  # of other numbers there, the least and the most
    **dict.fromkeys(("norm_eps", "layer_norm_eps", "scaling_factor", "mid_block_scale_factor",
                     "resnet_out_scale_factor"), (1e-30, MOST)),
    **dict.fromkeys(("norm_num_groups", "attention_head_dim", "num_attention_heads"), (1, MOST)),
    "sample_size": (1, 8192), "downsample_padding": (0, 1), "time_cond_proj_dim": (4, MOST),
    "shift_factor": (-MOST, MOST),
}  # fmt: skip
NEEDED = ("layer_norm_eps", "eos_token_id")  # what their class lets be null or a list, and then fails at


@dataclass(frozen=True)
class Components:
    """The parts of one latent text-to-image model, in evaluation mode; `source` is the path or id they came from."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    source: str


def from_folder_or_hub(
    name: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
    allow_pickle: bool = False, revision: str | None = None, local_files_only: bool = False,
) -> Components:
    """The components of a diffusers folder (model_index.json, unet/, vae/, ...) or of a hub id "owner/name".

    Files ending in .fp16.safetensors are taken where there are no others. revision, local_files_only: of the hub
    (a branch, tag or commit; only what its cache on this machine holds). Raises ModelError.
    """
    folder = locate(name, allow_pickle=allow_pickle, revision=revision, local_files_only=local_files_only)
    blank = blank_components(folder, str(name))
    for part in WEIGHTS:
        file, model = _weights_file(folder, part, allow_pickle), getattr(blank, part)
        state = read_weights(file, allow_pickle)
        if part == "vae":
            old = re.compile(rf"(?<=\.attentions\.0\.)({'|'.join(OLD_VAE)})(?=\.)")
            state = {old.sub(lambda found: OLD_VAE[found[0]], k): v for k, v in state.items()}
        if part == "text_encoder":  # transformers before 5.6 wrote, and names, one level more
            state = {k.removeprefix("text_model."): v for k, v in state.items()}
        fill(model, state, {k: k.removeprefix("text_model.") for k in model.state_dict()}, file, dtype, device)
    return blank


def locate(name: str | Path, *, configs_only: bool = False, allow_pickle: bool = False, revision: str | None = None,
           local_files_only: bool = False) -> Path:
    """The folder of a diffusers model: `name` itself, or the snapshot of that hub id. Raises ModelError."""
    folder = path_of(name)
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"revision is {revision!r}, but {folder} is a folder: only a hub id has revisions; "
                             "leave it out")
        return folder
    if folder.is_file():
        raise ModelError(f"{folder} is a file; expected a diffusers folder or a hub id. For one file of weights there "
                         "is StableDiffusion.from_single_file")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(name)):
        raise ModelError(f"{folder}: no such folder; expected a diffusers folder (with model_index.json in it), "
                         "a hub id 'owner/name', or 'emoji', the model that comes with diffsolve")
    from huggingface_hub import snapshot_download

    def fetch(*patterns: str) -> Path:
        with reported(f"{name}: no such folder, and as a hub id it can't be fetched",
                      "check the spelling, the network and your access to it, or give a local diffusers folder"):
            return Path(snapshot_download(str(name), revision=revision, local_files_only=local_files_only,
                                          allow_patterns=[*CONFIGS, *patterns]))

    if configs_only:
        return fetch()
    for names, shards in ((WHOLE, SHARDS), (HALF, HALF_SHARDS)):  # the second only where it lacks the first
        folder = fetch(*(f"{part}/{name.format(stem)}" for part, stem in WEIGHTS.items() for name in names + shards))
        if all(any((folder / part / name.format(stem)).is_file() for name in WHOLE + HALF)
               for part, stem in WEIGHTS.items()):
            return folder
    pickles = (f"{stem}{end}" for stem in ("*/diffusion_pytorch_model", "text_encoder/pytorch_model")
               for end in (".bin", ".bin.index.json", "-*-of-*.bin"))
    return fetch(*pickles) if allow_pickle else folder


class NoDraws(TorchFunctionMode):
    """Makes no numbers for tensors on meta, which hold none: what torch does for them there imports its compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {**(kwargs or {})}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else given["tensor"]
        if func is torch.arange:
            return torch.empty_like(func(*args, **{**given, "device": "cpu"}), device="meta")
        return func(*args, **given)


def blank_components(folder: Path, source: str) -> Components:
    """The components as the folder's configs describe them, with no weights yet: `fill` puts them in."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    configs = _configs(folder)
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("text_encoder", CLIPTextConfig)):
        _check_values(folder / part / "config.json", configs[part], kind)
    with reported(f"{folder}: its configs or its tokenizer can't be used", "fetch the folder again"):
        with torch.device("meta"), NoDraws():
            unet = UNet2DConditionModel.from_config(configs["unet"])
            vae = AutoencoderKL.from_config(configs["vae"])
            text = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"]))
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        _check_tokenizer(folder / "tokenizer", tokenizer, configs["text_encoder"])
    return Components(unet, vae, text, tokenizer, configs["scheduler"], source)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(f"{file}: no such file; expected a diffusers folder with model_index.json, unet/, vae/, "
                         "text_encoder/, tokenizer/ and scheduler/")
    return read_json(file)


def _configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The configs of the folder's parts, once it is sure that they make a model of the kind that is sampled here."""
    file = folder / "model_index.json"
    index = _json(file)
    if index.get("_class_name") not in PIPELINES:
        raise ModelError(f"{file} describes a {index.get('_class_name')}; expected a {PIPELINES[0]} (Stable Diffusion "
                         "1.x or 2.x: one UNet, one CLIP text encoder, one VAE)")
    for part, classes in CLASSES.items():
        if (found := _class_in(index, part)) not in classes:
            raise ModelError(f"{file}: {part} is {found or 'missing'}, expected a {classes[0]}; use another folder")
    configs = {part: _json(folder / part / "config.json") for part in WEIGHTS}
    configs["scheduler"] = _json(folder / "scheduler" / "scheduler_config.json")
    configs["scheduler"].setdefault("_class_name", _class_in(index, "scheduler"))
    unet, vae, file = configs["unet"], configs["vae"], folder / "unet" / "config.json"
    takes, has = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if takes != has:
        raise ModelError(f"{file}: the UNet takes {takes} channels, the VAE's latents have {has}; an inpainting or "
                         "depth UNet needs more than the latents, use a text-to-image model")
    if unet.get("out_channels", 4) != takes:
        raise ModelError(f"{file}: the UNet takes {takes} channels and returns {unet.get('out_channels', 4)}; expected "
                         "one answer of the latents' shape, no variance beside it")
    for key in FURTHER_INPUTS:
        if unet.get(key) is not None:
            raise ModelError(f"{file}: the UNet needs a further input ({key} = {unet[key]!r}); expected one that takes "
                             "x, t and the prompt alone, as Stable Diffusion 1.x and 2.x have")
    for key in ("latents_mean", "latents_std"):
        if vae.get(key) is not None:
            raise ModelError(f"{folder / 'vae' / 'config.json'}: {key} is given, a scale for each channel, which is "
                             "not applied here; expected scaling_factor alone")
    takes, has = unet.get("cross_attention_dim"), configs["text_encoder"].get("hidden_size")
    if takes != has:
        raise ModelError(f"{file}: cross_attention_dim is {takes}, the text encoder's width {has}; use one model's")
    return configs


def _class_in(index: Mapping[str, object], part: str) -> str | None:
    """The class that model_index.json names for a part: [library, class]."""
    pair = index.get(part)
    found = pair[1] if isinstance(pair, list) and len(pair) == 2 else None
    return found if isinstance(found, str) else None


def _check_values(file: Path, config: Mapping[str, object], kind: type) -> None:
    """Raise ModelError for a value of another type than the model's class declares, or beyond all reason."""
    hints = {k: p.annotation for k, p in inspect.signature(kind).parameters.items()}
    hints |= {k: h for k, h in kind.__annotations__.items() if not isinstance(h, str)}
    for key, value in config.items():
        if key in hints and not (_fits(value, hints[key]) or (value is None and hints[key] is bool)):
            raise ModelError(f"{file}: {key} is {str(value)[:60]!r}, expected {_told(hints[key])}")
        most = MOST_LAYERS if "layers" in key else BOUNDS.get(key, (0, MOST))[1]
        least = -1 if key.endswith("_token_id") else BOUNDS.get(key, (0, MOST))[0]
        numbers = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float)]
        if key in hints and any(not least <= v <= most for v in numbers):
            raise ModelError(f"{file}: {key} is {str(value)[:60]}, expected {least:g} to {most:g}")
        if key in NEEDED and (value is None or isinstance(value, list)):
            raise ModelError(f"{file}: {key} is {value}, expected a number")


def _fits(value: object, hint: object) -> bool:
    """Whether a value out of JSON is of the type; a hint of another kind than stands in a config's class takes all."""
    inner = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if hint in (tuple, list) or get_origin(hint) in (tuple, list):
        items = [one for one in inner if one is not Ellipsis]
        counted = len(items) < 2 or items != list(inner) or (isinstance(value, list) and len(value) == len(items))
        return isinstance(value, list | tuple) and bool(value) and counted and all(
            any(_fits(one, item) for item in items) or not items for one in value)
    if hint is float:
        return finite(value) is not None
    if hint in (int, bool, str, NoneType):
        return isinstance(value, hint) and (hint is not int or not isinstance(value, bool))
    return True


def _told(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _check_tokenizer(folder: Path, tokenizer: CLIPTokenizer, text: Mapping[str, Any]) -> None:
    """Raise ModelError unless its tokens are the text encoder's."""
    known, has = len(tokenizer), text.get("vocab_size", 49408)
    if known > has:
        raise ModelError(f"{folder}: it has {known} tokens, the text encoder knows {has}; use one model's")
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{folder}: it has no pad_token, which fills up a prompt; use the model's own")
    if not finite(tokenizer.model_max_length) or tokenizer.model_max_length < 2:
        raise ModelError(f"{folder}: model_max_length is {tokenizer.model_max_length!r}, expected a number of tokens")


def _weights_file(folder: Path, part: str, allow_pickle: bool) -> Path:
    """The file of a part's weights, or the index of its files."""
    stem = WEIGHTS[part]
    for name in (*WHOLE, *HALF):
        if (folder / part / name.format(stem)).is_file():
            return folder / part / name.format(stem)
    pickles = sorted(p for p in (folder / part).glob("*") if p.suffix in PICKLES)
    if not pickles:
        raise ModelError(f"{folder / part / stem}.safetensors: no such file, nor an .fp16.safetensors, nor an index of "
                         "shards; the folder is incomplete, fetch it again")
    if not allow_pickle:
        raise ModelError(f"{folder / part} has no safetensors, only {pickles[0].name}, a pickle, refused: {DANGER}")
    return next(iter(sorted((folder / part).glob("*.bin.index.json"))), pickles[0])
