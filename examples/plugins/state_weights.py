"""Heun's method, held back where the slope turns: the second slope weighs less the more it differs from the first.

    k1 = F(u, s)    k2 = F(u + h k1, s + h)    w = 1/(1 + |k2 - k1|^2/|k1|^2), for each sample
    u_{n+1} = u_n + h (k1 + w (k2 - k1)/2)

w is 1 + O(h^2), so the order is 2. A norm is no sum of vectors: such a step can't be traced, and says so.
"""

import torch

import diffsolve as ds


def squared(u: torch.Tensor) -> torch.Tensor:
    """The squared norm of each sample, (B, 1, ...)."""
    return (u * u).flatten(1).sum(1).reshape(-1, *[1] * (u.ndim - 1)) if u.ndim > 1 else u * u


@ds.register_solver("held_heun", order=2, stages=2, source="this example")
class HeldHeun(ds.Solver):
    traceable = False

    def evaluations(self, span: ds.Span, known: int) -> int:
        return 2

    def step(self, f: ds.Field, u: torch.Tensor, span: ds.Span, past: ds.Past) -> ds.Step:
        h, L = span.h, f.form.linear
        k1 = f(u, span.start) + L * u
        ahead = u + h * k1
        turn = f(ahead, span.end) + L * ahead - k1
        weight = 1 / (1 + squared(turn) / squared(k1))
        return ds.Step(u + h * (k1 + weight * turn / 2), error=h / 2 * turn)
