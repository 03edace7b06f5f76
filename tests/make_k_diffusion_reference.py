"""Make tests/data/k_diffusion.npz from k-diffusion's sources: `python tests/make_k_diffusion_reference.py FOLDER`.

Get FOLDER, the package k_diffusion/, with `pip download k-diffusion==0.1.1.post1 --no-deps` and unpack the wheel.
sampling.py runs alone, since the package as a whole asks for CUDA builds: of utils.py it is given the one function that
it uses, and a library that only its other samplers need (torchsde) may be absent. What it runs is in
peers_k_diffusion.py: in float64, with our denoiser and our draws.
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
    from peers import PROBLEMS, Given
    from peers_k_diffusion import FILE, K_DIFFUSION

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder k_diffusion/ that holds sampling.py")
    sampling = load(parser.parse_args().folder)
    samplers: dict[str, Any] = {case.run.key: case.run for case in K_DIFFUSION}  # type: ignore[attr-defined]
    torch.set_default_dtype(torch.float64)  # some of its times are of the default dtype
    results = {f"{name} {key}": sampler.theirs(Given(name), sampling).numpy()
               for name in PROBLEMS for key, sampler in samplers.items()}
    np.savez_compressed(FILE, **results)
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
