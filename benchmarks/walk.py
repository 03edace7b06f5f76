"""The walk of a solve: how many files, functions and calls of this project it passes through, by sys.setprofile.

    python benchmarks/walk.py [--markdown benchmarks/results/walk.md]

A call is counted where a function of diffsolve, problems, solvers or validation is entered (a generator, each time that
it goes on). What is walked through has been walked once before, so that imports and caches do not count.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import diffsolve as ds
from diffsolve.validation.site import stamp

ROOTS = {Path(module.__file__).parent for module in (ds, ds.problems, ds.solvers)}


@cache
def is_own(file: str) -> bool:
    """Whether it is a file of the product."""
    return any(root in Path(file).parents for root in ROOTS)


def walk(task: Callable[[], object]) -> Counter[tuple[str, str]]:
    """The calls of each (file, function) of the product while `task` runs, once it has been run before."""
    task()
    calls: Counter[tuple[str, str]] = Counter()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            code = frame.f_code
            if is_own(code.co_filename):
                calls[code.co_filename, code.co_qualname] += 1

    sys.setprofile(note)
    try:
        task()
    finally:
        sys.setprofile(None)
    return calls


def tasks() -> dict[str, Callable[[], object]]:
    problem = ds.problems.StableDiffusion.from_pretrained("emoji")("red apple", guidance=4)
    return {
        "dpmpp_2m, n=20, to pictures": lambda: ds.solve(problem, "dpmpp_2m", "karras", 20).images(),
        "dpmpp_2m, nfe=20": lambda: ds.solve(problem, "dpmpp_2m", "karras", nfe=20),
        "dpmpp_2m_sde, n=20": lambda: ds.solve(problem, "dpmpp_2m_sde", "karras", 20),
        "dpm_solver_3, rtol=0.05": lambda: ds.solve(problem, "dpm_solver_3", "karras", rtol=0.05),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    parser.add_argument("--detail", action="store_true", help="the calls of each function of the first walk")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| solve, embedded model | files | functions | calls |", "|---|---|---|---|"]
    for name, task in tasks().items():
        calls = walk(task)
        lines.append(f"| {name} | {len({file for file, _ in calls})} | {len(calls)} | {calls.total()} |")
        if options.detail:
            for (file, function), count in calls.most_common():
                print(f"{count:6d} {Path(file).name}:{function}")
            break
    table = "\n".join(lines)
    print(table)
    if options.markdown:
        text = "# The walk of a solve\n\nFunctions of this project that are entered: `python benchmarks/walk.py`.\n\n"
        stamp.write("benchmarks/results/walk.md", options.markdown, f"{text}{table}")


if __name__ == "__main__":
    main()
