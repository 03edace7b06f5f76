"""Steps chosen by their error: calls to a relative RMS error, by row: `python benchmarks/adaptive.py`.

The mixtures of `sampling_cases`, from the prior to sigma_min, tolerance scanned; "fixed" is the best of some pairs of
row and grid in hindsight, number of steps scanned too. A figure is the least number of calls with so small an error.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch

import diffsolve as ds
from diffsolve.validation.problems import Case
from diffsolve.validation.references import reference, sampling_cases

CASES, TARGETS = ("gmm2", "gmm64", "gmm2 cfg", "gmm64 cfg"), (1e-1, 1e-2, 1e-3, 1e-4)
ROWS = ("adaptive_abm", "dpm_adaptive", "dpm_solver_3", "bs23", "dopri5", "dopri5(form=sigma)")
FIXED = tuple((row, grid) for grid in ("karras", "karras(rho=12)") for row in (
    "damped_abm", "damped_abm(order=5, reach=2, trust=0.67)", "lms(order=4, form=v)", "dpmpp_2m"))  # fmt: skip
TOLERANCES = [10 ** (-k / 4) for k in range(2, 29)]
COUNTS = (5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50, 65, 80, 100, 125, 150)


def scanned(case: Case, row: str, starts: int) -> Iterator[tuple[int, float]]:
    """(calls, error) by tolerance."""
    for rtol in TOLERANCES:
        solution = ds.solve(case.flow, row, x=case.x[:starts], rtol=rtol, nfe=400, final="none")
        if solution.reason != "end":
            return
        yield solution.nfe, error(case, solution.x)


def fixed(case: Case, starts: int) -> Iterator[tuple[int, float]]:
    for row, grid in FIXED:
        for nfe in COUNTS:
            yield nfe, error(case, ds.solve(case.flow, row, grid, nfe=nfe, x=case.x[:starts], final="none").x)


def error(case: Case, x: torch.Tensor) -> float:
    exact = reference(case).state[: len(x)]
    return float((x.double() - exact).norm() / exact.norm())


def calls(found: list[tuple[int, float]]) -> list[float]:
    return [min((nfe for nfe, e in found if e <= target), default=math.inf) for target in TARGETS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", default=ROWS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--starts", type=int, default=256)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for case in sampling_cases(given.seed) if case.name in CASES]
    lines = [f"| row | {' | '.join(CASES)} |", "|---" * (1 + len(CASES)) + "|"]
    with torch.no_grad():
        for row in [*given.rows, "fixed"]:
            by_case = {}
            for case in cases:
                made = fixed(case, given.starts) if row == "fixed" else scanned(case, row, given.starts)
                by_case[case.name] = " ".join(f"{n:g}" for n in calls(list(made)))
            lines.append(f"| {row} | {' | '.join(by_case[name] for name in CASES)} |")
            print(lines[-1], flush=True)
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
