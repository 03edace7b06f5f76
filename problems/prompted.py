"""A model's UNet with a prompt: the network of a Text2Image."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from diffsolve import ProblemError

if TYPE_CHECKING:
    from .stable_diffusion import StableDiffusion


class Prompted:
    """A model's UNet with a prompt: (x, t) -> what it says; with a negative prompt (with the prompt, with that alone).

    conditional, negative: embeddings of the prompts, (prompts, context, features), negative of the same shape or None.
    guidance: what a network that is told its guidance is given of it, (features,).
    """

    def __init__(
        self, model: StableDiffusion, conditional: torch.Tensor, negative: torch.Tensor | None,
        guidance: torch.Tensor | None = None,
    ) -> None:
        self.model, self.conditional, self.negative = model, conditional, negative
        self.guidance = None if guidance is None else guidance.to(model.device, model.dtype)
        self._repeated: tuple[int, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        inputs, embeddings = x.to(self.model.dtype), self._embeddings(len(x))
        if self.negative is None:
            return self._unet(inputs, t, embeddings).to(x.dtype)
        raw = self._unet(torch.cat([inputs, inputs]), torch.cat([t, t]), embeddings).to(x.dtype)
        without, with_prompt = raw.chunk(2)
        return with_prompt, without

    @cached_property
    def one_side(self) -> Prompted | None:
        """The network that is told the prompt alone; None where this is one."""
        return None if self.negative is None else Prompted(self.model, self.conditional, None, self.guidance)

    def stack_key(self) -> Hashable:
        """What networks have in common whose calls go together: the model, the length of a prompt, a negative one."""
        return self.model, self.conditional.shape[1:], self.negative is None, self.guidance is None

    def stacked(self, parts: Sequence[tuple[Prompted, int]]) -> Prompted:
        """The network of a batch with so many rows of each, in this order."""
        whole = [(part, part._rounds(rows)) for part, rows in parts]
        conditional = torch.cat([part.conditional.repeat(rounds, 1, 1) for part, rounds in whole])
        negative = guidance = None
        if self.negative is not None:
            negative = torch.cat([p.negative.repeat(rounds, 1, 1) for p, rounds in whole if p.negative is not None])
        if self.guidance is not None:
            guidance = torch.cat([p.guidance.expand(rows, -1) for p, rows in parts if p.guidance is not None])
        return Prompted(self.model, conditional, negative, guidance)

    def _rounds(self, rows: int) -> int:
        """How often a batch has all the prompts. Raises ProblemError."""
        prompts = len(self.conditional)
        if rows % prompts:
            raise ProblemError(f"the batch is {rows}, but there are {prompts} prompts; expected batch={prompts} or a "
                               "multiple of it")
        return rows // prompts

    def _embeddings(self, rows: int) -> torch.Tensor:
        """The embeddings for so many rows, the negative ones first; repeated once a solve."""
        if self._repeated is None or self._repeated[0] != rows:
            rounds = self._rounds(rows)
            sides = [side for side in (self.negative, self.conditional) if side is not None]
            self._repeated = rows, torch.cat([side.repeat(rounds, 1, 1) for side in sides])
        return self._repeated[1]

    def _unet(self, x: torch.Tensor, t: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        told = None if self.guidance is None else self.guidance.expand(len(x), -1)
        model = self.model
        return model.calling(model.unet, x, t, encoder_hidden_states=embeddings, timestep_cond=told, return_dict=False)


def guidance_embedding(guidance: float, width: int) -> torch.Tensor:
    """What a network that is told its guidance w is given: sines and cosines of 1000 (w - 1) (Luo et al. 2023)."""
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))
    angles = 1000 * (guidance - 1) * rates
    return torch.cat([angles.sin(), angles.cos(), torch.zeros(width - 2 * half)])
