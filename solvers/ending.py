"""Other methods for the last steps of a run."""

from __future__ import annotations

from diffsolve import Field, Past, Solver, Span, Step
from diffsolve.field import Vector


class Ending(Solver):
    """One-step `solver`, but for the last steps of the grid, which are those of `ends`, in their order.

    On a grid of fewer steps than `ends` the first of them are left out. Where the grid goes on to sigma = 0, that step
    takes the place of the last of them. order: global, which is `solver`'s, or one more than the lowest of `ends`: they
    are a fixed number of steps, so only their local error counts.
    """

    def __init__(self, solver: Solver, *ends: Solver) -> None:
        self.solver, self.ends = solver, ends
        orders = [solver.order, *(end.order and end.order + 1 for end in ends)]
        stages = [solver.stages, *(end.stages for end in ends)]
        self.order = None if None in orders else min(order for order in orders if order is not None)
        self.stages = None if None in stages else max(count for count in stages if count is not None)

    def method(self, span: Span) -> Solver:
        """The one that takes the step over `span`."""
        left = span.count - span.index
        return self.solver if left > len(self.ends) else self.ends[-left]

    # y_1 = the step of ends[-left] from y_0 where `left` steps, this one included, are as many as `ends` or fewer
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        return self.method(span).step(f, y, span, past)

    def evaluations(self, span: Span, known: int) -> int | None:
        return self.method(span).evaluations(span, known)
