"""Taylor's method of order 2: the second derivative along the flow, by the Jacobian of the network times a vector.

    u'' = J F + F_s,  J F by torch.func.jvp,  F_s = (F(u, s + h) - F(u, s))/h + O(h)
    u_{n+1} = u_n + h F + h^2/2 u''

The derivative goes through `f`, so the network must be at hand: where it is called from outside (a diffusers pipeline,
a server), there is nothing to differentiate.
"""

import torch

import diffsolve as ds


@ds.register_solver("taylor_2", order=2, stages=3, source="Taylor's formula")
class Taylor2(ds.Solver):
    traceable = False

    def evaluations(self, span: ds.Span, known: int) -> int:
        return 3

    def step(self, f: ds.Field, u: torch.Tensor, span: ds.Span, past: ds.Past) -> ds.Step:
        h, L = span.h, f.form.linear

        def F(u: torch.Tensor, s: float) -> torch.Tensor:
            return f(u, s) + L * u

        k = F(u, span.start)
        _, along = torch.func.jvp(lambda v: F(v, span.start), (u,), (k,))
        return ds.Step(u + h * k + h / 2 * (h * along + F(u, span.end) - k))
