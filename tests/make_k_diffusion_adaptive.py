"""Make tests/data/k_diffusion_adaptive.npz: `python tests/make_k_diffusion_adaptive.py FOLDER`.

FOLDER as in make_k_diffusion_reference.py. sample_dpm_adaptive and sample_dpm_fast in float64, on a Gaussian mixture;
the i-th step that is kept is given the i-th noise of a list.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_k_diffusion_reference import load
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import GaussianMixture

ROWS, NOISES = 4, 40
ADAPTIVE: list[dict[str, Any]] = [
    *({"order": order, "rtol": tol, "atol": tol} for order in (2, 3) for tol in (5e-2, 1e-2, 1e-3, 1e-4)),
    {},
    {"rtol": 0.01, "h_init": 2.0},
    {"rtol": 1e-3, "atol": 1e-4, "pcoeff": 0.4, "icoeff": 0.3},
    {"rtol": 1e-2, "atol": 1e-2, "pcoeff": 0.1, "icoeff": 0.6, "dcoeff": 0.1, "accept_safety": 0.7},
    {"eta": 1.0},
    {"order": 2, "eta": 1.0, "rtol": 0.01, "atol": 0.01},
    {"order": 3, "eta": 0.4, "rtol": 0.02, "atol": 0.02},
]
FAST: list[dict[str, Any]] = [
    *({"n": n} for n in range(5, 14)),
    *({"n": n, "eta": 0.7} for n in (9, 10, 11)),
]
SEEDS = (3, 8)


def mixture() -> GaussianMixture:
    means = ds.normals(5, (0,), 1, (4, 6), torch.float64, "cpu")[0] * 1.5
    return GaussianMixture(means, [0.1, 0.2, 0.4, 0.8], [4, 3, 2, 1], "edm")


def spelt(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder k_diffusion/ that holds sampling.py")
    sampling = load(parser.parse_args().folder)
    torch.set_default_dtype(torch.float64)  # its times are of the default dtype
    problem = mixture()
    noise = np.random.default_rng(0).normal(size=(NOISES, ROWS, 6))
    results: dict[str, np.ndarray] = {"noise": noise}
    top, bottom = problem.span

    def denoiser(y: Tensor, sigma: Tensor) -> Tensor:
        return problem.denoise(y, float(sigma[0]))

    def common() -> dict[str, Any]:
        draws = itertools.cycle(torch.from_numpy(noise))  # a run with noise has fewer steps than there are
        return {"disable": True, "noise_sampler": lambda *_: next(draws)}

    for seed in SEEDS:
        x = problem.prior(ROWS, seed)
        for options in ADAPTIVE:
            nodes = [top]

            def kept(info: dict[str, Any], nodes: list[float] = nodes) -> None:
                if info["n_accept"] == len(nodes):
                    nodes.append(float(info["sigma"]))

            end, info = sampling.sample_dpm_adaptive(
                denoiser, x, bottom, top, callback=kept, return_info=True, **common(), **options
            )
            name = f"{seed} adaptive {spelt(options)}"
            results[f"{name} x"], results[f"{name} nodes"] = end.numpy(), np.array(nodes)
            results[f"{name} counts"] = np.array([info[key] for key in ("nfe", "n_accept", "n_reject")])
        for options in FAST:
            results[f"{seed} fast {spelt(options)} x"] = sampling.sample_dpm_fast(
                denoiser, x, bottom, top, **common(), **options
            ).numpy()
    file = Path(__file__).parent / "data" / "k_diffusion_adaptive.npz"
    np.savez_compressed(file, **results)
    print(f"{file.name}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
