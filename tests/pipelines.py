"""diffusers' own pipelines for the tests: the embedded model, and tiny ones made from config with random weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from models import emoji_model, shipped_folder

torch.set_num_threads(1)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def embedded(dtype: torch.dtype = torch.float64) -> Any:
    """The embedded model in diffusers' StableDiffusionPipeline."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(
        shipped_folder(), safety_checker=None, requires_safety_checker=False, dtype=dtype
    )
    return quiet(loaded)


@cache
def embeddings(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """What the embedded model's text encoder says, so that a test does not wait for it."""
    model = emoji_model()
    return {
        "prompt_embeds": model.embed("red apple").to(dtype), "negative_prompt_embeds": model.embed("").to(dtype)
    }  # fmt: skip
