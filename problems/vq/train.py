"""Trains the embedded code model in about five minutes of one core: `python -m diffsolve.problems.vq.train --work DIR`.

Emoji faces and food are set on white, scaled to 16 pixels and given one palette of 32 colours: a pixel is a code. The
network's loss is the cross-entropy of x_0 given x_t, t uniform: its minimum is p(x_0 | x_t), place by place.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ..discrete import MaskAndReplace
from ..emoji import data
from .network import CodeTransformer

FOLDER = Path(__file__).parent / "model"
CATEGORIES = ("Smileys & Emotion", "Food & Drink")  # few enough that five minutes are enough
BATCH = 32


def palette_and_codes(pictures: np.ndarray, colours: int) -> tuple[Tensor, Tensor]:
    """(colours, 3) uint8 and (N, side, side) int64 of pictures (N, 3, side, side) in [-1, 1]: median cut, then 20
    rounds of k-means; white, which most pixels are, has one colour to itself.
    """
    pixels = torch.from_numpy((pictures.transpose(0, 2, 3, 1).reshape(-1, 3) + 1) * 127.5)
    coloured = pixels[(pixels < 250).any(1)]
    sheet = Image.fromarray(coloured.round().byte().numpy()[None])
    found = sheet.quantize(colours - 1, method=Image.Quantize.MEDIANCUT).getpalette() or []
    centres = torch.tensor(found[: 3 * (colours - 1)], dtype=torch.float32).reshape(-1, 3)
    for _ in range(20):
        nearest = torch.cdist(coloured, centres).argmin(1)
        centres = torch.stack([coloured[nearest == k].mean(0) if (nearest == k).any() else c
                               for k, c in enumerate(centres)])
    centres = torch.cat((torch.full((1, 3), 255.0), centres)).round()
    codes = torch.cat([torch.cdist(part, centres).argmin(1) for part in pixels.split(1 << 16)])
    return centres.byte(), codes.reshape(len(pictures), *pictures.shape[2:])


def train(codes: Tensor, config: dict[str, Any], steps: int, seed: int = 0) -> tuple[CodeTransformer, list[float]]:
    """The averaged network after so many steps, and the loss of every 100 steps."""
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    net = CodeTransformer(**config)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    process = MaskAndReplace.linear(net.classes)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    losses, total = [], 0.0
    for step in range(1, steps + 1):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1.0, step / 100, 0.02 + 3 * (1 - step / steps))
        x = codes[torch.randint(len(codes), (BATCH,), generator=draws)]
        t = torch.randint(1, process.steps + 1, (BATCH,), generator=draws)
        noisy = process.corrupt(x, t, torch.rand(x.shape, generator=draws))
        loss = torch.nn.functional.cross_entropy(net(noisy, t), x)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(net)
        total += loss.item()
        if step % 100 == 0:
            losses.append(round(total / 100, 4))
            print(f"step {step}: loss {losses[-1]}", flush=True)
            total = 0.0
    net.load_state_dict(average.module.state_dict())
    return net, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where the emoji package is, or is fetched to")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=2700)
    parser.add_argument("--colours", type=int, default=32)
    args = parser.parse_args()
    folder = data.fetch(args.work)
    pictures = data.pictures(folder, [e for e in data.read(folder) if e.category in CATEGORIES], 16)
    palette, codes = palette_and_codes(pictures, args.colours)
    config = {"classes": args.colours, "side": 16, "patch": 2, "width": 128, "depth": 3, "heads": 4}
    net, losses = train(codes, config, args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in net.state_dict().items()}
    save_file({**weights, "palette": palette}, args.out / "model.safetensors")
    about = {**config, "pictures": len(codes), "steps": args.steps, "loss every 100 steps": losses}
    (args.out / "config.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
