"""One file with all weights in Stable Diffusion's original layout (ldm): read it, write it, name what is in it.

The names follow from the configs: a block's number in `input_blocks` and `output_blocks` from the layers per level,
so SD 1.x and any smaller or larger UNet of its kind share the rules, and reading and writing share them too.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffsolve import ModelError
from diffsolve.validate import text_of

from .checkpoints import Components, blank_components, from_folder_or_hub, locate
from .weights import fill, path_of, read_metadata, read_weights, reported

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.",
            "text_encoder": "cond_stage_model.transformer.text_model."}
_UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}
_VAE_PARTS = {
    "conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
    "to_out.0": "proj_out",
}
_OTHERS = {"conditioner.embedders.": "SDXL", "cond_stage_model.model.": "Stable Diffusion 2 (OpenCLIP)",
           "model.diffusion_model.joint_blocks.": "Stable Diffusion 3", "lora_": "a LoRA, not a whole model",
           "control_model.": "a ControlNet", "down_blocks.": "one component in diffusers' layout"}
_PARAMETERIZATIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
_SAYS = {"epsilon": "epsilon", "v": "v_prediction"}  # modelspec.prediction_type, and the schedulers' word for it


def from_single_file(
    path: str | Path, *, config: str | Path | None = None, dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu", allow_pickle: bool = False, revision: str | None = None,
    local_files_only: bool = False,
) -> Components:
    """The components of one checkpoint in Stable Diffusion 1.x's original layout, as A1111 and ComfyUI read it.

    Architecture, tokenizer and noise schedule are no part of such a file: they come from `config`, a diffusers folder
    or hub id (its weights are not needed); by default that of Stable Diffusion 1.5. What the file does say of its
    network, in its metadata or by a marker, holds instead. revision: of the hub id. Raises ModelError.
    """
    file = path_of(path)
    state = read_weights(file, allow_pickle)
    said = _nature(file, state, read_metadata(file))
    short = re.compile(r"^cond_stage_model\.transformer\.(?!text_model\.)")  # some mergers leave this level out
    state = {short.sub(PREFIXES["text_encoder"], k): v for k, v in state.items()}
    _check_kind(file, state)
    folder = locate(config or SD15, configs_only=True, revision=revision, local_files_only=local_files_only)
    components = blank_components(folder, str(path))
    components = replace(components, scheduler_config={**components.scheduler_config, **said})
    for part, prefix in PREFIXES.items():
        own = {k: v for k, v in state.items() if k.startswith(prefix)}
        fill(getattr(components, part), own, names_in_file(components, part), file, dtype, device)
    return components


def to_single_file(
    source: Components | str | Path, path: str | Path, *, dtype: torch.dtype | None = None,
    revision: str | None = None, local_files_only: bool = False,
) -> Path:
    """Write a model (or the diffusers folder or hub id of one) as one .safetensors file in the original layout; its
    path.

    dtype: of the weights in the file; None keeps the components' own (float32 where a folder is given). revision,
    local_files_only: of the hub.
    Raises ModelError where the architecture has no place in that layout, or the file can't be written.
    """
    from safetensors.torch import save_file

    components = source if isinstance(source, Components) else from_folder_or_hub(
        source, revision=revision, local_files_only=local_files_only)
    state = {}
    for part in PREFIXES:
        weights = getattr(components, part).state_dict()
        for here, there in names_in_file(components, part).items():
            value = weights[here].detach().to("cpu", dtype).contiguous()
            convolution = re.search(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$", there)  # as the original kept it
            state[there] = value[:, :, None, None] if convolution else value
    with reported(f"{path} can't be written", "choose a file in a folder that exists and may be written"):
        target = Path(os.path.realpath(path))
        with tempfile.TemporaryDirectory(dir=target.parent) as beside:  # an older file stays until this one is whole
            save_file(state, Path(beside) / target.name, metadata={"format": "pt"})
            os.replace(Path(beside) / target.name, target)
    return Path(path)


def names_in_file(components: Components, part: str) -> dict[str, str]:
    """The name in the file of each weight of "unet", "vae" or "text_encoder". Raises ModelError."""
    model = getattr(components, part)
    if part == "text_encoder":
        return {name: PREFIXES[part] + name.removeprefix("text_model.") for name in model.state_dict()}
    rules = unet_names if part == "unet" else vae_names
    try:
        return {name: PREFIXES[part] + there for name, there in rules(model.state_dict(), model.config).items()}
    except KeyError as error:
        raise ModelError(f"{components.source}: {part} has {error.args[0]}, which has no place in the original "
                         "single-file layout; keep the model as a diffusers folder") from None


def unet_names(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Each name of a UNet2DConditionModel's weight with its original name. KeyError for one that has none."""
    depth = config["layers_per_block"]
    if not isinstance(depth, int):
        raise KeyError(f"another number of layers on each level ({depth})")
    blocks = {
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "time_embedding.cond_proj": "time_embed.cond_proj",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for level in range(len(config["down_block_types"])):
        first = 1 + level * (depth + 1)
        for i in range(depth):
            blocks[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{first + i}.0"
            blocks[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{first + i}.1"
        blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{first + depth}.0.op"
    for level, kind in enumerate(config["up_block_types"]):
        first = level * (depth + 1)
        for i in range(depth + 1):
            blocks[f"up_blocks.{level}.resnets.{i}"] = f"output_blocks.{first + i}.0"
            blocks[f"up_blocks.{level}.attentions.{i}"] = f"output_blocks.{first + i}.1"
        place = 2 if "Attn" in kind else 1
        blocks[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{first + depth}.{place}.conv"
    return {name: _rename(name, blocks, _UNET_RESNET) for name in names}


def vae_names(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Each name of an AutoencoderKL's weight with its original name. KeyError for one that has none."""
    levels = len(config["block_out_channels"])
    blocks = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side, way in (("encoder", "down"), ("decoder", "up")):
        for here, there in (("conv_in", "conv_in"), ("conv_out", "conv_out"), ("conv_norm_out", "norm_out"),
                            ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
                            ("mid_block.attentions.0", "mid.attn_1")):
            blocks[f"{side}.{here}"] = f"{side}.{there}"
        for level in range(levels):
            number = level if way == "down" else levels - 1 - level  # both sides count from the picture
            here, there = f"{side}.{way}_blocks.{level}", f"{side}.{way}.{number}"
            blocks[f"{here}.{way}samplers.0.conv"] = f"{there}.{way}sample.conv"
            for i in range(config["layers_per_block"] + 1):
                blocks[f"{here}.resnets.{i}"] = f"{there}.block.{i}"
    return {name: _rename(name, blocks, _VAE_PARTS) for name in names}


def _rename(name: str, blocks: Mapping[str, str], parts: Mapping[str, str]) -> str:
    block = next((b for b in blocks if name.startswith(b + ".")), None)
    if block is None:
        raise KeyError(name)
    tail = name.removeprefix(block + ".")
    part = next((p for p in parts if tail.startswith(p + ".")), None)
    return f"{blocks[block]}.{tail if part is None else parts[part] + tail.removeprefix(part)}"


def _nature(file: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the file itself says of its network, as values of a scheduler's config. Raises ModelError."""
    edm = sorted(k for k in state if k in ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"))
    if edm:
        raise ModelError(f"{file} has the marker {edm[0]}: its network is one of EDM's kind, which is not read from a "
                         "single file; convert it to a diffusers folder")
    said: dict[str, Any] = {}
    told = metadata.get("modelspec.prediction_type")
    if told is not None and told not in _SAYS:
        raise ModelError(f"{file}: its modelspec.prediction_type is {told!r}, expected one of {', '.join(_SAYS)}")
    sources = {"marker v_pred": "v_prediction" if "v_pred" in state else None}
    sources[f"modelspec.prediction_type {told!r}"] = _SAYS.get(told or "")
    sources[f"{file.stem}.yaml beside it"] = _beside(file.with_suffix(".yaml"))
    known = {source: kind for source, kind in sources.items() if kind is not None}
    if len(set(known.values())) > 1:
        raise ModelError(f"{file}: its {' and its '.join(known)} are at odds; pass the file without one of them")
    if known:
        said["prediction_type"] = next(iter(known.values()))
    if "ztsnr" in state:
        said["rescale_betas_zero_snr"] = True
    return said


def _beside(file: Path) -> str | None:
    """The prediction that a model's .yaml names, as A1111 reads it: its parameterization. Raises ModelError."""
    if not file.is_file():
        return None
    with reported(f"{file} can't be read", "put it away, and pass prediction="):
        found = re.search(r"""^\s*parameterization:\s*["']?(\w+)""", text_of(file), re.MULTILINE)
    if found is not None and found[1] not in _PARAMETERIZATIONS:
        raise ModelError(f"{file}: its parameterization is {found[1]!r}, expected one of "
                         f"{', '.join(_PARAMETERIZATIONS)}")
    return _PARAMETERIZATIONS[found[1]] if found else None


def _check_kind(file: Path, state: Mapping[str, torch.Tensor]) -> None:
    other = next((kind for prefix, kind in _OTHERS.items() if any(k.startswith(prefix) for k in state)), None)
    lacking = [prefix for prefix in PREFIXES.values() if not any(k.startswith(prefix) for k in state)]
    if not lacking and not other:
        return
    looks = f"which looks like {other}" if other else "which looks like no model known here"
    raise ModelError(f"{file} has {len(state)} weights named {', '.join([*sorted(state)[:3], '...'])}, {looks}; "
                     f"expected Stable Diffusion 1.x's layout with {', '.join(PREFIXES.values())}. "
                     "Convert it to a diffusers folder and use from_pretrained")
