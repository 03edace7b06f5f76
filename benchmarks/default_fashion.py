"""The default on the network of Fashion-MNIST, beside other rows: `python benchmarks/default_fashion.py`.

Median over samples of the relative distance from the flow (150 steps of 2M on karras) at sigma 0, by guidance and
number of calls: the tables in docs/default.md. On karras, and in the flow-matched form evenly in its time.
"""

from __future__ import annotations

import torch

import diffsolve as ds
from diffsolve.problems import Fashion
from diffsolve.validation.references import row_errors

ROWS = ("guarded_abm", "damped_abm", "euler", "dpmpp_2m", "unipc", "ipndm")
FORMS = {"edm": "karras", "flow": "linspace"}
LABELS, CALLS = ["bag", "ankle boot", "dress", "trouser"], (5, 6, 8, 10, 15, 20)


def main() -> None:
    torch.set_num_threads(1)
    for form, schedule in FORMS.items():
        print(f"\n| {form}, {schedule}: guidance, calls | {' | '.join(ROWS)} |\n|---|{'---|' * len(ROWS)}")
        for guidance in (1.0, 2.0, 4.0):
            problem = Fashion(LABELS, guidance, process=form)
            exact = ds.solve(problem, "dpmpp_2m", "karras", 150, batch=8, seed=5).x.double()
            for n in CALLS:
                ends = [ds.solve(problem, row, schedule, n, batch=8, seed=5).x for row in ROWS]
                found = " | ".join(f"{row_errors(x, exact).median().item():.1e}" for x in ends)
                print(f"| {guidance:g}, {n} | {found} |", flush=True)


if __name__ == "__main__":
    main()
