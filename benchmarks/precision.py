"""What a network's dtype and the state's add in error, on the models that come along.

    python benchmarks/precision.py [-o benchmarks/results/precision.md]

A solve with network and state in float64 is the reference; the others take the same steps from the same start (noise
included), so what differs is rounding. Beside it, for scale, what the steps themselves are off a fine solution.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import Fashion, StableDiffusion
from diffsolve.validation.site import stamp

NETWORKS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
STATES = (torch.float64, torch.float32)
PROMPTS = ["red apple", "penguin"]
STEPS, FINE = 20, 120
Of = Callable[[torch.dtype], ds.ProbabilityFlow]


def cases() -> dict[str, tuple[Of, str]]:
    """A problem by its network's dtype, and a solver."""
    models = {dtype: StableDiffusion.from_pretrained("emoji", dtype=dtype) for dtype in NETWORKS}
    emoji: dict[float, Of] = {w: lambda dtype, w=w: models[dtype](PROMPTS, guidance=w) for w in (1.0, 4.0)}  # type: ignore[misc]
    fashion: Of = lambda dtype: Fashion(["sneaker", "bag"], 2.0, dtype=dtype)  # noqa: E731
    return {
        "emoji, guidance 1, dpmpp_2m": (emoji[1.0], "dpmpp_2m"),
        "emoji, guidance 4, guarded_abm": (emoji[4.0], "guarded_abm"),
        "emoji, guidance 4, euler_ancestral": (emoji[4.0], "euler_ancestral"),
        "fashion, guidance 2, dpmpp_2m": (fashion, "dpmpp_2m"),
        "fashion, guidance 2, guarded_abm": (fashion, "guarded_abm"),
    }


def off(found: Tensor, exact: Tensor) -> float:
    """The median over the samples of the relative RMS."""
    found, exact = found.double().flatten(1), exact.double().flatten(1)
    return float(((found - exact).norm(dim=1) / exact.norm(dim=1)).median())


def table(found: dict[str, tuple[Of, str]]) -> list[str]:
    names = [f"{_name(n)}, {_name(s)}" for n in NETWORKS for s in STATES if (n, s) != (torch.float64, torch.float64)]
    lines = [f"| network, state: error | {' | '.join(names)} | of {STEPS} steps |", "|" + "---|" * (len(names) + 2)]
    for title, (problem_of, solver) in found.items():
        reference = problem_of(torch.float64)
        x = reference.prior(2, seed=1)
        exact = ds.solve(reference, solver, n=STEPS, x=x, dtype=torch.float64).x
        errors = [off(ds.solve(problem_of(n), solver, n=STEPS, x=x.to(s), dtype=s).x, exact)
                  for n in NETWORKS for s in STATES if (n, s) != (torch.float64, torch.float64)]  # fmt: skip
        fine = ds.solve(problem_of(torch.float32), "dpmpp_2m", n=FINE, x=x.float()).x
        steps = "" if ds.get_solver(solver).stochastic else f"{off(exact, fine):.0e}"
        lines.append(f"| {title} | {' | '.join(f'{e:.0e}' for e in errors)} | {steps} |")
        print(lines[-1], flush=True)
    return lines


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "precision.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = table(cases())
    text = "\n".join([
        "# What precision costs\n",
        "`python benchmarks/precision.py`: medians over two pictures of the relative RMS of the result against the "
        f"same {STEPS} steps in float64 throughout. The last column is what these steps are off a fine solution.\n",
        *lines,
    ])  # fmt: skip
    stamp.write("benchmarks/results/precision.md", args.out, text)


if __name__ == "__main__":
    main()
