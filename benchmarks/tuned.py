"""What a grid that is fitted to a model gains: ten steps, on prompts and noise that it has not seen.

    python benchmarks/tuned.py [--only emoji] [-n 10] [-o benchmarks/results/tuned.md]

`diffsolve tune` on the two models that come along, with the prompts that it has of them. Errors are at the end,
relative to the flow's own, medians over the samples.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import diffsolve as ds
from diffsolve.problems import Fashion, StableDiffusion
from diffsolve.validation.cost.tune import RULES, STARTS, TunedGrid, tune
from diffsolve.validation.site import stamp
from diffsolve.validation.site.tune import EMBEDDED

SOLVERS = ("ddim", "dpmpp_2m", "guarded_abm")


def problems(model: str) -> Callable[[list[str], float], ds.ProbabilityFlow]:
    if model == "fashion":
        return Fashion
    loaded = StableDiffusion.from_pretrained(model)
    return lambda prompts, guidance: loaded(prompts, guidance=guidance)


def row(model: str, name: str, guidance: float, found: TunedGrid) -> str:
    errors = " | ".join(f"{found.held[rule]:.1e}" for rule in (*RULES, "tuned"))
    return f"| {model}, {guidance:g} | {name} | {errors} | {found.gain:.2f} | {found.solves} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(EMBEDDED), help="one model; all of them otherwise")
    parser.add_argument("-n", type=int, default=10, help="steps")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "tuned.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = [f"| model, guidance | solver | {' | '.join(RULES)} | tuned | to the better of {' and '.join(RULES[:2])} | "
             "solves |", "|" + "---|" * (len(RULES) + 5)]  # fmt: skip
    for model in [args.only] if args.only else EMBEDDED:
        guidance, fitted, held = EMBEDDED[model]
        of = problems(model)
        for name in SOLVERS:
            found = tune(of(fitted, guidance), name, args.n, held=of(held, guidance))
            lines.append(row(model, name, guidance, found))
            print(lines[-1], flush=True)
    text = "\n".join([
        "# What a fitted grid gains\n",
        f"`python benchmarks/tuned.py`: {args.n} steps, fitted to {STARTS} starts by `diffsolve tune`; the "
        "errors at the end, relative to the flow's, medians over as many other starts of other prompts.\n",
        *lines,
    ])  # fmt: skip
    stamp.write("benchmarks/results/tuned.md", args.out, text)


if __name__ == "__main__":
    main()
