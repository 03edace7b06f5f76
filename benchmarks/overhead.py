"""What `ds.solve` costs beyond the network, beside diffusers and hand-written loops.

    python benchmarks/overhead.py [--device cuda] [--threads 1] [--repeats 15] [--only micro]

First table, the embedded model: wall time of a whole run over its calls x the bare network call (the same guided UNet
forward, casts included), every variant and the bare calls taken in turn, the ratio formed within each turn, its median
over the turns. Second table: what a solver itself does, in microseconds a denoiser call, with a denoiser that costs
nothing. Writes results/overhead.md, or overhead-cuda.md.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffsolve as ds

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import parity_cases as parity  # noqa: E402

MODEL_CASES = ("Euler", "DDIM trailing", "Heun", "LMS", "DPM++ 2M")
Runs = dict[str, Callable[[], Any]]


def take_turns(runs: Runs, repeats: int, cuda: bool) -> dict[str, list[float]]:
    """Seconds of each run in each turn; the first turn warms up and is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            if cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            if cuda:
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def euler_loop(network: Callable[[Tensor, Tensor], Tensor], sigmas: list[float], told: list[float], x: Tensor) -> Tensor:
    """Euler as one would write it by hand around an eps network."""
    with torch.no_grad():
        for sigma, end, t in zip(sigmas[:-1], sigmas[1:], told, strict=True):
            eps = network(x / math.sqrt(1 + sigma * sigma), torch.full((len(x),), t, device=x.device))
            x = x + eps * (end - sigma)
    return x


