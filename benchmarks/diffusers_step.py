"""The work of a scheduler's step beside that of diffusers' own of the same method, in one run: ratios.

    python benchmarks/diffusers_step.py [-o results/diffusers_step.json]

A loop of 20 network calls whose network costs nothing, set_timesteps included, on (4, 4, 64, 64) float32, one thread;
the least of some rounds, ours and theirs in turn. Of several classes for a method the fastest counts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import diffusers
import torch

from diffsolve.interop.diffusers import DiffsolveScheduler

CALLS, SHAPE = 20, (4, 4, 64, 64)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"config_of": "FlowMatchEulerDiscreteScheduler"}
MULTI = "DPMSolverMultistepScheduler"
METHODS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "euler": [("EulerDiscreteScheduler", SD), ("DDIMScheduler", SD)],
    "flow_euler": [("FlowMatchEulerDiscreteScheduler", {})],
    "heun": [("HeunDiscreteScheduler", SD)],
    "flow_heun": [("FlowMatchHeunDiscreteScheduler", {})],
    "dpm2": [("KDPM2DiscreteScheduler", SD)],
    "lms": [("LMSDiscreteScheduler", SD)],
    "deis": [("DEISMultistepScheduler", SD)],
    "dpmpp_2m": [(MULTI, SD)],
    "dpmpp_3m": [(MULTI, SD | {"solver_order": 3})],
    "dpmpp_2s": [("DPMSolverSinglestepScheduler", SD)],
    "unipc": [("UniPCMultistepScheduler", SD)],
    "plms": [("PNDMScheduler", SD | {"skip_prk_steps": True})],
    "ddpm": [("DDPMScheduler", SD), ("EulerAncestralDiscreteScheduler", SD)],
    "euler_ancestral": [("EulerAncestralDiscreteScheduler", SD), ("DDPMScheduler", SD)],
    "dpm2_ancestral": [("KDPM2AncestralDiscreteScheduler", SD)],
    "dpmpp_2m_sde": [(MULTI, SD | {"algorithm_type": "sde-dpmsolver++"})],
    "sa_solver": [("SASolverScheduler", SD)],
    "lcm": [("LCMScheduler", SD)],
    "tcd": [("TCDScheduler", SD)],
}


def seconds(made: Any, x: torch.Tensor, answer: torch.Tensor) -> float:
    """Of one call, in a run with its set_timesteps."""
    start = time.process_time()
    made.set_timesteps(CALLS)
    for t in made.timesteps:
        entered = made.scale_model_input(x, t) if hasattr(made, "scale_model_input") else x
        x = made.step(answer, t, x, return_dict=False)[0]
    del entered
    return (time.process_time() - start) / len(made.timesteps)


def measured(method: str, rounds: int) -> dict[str, Any]:
    x, answer = torch.randn(SHAPE), torch.randn(SHAPE)
    made = {"diffsolve": DiffsolveScheduler(solver=method, **(FLOW if method.startswith("flow") else SD))}
    for name, config in METHODS[method]:
        made[name] = getattr(diffusers, name)(**config)
    least = dict.fromkeys(made, float("inf"))
    for _ in range(rounds):
        for name, scheduler in made.items():
            least[name] = min(least[name], seconds(scheduler, x, answer))
    ours = least.pop("diffsolve")
    fastest = min(least, key=least.__getitem__)
    return {"method": method, "us": ours * 1e6, "theirs": fastest, "theirs_us": least[fastest] * 1e6,
            "ratio": ours / least[fastest]}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("-o", "--output", type=Path)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("methods", nargs="*", default=list(METHODS))
    given = arguments.parse_args()
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    rows = []
    for method in given.methods:
        rows.append(row := measured(method, given.rounds))
        print(f"{method:16} {row['us']:7.0f} us  {row['theirs_us']:7.0f} us  {row['ratio']:5.2f}  {row['theirs']}")
    if given.output:
        given.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
