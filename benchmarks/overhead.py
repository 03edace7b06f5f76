"""What `ds.solve` costs beyond the network, beside diffusers and hand-written loops.

    python benchmarks/overhead.py [--device cuda] [--threads 1] [--repeats 15] [--only micro] [--clock cpu]

First table, the embedded model: time of a whole run over its calls x the bare network call (the same guided UNet
forward, casts included); the variants take turns, ratios are formed within a turn, the median is shown. Its last
column times the calls that a solve makes inside that very solve, so that the network's own scatter cancels. Second
table: what a solver itself does a denoiser call, where that call costs nothing. Writes results/overhead.md, or
overhead-cuda.md. On a busy machine `--clock cpu` with one thread is the steadier clock.
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
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffsolve as ds
from diffsolve.validation.site import stamp

RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(RESULTS.parent.parent / "tests"))

import parity_cases as parity  # noqa: E402

MODEL_CASES = ("Euler", "DDIM trailing", "Heun", "LMS", "DPM++ 2M")
Runs = dict[str, Callable[[], Any]]
Call = Callable[[Tensor, Tensor], Tensor]


def take_turns(runs: Runs, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each run in each turn; the first turn warms up and is left out."""
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    wait = (lambda: None) if args.device == "cpu" else torch.cuda.synchronize
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.repeats + 1):
        for name, run in runs.items():
            wait()
            began = clock()
            run()
            wait()
            if turn:
                seconds[name].append(clock() - began)
    return seconds


def in_units_of(base: str, seconds: dict[str, list[float]]) -> dict[str, float]:
    """The median over the turns of each run's ratio to `base` in the same turn."""
    return {n: statistics.median(a / b for a, b in zip(s, seconds[base], strict=True)) for n, s in seconds.items()}


@torch.no_grad()
def euler_by_hand(guided: Call, sigmas: list[float], times: list[float], x: Tensor) -> Tensor:
    """Euler as one would write it around an eps network."""
    for (sigma, end), t in zip(pairwise(sigmas), times, strict=True):
        eps = guided(x / math.sqrt(1 + sigma * sigma), torch.full((len(x),), t, device=x.device))
        x = x + eps * (end - sigma)
    return x


