"""What claims are tested on: problems with their starting points, and the runs made on them so far."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypedDict, Unpack

import torch

from diffsolve import ProbabilityFlow, solve
from diffsolve.grid import Final
from diffsolve.problems import GaussianMixture, StableDiffusion

from ..references import row_errors, sampling_cases

EMBEDDED = "embedded model"
NORMAL, KARRAS = "linspace", "karras"


class Options(TypedDict, total=False):
    """Of `solve`, besides the solver, the schedule and the steps."""

    nfe: int
    final: Final
    sigma_min: float
    rtol: float
    atol: float


class Bench:
    """A problem, its starting points, and the runs made on it so far.

    guided: the problem at a guidance scale. ns: step counts that it can afford, `most` where a sampler needs many;
    reference: steps that are fine enough. x: the starting points, the problem's own prior's by default. samples: over
    which a distance from the data is taken.
    """

    def __init__(
        self,
        name: str,
        guided: Callable[[float], ProbabilityFlow],
        scale: float,
        batch: int,
        ns: tuple[int, ...],
        reference: int,
        most: int = 1000,
        x: torch.Tensor | None = None,
        samples: int = 2000,
    ) -> None:
        self.name, self.guided, self.ns, self.reference, self.most = name, guided, ns, reference, most
        self.samples = samples
        self.problem = guided(scale)
        self.x = self.problem.prior(batch, seed=7) if x is None else x
        self._ends: dict[str, torch.Tensor] = {}

    def end(
        self, solver: str, schedule: str = KARRAS, n: int = 20, seed: int = 7, **options: Unpack[Options]
    ) -> torch.Tensor:
        """x at sigma 0; repeated questions are answered from memory."""
        key = json.dumps([solver, schedule, n, seed, options])
        if key not in self._ends:
            self._ends[key] = solve(self.problem, solver, schedule, n, x=self.x, seed=seed, **options).x
        return self._ends[key]

    def truth(self) -> torch.Tensor:
        """The flow's own end: a fine solution of order 2 on Karras' grid."""
        return self.end("dpmpp_2m", KARRAS, self.reference)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """The median over samples of |a - b|/|b|."""
    return float(row_errors(a, b).median())


def benches(quick: bool) -> list[Bench]:
    """A guided mixture and a plain one; and, unless quick, the embedded model with guidance."""
    cases: dict[str, GaussianMixture] = {case.name: case.problem for case in sampling_cases()}
    ns, most = ((10, 20, 50, 100, 200), 100) if quick else ((10, 20, 50, 100, 200, 400), 1000)
    samples = 500 if quick else 2000

    def mixture(name: str) -> Callable[[float], ProbabilityFlow]:
        return lambda scale: cases[name].guided(1, scale) if scale != 1 else cases[name]

    made = [
        Bench("gmm2", mixture("gmm2"), 1.0, 64, ns, 2000, most, samples=samples),
        Bench("gmm64 cfg", mixture("gmm64"), 7.5, 64, ns, 2000, most, samples=samples),
    ]
    if not quick:
        prompts = ["red apple", "penguin", "rocket", "crown"]
        model = StableDiffusion.from_pretrained("emoji")
        made.append(Bench(EMBEDDED, lambda w: model(prompts, guidance=w), 4.0, len(prompts), (10, 20, 50, 100), 400))
    return made
