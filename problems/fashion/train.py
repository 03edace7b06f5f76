"""Trains the embedded Fashion-MNIST network: `python -m diffsolve.problems.fashion.train --work FOLDER --steps N`.

Seeded and resumable: rerun the command and it goes on from FOLDER/unet.pt, written every `--save` steps; losses go to
FOLDER/loss-unet.jsonl, the averaged weights with their configuration to FOLDER/model (fp16), and with `--export` to
the place in this package from which `Fashion` loads them. Loss and noise levels are EDM's (Karras et al. 2022, table
1); the rate is constant after its warm-up and falls linearly to 0 over the last 30 % of N, so a run can be made longer.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import data
from .network import NO_CLASS, FashionUNet

P_MEAN, P_STD = -1.2, 1.2
ENDS, SHARE = (0.002, 80.0), 0.1  # a share of the levels is drawn evenly in log sigma: a short training meets no tails
NO_LABEL = 0.1  # the share of labels dropped, so that guidance has an unconditional model
AVERAGE = 0.999
MODEL = Path(__file__).parent / "model"


class Run:
    """Network, optimiser, average and counters, with their checkpoint and their log."""

    def __init__(self, net: FashionUNet, args: argparse.Namespace) -> None:
        self.args, self.file, self.log = args, args.work / "unet.pt", args.work / "loss-unet.jsonl"
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(net).requires_grad_(False)
        self.optimiser = torch.optim.Adam(net.parameters(), lr=args.lr, betas=(0.9, 0.99))
        self.draws = torch.Generator().manual_seed(args.seed)
        self.step, self.seconds, self.total, self.began = 0, 0.0, 0.0, time.perf_counter()
        if self.file.is_file():
            state = torch.load(self.file, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.draws.set_state(state["draws"])
            self.step, self.seconds, self.total = state["step"], state["seconds"], state["total"]
            print(f"resumed at step {self.step}", flush=True)

    def save(self) -> None:
        state = {
            "net": self.net.state_dict(), "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(), "draws": self.draws.get_state(),
            "step": self.step, "seconds": self.seconds, "total": self.total,
        }  # fmt: skip
        torch.save(state, self.file.with_suffix(".tmp"))
        self.file.with_suffix(".tmp").replace(self.file)

    def batches(self, count: int) -> Iterator[Tensor]:
        """Index batches until the last step; the caller calls `update(loss)` on each."""
        while self.step < self.args.steps:
            yield torch.randint(count, (self.args.batch,), generator=self.draws)

    def update(self, loss: Tensor) -> bool:
        """One step of the optimiser and of the average; whether a checkpoint was written."""
        warm, cool = (self.step + 1) / 200, (self.args.steps - self.step) / (0.3 * self.args.steps)
        self.optimiser.param_groups[0]["lr"] = self.args.lr * min(1.0, warm, cool)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(AVERAGE, (self.step + 1) / (self.step + 20))
        torch._foreach_lerp_(list(self.average.parameters()), [p.detach() for p in self.net.parameters()], 1 - keep)
        began, self.began = self.began, time.perf_counter()
        self.seconds += self.began - began
        self.total += float(loss.detach())
        if self.step % 50 == 0:
            row = {"step": self.step, "loss": round(self.total / 50, 5), "seconds": round(self.seconds, 1)}
            self.total = 0.0
            with self.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)
        due = self.step % self.args.save == 0 or self.step == self.args.steps
        if due:
            self.save()
        return due


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


def export(net: FashionUNet, about: dict[str, object], folder: Path) -> None:
    """FOLDER/model.safetensors in fp16 and FOLDER/config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in net.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


def train(args: argparse.Namespace) -> FashionUNet:
    """The averaged network after `args.steps` steps."""
    pixels, classes = data.read("train", args.data)
    images, labels = torch.from_numpy(data.padded(pixels)), torch.from_numpy(classes)
    sigma_data = round(float(images.std()), 4)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    config = {"widths": list(args.widths), "patch": 2}
    run = Run(FashionUNet(tuple(args.widths)), args)
    for rows in run.batches(len(images)):
        if run.update(edm_loss(run.net, images[rows], labels[rows], sigma_data, run.draws)):
            about = {**config, "sigma_data": sigma_data, "steps": run.step, "batch": args.batch, "lr": args.lr,
                     "seed": args.seed}  # fmt: skip
            export(run.average, about, MODEL if args.export and run.step == args.steps else args.work / "model")
    return run.average


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
