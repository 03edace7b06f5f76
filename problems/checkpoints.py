"""Loading Stable Diffusion's components from a diffusers folder or a hub id.

Weights are read from safetensors; a pickle is opened only on `allow_pickle=True`. Whatever can't be used is a
ModelError that names the file, what was expected and what to do. diffusers and transformers are imported on use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffsolve import VP, ModelError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
DANGER = ("a pickle can run code while it is read; if you trust its source, allow_pickle=True opens it (through "
          "torch's weights_only reader); better still, convert it to safetensors")
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
CLASSES = {"unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",), "text_encoder": ("CLIPTextModel",),
           "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast")}
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
CONFIGS = ("model_index.json", *(f"{part}/config.json" for part in WEIGHTS), "tokenizer/*", "scheduler/*.json")
# What a UNet may want to be told beyond x, t and the prompt: the problem here has none of it to tell.
FURTHER_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim",
                  "encoder_hid_dim_type")
NO_WEIGHTS = re.compile(r"\.position_ids$|^first_stage_model\.loss\.")  # names that older writers left in the files
OLD_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers before 0.13


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


def process_of(scheduler_config: Mapping[str, Any]) -> tuple[VP, str]:
    """The noising process that a diffusers scheduler's config describes, and what its network predicts.

    The prediction is "eps", "v" or "x0". Raises ModelError for a schedule or prediction that diffsolve does not have.
    """
    predictions = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
    schedules = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
    told = scheduler_config.get("prediction_type", "epsilon")
    if told not in predictions:
        raise ModelError(f"scheduler config: prediction_type is {told!r}, expected one of {', '.join(predictions)}; "
                         "build a ProbabilityFlow around the network yourself")
    if scheduler_config.get("rescale_betas_zero_snr"):
        raise ModelError("scheduler config: rescale_betas_zero_snr is true, which makes the first sigma infinite; "
                         "expected a model trained without it, or set it to false to start from the last finite sigma")
    steps, betas = scheduler_config.get("num_train_timesteps", 1000), scheduler_config.get("trained_betas")
    if betas is not None:
        return VP(steps=len(betas), betas=tuple(float(b) for b in betas)), predictions[told]
    schedule = scheduler_config.get("beta_schedule", "linear")
    if schedule not in schedules:
        raise ModelError(f"scheduler config: beta_schedule is {schedule!r}, expected one of {', '.join(schedules)}; "
                         "give the table itself as trained_betas")
    start, end = (float(scheduler_config.get(k, d)) for k, d in (("beta_start", 1e-4), ("beta_end", 0.02)))
    return VP(schedules[schedule], start, end, steps), predictions[told]


def locate(name: str | Path, *, configs_only: bool = False, allow_pickle: bool = False, revision: str | None = None,
           local_files_only: bool = False) -> Path:
    """The folder of a diffusers model: `name` itself, or the snapshot of that hub id. Raises ModelError."""
    folder = Path(name).expanduser()
    if folder.is_dir():
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
    for variant in ("", ".fp16"):  # the second is asked for only where the repository lacks the first
        folder = fetch(*(f"{part}/{stem}{variant}.safetensors" for part, stem in WEIGHTS.items()))
        if all(list((folder / part).glob(f"{stem}*.safetensors")) for part, stem in WEIGHTS.items()):
            return folder
    return fetch("*/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin") if allow_pickle else folder


def blank_components(folder: Path, source: str) -> Components:
    """The components as the folder's configs describe them, with no weights yet: `fill` puts them in."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    configs = _configs(folder)
    with reported(f"{folder}: its configs or its tokenizer can't be used", "fetch the folder again"):
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(configs["unet"])
            vae = AutoencoderKL.from_config(configs["vae"])
        text = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"]))  # has buffers that no file holds
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    return Components(unet, vae, text, tokenizer, configs["scheduler"], source)


def fill(model: torch.nn.Module, state: Mapping[str, torch.Tensor], names: Mapping[str, str], file: Path,
         dtype: torch.dtype, device: str | torch.device) -> None:
    """Give `model` its weights, all of them: names[weight] is the name in `state`, and nothing else may be there.

    Raises ModelError, naming the first weight that is missing, unknown or of another shape.
    """
    kind, weights, loaded = type(model).__name__, model.state_dict(), {}
    remedy = "the file is incomplete, or belongs to another config"
    missing = [there for there in names.values() if there not in state]
    if missing:
        raise ModelError(f"{file}: {len(missing)} of the {len(names)} weights of the {kind} are missing, first "
                         f"{missing[0]}; {remedy}")
    unknown = [there for there in set(state) - set(names.values()) if not NO_WEIGHTS.search(there)]
    if unknown:
        raise ModelError(f"{file}: {len(unknown)} weights have no place in the {kind}, first {min(unknown)}; {remedy}")
    for here, there in names.items():
        value, expected = state[there], weights[here].shape
        if value.shape != expected and value.shape != (*expected, 1, 1):  # a linear map kept as a 1x1 convolution
            raise ModelError(f"{file}: {there} has the shape {tuple(value.shape)}, the {kind} expects "
                             f"{tuple(expected)}; {remedy}")
        loaded[here] = value.reshape(expected).to(device, dtype)
    model.load_state_dict(loaded, assign=True)
    model.to(device).eval().requires_grad_(False)


