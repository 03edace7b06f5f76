"""A small transformer that reads noisy codes and their timestep, and says what the clean codes may be."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class CodeTransformer(nn.Module):
    """(x (B, side, side) int64 codes, t (B,) int64) -> logits (B, classes, side, side).

    A token is a patch of `patch` x `patch` codes; the timestep scales and shifts every block's input, as in the
    diffusion transformer (Peebles & Xie 2023, arXiv 2212.09748, adaLN).
    """

    def __init__(
        self, classes: int, side: int = 16, patch: int = 2, width: int = 128, depth: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        self.classes, self.side, self.patch, self.width = classes, side, patch, width
        self.codes = nn.Embedding(classes + 1, width // patch**2)
        self.places = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes * patch**2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        size, patches = self.patch, self.side // self.patch
        tokens = x.reshape(-1, patches, size, patches, size).permute(0, 1, 3, 2, 4).reshape(len(x), patches**2, -1)
        h = self.codes(tokens).flatten(2) + self.places
        told = self.time(waves(t, self.width))
        for block in self.blocks:
            h = block(h, told)
        logits = self.head(self.norm(h)).reshape(len(x), patches, patches, size, size, self.classes)
        return logits.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.classes, self.side, self.side)


class Block(nn.Module):
    """Attention and a perceptron, each on the normalised state, scaled and shifted by the timestep."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.told = nn.Linear(width, 4 * width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        scale, shift, scale2, shift2 = self.told(told).unsqueeze(1).chunk(4, -1)
        q, k, v = self.attention(self.norm(h) * (1 + scale) + shift).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return h + self.perceptron(self.norm(h) * (1 + scale2) + shift2)


def waves(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of t, (B, width): frequencies from 1 down to 1/1000."""
    rates = torch.exp(-math.log(1000.0) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), -1)
