"""Models for the tests: the one that is shipped, loaded once, and a random one with Stable Diffusion 1.5's layout."""

from __future__ import annotations

import json
import os
import shutil
from functools import cache
from pathlib import Path

import torch

from diffsolve.problems import Fashion, StableDiffusion, stable_diffusion
from diffsolve.problems.fashion import train
from diffsolve.problems.fashion.network import FashionUNet


def shipped_folder() -> Path:
    return stable_diffusion.EMBEDDED


@cache
def emoji_model() -> StableDiffusion:
    return StableDiffusion.from_pretrained("emoji")


def linked_copy(folder: Path, to: Path, without: str = "") -> Path:
    """A copy whose files are links, so that one of them can be replaced at no cost."""
    return Path(shutil.copytree(folder, to, copy_function=os.symlink, ignore=shutil.ignore_patterns(without)))


def replace(file: Path, content: bytes | dict) -> None:
    file.unlink(missing_ok=True)
    file.write_bytes(json.dumps(content).encode() if isinstance(content, dict) else content)


def sd15_like(folder: Path) -> Path:
    """A diffusers folder with SD 1.5's block layout (4 levels of 2 layers), 32 to 64 channels, random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    torch.manual_seed(0)
    channels = (32, 64, 64, 64)
    UNet2DConditionModel(sample_size=8, block_out_channels=channels, cross_attention_dim=32).save_pretrained(
        folder / "unet")
    AutoencoderKL(
        block_out_channels=channels, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=64,
    ).save_pretrained(folder / "vae")
    vocabulary = json.loads((shipped_folder() / "text_encoder" / "config.json").read_text())
    CLIPTextModel(CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        **{k: vocabulary[k] for k in ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id")},
    )).save_pretrained(folder / "text_encoder")
    for shared in ("tokenizer", "scheduler", "model_index.json"):
        (folder / shared).symlink_to(shipped_folder() / shared)
    return folder


def tiny_model(folder: Path) -> Path:
    """A diffusers folder: 8 px pictures, 4x4 latents, a vocabulary of single letters."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, cross_attention_dim=8,
        attention_head_dim=2, norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4, sample_size=8,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    ).save_pretrained(folder / "vae")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    CLIPTextModel(CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )).save_pretrained(folder / "text_encoder")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"]}  # fmt: skip
    marks = {"bos_token": words[0], "eos_token": words[1], "unk_token": words[1], "pad_token": words[1]}
    scheduler = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    for name, content in {
        "model_index.json": index,
        "tokenizer/vocab.json": {word: i for i, word in enumerate(words)},
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, **marks},
        "scheduler/scheduler_config.json": scheduler,
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    return folder


SMALL_FASHION = {"widths": [48], "patch": 4, "sigma_data": 0.6636}


def small_fashion(folder: Path) -> Path:
    """A folder with a network of classes of few weights, none of which is 0."""
    torch.manual_seed(0)
    net = FashionUNet((48,), 4)
    for weights in net.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    train.export(net, dict(SMALL_FASHION), folder)
    return folder


def fashion_of(folder: Path) -> type[Fashion]:
    class Small(Fashion):
        def __init__(self, *given: object, **options: object) -> None:
            super().__init__(*given, model=folder, **options)

    return Small
