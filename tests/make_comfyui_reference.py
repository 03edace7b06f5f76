"""Make tests/data/comfyui.npz from ComfyUI's sources: `python tests/make_comfyui_reference.py FOLDER`.

FOLDER is the package comfy/ of a checkout (v0.3.64). Its k_diffusion/sampling.py runs alone, beside what it imports of
its own folder; of the rest it is given the two names that it reads. What it runs is in peers_comfyui.py: in float64,
with our denoiser and our draws.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Const:
    """What ComfyUI calls the sampling of a flow model."""

    sigma_min, sigma_max = torch.tensor(0.001), torch.tensor(1.0)

    def percent_to_sigma(self, percent: float) -> float:
        return 1 - percent


class Eps(Const):
    sigma_min, sigma_max = torch.tensor(0.03), torch.tensor(14.6)


def load(folder: Path) -> Any:
    for name, path in (("comfy", folder), ("comfy.k_diffusion", folder / "k_diffusion")):
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [str(path)]
    top: Any = sys.modules["comfy"]
    top.model_sampling = sys.modules["comfy.model_sampling"] = ModuleType("comfy.model_sampling")
    top.model_sampling.CONST = type("CONST", (), {})
    top.model_patcher = sys.modules["comfy.model_patcher"] = ModuleType("comfy.model_patcher")
    top.model_patcher.set_model_options_post_cfg_function = _after_guidance
    top.utils = ModuleType("comfy.utils")
    for name in ("utils", "deis", "sa_solver", "sampling"):
        file = folder / "k_diffusion" / f"{name}.py"
        spec: Any = importlib.util.spec_from_file_location(f"comfy.k_diffusion.{name}", file)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        setattr(sys.modules["comfy.k_diffusion"], name, module)
        spec.loader.exec_module(module)
    return sys.modules["comfy.k_diffusion.sampling"]


def _after_guidance(options: dict[str, Any], function: Any, disable_cfg1_optimization: bool = False) -> dict[str, Any]:
    return {**options, "sampler_post_cfg_function": [*options.get("sampler_post_cfg_function", []), function]}


class Model:
    """A model as a sampler of ComfyUI is given one."""

    def __init__(self, flow: bool) -> None:
        const: Any = sys.modules["comfy.model_sampling"].CONST  # type: ignore[attr-defined]
        self.flow, sampling = flow, type("Sampling", (Const, const) if flow else (Eps,), {})()
        patcher = SimpleNamespace(get_model_object=lambda _: sampling)
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling), model_patcher=patcher)

    def __call__(self, x: Tensor, sigma: Tensor, model_options: Any = None, **_: Any) -> Tensor:
        from peers_comfyui import problem

        level = float(sigma[0])
        at = (x / (1 - level), level / (1 - level)) if self.flow else (x, level)
        denoised, unconditional, _ = problem().denoiser(*at)
        for function in (model_options or {}).get("sampler_post_cfg_function", []):
            denoised = function({"denoised": denoised, "uncond_denoised": unconditional})
        return denoised


def main() -> None:
    from peers_comfyui import CASES, FILE

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder comfy/ that holds k_diffusion/")
    sampling = load(parser.parse_args().folder)
    torch.set_default_dtype(torch.float64)
    np.savez_compressed(FILE, **{case.key: case.theirs(sampling, Model).numpy() for case in CASES})
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
