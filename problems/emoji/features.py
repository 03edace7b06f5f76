"""Features of emoji-like pictures, for Frechet distances: `python -m diffsolve.problems.emoji.features --work FOLDER`.

They are the last layer but one of a small classifier that tells the package's 8 categories apart, trained by this
script on the CPU in minutes. The file that ships holds its weights and, of every training picture, the features and the
name, so that neither the pictures nor a download is needed to measure a distance to them. Distances in this space can
be compared with each other only: with no published FID, and not with those of a classifier that is trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffsolve import ModelError, ProblemError

from ..weights import path_of, read_metadata, read_weights, reported

FILE = Path(__file__).parent / "features.safetensors"
SIDE, WIDTHS = 32, (24, 40, 56, 64)
CATEGORIES = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "People & Body", "Smileys & Emotion",
              "Symbols", "Travel & Places")
SHIFT, JITTER, NOISE = 3, 0.2, 0.1  # of the augmentation: pixels, share of the colour range, standard deviation


class FeatureNet(nn.Module):
    """Pictures (B, 3, 32, 32), clipped to [-1, 1], to features (B, 64); `classify` goes on to the 8 categories."""

    def __init__(self, channels: int = 3, categories: int = len(CATEGORIES)) -> None:
        super().__init__()
        self.channels = channels
        blocks: list[nn.Module] = []
        for inputs, outputs in zip((channels, *WIDTHS), WIDTHS, strict=False):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(outputs), nn.SiLU(), nn.AvgPool2d(2)]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTHS[-1], categories)

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.ndim != 4 or tuple(pictures.shape[1:]) != (self.channels, SIDE, SIDE):
            expected = f"(B, {self.channels}, {SIDE}, {SIDE})"
            raise ProblemError(f"pictures have the shape {tuple(pictures.shape)}; expected {expected}")
        features: Tensor = self.body(pictures.clamp(-1, 1)).mean((2, 3))
        return features

    def classify(self, pictures: Tensor) -> Tensor:
        """Logits (B, categories), in the order of CATEGORIES."""
        logits: Tensor = self.head(self.forward(pictures))
        return logits


@cache
def _stored(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the text of a file that `write` wrote. Raises ModelError for another."""
    where = path_of(file)
    state, told = read_weights(where), read_metadata(where)
    if "pictures" not in state or "names" not in told:
        raise ModelError(f"{where} holds no features; expected a file of `python -m diffsolve.problems.emoji.features`")
    return state, told


def load_features(file: Path = FILE) -> FeatureNet:
    """The trained network in evaluation mode, float32: pictures (B, 3, 32, 32) in [-1, 1] -> features (B, 64).

    Features of a small classifier of emoji: distances between them can be compared with each other only. Raises
    ModelError.
    """
    net = FeatureNet()
    state = {name: value.float() for name, value in _stored(file)[0].items() if name != "pictures"}
    with reported(f"{file} holds no features", "give the file that comes with diffsolve"):
        net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def training_features(file: Path = FILE) -> Tensor:
    """The features of the training pictures, (1636, 64) float32, in the order of `training_names`."""
    return _stored(file)[0]["pictures"].float()


def training_names(file: Path = FILE) -> list[str]:
    """What the training pictures are called: captions that the embedded model was trained on."""
    names: list[str] = json.loads(_stored(file)[1]["names"])
    return names


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored, shifted, with other brightness and contrast in each colour, and a little noise."""
    count = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    x = torch.where(uniform(0, 1, count, 1, 1, 1) < 0.5, x.flip(-1), x)
    padded = F.pad(x, (SHIFT,) * 4, mode="replicate")
    down, right = torch.randint(2 * SHIFT + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(SIDE), right + torch.arange(SIDE)
    x = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    x = x * uniform(1 - JITTER, 1 + JITTER, count, 3, 1, 1) + uniform(-JITTER, JITTER, count, 3, 1, 1)
    return x + uniform(0, NOISE, count, 1, 1, 1) * torch.randn(x.shape, generator=generator)


def train(pictures: Tensor, labels: Tensor, steps: int, batch: int, lr: float, seed: int) -> tuple[FeatureNet, float]:
    """The network and its accuracy on the 10 % of the pictures that it was not shown."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures), generator=generator)
    held, shown = order[: len(order) // 10], order[len(order) // 10 :]
    net = FeatureNet()
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.05)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / (0.1 * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
        rows = shown[torch.randint(len(shown), (batch,), generator=generator)]
        logits = net.classify(augmented(pictures[rows], generator))
        loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {steps}: loss {float(loss.detach()):.3f}", flush=True)
    net.eval().requires_grad_(False)
    return net, float((net.classify(pictures[held]).argmax(1) == labels[held]).double().mean())


def write(net: FeatureNet, pictures: Tensor, metadata: dict[str, object], file: Path) -> None:
    """Weights and features in float16; the features are those of the rounded weights."""
    from safetensors.torch import save_file

    state = {name: value.half() for name, value in net.state_dict().items() if value.is_floating_point()}
    net.load_state_dict({name: value.float() for name, value in state.items()})
    state["pictures"] = torch.cat([net(x) for x in pictures.split(256)]).half()
    told = {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in metadata.items()}
    save_file(state, file, metadata=told)
    file.chmod(0o644)


def main() -> None:
    from . import data

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the data, as the model's training has it")
    parser.add_argument("--out", type=Path, default=FILE, help="file for the weights; by default the one that ships")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    began, cpu = time.perf_counter(), time.process_time()
    folder = data.fetch(args.work)
    emojis = data.read(folder)
    pictures = torch.from_numpy(np.ascontiguousarray(data.pictures(folder, emojis, SIDE)))
    labels = torch.tensor([CATEGORIES.index(e.category) for e in emojis])
    net, accuracy = train(pictures, labels, args.steps, args.batch, args.lr, args.seed)
    settings = {"steps": args.steps, "batch": args.batch, "lr": args.lr, "seed": args.seed}
    figures = {"held_out_accuracy": round(accuracy, 4), "held_out": len(emojis) // 10, **settings}
    names = [e.name for e in emojis]
    write(net, pictures, {"format": "pt", "names": names, "figures": figures}, args.out)
    weights = sum(p.numel() for p in net.parameters())
    print(f"held-out accuracy {accuracy:.1%} of {figures['held_out']} pictures; {weights} weights, "
          f"{args.out.stat().st_size / 1000:.0f} kB; {time.perf_counter() - began:.0f} s "
          f"({time.process_time() - cpu:.0f} s of CPU)")


if __name__ == "__main__":
    main()
