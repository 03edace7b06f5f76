"""A row of pictures between two (Song et al. 2021, arXiv 2010.02502, section 5.3).

Two noises are joined by a great circle, and each place on it is decoded. The noises are drawn, or found by encoding two
pictures of your own:

    python examples/interpolate.py --prompt "face" --out row.png
    python examples/interpolate.py first.png second.png --prompt ""
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

import diffsolve as ds
from diffsolve.problems import StableDiffusion


def main(arguments: list[str] | None = None) -> Image.Image:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path, help="two pictures to go between; else two drawn noises")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--prompt", default="face")
    parser.add_argument("--count", type=int, default=8, help="pictures in the row, the two ends included")
    parser.add_argument("-n", "--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("interpolation.png"))
    given = parser.parse_args(arguments)
    if len(given.pictures) not in (0, 2):
        parser.error(f"give two pictures or none, got {len(given.pictures)}")

    problem = StableDiffusion.from_pretrained(given.model)(given.prompt, guidance=1)
    if given.pictures:
        size = (problem.width, problem.height)
        latents = problem.encode([Image.open(path).convert("RGBA").resize(size) for path in given.pictures])
        noises = ds.solve(problem.reversed(), "heun", "lambda", given.steps, x=latents).x
    else:
        noises = problem.prior(2, seed=1)
    between = ds.slerp(noises[:1], noises[1:], torch.linspace(0, 1, given.count))
    pictures = ds.solve(problem, "heun", "lambda", given.steps, x=between).images()

    row = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height))
    for place, picture in enumerate(pictures):
        row.paste(picture, (place * picture.width, 0))
    row.save(given.out)
    return row


if __name__ == "__main__":
    main()