def model_table(args: argparse.Namespace) -> list[str]:
    cuda = args.device != "cpu"
    model, pipeline = parity.load(args.device, getattr(torch, args.dtype))
    pipeline.set_progress_bar_config(disable=True)
    problem = model(parity.PROMPT, guidance=parity.GUIDANCE)
    noise = parity.unit_noise(problem, args.batch)
    t = torch.full((args.batch,), 500.0, device=noise.device)
    told = {"prompt_embeds": model.embed(parity.PROMPT), "negative_prompt_embeds": model.embed("")}

    @torch.no_grad()
    def bare(calls: int) -> None:
        for _ in range(calls):
            problem.network(noise, t)

    def pipe(scheduler: Any) -> None:
        pipeline.scheduler = scheduler
        pipeline(**told, num_inference_steps=parity.STEPS, guidance_scale=parity.GUIDANCE, latents=noise.to(model.dtype),
                 output_type="latent", num_images_per_prompt=args.batch)  # fmt: skip

    rows = ["| sampler | calls | ms a bare call | ds.solve | ds.solve, tape | diffusers' pipeline | Euler loop by hand |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    for case in (c for c in parity.CASES if c.name in MODEL_CASES):
        (leg,) = case.legs(problem.process)
        x = noise * float(leg.grid.nodes[0])
        calls, scheduler = ds.count_evaluations(ds.get_solver(leg.solver), leg.grid, problem), case.build()
        runs: Runs = {
            "bare": lambda calls=calls: bare(calls),
            "eager": lambda leg=leg, x=x: ds.solve(problem, leg.solver, leg.grid, x=x),
            "tape": lambda leg=leg, x=x: ds.solve(problem, leg.solver, leg.grid, x=x, execution="tape"),
            "diffusers": lambda scheduler=scheduler: pipe(scheduler),
        }
        if leg.solver == "euler":
            sigmas = leg.grid.sigmas.tolist()
            times = [problem.process.t(s) for s in sigmas[:-1]]
            runs["hand"] = lambda s=sigmas, t=times, x=x: euler_loop(problem.network, s, t, x)
        seconds = take_turns(runs, args.repeats, cuda)
        over = {name: f"{ratio(seconds[name], seconds['bare']):.3f}" for name in runs}
        call = statistics.median(seconds["bare"]) / calls * 1e3
        rows.append(f"| {leg.solver} | {calls} | {call:.2f} | {over['eager']} | {over['tape']} | {over['diffusers']} "
                    f"| {over.get('hand', '')} |")  # fmt: skip
        print(rows[-1], flush=True)
    return rows


class Free(ds.ProbabilityFlow):
    """A problem whose denoiser costs nothing: it hands out one tensor."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(None, shape=x.shape[1:], device=x.device)
        self.answer = x.clone()

    def denoise(self, y: Tensor, sigma: float) -> Tensor:
        return self.answer


def plain_euler(problem: Free, sigmas: list[float], x: Tensor) -> Tensor:
    """k-diffusion's Euler with Python floats for its sigmas."""
    for sigma, end in zip(sigmas[:-1], sigmas[1:], strict=True):
        d = (x - problem.denoise(x, sigma)) / sigma
        x = x + d * (end - sigma)
    return x


def steps_of(case: parity.Case, eps: Tensor, x: Tensor) -> tuple[Callable[[], Any], int]:
    """A scheduler's own work in a pipeline: scale_model_input and step."""
    scheduler = case.build()

    def run() -> None:
        scheduler.set_timesteps(parity.STEPS, device=x.device)
        state = x
        for t in scheduler.timesteps:
            scheduler.scale_model_input(state, t)
            state = scheduler.step(eps, t, state, return_dict=False)[0]

    return run, len(scheduler.timesteps)


def micro_table(args: argparse.Namespace) -> list[str]:
    x = torch.randn(4, 4, 64, 64, generator=torch.Generator().manual_seed(0)).to(args.device) * 14
    problem = Free(x)
    grid = ds.make_grid(ds.Karras(), parity.STEPS, problem.process)
    sigmas = grid.sigmas.tolist()
    runs: Runs = {"plain": lambda: plain_euler(problem, sigmas, x)}
    calls = {"plain": len(grid)}
    for entry in ds.list_solvers():
        for how in ("eager", "tape"):
            if how == "eager" or entry.build().traceable:
                key = f"{entry.name} {how}"
                runs[key] = lambda n=entry.name, how=how: ds.solve(problem, n, grid, x=x, execution=how)
                calls[key] = ds.count_evaluations(entry.build(), grid, problem)
    peers = {case.name: steps_of(case, x / 14, x) for case in parity.CASES if "Karras" not in case.name}
    runs |= {name: run for name, (run, _) in peers.items()}
    calls |= {name: count for name, (_, count) in peers.items()}
    seconds = take_turns(runs, args.repeats, args.device != "cpu")
    cost = {name: statistics.median(s) / calls[name] * 1e6 for name, s in seconds.items()}
    over = {name: ratio(s, seconds["plain"]) * calls["plain"] / calls[name] for name, s in seconds.items()}
    rows = ["| us a call | eager | tape | eager / plain Euler | tape / plain Euler |", "|---|---|---|---|---|",
            f"| Euler loop in plain Python | {cost['plain']:.0f} | | 1.00 | |"]  # fmt: skip
    for entry in ds.list_solvers():
        eager, tape = f"{entry.name} eager", f"{entry.name} tape"
        rows.append(f"| {entry.name} | {cost[eager]:.0f} | {cost[tape]:.0f} | {over[eager]:.2f} | {over[tape]:.2f} |"
                    if tape in cost else f"| {entry.name} | {cost[eager]:.0f} | | {over[eager]:.2f} | |")  # fmt: skip
    rows += [f"| diffusers' {name} | {cost[name]:.0f} | | {over[name]:.2f} | |" for name in peers]
    print("\n".join(rows))
    return rows


def machine(args: argparse.Namespace) -> str:
    if args.device != "cpu":
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return (f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, diffusers {version('diffusers')}, "
            f"Python {platform.python_version()}; median of {args.repeats} turns.\n")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=("model", "micro"))
    parser.add_argument("--out", type=Path, help="default: results/overhead.md, or overhead-cuda.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = ["# Overhead\n", machine(args)]
    if args.only != "micro":
        lines += ["## Wall time over calls x the bare network call\n",
                  f"Guided {args.dtype} UNet of the embedded model, batch {args.batch}, {parity.STEPS} steps.\n",
                  *model_table(args), ""]  # fmt: skip
    if args.only != "model":
        lines += ["## The solver's own work, (4, 4, 64, 64) float32, a denoiser that costs nothing\n", *micro_table(args)]
    name = "overhead.md" if args.device == "cpu" else "overhead-cuda.md"
    (args.out or ROOT / "benchmarks" / "results" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
