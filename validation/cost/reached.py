"""What `solve(problem, quality=...)` delivers: asked, estimated and true errors, and what they cost.

The truth is the end of very many steps, the last one to sigma = 0 included. Mixtures are solved a sample at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from diffsolve import ProbabilityFlow, solve
from diffsolve.problems import Fashion, StableDiffusion

from ..references import row_errors, sampling_cases

SEEDS, STARTS, PRESETS = (60, 61, 62), 4, ("draft", "good", "exact")
MIXTURE, NETWORK = ("damped_abm(order=5, reach=2, trust=0.67)", 150), ("guarded_abm", 100)  # of the truth
LOW, HIGH = 0.3, 3.0
SCALES = {"emoji": (1.0, 4.0, 7.5), "fashion": (1.0, 2.0, 4.0)}
LABELS = {"emoji": ("sunflower", "volcano"), "fashion": ("sandal", "coat")}
GROUPS = ("mixtures", "mixtures, guidance 7.5", "emoji", "emoji, guidance 4 and 7.5", "fashion",
          "fashion, guidance 2 and 4")  # fmt: skip


@dataclass(frozen=True)
class Solved:
    """One solve. grid: the calls of what was delivered; calls: of all."""

    group: str
    preset: str
    asked: float
    estimate: float
    delivered: float
    grid: int
    calls: int


def solves(
    problem: ProbabilityFlow, group: str, x: Tensor, truth: tuple[str, int], presets: Sequence[str]
) -> Iterator[Solved]:
    """Of one problem from x (B, *shape), a solve for each preset."""
    exact = solve(problem, truth[0], n=truth[1], x=x).x.double()
    for preset in presets:
        made = solve(problem, x=x, quality=preset)
        delivered = float(row_errors(made.x, exact).square().mean().sqrt())
        told = made.stats
        yield Solved(group, preset, told["asked"], told["estimate"], delivered, told["calls"], made.nfe)


def of_mixtures(presets: Sequence[str] = PRESETS, seeds: Sequence[int] = SEEDS) -> Iterator[Solved]:
    for seed in seeds:
        for case in sampling_cases(seed, STARTS):
            for i in range(STARTS):
                group = GROUPS[case.name.endswith("cfg")]
                yield from solves(case.flow, group, case.x[i : i + 1], MIXTURE, presets)


def of_networks(presets: Sequence[str] = PRESETS, only: Sequence[str] = ("emoji", "fashion")) -> Iterator[Solved]:
    for name in only:
        make = StableDiffusion.from_pretrained("emoji") if name == "emoji" else Fashion
        for scale in SCALES[name]:
            group = name if scale == 1 else next(g for g in GROUPS if g.startswith(f"{name}, "))
            for label in LABELS[name]:
                problem = make(label, guidance=scale)
                yield from solves(problem, group, problem.prior(1, 7), NETWORK, presets)


def page(found: Sequence[Solved], command: str) -> str:
    """The table as Markdown, with what all solves together come to."""
    lines = ["# What a quality delivers", "", f"    {command}", "", INTRODUCTION, "", *_table(found), "", _sums(found)]
    return "\n".join(lines) + "\n"


INTRODUCTION = f"""\
`solve(problem, quality="good")` takes as many steps as an error needs: the relative distance from the end of the same
flow in infinitely many steps, root mean square over the samples of the solve. draft is 0.1, good 0.02, exact 0.002, and
any number may be asked for. Of a few runs the finest measures the others: its distance is their error. What is
delivered is the run whose error is nearest to what was asked, at most twice it as measured: not the finest,
whose own error nothing has measured, and which is better than was asked. So a solve costs some times the calls of the
run that it delivers. It finds their number, `solution.stats["calls"]`, with which the next pictures are made at once
(nfe=); the last of `solution.stats["runs"]` has that of the finest. The estimate is in `solution.stats` too, of each
sample as well, and nfe counts the calls of all runs. Below, mixtures (seeds {", ".join(map(str, SEEDS))}) and networks
are solved one sample at a time; of these, nothing was chosen on any but Fashion at guidance 1 and 4. Calls and errors
are medians, shares are of solves: estimates within {LOW:g} to {HIGH:g} of the true error ("near"), errors at most
{HIGH:g} times what was asked ("kept"), and within {LOW:g} to {HIGH:g} times it ("met")."""


def _table(found: Sequence[Solved]) -> Iterator[str]:
    yield "| problems | quality | solves | calls of the run | of all runs | error, largest | near | kept | met |"
    yield "|" + "---|" * 9
    for group in GROUPS:
        for preset in PRESETS:
            rows = [s for s in found if (s.group, s.preset) == (group, preset)]
            if rows:
                near, kept, met = _shares(rows)
                yield (f"| {group} | {preset} | {len(rows)} | {median(s.grid for s in rows):g} | "
                       f"{median(s.calls for s in rows):g} | {median(s.delivered for s in rows):.1e}, "
                       f"{max(s.delivered for s in rows):.1e} | {near:.0%} | {kept:.0%} | {met:.0%} |")  # fmt: skip


def _shares(rows: Sequence[Solved]) -> tuple[float, float, float]:
    """Of solves: whose estimate is near the truth; whose error is at most 3 of what was asked; and at least 0.3."""
    near = sum(LOW <= s.estimate / s.delivered <= HIGH for s in rows)
    kept = sum(s.delivered <= HIGH * s.asked for s in rows)
    met = sum(LOW <= s.delivered / s.asked <= HIGH for s in rows)
    return near / len(rows), kept / len(rows), met / len(rows)


def _sums(found: Sequence[Solved]) -> str:
    near, kept, met = _shares(found)
    dear = median(s.calls / s.grid for s in found)
    inside = f"within {LOW:g} to {HIGH:g}"
    return (
        f"All {len(found)} solves: the estimate is {inside} of the true error in {near:.1%}. That error is at most "
        f"{HIGH:g} times what was asked in {kept:.1%}; it is {inside} of it in {met:.1%}. All runs take "
        f"{dear:.1f} times the calls of the one delivered (median)."
    )


@torch.no_grad()
def reached(networks: bool = True, progress: Callable[[str], object] = bool) -> list[Solved]:
    """All of it. networks: on the embedded ones too, some minutes."""
    found = []
    for one in (*of_mixtures(), *(of_networks() if networks else ())):
        found.append(one)
        progress(f"{len(found)}: {one.group}")
    return found
