"""(Exponential) Adams methods of any order, on the grid as it is, in any form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from diffsolve import Field, FieldView, Past, Solver, SolverError, Span, Step, combine, did_you_mean, scalars

from . import quadrature as rules
from . import tableaux
from .runge_kutta import ExponentialRungeKutta

Start = Literal["euler", "heun", "third"] | Solver
Coordinate = Literal["variable", "time", "sigma"]
COORDINATES = {name: name for name in ("variable", "time", "sigma")}
STARTS: dict[str, Solver | None] = {
    "euler": None,
    "heun": ExponentialRungeKutta(tableaux.res_2(Fraction(1))),
    "third": ExponentialRungeKutta(tableaux.dpm_3()),
}


class Adams(Solver):
    """u_1 = e^{L h} u_0 + sum w_j N_j over the newest `order` evaluations; the order grows from 1 over the first steps.

    quadrature: what the weights are (see quadrature.py), a name or a rule of one's own: "exact", int_0^h e^{L (h - s)}
    l_j(s) ds of the actual nodes (LMS, rho-AB DEIS, RES), "uniform", those of evenly spaced ones (PLMS, iPNDM),
    "midpoint" (DPM-Solver++ 2M), "third_halved" (its published third order), "bh1" and "bh2" (UniPC).
    start: "euler" alone, or a one-step method of order q that takes the first q - 1 steps (at most order - 1), at
    its own cost: "heun" (exponential, order 2), "third" (DPM-Solver-3), or any one-step Solver. With it the order as
    started is q + 1.
    coordinate: that of the polynomials l_j: "variable", the form's own; "time", the process's time (tAB-DEIS); or
    "sigma", the noise level, in whatever form the integral is taken (rho-AB DEIS in the noise form, ER-SDE).
    lower_final: the order falls to 1 over a grid's last steps, to 2 at most over the whole.

    The noise of a stochastic form is added. Raises SolverError for options that do not exist.
    """

    steps_to_zero = True

    def __init__(
        self,
        order: int = 4,
        *,
        quadrature: str | rules.Rule = "exact",
        start: Start = "euler",
        coordinate: Coordinate = "variable",
        lower_final: bool = False,
    ) -> None:
        if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= 12:
            raise SolverError(f"an Adams method's order must be a whole number from 1 to 12, got {order!r}")
        self.rule: rules.Rule
        self.rule, highest = (quadrature, 0) if callable(quadrature) else _option("quadrature", quadrature, rules.RULES)
        self.begin = start if isinstance(start, Solver) else _option("start", start, STARTS)
        if self.begin and self.begin.history:
            raise SolverError(f"an Adams method is started by a one-step solver, got {self.begin!r}")
        self.coordinate, self.lower_final = _option("coordinate", coordinate, COORDINATES), lower_final
        if coordinate != "variable" and quadrature != "exact":
            raise SolverError(f"quadrature={quadrature!r} has weights of its own; only 'exact' reads {coordinate=}")
        self.depth, self.history = order, order - 1
        self.order = min(order, highest, 2 if lower_final else 12)
        self.started = min(self.order, self.begin.order + 1 if self.begin else 2)

    def weights(self, linear: float, span: Span, nodes: Sequence[float]) -> list[float]:
        """The weights over the span of evaluations at `nodes`, oldest first."""
        return self.rule(linear, span.h, [node - span.start for node in nodes])

    def weigh(self, f: Field, span: Span, nodes: Sequence[float]) -> list[float]:
        """The same with polynomials in the chosen coordinate."""
        if self.coordinate == "variable":
            return self.weights(f.linear, span, nodes)
        place = getattr(f, self.coordinate)
        if all(place(node) == node for node in (*nodes, span.end)):  # it is the variable, and the closed form holds
            return self.weights(f.linear, span, nodes)
        return rules.in_coordinate(f.linear, span, nodes, place)

    def reach(self, span: Span, steps_ago: int = 0) -> int:
        """How many evaluations the step over `span` may read, or the one `steps_ago` before it."""
        left = span.count - span.index + steps_ago
        return min(self.depth, left) if self.lower_final else self.depth

    def step(self, f: Field, y: Any, span: Span, past: Past) -> Step:
        value = f(y, span.start)
        known = (*past[max(len(past) - self.history, 0) :], (span.start, value))
        if self.begin and not span.last and len(known) < min(self.begin.order, self.depth):
            begun: Any = _Begun(f, value)
            return Step(self.begin.step(begun, y, span, ()).y, past=known)
        read = known[-self.reach(span) :]
        weights = self.weigh(f, span, [node for node, _ in read])
        return Step(self.advance(f, y, span, weights, read), past=known)

    @staticmethod
    def advance(f: Field, y: Any, span: Span, weights: Sequence[Any], read: Past) -> Any:
        """e^{L h} y, the evaluations that are read in their weights, and the noise of the form."""
        terms = [(scalars.exp(f.linear * span.h), y), *((w, v) for w, (_, v) in zip(weights, read, strict=True))]
        noise = f.noise(span)
        if noise:
            terms.append((noise, f.draw(span)))
        return combine(*terms)


def _option(what: str, given: Any, table: Mapping[str, Any]) -> Any:
    if not isinstance(given, str) or given not in table:
        raise SolverError(f"an Adams method has no {what}={given!r}{did_you_mean(given, table)}")
    return table[given]


class _Begun(FieldView):
    """`f` whose first evaluation has been made already."""

    def __init__(self, f: Field, value: Any) -> None:
        super().__init__(f)
        self._made = [value]

    def __call__(self, y: Any, s: float) -> Any:
        return self._made.pop() if self._made else self._f(y, s)
