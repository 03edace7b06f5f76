"""The solver's own work a network call, of every row, in units of a plain Euler loop in the same run.

    python benchmarks/step.py [--rounds 7] [--only euler,dpmpp_2m] [-o results/step.md]

Nothing is computed in the call: a denoiser, and a network, that hand out one tensor. A whole `solve` of 20 steps on
the Karras grid is timed, its start included, over its calls; one thread, float32, the least CPU time of some rounds in
which a row and the plain loop take turns. Beside it diffusers' scheduler of the same method, set_timesteps included,
and 2M by hand.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers_step import METHODS, seconds
from torch import Tensor

import diffsolve as ds
from diffsolve.execution.instructions import Ask, Measure, Pass, Plan
from diffsolve.execution.native import native
from diffsolve.validation.site import stamp

SHAPES, STEPS = ((4, 4, 64, 64), (1, 16, 128, 128)), 20


class Free(ds.ProbabilityFlow):
    """A problem whose denoiser hands out one tensor."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(None, shape=x.shape[1:])
        object.__setattr__(self, "answer", x.clone())

    def denoise(self, y: Tensor, sigma: Any) -> Tensor:
        return self.answer  # type: ignore[attr-defined]


def plain_euler(problem: Free, nodes: list[float], x: Tensor) -> Tensor:
    for sigma, end in pairwise(nodes):
        d = (x - problem.denoise(x, sigma)) / sigma
        x = x + d * (end - sigma)
    return x


def plain_2m(problem: Free, nodes: list[float], x: Tensor) -> Tensor:
    """DPM-Solver++(2M) with Python floats."""
    old, last = None, 0.0
    for sigma, end in pairwise(nodes):
        denoised, ratio = problem.denoise(x, sigma), end / sigma
        h = last / sigma
        mixed = denoised if old is None or end == 0 else denoised * (1 + h / 2) - old * (h / 2)
        x, old, last = x * ratio + mixed * (1 - ratio), denoised, sigma
    return x


def of_peers(method: str, x: Tensor) -> Callable[[], float]:
    """A call's seconds in diffusers' loop, the fastest of its classes for the method."""
    made = [getattr(diffusers, name).from_config(config) for name, config in METHODS[method]]
    return lambda: min(seconds(each, x, x) for each in made)


