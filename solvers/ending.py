"""Other methods for the last steps of a run."""

from __future__ import annotations

from typing import Any

from diffsolve import Field, Past, Solver, Span, Step


class Ending(Solver):
    """One-step `solver`, but for the last steps of the grid, which are those of `ends`, in their order.

    On a grid of fewer steps than `ends` the first of them are left out. Where the grid goes on to sigma = 0, that step
    takes the place of the last of them. order: global, which is `solver`'s, or one more than the lowest of `ends`: they
    are a fixed number of steps, so only their local error counts.
    """

    def __init__(self, solver: Solver, *ends: Solver) -> None:
        self.solver, self.ends = solver, ends
        self.order = min(solver.order, *(end.order + 1 for end in ends))
        self.stages = max(solver.stages, *(end.stages for end in ends))

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        left = span.count - span.index
        method = self.solver if left > len(self.ends) else self.ends[-left]
        return method.step(f, y, span, past)
