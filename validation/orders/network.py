"""The embedded network as an order problem: in float64 throughout, on a process that is smooth in t."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffsolve import ContinuousVP, NetworkDenoiser, ProbabilityFlow
from diffsolve.problems import StableDiffusion
from diffsolve.process import F

from ..problems import Case

RANGE = (1.2, 1.0)  # sigma: 36 timesteps. The network varies from one to the next, so its order shows below that length
STEPS, FEW = (32, 64, 128, 256), (32, 48, 64, 96)  # few where the order is high: the reference is met soon


@dataclass(frozen=True)
class _Smooth(ContinuousVP):
    """Stable Diffusion's betas as a function of a continuous t; the discrete table is linear in between, with kinks."""

    schedule: str = "scaled_linear"
    beta_min: float = 0.85
    beta_max: float = 12.0

    def c_noise(self, sigma: F) -> F:
        return 999 * self.t(sigma)


class _Time(torch.nn.Module):
    """The UNet's sinusoidal embedding of t, which diffusers computes in float32: a rounding of t that has no order."""

    rates: Tensor

    def __init__(self, width: int, flip: bool, shift: float) -> None:
        super().__init__()
        self.flip = flip
        places = torch.arange(width // 2, dtype=torch.float64) / (width // 2 - shift)
        self.register_buffer("rates", torch.exp(-math.log(10000) * places))

    def forward(self, t: Tensor) -> Tensor:
        angles = t.double()[:, None] * self.rates
        parts = (angles.cos(), angles.sin()) if self.flip else (angles.sin(), angles.cos())
        return torch.cat(parts, -1)


@lru_cache
def network(prompt: str = "red apple", seed: int = 0, rtol: float = 1e-13) -> Case:
    """The embedded UNet drawing `prompt`, without guidance, against a DOP853 reference of relative tolerance `rtol`."""
    model = StableDiffusion.from_pretrained("emoji", dtype="float64")
    config = model.unet.config
    model.unet.time_proj = _Time(config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
    drawing = model(prompt, guidance=1)
    assert isinstance(drawing.denoiser, NetworkDenoiser)
    flow = ProbabilityFlow(drawing.denoiser.network, _Smooth(), "eps", shape=drawing.shape, dtype=torch.float64)
    start, end = RANGE
    return Case("embedded network", flow, start, end, flow.prior(1, seed, start), rtol=rtol, atol=rtol / 10)
