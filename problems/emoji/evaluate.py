"""Measure the embedded model: `python -m diffsolve.problems.emoji.evaluate --data FOLDER`.

Three things, all from the weights as shipped (stored in float16, computed in float32):
- PSNR: encode every training picture to its posterior mean, decode, clip to [0, 1]; the mean over pictures of
  10 log10(1/mean squared error), in dB.
- Adherence: for `--count` seeded (caption, picture) pairs whose caption names one picture only, sample the caption
  (Heun, Karras grid, 50 steps, guidance 4). It counts where the picture that it names is among the 5 nearest of all
  training pictures, by the L2 distance between the final scaled latent and the pictures' scaled posterior means.
- A contact sheet of 48 prompts, sampled in the same way.
"""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from diffsolve import Solution, solve

from ..stable_diffusion import StableDiffusion
from . import data

NEAREST = 5
SETTINGS: dict[str, Any] = {"solver": "heun", "schedule": "karras", "n": 50}
GUIDANCE = 4.0
SHEET = (
    ("red apple", "banana", "strawberry", "watermelon", "slice of pizza", "hamburger", "doughnut", "birthday cake"),
    ("penguin", "octopus", "butterfly", "owl", "frog face", "panda face", "turtle", "unicorn face"),
    ("sunflower", "cactus", "palm tree", "maple leaf", "volcano", "rainbow", "fire", "snowman"),
    ("rocket", "sailboat", "bicycle", "automobile", "airplane", "soccer ball", "trophy", "balloon"),
    ("guitar", "crown", "camera", "key", "umbrella", "bell", "books", "christmas tree"),
    ("smiling face with sunglasses", "ghost", "skull", "robot face", "blue heart", "yin yang", "warning sign",
     "astronaut"),
)
SCALE, GAP, CAPTION = 3, 8, 28  # of the sheet: enlargement, pixels between pictures, pixels for the words


def draw(model: StableDiffusion, prompts: list[str], seed: int) -> Solution:
    """One sample of each prompt, at the settings above."""
    return solve(model(prompts, guidance=GUIDANCE), seed=seed, batch=len(prompts), **SETTINGS)


def psnr(model: StableDiffusion, latents: torch.Tensor, pictures: torch.Tensor) -> dict[str, float]:
    """Of the VAE's reconstructions of `pictures` (N, 3, h, w) in [-1, 1] from their latents, in dB on [0, 1]."""
    decoded = model.pixels(latents).cpu().clamp(-1, 1)
    each = -10 * ((decoded - pictures) / 2).double().square().mean((1, 2, 3)).log10()
    return {"mean_db": float(each.mean()), "lowest_db": float(each.min()), "pictures": len(pictures)}


def adherence(
    model: StableDiffusion, latents: torch.Tensor, emojis: list[data.Emoji], count: int, seed: int
) -> dict[str, Any]:
    """Of `count` captions, how many give a sample whose nearest training latents include the picture they name."""
    pairs = data.unambiguous(emojis)
    chosen = [pairs[i] for i in np.random.default_rng(seed).choice(len(pairs), count, replace=False)]
    samples = draw(model, [caption for _, caption in chosen], seed).x.cpu().flatten(1)
    order = torch.cdist(samples, latents.cpu().flatten(1)).argsort(1)
    ranks = [int((order[row] == picture).nonzero()) for row, (picture, _) in enumerate(chosen)]
    missed = [{"caption": caption, "rank": rank + 1, "nearest": emojis[int(order[row, 0])].name}
              for row, ((_, caption), rank) in enumerate(zip(chosen, ranks, strict=True)) if rank >= NEAREST]
    return {"among_nearest_5": count - len(missed), "nearest": ranks.count(0), "of": count, "missed": missed}


def contact_sheet(model: StableDiffusion, seed: int) -> Image.Image:
    """48 prompts in 6 rows of 8, each with its words below."""
    pictures = draw(model, [p for row in SHEET for p in row], seed).images()
    side = SCALE * pictures[0].width
    high, wide = side + CAPTION + GAP, side + GAP
    sheet = Image.new("RGB", (GAP + wide * len(SHEET[0]), GAP + high * len(SHEET)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (picture, prompt) in enumerate(zip(pictures, (p for row in SHEET for p in row), strict=True)):
        left, top = GAP + wide * (i % len(SHEET[0])), GAP + high * (i // len(SHEET[0]))
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left, top))
        words = "\n".join(textwrap.wrap(prompt, side // 6))
        below = (left + side / 2, top + side + 2)
        pen.multiline_text(below, words, "black", font, anchor="ma", align="center", spacing=2)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the pictures, as the training's --work")
    parser.add_argument("--model", default="emoji", help="diffusers folder; by default the model that is shipped")
    parser.add_argument("--count", type=int, default=100, help="captions to ask")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of captions and of the noise")
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--sheet", type=Path, help="file for the contact sheet, a PNG")
    args = parser.parse_args()

    began = time.perf_counter()
    model = StableDiffusion.from_pretrained(args.model, device=args.device)
    folder = data.fetch(args.data)
    emojis = data.read(folder)
    pictures = torch.from_numpy(data.pictures(folder, emojis, model.unet.config.sample_size * model.factor))
    latents = model.encode(pictures)
    figures: dict[str, Any] = {
        "settings": {**SETTINGS, "guidance": GUIDANCE, "seed": args.seed},
        "reconstruction": psnr(model, latents, pictures),
        "adherence": adherence(model, latents, emojis, args.count, args.seed),
    }
    if args.sheet:
        contact_sheet(model, args.seed).save(args.sheet)
    figures["seconds"] = round(time.perf_counter() - began, 1)
    text = json.dumps(figures, indent=2, ensure_ascii=False)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
