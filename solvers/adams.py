"""(Exponential) Adams methods of any order, on the grid as it is, in any form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Literal, TypeVar

from diffsolve import EvaluationCache, Field, Past, Solver, SolverError, Span, Step, combine, scalars
from diffsolve.field import Vector
from diffsolve.scalars import Scalar
from diffsolve.validate import choice, whole

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
Nodes = tuple[Scalar, ...]
MOST_KEPT = 1024  # numbers of steps
CLOSE = 1e-9  # of the way from the step to the farthest node: nodes that are no nearer to one another


def check_apart(span: Span, nodes: Nodes) -> None:
    """Raise SolverError where two of the nodes are one beside this step, so that weights would be rounding alone."""
    away = sorted(node - span.start for node in nodes)
    least = min((b - a for a, b in pairwise(away)), default=math.inf)
    if least < CLOSE * max(abs(away[0]), abs(away[-1])):
        raise SolverError(
            f"two nodes of the grid are {least:.1g} apart, too near for a multistep method beside the steps after; "
            "leave one out, or take a one-step method such as 'heun'"
        )


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
        order = whole(order, "an Adams method's order", most=12)
        self.rule: rules.Rule
        highest: int | None
        if callable(quadrature):
            self.rule, highest = quadrature, None
        else:
            self.rule, highest = _option("quadrature", quadrature, rules.RULES)
        self.begin = start if isinstance(start, Solver) else _option("start", start, STARTS)
        if self.begin and self.begin.history:
            raise SolverError(f"an Adams method is started by a one-step solver, got {self.begin!r}")
        self.coordinate, self.lower_final = _option("coordinate", coordinate, COORDINATES), lower_final
        if coordinate != "variable" and quadrature != "exact":
            raise SolverError(f"quadrature={quadrature!r} has weights of its own; only 'exact' reads {coordinate=}")
        self.depth, self.history = order, order - 1
        self._kept: dict[object, tuple[Scalar, ...]] = {}
        if highest is not None:
            self.order = min(order, highest, 2 if lower_final else 12)
            self.order_as_started = min(self.order, (self.begin.order or 0) + 1 if self.begin else 2)

    def weights(self, linear: Scalar, span: Span, nodes: Sequence[Scalar]) -> list[Scalar]:
        """The weights over the span of evaluations at `nodes`, oldest first."""
        return self.rule(linear, span.h, [node - span.start for node in nodes])

    def weigh(self, f: Field, span: Span, nodes: Sequence[Scalar]) -> list[Scalar]:
        """The same with polynomials in the chosen coordinate."""
        form = f.form
        if self.coordinate == "variable":
            return self.weights(form.linear, span, nodes)
        coordinate = form.time if self.coordinate == "time" else form.sigma
        if all(coordinate(node) == node for node in (*nodes, span.end)):  # the variable: the closed form holds
            return self.weights(form.linear, span, nodes)
        return rules.in_coordinate(form.linear, span, nodes, coordinate)

    def points_read(self, span: Span, steps_ago: int = 0) -> int:
        """How many evaluations the step over `span` may read, or the one `steps_ago` before it."""
        left = span.count - span.index + steps_ago
        return min(self.depth, left) if self.lower_final else self.depth

    def starter(self, span: Span, count: int) -> Solver | None:
        """The one-step method that takes the step over `span`, if any, where `count` evaluations are there to read."""
        if self.begin is None or span.last or count >= min(self.begin.order or 0, self.depth):
            return None
        return self.begin

    # y_1 = e^{L h} y_0 + sum_j w_j N_j + noise_std z over the newest evaluations N_j, N_0 = f(y_0, s_0) among them
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        cache = EvaluationCache(f) if self.begin else f  # the start's method evaluates at the same state
        known = (*self.kept(past), (span.start, cache(y, span.start)))
        if self.begin and (begin := self.starter(span, len(known))):
            return Step(begin.step(cache, y, span, ()).y, past=self.kept(known))
        read = known[-(self.points_read(span) if self.lower_final else self.depth) :]
        nodes, _ = zip(*read, strict=True)
        keep, noise, weights = self.numbers(f, span, nodes)
        return Step(self.total(f, y, span, keep, noise, weights, read), past=self.kept(known))

    def kept(self, known: Past) -> Past:
        """Of the evaluations that a step has read those that the next one reads."""
        return known[max(len(known) - self.history, 0) :]

    def numbers(self, f: Field, span: Span, nodes: Nodes) -> tuple[Scalar, ...]:
        """What `compute` says; of floats it is kept, for the next run over the same grid in the same form."""
        if type(span.start) is not float:  # symbols may be equal to floats
            return self.compute(f, span, nodes)
        key = f.form, span, nodes, self.rule, self.depth, self.lower_final
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            found = self._kept[key] = self.compute(f, span, nodes)
        return found

    def compute(self, f: Field, span: Span, nodes: Nodes) -> tuple[Scalar, ...]:
        """(e^{L h}, the deviation of the noise, the weights of the evaluations at `nodes`) of a step."""
        form = f.form
        if type(span.start) is float:
            check_apart(span, nodes)
        return scalars.exp(form.linear * span.h), form.noise_std(span.start, span.end), self.weigh(f, span, nodes)

    def evaluations(self, span: Span, known: int) -> int | None:
        begin = self.starter(span, known + 1)
        if begin is None:
            return 1
        # one that adds noise may make its first evaluation at another state: then it is one more
        return None if begin.stochastic else begin.evaluations(span, 0)

    @staticmethod
    def total(
        f: Field, y: Vector, span: Span, keep: Scalar, noise: float, weights: Sequence[Scalar], read: Past
    ) -> Vector:
        """e^{L h} y, the evaluations that are read in their weights, and the noise of the form."""
        terms = [(keep, y)]
        for w, (_, value) in zip(weights, read, strict=True):
            terms.append((w, value))
        if noise:
            terms.append((noise, f.normal(span)))
        return combine(*terms)


T = TypeVar("T")


def _option(what: str, given: object, table: Mapping[str, T]) -> T:
    return table[choice(given, f"an Adams method's {what}", table)]
