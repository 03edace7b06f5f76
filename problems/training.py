"""What the trainers of the embedded networks have in common: a run that is seeded and goes on from its checkpoint."""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Run:
    """Modules, optimiser, average and counters of one stage, with their checkpoint and their log.

    args: `work`, the folder, `steps`, `batch`, `lr`, `seed`. cool: the share of steps in which the rate falls to 0.
    save: steps between checkpoints.
    """

    def __init__(
        self, stage: str, modules: Mapping[str, nn.Module], args: argparse.Namespace, *, cool: float, save: int,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self.args, self.file, self.log = args, args.work / f"{stage}.pt", args.work / f"loss-{stage}.jsonl"
        self.cool, self.every = cool, save
        self.modules = {k: m.to(device) for k, m in modules.items()}
        self.average = {k: copy.deepcopy(m).requires_grad_(False) for k, m in self.modules.items()}
        self.parameters = [p for m in self.modules.values() for p in m.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.draws = torch.Generator().manual_seed(args.seed)
        self.step, self.seconds, self.total, self.began = 0, 0.0, 0.0, time.perf_counter()
        if self.file.is_file():
            state = torch.load(self.file, map_location=device, weights_only=True)
            for k, m in self.modules.items():
                m.load_state_dict(state["modules"][k])
                self.average[k].load_state_dict(state["average"][k])
            self.optimiser.load_state_dict(state["optimiser"])
            self.draws.set_state(state["draws"].cpu())
            self.step, self.seconds, self.total = state["step"], state["seconds"], state["total"]
            print(f"{stage}: resumed at step {self.step}", flush=True)

    def save(self) -> None:
        state = {
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "average": {k: m.state_dict() for k, m in self.average.items()},
            "optimiser": self.optimiser.state_dict(), "draws": self.draws.get_state(),
            "step": self.step, "seconds": self.seconds, "total": self.total,
        }  # fmt: skip
        torch.save(state, self.file.with_suffix(".tmp"))
        self.file.with_suffix(".tmp").replace(self.file)

    def batches(self, count: int) -> Iterator[Tensor]:
        """Index batches until the last step; the caller calls `update(loss)` on each."""
        while self.step < self.args.steps:
            yield torch.randint(count, (self.args.batch,), generator=self.draws)

    def update(self, loss: Tensor) -> bool:
        """One step of the optimiser and of the average; whether a checkpoint was written."""
        warm, cool = (self.step + 1) / 200, (self.args.steps - self.step) / (self.cool * self.args.steps)
        self.optimiser.param_groups[0]["lr"] = self.args.lr * min(1.0, warm) * min(1.0, cool)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(0.999, (self.step + 1) / (self.step + 20))
        averaged = [p.data for m in self.average.values() for p in m.parameters()]
        torch._foreach_lerp_(averaged, [p.detach() for p in self.parameters], 1 - keep)
        began, self.began = self.began, time.perf_counter()
        self.seconds += self.began - began
        self.total += float(loss.detach())
        if self.step % 50 == 0:
            row = {"step": self.step, "loss": round(self.total / 50, 5), "seconds": round(self.seconds, 1)}
            self.total = 0.0
            with self.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)
        due = self.step % self.every == 0 or self.step == self.args.steps
        if due:
            self.save()
        return due
