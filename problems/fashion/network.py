"""A small UNet: it reads a noisy picture, its noise level and its class, and gives EDM's raw prediction."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
NO_CLASS = CLASSES  # what the unconditional call says: a class of its own


class FashionUNet(nn.Module):
    """(x (B, 1, side, side), c_noise (B,), classes (B,) int64 of 0 to 10) -> raw (B, 1, side, side).

    Squares of `patch` pixels become channels at the entrance, so that the widest grid is side/patch; each level down
    halves the side. Two 3x3 convolutions a block and one block a level either way: few operations, most weights
    where the grid is small. Attention at the lowest level.
    """

    def __init__(self, widths: tuple[int, ...] = (48, 96, 192), patch: int = 2, condition: int = 192) -> None:
        super().__init__()
        self.patch, self.condition = patch, condition
        self.classes = nn.Embedding(CLASSES + 1, condition)
        self.noise = nn.Sequential(nn.Linear(64, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.entrance = nn.Conv2d(patch**2, widths[0], 3, padding=1)
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(Block(w, w, condition) for w in widths[:-1])
        self.halving = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in pairs)
        self.low = nn.ModuleList([Block(widths[-1], widths[-1], condition), Attention(widths[-1]),
                                  Block(widths[-1], widths[-1], condition)])
        self.doubling = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairs)
        self.up = nn.ModuleList(Block(2 * w, w, condition) for w in widths[:-1])
        self.norm, self.exit = norm(widths[0]), nn.Conv2d(widths[0], patch**2, 3, padding=1)
        nn.init.zeros_(self.exit.weight)

    def forward(self, x: Tensor, c_noise: Tensor, classes: Tensor) -> Tensor:
        about = F.silu(self.noise(waves(c_noise).to(x.dtype)) + self.classes(classes))
        h = self.entrance(F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        kept = []
        for block, halve in zip(self.down, self.halving, strict=True):
            h = block(h, about)
            kept.append(h)
            h = halve(F.pixel_unshuffle(h, 2))
        for part in self.low:
            h = part(h, about)
        for block, double in reversed(list(zip(self.up, self.doubling, strict=True))):
            h = block(torch.cat((F.pixel_shuffle(double(h), 2), kept.pop()), 1), about)
        return F.pixel_shuffle(self.exit(F.silu(self.norm(h))), self.patch)


class Block(nn.Module):
    """Two convolutions beside a shortcut; noise level and class scale and shift what is between them."""

    def __init__(self, width: int, out: int, condition: int) -> None:
        super().__init__()
        self.norm, self.first = norm(width), nn.Conv2d(width, out, 3, padding=1)
        self.between, self.about = norm(out), nn.Linear(condition, 2 * out)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.short = nn.Conv2d(width, out, 1) if width != out else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, h: Tensor, about: Tensor) -> Tensor:
        scale, shift = self.about(about)[..., None, None].chunk(2, 1)
        inner = self.between(self.first(F.silu(self.norm(h))))
        return self.short(h) + self.second(F.silu(inner * (1 + scale) + shift))


class Attention(nn.Module):
    """Every place of the grid looks at every other, with heads of 48 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 48
        self.norm, self.qkv, self.out = norm(width), nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, h: Tensor, about: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(h)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return h + self.out(mixed.transpose(-1, -2).reshape(h.shape))


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, width // 16), width, eps=1e-5)


def waves(c_noise: Tensor, width: int = 64) -> Tensor:
    """Sines and cosines of c_noise, (B, width): c_noise is log(sigma)/4, some -1.6 to 1.1, so rates run 1 to 16."""
    rates = torch.exp(torch.linspace(0, math.log(16.0), width // 2, device=c_noise.device, dtype=c_noise.dtype))
    angles = c_noise[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), -1)
