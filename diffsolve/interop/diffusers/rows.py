"""diffusers' own schedulers as solvers, for comparison: `solve(problem, "diffusers:UniPCMultistepScheduler")`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ...errors import SolverError, did_you_mean
from ...field import Field
from ...registry import SolverEntry, library_entry
from ...solver import Driver, Span

# those that can be given any noise levels, and make one call a step: order, whether they keep y (or alpha y)
METHODS: dict[str, tuple[int, bool]] = {
    "EulerDiscreteScheduler": (1, True), "LMSDiscreteScheduler": (4, True), "DPMSolverMultistepScheduler": (2, False),
    "DEISMultistepScheduler": (2, False), "UniPCMultistepScheduler": (2, False),
}  # fmt: skip


def entry(method: str) -> SolverEntry:
    """The row of a scheduler. Raises SolverError for one that is not among METHODS."""
    if method not in METHODS:
        near = did_you_mean(method, METHODS)
        raise SolverError(f"diffusers has no scheduler {method!r} that takes any grid at a call a step{near}")
    return library_entry(
        f"diffusers:{method}", partial(TheirScheduler, method), order=METHODS[method][0], stages=1, form="sigma",
        source="diffusers",
    )  # fmt: skip


class TheirScheduler(Driver):
    """A scheduler's `step` over our grid. options: its class's own, such as solver_order=3."""

    stages = 1

    def __init__(self, method: str, **options: object) -> None:
        self.method, self.options = method, options

    def run(self, f: Field, y: Tensor, spans: Sequence[Span]) -> Iterator[Tensor]:
        import diffusers

        try:
            made = getattr(diffusers, self.method)(**self.options)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise SolverError(f"diffusers:{self.method} can't be made with {self.options}: {error}") from error
        nodes, keeps_y = [spans[0].start, *(span.end for span in spans)], METHODS[self.method][1]
        made.set_timesteps(len(spans))
        made.sigmas = torch.tensor(nodes, dtype=torch.float64 if y.dtype == torch.float64 else torch.float32)
        made.timesteps = torch.arange(len(spans), 0, -1, dtype=torch.float32, device=y.device)  # told apart, no more
        made.num_inference_steps, made.is_scale_input_called = len(spans), True
        made.set_begin_index(0)
        x = y if keeps_y else y / math.hypot(1, nodes[0])
        for t, low, high in zip(made.timesteps, nodes, nodes[1:], strict=False):
            before = x if keeps_y else x * math.hypot(1, low)
            x = made.step(f(before, low), t, x, return_dict=False)[0].to(y.dtype)
            yield x if keeps_y else x * math.hypot(1, high)
