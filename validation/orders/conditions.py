"""The order of a solver, proved from its own algebra: in rationals, without solving anything."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from diffsolve import DiffsolveError, Solver, SolverError, get_solver
from diffsolve.form import as_form
from diffsolve.process import as_process
from diffsolve.solvers import Adams, ExponentialRungeKutta, PredictorCorrector, RungeKutta

from ..palette import COLOURS
from .proofs import Details, Proof, by_moments, by_series, by_stiff_conditions, by_trees, started_order
from .series import TINY, Coefficient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ADAMS = (Adams.step, PredictorCorrector.step)  # the steps that their weights tell all of
SHOWN, BARS = 10, 24  # coefficients in print, and in the picture; the JSON has them all


@dataclass(frozen=True)
class ConditionsReport:
    """What is claimed of a solver and what is proved.

    claimed, proved: order with an exact start, on a grid that a smooth map makes of an even one; claimed is None
    where nothing is, proved with the `reason` where nothing can be. started_claimed, started_proved: as started
    from one state. route: how it was proved. exact: in rationals; otherwise some are irrational or rounded, and 0
    means below 1e-12. first_failing: the condition that ends the proof. coefficients: of h^(proved + 1) in the
    error of one step, numerical - exact, by tree or derivative; constant: their 2-norm. details: order of the
    embedded solution ("embedded"), on an even grid ("even"), where neighbouring steps differ in size however small
    h is ("any"), and for any L h, however large ("stiff": all conditions for every L h; "stiff, weak form": those
    of the top order at L h = 0).
    """

    name: str
    claimed: int | None
    proved: int | None
    started_claimed: int | None
    started_proved: int | None
    route: str = ""
    exact: bool = True
    first_failing: str = ""
    coefficients: Mapping[str, Coefficient] = field(default_factory=dict)
    details: Details = field(default_factory=dict)
    reason: str = ""

    @property
    def constant(self) -> float:
        """The error constant; nan where no coefficient is known."""
        return math.hypot(*map(float, self.coefficients.values())) if self.coefficients else math.nan

    @property
    def passed(self) -> bool | None:
        """Whether both claims are what is proved, no less and no more; None where nothing is claimed or provable."""
        if self.proved is None or not self.claimed or (not self.first_failing and self.claimed >= self.proved):
            return None
        return (self.proved, self.started_proved) == (self.claimed, self.started_claimed)

    def __str__(self) -> str:
        if self.proved is None:
            return f"{self.name}: not provable: {self.reason}"
        verdict = {True: "met", False: "NOT met", None: "neither met nor broken"}[self.passed]
        least = "" if self.first_failing else "at least "
        started = "" if self.started_proved == self.proved else f" ({self.started_proved} as started)"
        claim = "nothing" if self.claimed is None else f"{self.claimed}"
        claim += "" if self.started_claimed == self.claimed else f" ({self.started_claimed} as started)"
        kind = "in rationals" if self.exact else f"to {TINY:g}, since it has irrational or rounded coefficients"
        lines = [
            f"{self.name}: order {least}{self.proved}{started} proved, {claim} claimed: {verdict}",
            f"  by {self.route}, {kind}",
            *([f"  first failing: {self.first_failing}"] if self.first_failing else []),
        ]
        if self.coefficients:
            shown = [f"{label}: {_text(value)}" for label, value in self.coefficients.items() if value]
            more = f", and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
            text = f"error constant {self.constant:.4g}, the norm of {', '.join(shown[:SHOWN])}{more}"
            lines += textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="    ")
        return "\n".join([*lines, *(f"  {key}: {value}" for key, value in self.details.items())])

    def to_json(self) -> str:
        """The report as JSON; rationals are written as "p/q", and what is not known is null."""
        data = {
            "solver": self.name, "claimed": self.claimed, "proved": self.proved, "passed": self.passed,
            "started_claimed": self.started_claimed, "started_proved": self.started_proved,
            "route": self.route, "exact": self.exact, "first_failing": self.first_failing,
            "constant": self.constant if self.coefficients else None,
            "coefficients": {k: str(v) if isinstance(v, Fraction) else v for k, v in self.coefficients.items()},
            "details": dict(self.details), "reason": self.reason,
        }  # fmt: skip
        return json.dumps(data, indent=2, allow_nan=False)

    def plot(self) -> Figure:
        """The principal error coefficients as bars, the largest where they are many."""
        from matplotlib.figure import Figure

        largest = sorted(self.coefficients, key=lambda label: -abs(float(self.coefficients[label])))[:BARS]
        labels = [label for label in self.coefficients if label in largest]
        values = [float(self.coefficients[label]) for label in labels]
        figure = Figure(figsize=(8, 1.4 + 0.28 * max(len(labels), 2)), layout="constrained")
        axes = figure.add_subplot(xlabel=f"coefficient of h^{(self.proved or 0) + 1} in the error of one step")
        axes.barh(range(len(labels)), values, color=COLOURS[0], height=0.7)
        axes.axvline(0, color="0.3", lw=0.8)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.25)
        proved = "not provable" if self.proved is None else f"order {self.proved} proved"
        norm = f", norm {self.constant:.3g}" if self.coefficients else ""
        axes.set_title(f"{self.name}: {proved}, {self.claimed or 'none'} claimed{norm}", loc="left", fontsize=11)
        return figure


def _text(value: Coefficient) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def validate_conditions(solver: str | Solver, route: Literal["auto", "series"] = "auto") -> ConditionsReport:
    """Prove the order of `solver`, and hold it against its claim.

    solver: a name, a name with options ("lms(order=3, form=data)"), or a Solver, a plugin's too. Stochastic ones are
    taken at eta = 0. route: by the solver's kind ("auto": rooted trees for a Runge-Kutta tableau, stiff conditions for
    an exponential one, exactness on polynomials for an Adams method), or "series", the one that any traceable step
    can go: run it on the universal tree problem in exact arithmetic.

    A step that does anything but add multiples of vectors is reported as not provable. Raises SolverError for an
    unknown name or route.
    """
    if route not in ("auto", "series"):
        raise SolverError(f"route is 'auto' or 'series', got {route!r}")
    method = get_solver(solver)
    name, started = method.name or type(method).__name__, method.order_as_started or method.order
    linear = as_form(method.form or "", as_process("sd"), 0.0).linear
    try:
        proof = _prove(method, linear, route)
        begun = started_order(method, linear, proof.order)
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError, DiffsolveError) as error:
        return ConditionsReport(name, method.order, None, started, None, reason=f"not traceable: {error}")
    return ConditionsReport(
        name, method.order, proof.order, started, begun, proof.route, proof.exact, proof.failing,
        proof.coefficients, proof.details,
    )  # fmt: skip


def _prove(solver: Solver, linear: float, route: str) -> Proof:
    """By the class whose step it is: a subclass with a step of its own is any step."""
    step = type(solver).step if route == "auto" else None
    if isinstance(solver, RungeKutta) and step is RungeKutta.step:
        return by_trees(solver.tableau)
    if isinstance(solver, ExponentialRungeKutta) and step is ExponentialRungeKutta.step:
        return by_stiff_conditions(solver, linear, solver.order or 0)
    if (
        isinstance(solver, Adams)
        and type(solver).weigh is Adams.weigh
        and step in ADAMS
        and not solver.lower_final
    ):
        return by_moments(solver, linear)
    return by_series(solver, linear, solver.order or 0)
