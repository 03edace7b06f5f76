"""RePaint: a wrapper that goes back up in noise, so that what is painted comes into harmony with what is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diffsolve import Field, Renoise, RightHandSide, Solver, Span
from diffsolve.grid import steps_of
from diffsolve.validate import at_most, whole

from .wrappers import Wrapped


class RePaint(Wrapped):
    """`solver`, with each stretch of `jump_length` steps passed `jump_n_sample` times (Lugmayr et al. 2022, sec. 4.2).

    Between two passes the state is taken back up over the stretch, in one draw where the paper takes a draw a step:
    the law is the same. The stretches are counted from the end, and end above sigma = 0; the first jump_length to
    2 jump_length - 1 steps, as in the authors' get_schedule_jump, are passed once: with n <= jump_length all of them.
    A problem of which nothing is known, and eta = 0, leave the solver as it is.
    """

    def __init__(self, solver: Solver, jump_length: int = 10, jump_n_sample: int = 10) -> None:
        super().__init__(solver)
        self.jump_length = whole(jump_length, "jump_length")
        self.jump_n_sample = at_most(whole(jump_n_sample, "jump_n_sample"), "jump_n_sample", 1000)

    def plan(self, spans: Sequence[Span], f: Field) -> Sequence[Span | Renoise]:
        if not (isinstance(f, RightHandSide) and f.constrained and f.eta):
            return spans
        steps_of(len(spans) * self.jump_n_sample, "the number of steps, all their passes counted,")
        last = len(spans) - 1
        jumps = dict.fromkeys(range(0, last + 1 - self.jump_length, self.jump_length), self.jump_n_sample - 1)
        visits = [0] * len(spans)
        planned: list[Span | Renoise] = []
        at = last + 1  # steps that remain after the next one
        while at > 0:
            at -= 1
            if jumps.get(at):
                low, high = spans[last - at], spans[last - at - self.jump_length]
                visit = self.jump_n_sample - 1 - jumps[at]
                planned.append(Renoise(replace(low, end=high.start, last=False, visit=visit)))
                jumps[at] -= 1
                at += self.jump_length
            planned.append(replace(spans[last - at], visit=visits[last - at]))
            visits[last - at] += 1
        return planned
