"""Trains the embedded Fashion-MNIST network: `python -m diffsolve.problems.fashion.train --work FOLDER --steps N`.

Seeded and resumable: rerun the command and it goes on from FOLDER/unet.pt, written every `--save` steps; losses go to
FOLDER/loss-unet.jsonl, the averaged weights with their configuration to FOLDER/model (fp16), and with `--export` to
the place in this package from which `Fashion` loads them. Loss and noise levels are EDM's (Karras et al. 2022, table
1); the rate is constant after its warm-up and falls linearly to 0 over the last 30 % of N, so a run can be made longer.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..training import Run
from . import data
from .network import NO_CLASS, FashionUNet

P_MEAN, P_STD = -1.2, 1.2
ENDS, SHARE = (0.002, 80.0), 0.1  # a share of the levels is drawn evenly in log sigma: a short training meets no tails
NO_LABEL = 0.1  # the share of labels dropped, so that guidance has an unconditional model
MODEL = Path(__file__).parent / "model"


def edm_loss(net: FashionUNet, x: Tensor, labels: Tensor, sigma_data: float, draws: torch.Generator) -> Tensor:
    """EDM's loss of a batch x (B, 1, side, side), labels (B,): weighted so that the raw network's target has size 1."""
    low, high = (math.log(end) for end in ENDS)
    most, few = P_MEAN + P_STD * torch.randn(len(x), generator=draws), torch.rand(len(x), generator=draws)
    even = low + (high - low) * few / SHARE
    sigma = torch.where(few < SHARE, even, most).exp().view(-1, 1, 1, 1)
    labels = torch.where(torch.rand(len(x), generator=draws) < NO_LABEL, NO_CLASS, labels)
    y = x + sigma * torch.randn(x.shape, generator=draws)
    total = (sigma**2 + sigma_data**2).sqrt()
    target = (x - (sigma_data / total) ** 2 * y) * total / (sigma * sigma_data)
    return (net(y / total, sigma.flatten().log() / 4, labels) - target).square().mean()


def export(net: nn.Module, about: dict[str, object], folder: Path) -> None:
    """FOLDER/model.safetensors in fp16 and FOLDER/config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in net.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


def train(args: argparse.Namespace) -> nn.Module:
    """The averaged network after `args.steps` steps."""
    pixels, classes = data.read("train", args.data)
    images, labels = torch.from_numpy(data.padded(pixels)), torch.from_numpy(classes)
    sigma_data = round(float(images.std()), 4)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    config = {"widths": list(args.widths), "patch": 2}
    net = FashionUNet(tuple(args.widths))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run("unet", {"net": net}, args, cool=0.3, save=args.save)
    for rows in run.batches(len(images)):
        if run.update(edm_loss(net, images[rows], labels[rows], sigma_data, run.draws)):
            about = {**config, "sigma_data": sigma_data, "steps": run.step, "batch": args.batch, "lr": args.lr,
                     "seed": args.seed}  # fmt: skip
            export(run.average["net"], about, MODEL if args.export and run.step == args.steps else args.work / "model")
    return run.average["net"]


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint, the log and the export")
    parser.add_argument("--data", type=Path, default=data.FOLDER, help="folder of the four files")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--widths", type=int, nargs="+", default=(48, 96, 192), help="channels at 16, 8, 4, ...")
    parser.add_argument("--save", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", action="store_true", help="into this package, once the last step is made")
    train(parser.parse_args(given))


if __name__ == "__main__":
    main()
