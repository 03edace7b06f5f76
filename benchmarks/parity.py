"""How far `ds.solve` is from diffusers' own pipeline, case by case: prints the table and writes results/parity.md.

    python benchmarks/parity.py [--batch 2] [--device cuda] [--out FILE]

The cases are those of tests/test_parity.py.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(RESULTS.parent.parent / "tests"))

import parity_cases as parity  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "parity.md")
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    model, pipeline = parity.load(args.device)
    problem = model(parity.PROMPT, guidance=parity.GUIDANCE)
    noise = parity.unit_noise(problem, args.batch)
    lines = [
        "# Parity with diffusers\n",
        f"Final latents of `diffusers.StableDiffusionPipeline` (diffusers {version('diffusers')}) and of `ds.solve`: "
        f"same network, same initial noise, float32, guidance {parity.GUIDANCE:g}, {parity.STEPS} steps, "
        f"batch {args.batch}, {args.device}, torch {torch.__version__}.\n",
        "| scheduler | options | ds.solve | calls | relative RMS | what the grid had to follow |",
        "|---|---|---|---|---|---|",
    ]
    for case in parity.CASES:
        latents, nfe = parity.ours(case, problem, noise)
        gap = parity.distance(latents, parity.theirs(case, pipeline, noise))
        solvers = list(dict.fromkeys(
            leg.solver.split("(")[0] + (f", variable={leg.variable!r}" if leg.variable else "")
            for leg in case.legs(problem.process)))  # fmt: skip
        options = ", ".join(f"{key}={value}" for key, value in case.config.items())
        lines.append(f"| {case.scheduler} | {options} | {'; '.join(solvers)} | {nfe} | {gap:.1e} | {case.note} |")
        print(f"{case.name:16} {nfe:3} calls  relative RMS {gap:.1e}", flush=True)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