def model_table(args: argparse.Namespace) -> list[str]:
    model, pipeline = parity.load(args.device, getattr(torch, args.dtype))
    pipeline.set_progress_bar_config(disable=True)
    problem = model(parity.PROMPT, guidance=parity.GUIDANCE)
    noise = parity.unit_noise(problem, args.batch)
    told = {"prompt_embeds": model.embed(parity.PROMPT), "negative_prompt_embeds": model.embed("")}
    guidance = problem.denoiser
    inside = guidance.network
    network, pair = inside.network, guidance.pair

    def guided(x: Tensor, t: Tensor) -> Tensor:
        return pair(network(x, t), 1.0)[0]

    def inputs_of(leg: Any, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What the network is given in the solve; the bare calls repeat just that, as a call's time depends on it."""
        given: list[tuple[Tensor, Tensor]] = []
        inside.network = lambda x, t: given.append((x.clone(), t)) or network(x, t)
        ds.solve(problem, leg.solver, leg.grid, x=x)
        inside.network = network
        return given

    @torch.no_grad()
    def bare(given: list[tuple[Tensor, Tensor]]) -> None:
        for x, t in given:
            guided(x, t)

    @torch.no_grad()
    def over_its_own_calls(leg: Any, x: Tensor) -> float:
        """The median over the repeats of a solve's time over the time of its network calls, guidance included."""
        spent = 0.0

        def timed(call: Callable[..., Any]) -> Callable[..., Any]:
            def run(*given: Any) -> Any:
                nonlocal spent
                wait()
                began = time.perf_counter()
                answer = call(*given)
                wait()
                spent += time.perf_counter() - began
                return answer

            return run

        wait = (lambda: None) if args.device == "cpu" else torch.cuda.synchronize
        ratios, inside.network, guidance.pair = [], timed(network), timed(pair)
        for _ in range(args.repeats):
            spent, began = 0.0, time.perf_counter()
            ds.solve(problem, leg.solver, leg.grid, x=x)
            ratios.append((time.perf_counter() - began) / spent)
        inside.network = network
        del guidance.pair
        return statistics.median(ratios)

    def pipe(scheduler: Any) -> None:
        pipeline.scheduler = scheduler
        pipeline(
            **told, num_inference_steps=parity.STEPS, guidance_scale=parity.GUIDANCE, latents=noise.to(model.dtype),
            output_type="latent", num_images_per_prompt=args.batch,
        )  # fmt: skip

    heads = ("sampler", "calls", "ms a bare call", "ds.solve", "eager", "diffusers", "by hand", "over its own calls")
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for case in (c for c in parity.CASES if c.name in MODEL_CASES):
        (leg,) = case.legs(problem.process)
        x = noise * float(leg.grid.nodes[0])
        given, scheduler = inputs_of(leg, x), case.build()
        calls = len(given)
        runs: Runs = {
            "bare": lambda given=given: bare(given),
            "auto": lambda leg=leg, x=x: ds.solve(problem, leg.solver, leg.grid, x=x),
            "eager": lambda leg=leg, x=x: ds.solve(problem, leg.solver, leg.grid, x=x, execution="eager"),
            "diffusers": lambda scheduler=scheduler: pipe(scheduler),
        }
        if leg.solver == "euler":
            times = [problem.process.t(s) for s in leg.grid.nodes.tolist()]
            runs["hand"] = lambda leg=leg, t=times, x=x: euler_by_hand(guided, leg.grid.sigmas.tolist(), t, x)
        seconds = take_turns(runs, args)
        over, call = in_units_of("bare", seconds), statistics.median(seconds["bare"]) / calls * 1e3
        ratios = " | ".join(f"{over[n]:.3f}" if n in over else "" for n in ("auto", "eager", "diffusers", "hand"))
        rows.append(f"| {leg.solver} | {calls} | {call:.2f} | {ratios} | {over_its_own_calls(leg, x):.3f} |")
        print(rows[-1], flush=True)
    return rows


class Free(ds.ProbabilityFlow):
    """A problem whose denoiser hands out one tensor."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(None, shape=x.shape[1:], device=x.device)
        self.answer = x.clone()

    def denoise(self, y: Tensor, sigma: float) -> Tensor:
        return self.answer


def plain_euler(problem: Free, sigmas: list[float], x: Tensor) -> Tensor:
    """k-diffusion's Euler with Python floats for its sigmas."""
    for sigma, end in pairwise(sigmas):
        d = (x - problem.denoise(x, sigma)) / sigma
        x = x + d * (end - sigma)
    return x


def drive(scheduler: Any, eps: Tensor, x: Tensor) -> None:
    """A scheduler's own work in a pipeline."""
    scheduler.set_timesteps(parity.STEPS, device=x.device)
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        x = scheduler.step(eps, t, x, return_dict=False)[0]


def micro_table(args: argparse.Namespace) -> list[str]:
    x = torch.randn(4, 4, 64, 64, generator=torch.Generator().manual_seed(0)).to(args.device) * 14
    problem, eps = Free(x), x / 14
    grid = ds.make_grid(ds.Karras(), parity.STEPS, problem.process)
    runs: Runs = {"plain": lambda: plain_euler(problem, grid.sigmas.tolist(), x)}
    calls = {"plain": len(grid)}
    for solver in (entry.build() for entry in ds.list_solvers() if entry.form in ds.FORMS):
        for how in ("eager", "auto"):
            runs[f"{solver.name} {how}"] = lambda s=solver, how=how: ds.solve(problem, s, grid, x=x, execution=how)
            calls[f"{solver.name} {how}"] = ds.count_evaluations(solver, grid, problem)
    peers = {f"diffusers' {case.name}": case.build() for case in parity.CASES if "Karras" not in case.name}
    for name, scheduler in peers.items():
        runs[name], calls[name] = (lambda s=scheduler: drive(s, eps, x)), len(scheduler.timesteps)
    seconds = take_turns(runs, args)
    cost = {name: statistics.median(s) / calls[name] * 1e6 for name, s in seconds.items()}
    over = {name: r * calls["plain"] / calls[name] for name, r in in_units_of("plain", seconds).items()}
    rows = ["| us a call | eager | as chosen | eager / plain Euler | as chosen / plain Euler |", "|" + "---|" * 5]
    rows += [f"| Euler loop in plain Python | {cost['plain']:.0f} | | 1.00 | |"]
    for entry in ds.list_solvers():
        keys = [f"{entry.name} eager", f"{entry.name} auto"]
        costs = " | ".join(f"{cost[key]:.0f}" if key in cost else "" for key in keys)
        ratios = " | ".join(f"{over[key]:.2f}" if key in cost else "" for key in keys)
        rows.append(f"| {entry.name} | {costs} | {ratios} |")
    rows += [f"| {name} | {cost[name]:.0f} | | {over[name]:.2f} | |" for name in peers]
    print("\n".join(rows))
    return rows


def machine(args: argparse.Namespace) -> str:
    lines = info.read_text(encoding="utf-8").splitlines() if (info := Path("/proc/cpuinfo")).exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    if args.device != "cpu":
        name = f"{torch.cuda.get_device_name()}, {name}"
    software = f"torch {torch.__version__}, diffusers {version('diffusers')}, Python {platform.python_version()}"
    return f"{name}, {args.threads} thread(s), {software}; {args.clock} time, median of {args.repeats} turns.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the network")
    for name, default in (("--threads", 1), ("--batch", 1), ("--repeats", 15)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--only", choices=("model", "micro"))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--out", type=Path, help="default: results/overhead.md, or overhead-cuda.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = ["# Overhead\n", machine(args)]
    if args.only != "micro":
        what = f"guided {args.dtype} UNet of the embedded model, batch {args.batch}, {parity.STEPS} steps"
        lines += [f"## Time of a run over calls x the bare network call: {what}\n", *model_table(args), ""]
    if args.only != "model":
        what = "(4, 4, 64, 64) float32, a denoiser that costs nothing"
        lines += [f"## The solver's own work: {what}\n", *micro_table(args)]
    out = args.out or RESULTS / ("overhead.md" if args.device == "cpu" else "overhead-cuda.md")
    out.parent.mkdir(exist_ok=True)
    stamp.write("benchmarks/results/overhead.md", out, "\n".join(lines))


if __name__ == "__main__":
    main()
