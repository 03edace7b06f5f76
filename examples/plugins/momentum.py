"""Euler's method with momentum (heavy ball): v_n = (1 - b) f(u_n, s_n) + b v_{n-1}, u_{n+1} = u_n + h v_n.

What goes from step to step is in `past`, so the method keeps nothing on itself: a run is saved, copied and recorded.
"""

import diffsolve as ds


@ds.register_solver("momentum", order=1, source="Polyak 1964, on the flow")
class Momentum(ds.Solver):
    history = 1  # pairs of `past` that a step reads

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = beta

    def evaluations(self, span: ds.Span, known: int) -> int:
        return 1

    def step(self, f: ds.Field, u, span: ds.Span, past: ds.Past) -> ds.Step:
        velocity = f(u, span.start) + f.form.linear * u
        if past:
            velocity = (1 - self.beta) * velocity + self.beta * past[-1][1]
        return ds.Step(u + span.h * velocity, past=((span.start, velocity),))
