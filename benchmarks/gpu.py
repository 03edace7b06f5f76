"""What a solve costs on a GPU beyond its network, beside diffusers' loop: one script, some minutes.

    python benchmarks/gpu.py [--tiny] [--device cuda] [--repeats 5] [-o results/gpu.md]

Stable Diffusion 1.5's UNet shape (859 M parameters, random weights), fp16, 512 x 512, guidance as a batch of two, 20
steps: time of solve() over that of 20 bare calls of the same inputs, for each player; diffusers' schedulers in a
pipeline's loop; pictures a second by batch; kernels and host syncs counted. Then a network of one operation, where the
solver's share is large. The variants take turns; medians of ratios within a turn. --tiny --device cpu runs all of it
with a small UNet, to see that it stands.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

import diffsolve as ds

STEPS, SCALE = 20, 7.5
SD15 = {
    "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}  # fmt: skip
TINY = {"sample_size": 16, "cross_attention_dim": 16, "attention_head_dim": 8, "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 1}  # fmt: skip
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PEERS = {"euler": "EulerDiscreteScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}


class Bench:
    """A network of two sides, its problem, and what is timed of it."""

    def __init__(
        self, unet: Any, context: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, args: Any
    ) -> None:
        self.unet, self.context, self.shape, self.dtype, self.args = unet, context, shape, dtype, args
        self.device = torch.device(args.device)
        self.problem = ds.ProbabilityFlow(self.network, shape=shape, device=args.device)

    def raw(self, x: Tensor, t: Tensor) -> Tensor:
        if self.context is None:
            return self.unet(x)  # type: ignore[no-any-return]
        return self.unet(x, t, self.context.repeat_interleave(len(x) // 2, 0)).sample  # type: ignore[no-any-return]

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        """Guided, in float32."""
        both = torch.cat([x, x]).to(self.dtype)
        free, told = self.raw(both, torch.cat([t, t])).float().chunk(2)
        return torch.lerp(free, told, SCALE)

    @torch.no_grad()
    def bare(self, batch: int) -> None:
        x, t = torch.randn(2 * batch, *self.shape, device=self.device, dtype=self.dtype), torch.ones(2 * batch)
        t = t.to(self.device)
        for _ in range(STEPS):
            self.raw(x, t)

    def solve(self, solver: str, batch: int, execution: Any) -> None:
        ds.solve(self.problem, solver, n=STEPS - 1, batch=batch, execution=execution)

    @torch.no_grad()
    def diffusers(self, name: str, batch: int) -> None:
        scheduler = getattr(diffusers, name)(**BETAS)
        scheduler.set_timesteps(STEPS, device=self.device)
        x = torch.randn(batch, *self.shape, device=self.device, dtype=self.dtype) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), t)
            free, told = self.raw(both, t.expand(len(both))).chunk(2)
            x = scheduler.step(free + SCALE * (told - free), t, x, return_dict=False)[0]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def ratios(self, runs: dict[str, Callable[[], Any]], base: str) -> dict[str, tuple[float, float]]:
        """(seconds, ratio to base) of each, medians over the turns after the first."""
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(self.args.repeats + 1):
            for name, run in runs.items():
                self.wait()
                began = time.perf_counter()
                run()
                self.wait()
                if turn:
                    seconds[name].append(time.perf_counter() - began)
        return {
            name: (statistics.median(s), statistics.median(a / b for a, b in zip(s, seconds[base], strict=True)))
            for name, s in seconds.items()
        }

    def players(self) -> list[str]:
        kinds, usable = ("eager", "fused", "graph"), []
        for kind in kinds:
            try:
                self.solve("euler", 1, kind)
                usable.append(kind)
            except ds.SolverError as error:
                print(f"  {kind}: {error}")
        return usable

    def table(self, batch: int) -> list[str]:
        lines = ["| | seconds | over 20 bare calls |", "|---|---|---|"]
        runs: dict[str, Callable[[], Any]] = {"20 bare calls": lambda: self.bare(batch)}
        for solver, peer in PEERS.items():
            for kind in self.players():
                runs[f"solve {solver}, {kind}"] = partial(self.solve, solver, batch, kind)
            runs[f"diffusers' {peer}"] = partial(self.diffusers, peer, batch)
        for name, (seconds, ratio) in self.ratios(runs, "20 bare calls").items():
            lines.append(f"| {name} | {seconds:.4f} | {ratio:.3f} |")
        return [*lines, ""]

    def counted(self, run: Callable[[], Any]) -> str:
        """Kernels and host syncs of a run."""
        if self.device.type != "cuda":
            return "counted on CUDA alone"
        run()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            torch.cuda.synchronize()
        kernels = sum(event.count for event in profile.key_averages())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        syncs = sum("synchroniz" in str(warning.message) for warning in caught)
        return f"{kernels} kernels and copies, {syncs} host syncs"


def name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "a CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small UNet")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    device, config = torch.device(args.device), TINY if args.tiny else SD15
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        torch.manual_seed(0)
        options: dict[str, Any] = {"norm_num_groups": 8} if args.tiny else {}
        unet = diffusers.UNet2DConditionModel(**config, **options).to(dtype).eval().requires_grad_(False)
        context = torch.randn(2, 77, int(config["cross_attention_dim"]), dtype=dtype)  # type: ignore[call-overload]
        small = torch.nn.Conv2d(4, 4, 3, padding=1).to(dtype).requires_grad_(False)
    size = int(config["sample_size"])  # type: ignore[call-overload]
    large, little = (Bench(net, c, (4, size, size), dtype, args) for net, c in ((unet, context), (small, None)))
    weights = sum(p.numel() for p in unet.parameters()) / 1e6
    lines = [f"# On {name_of(device)}\n", f"torch {torch.__version__}, diffusers {diffusers.__version__}, {dtype}\n"]
    lines += [f"## UNet of {weights:.0f} M parameters, batch 1\n", *large.table(1)]
    lines += ["## A network of one convolution: the solver's share\n", *little.table(1), "Pictures a second:\n"]
    for batch in (1, 4) if device.type == "cpu" else (1, 4, 16, 64):
        runs = {k: partial(large.solve, "dpmpp_2m", batch, k) for k in large.players()}
        kind, (seconds, _) = min(large.ratios(runs, "eager").items(), key=lambda item: item[1][0])
        lines.append(f"- batch {batch}: {batch / seconds:.2f} ({kind})")
    for kind in little.players():
        counts = little.counted(partial(little.solve, "dpmpp_2m", 1, kind))
        lines.append(f"- dpmpp_2m, {kind}, one convolution: {counts}")
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
