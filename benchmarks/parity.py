"""How far `ds.solve` is from its peers' own functions: prints the tables and writes docs/parity.md.

    python benchmarks/parity.py [--only mixture] [--device cuda] [--out FILE]

The cases are those of tests/test_parity.py, the faults those of tests/test_peer_faults.py. About five minutes.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import parity_cases as parity  # noqa: E402
from peer_faults import FAULTS  # noqa: E402
from peers import PROBLEMS, TOLERANCE, N, comparisons  # noqa: E402

from diffsolve.validation.site import stamp  # noqa: E402


def table(*rows: Sequence[str]) -> Iterator[str]:
    head, *rest = rows
    for row in (head, ["---"] * len(head), *rest):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def in_float64(problems: Sequence[str]) -> list[list[str]]:
    rows = []
    for case in sorted(comparisons(), key=lambda c: (c.row, c.name)):
        gaps = [f"{case.gap(name):.0e}" for name in problems]
        package = "k-diffusion" if case.peer.startswith("sample_") else "diffusers"
        rows.append([f"`{case.row}`", f"{package} `{case.peer}`", case.label, *gaps])
        print(f"{case.row:20} {case.name:60.60} {' '.join(gaps)}", flush=True)
    return rows


def in_float32(device: str) -> list[list[str]]:
    rows = []
    model, pipeline = parity.load(device)
    problem = model(parity.PROMPT, guidance=parity.GUIDANCE)
    noise = parity.unit_noise(problem, 2)
    for case in parity.CASES:
        latents, nfe = parity.ours(case, problem, noise)
        gap = parity.distance(latents, parity.theirs(case, pipeline, noise))
        solvers = list(dict.fromkeys(
            leg.solver.split("(")[0] + (f", form={leg.form!r}" if leg.form else "")
            for leg in case.legs(problem.process)))  # fmt: skip
        options = ", ".join(f"{key}={value}" for key, value in case.config.items())
        rows.append([f"`{'; '.join(solvers)}`", f"`{case.scheduler}`", options, str(nfe), f"{gap:.0e}", case.note])
        print(f"{case.name:16} {nfe:3} calls  relative RMS {gap:.1e}", flush=True)
    return rows


def faults() -> list[list[str]]:
    return [[f"`{fault.file}:{fault.line}`", fault.what, fault.followed, f"`{fault.shown}`"] for fault in FAULTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PROBLEMS, help="the problem of the first table, both by default")
    parser.add_argument("--device", default="cpu", help="of the second table")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "parity.md")
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    warnings.filterwarnings("ignore", "__array_wrap__", DeprecationWarning)  # numpy's, inside diffusers
    problems = [args.only] if args.only else PROBLEMS
    lines = [
        "# Parity with the peers\n",
        f"Written by `python benchmarks/parity.py` with diffusers {version('diffusers')}, k-diffusion 0.1.1 and torch "
        f"{torch.__version__}. Each figure is the relative RMS of our state from theirs at the end of the run.\n",
        "## In float64\n",
        f"The peer's own function on its own grid, of {N} steps where it says nothing else, with the same denoiser, "
        "start and noise: a Gaussian mixture, and the embedded model (its network in float64) with the prompt "
        f"{parity.PROMPT!r} at guidance {parity.GUIDANCE:g}. A scheduler that says float32 is handed float64 for it. "
        "k-diffusion's outputs are kept in `tests/data/` by `tests/make_k_diffusion_reference.py`. "
        f"`tests/test_parity.py` holds every figure under {TOLERANCE:g}, and every name that the catalogue gives for "
        "diffusers and k-diffusion to a comparison here; `vq_diffusion` and `VQDiffusionScheduler` work on codes, and "
        "choose the same ones in `tests/test_discrete.py`.\n",
        *table(["row", "peer", "its options", *problems], *in_float64(problems)),
        "\n## In float32, through the whole pipeline\n",
        f"The final latents of `diffusers.StableDiffusionPipeline` on the embedded model, {parity.STEPS} steps, batch "
        f"2, {args.device}, with every grid, rounding and last step said in our own words. Held under "
        f"{parity.TOLERANCE:g}.\n",
        *table(["row", "scheduler", "options", "calls", "relative RMS", "what the grid had to follow"],
               *in_float32(args.device)),
        "\n## Faults of the peers\n",
        "What the comparisons have to follow or go around, and the test that shows it (`tests/test_peer_faults.py` "
        "also finds each line of diffusers in its place).\n",
        *table(["where", "what", "here", "shown by"], *faults()),
    ]  # fmt: skip
    stamp.write("docs/parity.md", args.out, "\n".join(lines))


if __name__ == "__main__":
    main()
