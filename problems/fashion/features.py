"""Features of Fashion-MNIST, for Frechet distances: `python -m diffsolve.problems.fashion.features`.

They are the last layer but one of a small classifier of the ten classes, trained by this script on the first 50,000
training pictures in some minutes of one core. The file that ships holds its weights, mean and covariance of the
features of the 10,000 test pictures, and of some of those and of some of the last 10,000 training pictures the features
themselves: the classifier has seen neither. Distances in this space can be compared with each other only.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from diffsolve import ModelError

from ..emoji.features import FeatureNet
from ..weights import path_of, read_metadata, read_weights, reported
from . import data

FILE = Path(__file__).parent / "features.safetensors"
SHOWN, STORED = 50_000, 2_000  # pictures that the classifier learns from; features kept of either held-out set
SHIFT = 1  # pixels, of the augmentation


class Known(NamedTuple):
    """What is known of real pictures: mean (64,) and covariance (64, 64), float64, of all 10,000 test pictures'
    features, the features of 2,000 of them and, as the floor of every distance, of 2,000 training pictures that the
    classifier has not seen, (2000, 64) float32; both in the order of the data.
    """

    mean: Tensor
    covariance: Tensor
    test: Tensor
    held: Tensor


@cache
def _stored(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    where = path_of(file)
    state = read_weights(where)
    if not set(Known._fields) <= set(state):
        wanted = "a file of `python -m diffsolve.problems.fashion.features`"
        raise ModelError(f"{where} holds no features of Fashion-MNIST; expected {wanted}")
    return state, read_metadata(where)


def load_features(file: Path = FILE) -> FeatureNet:
    """The trained network, float32: pictures (B, 1, 32, 32) in [-1, 1] -> features (B, 64). Raises ModelError."""
    net = FeatureNet(1, len(data.CLASSES))
    state = {name: value.float() for name, value in _stored(file)[0].items() if name not in Known._fields}
    with reported(f"{file} holds no features", "give the file that comes with diffsolve"):
        net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def known_features(file: Path = FILE) -> Known:
    """The statistics of real pictures that ship. Raises ModelError."""
    state = _stored(file)[0]
    return Known(state["mean"].double(), state["covariance"].double(), state["test"].float(), state["held"].float())


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored in half the cases, and moved by up to a pixel."""
    x = torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(-1), x)
    side, (down, right) = x.shape[-1], torch.randint(2 * SHIFT + 1, (2, len(x), 1), generator=generator)
    rows, columns = down + torch.arange(side), right + torch.arange(side)
    wide = F.pad(x, (SHIFT,) * 4, value=-1.0)
    return wide[torch.arange(len(x))[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(pictures: Tensor, labels: Tensor, steps: int, batch: int, lr: float, seed: int) -> FeatureNet:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = FeatureNet(1, len(data.CLASSES))
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.05)
    for step in range(steps):
        rate = min(1.0, (step + 1) / (0.1 * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
        optimiser.param_groups[0]["lr"] = lr * rate
        rows = torch.randint(len(pictures), (batch,), generator=generator)
        loss = F.cross_entropy(net.classify(shifted(pictures[rows], generator)), labels[rows], label_smoothing=0.05)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if (step + 1) % 200 == 0:
            print(f"step {step + 1} of {steps}: loss {float(loss.detach()):.3f}", flush=True)
    return net.eval().requires_grad_(False)


def write(net: FeatureNet, test: Tensor, held: Tensor, figures: dict[str, object], file: Path) -> None:
    """Weights and features in float16, the features those of the rounded weights; mean and covariance in float32."""
    from safetensors.torch import save_file

    state = {name: value.half() for name, value in net.state_dict().items() if value.is_floating_point()}
    net.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    found = torch.cat([net(x) for x in test.split(500)])
    state |= {"mean": found.double().mean(0).float(), "covariance": torch.cov(found.double().T).float()}
    state |= {"test": found[:STORED].half(), "held": torch.cat([net(x) for x in held[:STORED].split(500)]).half()}
    save_file(state, file, metadata={"format": "pt", "figures": json.dumps(figures)})
    file.chmod(0o644)


def accuracy(net: FeatureNet, pictures: Tensor, labels: Tensor) -> float:
    found = torch.cat([net.classify(x).argmax(1) for x in pictures.split(500)])
    return round(float((found == labels).double().mean()), 4)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data.FOLDER, help="folder of the four files")
    parser.add_argument("--out", type=Path, default=FILE, help="file for the weights; by default the one that ships")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(given)

    began, cpu = time.perf_counter(), time.process_time()
    sets = {part: data.read(part, args.data) for part in data.FILES}
    (pictures, labels), (test, answers) = (
        (torch.from_numpy(data.padded(pixels)), torch.from_numpy(classes)) for pixels, classes in sets.values())
    net = train(pictures[:SHOWN], labels[:SHOWN], args.steps, args.batch, args.lr, args.seed)
    figures: dict[str, object] = {
        "test_accuracy": accuracy(net, test, answers), "steps": args.steps, "batch": args.batch, "lr": args.lr,
        "seed": args.seed}  # fmt: skip
    write(net, test, pictures[SHOWN:], figures, args.out)
    weights = sum(p.numel() for p in net.parameters())
    print(f"{figures}; {weights} weights, {args.out.stat().st_size / 1000:.0f} kB; {time.perf_counter() - began:.0f} s "
          f"({time.process_time() - cpu:.0f} s of CPU)")


if __name__ == "__main__":
    main()
