"""Make tests/data/k_diffusion.npz from k-diffusion's sources: `python tests/make_k_diffusion_reference.py FOLDER`.

Get FOLDER, the package k_diffusion/, with `pip download k-diffusion==0.1.1.post1 --no-deps` and unpack the wheel.
sampling.py runs alone, since the package as a whole asks for CUDA builds: of utils.py it is given the one function that
it uses, and a library that only its other samplers need (torchsde) may be absent. The denoiser is written here and
shares no code with diffsolve.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

SAMPLERS = ("euler", "heun", "lms", "dpm_2", "dpmpp_2m", "euler_ancestral")
STEPS, ROWS, WIDTH = 12, 6, 8


def load(folder: Path) -> Any:
    package = ModuleType("k_diffusion")
    package.__path__ = [str(folder)]
    utils = ModuleType("k_diffusion.utils")
    wanted = [node for node in ast.parse((folder / "utils.py").read_text(encoding="utf-8")).body
              if isinstance(node, ast.FunctionDef) and node.name == "append_dims"]
    exec(compile(ast.Module(wanted, []), "utils.py", "exec"), utils.__dict__)
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    for name in ("torchsde", "torchdiffeq"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].odeint = None  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", folder / "sampling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder k_diffusion/ that holds sampling.py")
    sampling = load(parser.parse_args().folder)
    rng = np.random.default_rng(0)
    means, stds = rng.normal(size=(4, WIDTH)), np.array([0.1, 0.2, 0.4, 0.8])
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    x, draws = 14.6 * rng.normal(size=(ROWS, WIDTH)), rng.normal(size=(STEPS, ROWS, WIDTH))
    ramp = np.linspace(0, 1, STEPS)
    sigmas = np.append((14.6 ** (1 / 7) + ramp * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7, 0.0)

    def denoiser(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        at, total = y.numpy()[:, None], stds**2 + sigma.numpy()[:, None] ** 2
        log = np.log(weights) - ((at - means) ** 2).sum(-1) / (2 * total) - WIDTH / 2 * np.log(total)
        share = np.exp(log - log.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        centre = means + (stds**2 / total)[..., None] * (at - means)
        return torch.from_numpy((share[..., None] * centre).sum(1))

    results = {}
    for name in SAMPLERS:
        noise = iter(torch.from_numpy(draws))
        options = {"noise_sampler": lambda *_, noise=noise: next(noise)} if name.endswith("ancestral") else {}
        run = getattr(sampling, f"sample_{name}")
        results[name] = run(denoiser, torch.from_numpy(x), torch.from_numpy(sigmas), disable=True, **options).numpy()
    file = Path(__file__).parent / "data" / "k_diffusion.npz"
    file.parent.mkdir(exist_ok=True)
    np.savez_compressed(file, means=means, stds=stds, weights=weights, x=x, draws=draws, sigmas=sigmas, **results)
    print(f"{file.name}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