def moved(plan: Plan) -> float:
    """Latents that a call's passes read and write, each once a pass, of the second half of a run."""
    total, asked = 0, 0
    for step in plan.steps[len(plan.steps) // 2 : -1]:
        for item in step.instructions:
            asked += isinstance(item, Ask)
            rows = item.rows if isinstance(item, Measure) else item
            if isinstance(rows, Pass):
                inputs = range(len(rows.inputs))
                read = {k for k in inputs if rows.table[:, k].any()} | {k for k, _ in rows.products}
                if isinstance(item, Measure):
                    again = dict(item.again)
                    read |= {item.seen[i] for k, pair in enumerate(item.measured) if k not in again for i in pair}
                total += len(read & {*inputs}) + sum(out >= 0 for out in rows.outputs)
    return total / asked


def timed(run: Callable[[], Any], calls: int) -> Callable[[], float]:
    def once() -> float:
        began = time.process_time()
        run()
        return (time.process_time() - began) / calls

    return once


def in_turns(group: dict[str, Callable[[], float]], runs: dict[str, Callable[[], float]], rounds: int) -> Any:
    """The least time of each over that of the plain loop, with which they take turns; its own in seconds."""
    group = {"plain": runs["plain"], **group}
    found: dict[str, list[float]] = {name: [] for name in group}
    for turn in range(rounds + 1):
        for name, once in group.items():
            spent = once()
            if turn:
                found[name].append(spent)
    plain = min(found["plain"])
    return {name: plain if name == "plain" else min(spent) / plain for name, spent in found.items()}


def table(shape: tuple[int, ...], rounds: int, only: list[str]) -> list[str]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 14
    free, answer = Free(x), x.clone()
    network = ds.ProbabilityFlow(lambda x, t: answer, shape=shape[1:])
    grid = ds.make_grid(ds.Karras(), STEPS, free.process)
    nodes = grid.sigmas.tolist()
    runs = {"plain": timed(lambda: plain_euler(free, nodes, x), len(grid))}
    runs["plain 2M"] = timed(lambda: plain_2m(free, nodes, x), len(grid))
    runs["randn"] = timed(lambda: torch.randn(shape), 1)
    a, b, c = (torch.randn(shape) for _ in range(3))
    runs["sum"] = timed(lambda: [torch.add(a, b, out=c) for _ in range(10)], 3 * 10)
    rows = [row for row in ds.list_solvers() if row.form in ds.FORMS and (not only or row.name in only)]
    kept, buffers, reads = [], {}, {}
    for row in rows:
        solver = row.build()
        try:
            calls = ds.count_evaluations(solver, grid, free)
            run = ds.start(free, solver, grid, x=x)
            made = [getattr(getattr(run._loop, "buffers", None), "made", None) for _ in run]
        except ds.DiffsolveError:  # one that chooses its own steps, or wants more of the problem
            continue
        kept.append(row)
        if made and made[0] is not None:
            buffers[row.name] = made[-1], made[-1] - made[min(len(made) - 1, 5)]
            reads[row.name] = moved(run._loop.plan)  # type: ignore[union-attr]
        for name, problem, how in (("free", free, "auto"), ("network", network, "auto"), ("eager", free, "eager")):
            runs[f"{row.name} {name}"] = timed(
                lambda s=solver, p=problem, how=how: ds.solve(p, s, grid, x=x, execution=how), calls  # type: ignore[arg-type, misc]
            )
        if row.name in METHODS:
            runs[f"{row.name} diffusers"] = of_peers(row.name, x)
    units: dict[str, float] = {}
    for name in ("plain 2M", "randn", "sum", *(row.name for row in kept)):
        units |= in_turns({k: once for k, once in runs.items() if k == name or k.startswith(f"{name} ")}, runs, rounds)
    unit = units["plain"]
    lines = [
        f"## {shape} float32\n", f"A call of the plain Euler loop takes {unit * 1e6:.0f} us; 2M by hand "
        f"{units['plain 2M']:.2f}, one torch.randn {units['randn']:.2f} of that: the floor of a row that draws once a "
        "call. Latents are those that a run holds at a time beside an answer: the states before and after a step (a "
        "run that is interrupted or fails hands the former back), the history before and after it but for what is "
        "dropped, what the network is given, and a Runge-Kutta row's stages. Moved are those that are read and written "
        f"a call, noise not counted; torch.add on three that stay in the cache takes {units['sum']:.3f} for each, and "
        "that is what moving them takes at the least.\n",
        "| row | noise | denoiser | network | eager | diffusers | latents | new after five steps | moved | at least |",
        "|" + "---|" * 10,
    ]  # fmt: skip
    for row in kept:
        cells = [f"{units[f'{row.name} {k}']:.2f}" for k in ("free", "network", "eager")]
        peer = f"{units[f'{row.name} diffusers']:.2f}" if row.name in METHODS else ""
        most, new = buffers.get(row.name, ("", ""))
        noise = "yes" if row.stochastic else ""
        least = [f"{reads[row.name]:.1f}", f"{reads[row.name] * units['sum']:.2f}"] if row.name in reads else ["", ""]
        lines.append(f"| {row.name} | {noise} | {' | '.join([*cells, peer, str(most), str(new), *least])} |")
    for noisy in (False, True):
        values = sorted(units[f"{row.name} free"] for row in kept if row.stochastic is noisy)
        if values:
            middle, what = values[len(values) // 2], "with" if noisy else "without"
            lines.append(f"\nRows {what} noise: median {middle:.2f}, least {values[0]:.2f}, most {values[-1]:.2f}.")
    print("\n".join(lines), flush=True)
    return [*lines, ""]


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    code = "compiled passes" if native().library is not None else f"passes by torch ({native().reason})"
    software = f"torch {torch.__version__}, diffusers {version('diffusers')}, Python {platform.python_version()}"
    return f"{name}, one thread, {software}; {code}. Ratios to a plain Euler loop in the same run.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="rows, by commas")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "step.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# The solver's own work\n", machine()]
    for shape in SHAPES:
        lines += table(shape, args.rounds, [name for name in args.only.split(",") if name])
    stamp.write("benchmarks/results/step.md", args.out, "\n".join(lines))


if __name__ == "__main__":
    main()