def read_weights(file: Path, allow_pickle: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of one .safetensors file, or of a pickle where that is allowed. Raises ModelError."""
    if not file.is_file():
        raise ModelError(f"{file}: {'is a folder' if file.is_dir() else 'no such file'}; expected one file of weights")
    if file.suffix in PICKLES:
        if not allow_pickle:
            raise ModelError(f"{file} is a pickle, refused: {DANGER}")
        with reported(f"{file} can't be read", "it is truncated or holds more than weights: fetch it again"):
            state = torch.load(file, map_location="cpu", weights_only=True)
            return {k: v for k, v in state.get("state_dict", state).items() if isinstance(v, torch.Tensor)}
    if file.suffix != ".safetensors":
        raise ModelError(f"{file}: expected a .safetensors file or, with allow_pickle=True, {', '.join(PICKLES)}")
    from safetensors.torch import load_file

    with file.open("rb") as opened:
        pointer = opened.read(30).startswith(b"version https://git-lfs")
    with reported(f"{file} can't be read", "it is a Git LFS pointer, not the weights: run `git lfs pull`" if pointer
                  else "it is truncated or no safetensors file: fetch it again"):
        return load_file(file)


@contextmanager
def reported(what: str, remedy: str) -> Iterator[None]:
    """Turn what the libraries raise into a ModelError: what failed, their reason, the remedy."""
    try:
        yield
    except Exception as error:  # the libraries share no base class
        reason = next(iter(str(error).strip().splitlines()), "").rstrip(".")
        raise ModelError(f"{what} ({type(error).__name__}: {reason}); {remedy}") from error


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(f"{file}: no such file; expected a diffusers folder with model_index.json, unet/, vae/, "
                         "text_encoder/, tokenizer/ and scheduler/")
    with reported(f"{file} can't be read", "fetch it again"):
        return dict(json.loads(file.read_text(encoding="utf-8")))


def _configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The configs of the folder's parts, once it is sure that they make a model of the kind that is sampled here."""
    file = folder / "model_index.json"
    index = _json(file)
    if index.get("_class_name") not in PIPELINES:
        raise ModelError(f"{file} describes a {index.get('_class_name')}; expected a {PIPELINES[0]} (Stable Diffusion "
                         "1.x or 2.x: one UNet, one CLIP text encoder, one VAE)")
    for part, classes in CLASSES.items():
        found = (index.get(part) or (None, None))[1]
        if found not in classes:
            raise ModelError(f"{file}: {part} is {found or 'missing'}, expected a {classes[0]}; use another folder")
    configs = {part: _json(folder / part / "config.json") for part in WEIGHTS}
    configs["scheduler"] = _json(folder / "scheduler" / "scheduler_config.json")
    unet, file = configs["unet"], folder / "unet" / "config.json"
    takes, has = unet.get("in_channels", 4), configs["vae"].get("latent_channels", 4)
    if takes != has:
        raise ModelError(f"{file}: the UNet takes {takes} channels, the VAE's latents have {has}; an inpainting or "
                         "depth UNet needs more than the latents, use a text-to-image model")
    for key in FURTHER_INPUTS:
        if unet.get(key) is not None:
            raise ModelError(f"{file}: the UNet needs a further input ({key} = {unet[key]!r}); expected one that takes "
                             "x, t and the prompt alone, as Stable Diffusion 1.x and 2.x have")
    takes, has = unet.get("cross_attention_dim"), configs["text_encoder"].get("hidden_size")
    if takes != has:
        raise ModelError(f"{file}: cross_attention_dim is {takes}, the text encoder's width {has}; use one model's")
    return configs


def _weights_file(folder: Path, part: str, allow_pickle: bool) -> Path:
    stem = WEIGHTS[part]
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / part / name).is_file():
            return folder / part / name
    pickles = sorted(p for p in (folder / part).glob("*") if p.suffix in PICKLES)
    if not pickles:
        raise ModelError(f"{folder / part / stem}.safetensors: no such file, nor an .fp16.safetensors; the folder is "
                         "incomplete, fetch it again")
    if not allow_pickle:
        raise ModelError(f"{folder / part} has no safetensors, only {pickles[0].name}, a pickle, refused: {DANGER}")
    return pickles[0]
