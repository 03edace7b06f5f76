"""As much of ComfyUI as its documented node interface: KSAMPLER, model_sampling, and the calls between them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

SAMPLERS, SCHEDULERS = ["euler", "heun"], {"normal": None}


class EPS:
    """States x_0 + sigma noise; sigmas of a table of training steps."""

    num_timesteps = 1000

    def __init__(self, process: Any) -> None:
        self.sigmas = torch.from_numpy(process.table.copy())
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def percent_to_sigma(self, percent: float) -> float:
        return float(self.sigmas[int((1 - percent) * 999)])

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        return latent + noise * sigma

    def inverse_noise_scaling(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x


class CONST:
    """States (1 - t) x_0 + t noise; sigmas are times."""

    def __init__(self, shift: float = 3.0) -> None:
        self.shift = shift
        self.sigmas = torch.tensor([self.percent_to_sigma(1 - (i + 1) / 1000) for i in range(1000)])
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def percent_to_sigma(self, percent: float) -> float:
        t = 1 - percent
        return self.shift * t / (1 + (self.shift - 1) * t)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        return sigma * noise + (1 - sigma) * latent

    def inverse_noise_scaling(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x / (1 - sigma)


class Model:
    """A MODEL: (x, sigma) -> the guided and the unconditional estimate."""

    def __init__(self, sampling: Any, estimates: Callable[[Tensor, float], tuple[Tensor, Tensor]]) -> None:
        self.model_sampling, self.estimates, self.calls = sampling, estimates, 0

    def get_model_object(self, name: str) -> Any:
        return getattr(self, name)

    def guided(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: int | None) -> Tensor:
        self.calls += 1
        assert sigma.shape == (len(x),)
        denoised, free = self.estimates(x, float(sigma[0]))
        for after in model_options.get("sampler_post_cfg_function", []):
            denoised = after({"denoised": denoised, "uncond_denoised": free, "sigma": sigma})
        return denoised


class KSAMPLER:
    """Calls a function of k-diffusion's signature."""

    def __init__(self, sampler_function: Any, extra_options: Any = None) -> None:
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, model: Model, sigmas: Tensor, noise: Tensor, latent: Tensor, seed: int, callback: Any) -> Tensor:
        guider = SimpleNamespace(inner_model=model)

        class Inpaint:
            inner_model = guider

            def __call__(
                self, x: Tensor, sigma: Tensor, denoise_mask: Any, model_options: Any = None, seed: Any = None
            ) -> Tensor:
                return model.guided(x, sigma, model_options or {}, seed)

        total = len(sigmas) - 1
        told = None if callback is None else lambda d: callback(d["i"], d["denoised"], d["x"], total)
        extra = {"model_options": {}, "seed": seed, "denoise_mask": None}
        x = model.model_sampling.noise_scaling(sigmas[0], noise, latent)
        x = self.sampler_function(Inpaint(), x, sigmas, extra_args=extra, callback=told, disable=True,
                                  **self.extra_options)  # fmt: skip
        return model.model_sampling.inverse_noise_scaling(sigmas[-1], x)


def sample_custom(
    model: Model, noise: Tensor, cfg: float, sampler: KSAMPLER, sigmas: Tensor, positive: Any, negative: Any,
    latent_image: Tensor, noise_mask: Any = None, callback: Any = None, disable_pbar: bool = False, seed: Any = None,
) -> Tensor:  # fmt: skip
    return sampler.sample(model, sigmas, noise, latent_image, seed, callback)


def prepare_noise(latent: Tensor, seed: int, inds: Any = None) -> Tensor:
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed), dtype=latent.dtype)


def install(monkeypatch: Any) -> None:
    """`import comfy.samplers` and `comfy.sample` find these."""
    comfy: Any = ModuleType("comfy")
    comfy.__path__ = []
    comfy.samplers, comfy.sample = ModuleType("comfy.samplers"), ModuleType("comfy.sample")
    comfy.samplers.KSAMPLER, comfy.samplers.SAMPLER_NAMES = KSAMPLER, SAMPLERS
    comfy.samplers.SCHEDULER_HANDLERS = SCHEDULERS
    comfy.sample.sample_custom, comfy.sample.prepare_noise = sample_custom, prepare_noise
    comfy.sample.fix_empty_latent_channels = lambda model, latent: latent
    for module in (comfy, comfy.samplers, comfy.sample):
        monkeypatch.setitem(sys.modules, module.__name__, module)
