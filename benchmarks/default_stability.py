"""What guidance does to the default and to others on a frozen linear problem: `python benchmarks/default_stability.py`.

D = D_u + w (D_c - D_u) where D_u has the Jacobian 1 and D_c 0: that of D is 1 - w, and every deviation from the flow
falls as sigma^w. Drawn is how large a deviation has grown at most on the way, by w, on karras from 14.6 to 0.03;
the flow's stays at 1. A sample of the batch is a guidance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import diffsolve as ds
from diffsolve.denoiser import Output
from diffsolve.problems.guidance import Guided
from diffsolve.validation.palette import COLOURS

ROWS = "guarded_abm", "damped_abm", "euler", "dpmpp_2m", "unipc"
CALLS, GUIDANCE = (10, 20, 30), torch.linspace(1, 15, 96).double()[:, None]
LEAST, MOST = 0.7, 1e4


def sides(y: Tensor, sigma: float) -> Output:
    """D_c and D_u about a flow that ends at 0."""
    return Output(0 * y, y)


def growth(row: str, n: int) -> Tensor:
    """The largest |y| on the way over the first, of each guidance."""
    inside = Guided(sides, 1.0)
    inside.scale = GUIDANCE  # one a sample
    problem = ds.ProbabilityFlow(denoiser=inside, shape=(1,), dtype=torch.float64)
    run = ds.start(problem, row, "karras", n=n, x=problem.prior(1, 0).expand(len(GUIDANCE), 1).clone(), final="none")
    sizes = [visit.x.abs() for visit in run]
    return torch.stack(sizes).amax(0) / sizes[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/default_stability.png"))
    given = parser.parse_args()
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(CALLS), sharey=True)
    for panel, n in zip(panels, CALLS, strict=True):
        for row, colour in zip(ROWS, COLOURS, strict=False):
            panel.semilogy(GUIDANCE[:, 0], growth(row, n)[:, 0].clamp(LEAST, MOST), color=colour, label=row)
        panel.set(title=f"{n} calls", xlabel="guidance", ylim=(LEAST, MOST))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("largest deviation over the first")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ROWS), frameon=False)
    figure.savefig(given.output, dpi=90)


if __name__ == "__main__":
    main()
