"""(Exponential) Adams-Bashforth methods of any order, on the grid as it is, in any form."""

from __future__ import annotations

from typing import Any, Literal

from diffsolve import Field, Past, Solver, SolverError, Span, Step, combine, scalars

Quadrature = Literal["exact", "uniform", "midpoint"]
Start = Literal["euler", "heun"]


class Adams(Solver):
    """u_1 = e^{L h} u_0 + sum w_j N_j over the newest `order` evaluations; the order grows from 1 over the first steps.

    quadrature: "exact" weights int_0^h e^{L (h - s)} l_j(s) ds of the actual nodes (rho-AB DEIS, LMS), "uniform" those
    of evenly spaced nodes (PLMS, iPNDM), "midpoint" the extrapolation to the step's middle times h phi_1 (DPM-Solver++
    2M).
    start: "euler", or "heun" for a second-order first step that costs one evaluation more.
    In the `sde` form the interval's noise is added.
    """

    steps_to_zero = True

    def __init__(self, order: int = 4, *, quadrature: Quadrature = "exact", start: Start = "euler") -> None:
        if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= 12:
            raise SolverError(f"an Adams method's order must be a whole number from 1 to 12, got {order!r}")
        if quadrature not in ("exact", "uniform", "midpoint") or start not in ("euler", "heun"):
            raise SolverError(f"no Adams method has quadrature={quadrature!r}, start={start!r}")
        self.quadrature, self.start, self.depth = quadrature, start, order
        self.order = order if quadrature == "exact" else min(order, 2)
        self.started = min(self.order, 3 if start == "heun" else 2)
        self.history = order - 1

    def weights(self, linear: float, span: Span, nodes: list[float]) -> list[float]:
        """The weights of evaluations at `nodes` (oldest first, the last one is span.start)."""
        h = span.h
        if self.quadrature == "exact":
            return scalars.exponential_weights(linear, h, [node - span.start for node in nodes])
        if self.quadrature == "uniform":
            return scalars.exponential_weights(linear, h, [(i - len(nodes) + 1) * h for i in range(len(nodes))])
        middle = scalars.lagrange([node - span.start for node in nodes], h / 2)
        return [h * scalars.phi(1, linear * h) * w for w in middle]

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        value = f(y, span.start)
        known = (*past[max(len(past) - self.history, 0) :], (span.start, value))
        weights = self.weights(f.linear, span, [node for node, _ in known])
        terms = [(scalars.exp(f.linear * span.h), y), *((w, v) for w, (_, v) in zip(weights, known, strict=True))]
        if self.start == "heun" and not past and not span.last:
            end = f(combine(*terms), span.end)
            second = span.h * scalars.phi(2, f.linear * span.h)
            terms += [(-second, value), (second, end)]
        noise = f.noise(span)
        if noise:
            terms.append((noise, f.draw(span)))
        return Step(combine(*terms), past=known)
