"""Make tests/data/k_diffusion_stochastic.npz: `python tests/make_k_diffusion_stochastic.py FOLDER`.

As make_k_diffusion_reference.py, whose FOLDER it takes, for the samplers that add noise. Each is given the same draws:
draws[i, 0] over the whole of step i, draws[i, 1] up to its inner stage.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_k_diffusion_reference import load

STEPS, ROWS, WIDTH = 12, 6, 8
ETAS = (1.0, 0.5)
BY_ETA = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde")
CHURN = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 10.0, "s_noise": 1.003}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder k_diffusion/ that holds sampling.py")
    sampling = load(parser.parse_args().folder)
    rng = np.random.default_rng(1)
    means, stds = rng.normal(size=(4, WIDTH)), np.array([0.1, 0.2, 0.4, 0.8])
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    x, draws = 14.6 * rng.normal(size=(ROWS, WIDTH)), rng.normal(size=(STEPS, 2, ROWS, WIDTH))
    ramp = np.linspace(0, 1, STEPS)
    sigmas = np.append((14.6 ** (1 / 7) + ramp * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7, 0.0)

    def denoiser(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        at, total = y.numpy()[:, None], stds**2 + sigma.numpy()[:, None] ** 2
        log = np.log(weights) - ((at - means) ** 2).sum(-1) / (2 * total) - WIDTH / 2 * np.log(total)
        share = np.exp(log - log.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        centre = means + (stds**2 / total)[..., None] * (at - means)
        return torch.from_numpy((share[..., None] * centre).sum(1))

    def noise(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        step = int(np.abs(sigmas - float(start)).argmin())
        return torch.from_numpy(draws[step, int(abs(sigmas[step + 1] - float(end)) > 1e-9)])

    def run(name: str, **options: Any) -> np.ndarray:
        sampler = getattr(sampling, f"sample_{name}")
        return sampler(denoiser, torch.from_numpy(x), torch.from_numpy(sigmas), disable=True, **options).numpy()

    results = {f"{name} {eta}": run(name, eta=eta, noise_sampler=noise) for name in BY_ETA for eta in ETAS}
    results["dpmpp_sde 1.0"] = run("dpmpp_sde", noise_sampler=noise)
    results["dpmpp_sde r 1.0"] = run("dpmpp_sde", noise_sampler=noise, r=0.4)
    for eta in ETAS:
        results[f"dpmpp_2m_sde heun {eta}"] = run("dpmpp_2m_sde", eta=eta, noise_sampler=noise, solver_type="heun")
    for name in ("euler", "heun", "dpm_2"):
        in_turn = iter(torch.from_numpy(draws[:, 0]))
        torch.randn_like = lambda *_, in_turn=in_turn: next(in_turn)  # these three have no noise_sampler
        results[f"{name} churn"] = run(name, **CHURN)
    file = Path(__file__).parent / "data" / "k_diffusion_stochastic.npz"
    np.savez_compressed(file, means=means, stds=stds, weights=weights, x=x, draws=draws, sigmas=sigmas, **results)
    print(f"{file.name}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
