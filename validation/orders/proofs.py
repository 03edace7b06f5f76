"""Four ways to prove an order, each for its kind of solver; `conditions.py` chooses.

A proof's coefficients are those of the leading error of one step, numerical - exact, that is of h^(order + 1) times
what their labels say: a tree stands for its elementary differential, N'' for a derivative along the solution, and a
power of h before it for a term that only a linear part or an uneven grid brings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, cycle, islice
from typing import TypeAlias

from diffsolve import Solver, Span, scalars
from diffsolve.solvers import Adams, ExponentialRungeKutta, PredictorCorrector, Tableau

from .bseries import CLOSING, GAPS, MAP, S0, State, Steps, grid_nodes, take_steps
from .series import TINY, Coefficient, Series
from .stiff import exact_moments, stiff_order
from .trees import Rank, Tree, density, elementary_weights, is_plain, name, order, rank, symmetry, trees

HIGHEST = 8
TIME_LEAF = ("s",)
Coefficients: TypeAlias = dict[str, Coefficient]
Details: TypeAlias = Mapping[str, str | float]


@dataclass(frozen=True)
class Proof:
    """order: proved on a smooth grid with an exact start; failing: the first condition that does not hold, "" if none
    was found as far as was looked. exact: in rationals, so that nothing rests on a float being small.
    """

    route: str
    order: int
    failing: str
    coefficients: Mapping[str, Coefficient]
    exact: bool
    details: Details


# Any traceable step: its B-series.


def by_series(solver: Solver, linear: float, claimed: int) -> Proof:
    """One step on the universal tree problem against its exact flow, at L = `linear` (see bseries.py)."""
    smooth = _first_failing(solver, linear, claimed)
    details: dict[str, str | float] = {}
    if smooth.embedded is not None:
        details["embedded"] = smooth.embedded.order
    even = None
    if smooth.multistep:
        even = _first_failing(solver, linear, claimed, "even").full.order
        details |= {"even": even, "any": _first_failing(solver, linear, claimed, "any").full.order}
    wrong = smooth.full
    proved = min(wrong.order, *(defect.order + 1 for defect in smooth.closing)) if smooth.closing else wrong.order
    if proved < wrong.order:
        details["all steps but the last"] = wrong.order
    details |= _grid_note(wrong.order if even is None else even, wrong.order)
    power = wrong.order + 1
    leading = {key: wrong.terms[key] for key in sorted(wrong.terms, key=_rank)}
    if any(is_plain(key) for key in leading):
        plain = [key for key in leading if is_plain(key) and order(key) < power]
        coefficients = {_label(key, power): wrong.terms.get(key, Fraction(0)) for key in [*plain, *trees(power)]}
    else:
        coefficients = {_label(key, power): value for key, value in leading.items()}
    failing = wrong.inconsistent
    if leading:
        first = next(iter(leading))
        failing = f"{_label(first, power)}, order {power}: off by {leading[first]}"
    if proved < wrong.order:
        failing, coefficients = f"one of the last {CLOSING} steps of a grid, which is of order {proved - 1} only", {}
    return Proof("B-series of one step", proved, failing, coefficients, smooth.exact, details)


def started_order(solver: Solver, linear: float, proved: int) -> int:
    """The order as started from one state: what its first steps, one after another, leave behind, stays to the end."""
    if not take_steps(solver, linear, 1).multistep:
        return proved
    for power in range(2, proved + 1):
        left = take_steps(solver, linear, power, exact=False).full.order
        if left < power:
            return min(proved, left + 1)
    return proved


def _first_failing(solver: Solver, linear: float, claimed: int, grid: str = "smooth") -> Steps:
    """The steps as far as the first order that they miss, or one beyond the highest that is looked at."""
    steps = take_steps(solver, linear, 1, grid)
    for power in range(min(max(claimed + 1, 2), HIGHEST + 1), HIGHEST + 2):
        if steps.full.terms or steps.full.inconsistent:
            break
        steps = take_steps(solver, linear, power, grid)
    return steps


def _grid_note(even: int, smooth: int) -> dict[str, str]:
    nodes = " + ".join(f"{x} (i h)^{n}" if n > 1 else "i h" for n, x in enumerate(MAP[:2], 1))
    return {"leading error": f"the grid's, here of nodes {nodes} + ...; 0 on the even grid"} if even > smooth else {}


def _rank(key: Tree | str) -> tuple[bool, Rank]:
    return not is_plain(key), rank(key)


def _label(key: Tree | str, power: int) -> str:
    return _times_h(name(key), power - (0 if key == State else order(key)))


def _times_h(label: str, power: int) -> str:
    return label if not power else f"h {label}" if power == 1 else f"h^{power} {label}"


# Runge-Kutta tableaux: rooted trees.


def by_trees(tableau: Tableau) -> Proof:
    """The rooted-tree conditions on (c, A, b), for problems that depend on time too (Butcher 2016, ch. 3)."""
    proved, residuals, exact = tree_order(tableau.c, tableau.a, tableau.b)
    shown = {tree: (x if exact else float(x)) / symmetry(tree) for tree, x in residuals.items()}
    plain = {name(tree): x for tree, x in shown.items() if is_plain(tree)}
    coloured = {name(tree): x for tree, x in shown.items() if x}
    failing = ""
    if coloured:
        first = min((tree for tree, x in residuals.items() if x), key=_rank)
        needed = Fraction(1, density(first))
        reached = residuals[first] + needed
        failing = f"{name(first)}, order {proved + 1}: {reached if exact else float(reached)}, needs {needed}"
    rows = _rows_meet_nodes(tableau.c, tableau.a)
    details: dict[str, str | float] = {"row sums": "equal the nodes" if rows else "differ from the nodes"}
    if tableau.error:
        low = [b - e for b, e in zip(tableau.b, tableau.error, strict=True)]
        details["embedded"] = tree_order(tableau.c, tableau.a, low)[0]
    coefficients = plain if any(plain.values()) else coloured
    return Proof("rooted trees", proved, failing, coefficients, exact, details)


def tree_order(
    c: Sequence[Coefficient],
    a: Sequence[Sequence[Coefficient]],
    b: Sequence[Coefficient],
    highest: int = HIGHEST,
) -> tuple[int, dict[Tree, Coefficient], bool]:
    """The order of a tableau, Phi - 1/gamma of every tree of the first order that fails (none: of highest + 1), and
    whether all is in rationals; if not, some coefficient is irrational or was published rounded, and below 1e-12 is 0.

    Leaves of time are left out where the rows sum to the nodes, since they read what the leaf t reads.
    """
    leaves = () if _rows_meet_nodes(c, a) else TIME_LEAF
    exact = True
    for nodes in range(1, highest + 2):
        wanted = trees(nodes, leaves)
        weights = elementary_weights(wanted, c, a, b)
        left: dict[Tree, Coefficient] = {
            tree: w - Fraction(1, density(tree)) for tree, w in zip(wanted, weights, strict=True)
        }
        residuals = {tree: x if abs(float(x)) >= TINY else Fraction(0) for tree, x in left.items()}
        exact = exact and residuals == left and all(isinstance(x, Fraction | int) for x in left.values())
        if any(residuals.values()):
            break
    else:
        nodes += 1
    return nodes - 1, residuals, exact


def _rows_meet_nodes(c: Sequence[Coefficient], a: Sequence[Sequence[Coefficient]]) -> bool:
    return all(abs(float(node - sum(row))) < TINY for node, row in zip(c, a, strict=True))


# Exponential Runge-Kutta: the order for a fixed L from the series, and the stiff order.


def by_stiff_conditions(solver: ExponentialRungeKutta, linear: float, claimed: int) -> Proof:
    """The classical order, for L fixed and h -> 0, from the step as a function of L h; and the order for any L h."""
    fixed, stiff = by_series(solver, linear or 1.0, claimed), stiff_order(solver.tableau)
    details = {**fixed.details, "stiff": stiff.strong, "stiff, weak form": stiff.weak}
    if stiff.failing:
        details["first failing for any L h"] = stiff.failing
    route = "B-series of one step, stiff order conditions"
    return Proof(route, fixed.order, fixed.failing, fixed.coefficients, fixed.exact, details)


# Adams methods: exactness on polynomials.


def by_moments(solver: Adams, linear: float) -> Proof:
    """The weights' integrals of e^(L (h - s)) s^m/m! against the exact ones (Hairer, Norsett & Wanner I, III.2)."""
    proved, coefficients = moments(solver, linear, "smooth")
    details: dict[str, str | float] = {}
    even, other = moments(solver, linear, "even")
    details["even"] = even
    if even != proved:
        details["constant on the even grid"] = math.hypot(*map(float, other.values()))
    details["any"], _ = moments(solver, linear, "any")
    details |= _grid_note(even, proved)
    if linear:
        gaps = islice(cycle(GAPS), solver.depth - 1)
        places = [Fraction(0), *(-p for p in accumulate(gaps))][::-1]
        stiff = exact_moments(solver, places)
        if isinstance(solver, PredictorCorrector):
            corrector = exact_moments(solver, [*places[solver.depth + 1 - solver.corrector :], Fraction(1)])
            stiff = min(stiff + 1, corrector)
        details["stiff"] = stiff
    first = next(iter(coefficients))
    failing = f"{first}, order {proved + 1}: off by {coefficients[first]}"
    exact = all(isinstance(x, Fraction) for x in coefficients.values())
    return Proof("exactness on polynomials", proved, failing, coefficients, exact, details)


def moments(solver: Adams, linear: float, grid: str) -> tuple[int, Coefficients]:
    """The order on a grid, and the leading error's coefficients of the derivatives of N along the solution.

    A corrector that reads the evaluation at a prediction is of one order more than its predictor at most: what the
    predictions are off by comes back through N_u, the derivative of N in the state, times h.
    """
    order, leading = _moments(solver, linear, grid, solver.depth)
    if not isinstance(solver, PredictorCorrector):
        return order, leading
    corrected, own = _moments(solver, linear, grid, solver.corrector - 1, implicit=True)
    through = {label.replace("N", "N_u N", 1): x for label, x in leading.items()}
    proved = min(order + 1, corrected)
    return proved, (own if corrected == proved else {}) | (through if order + 1 == proved else {})


def _moments(
    solver: Adams, linear: float, grid: str, depth: int, implicit: bool = False
) -> tuple[int, Coefficients]:
    """Those of the solver's weights for `depth` places up to the start (and for the end, where implicit)."""
    lost = depth + 3 if linear else 0  # by dividing by L h
    places = grid_nodes(Series.variable(depth + 5 + lost), max(depth - 1, 0), grid)
    *known, end = places
    span = Span(known[-1] + S0, end + S0)  # type: ignore[arg-type]
    known = [*known[len(known) - depth :], *([end] if implicit else [])]
    weights = solver.weights(linear, span, [place + S0 for place in known])
    wrong: list[Series] = []
    for m in range(len(known) + 2):
        taken = sum(w * place**m for w, place in zip(weights, known, strict=True)) / math.factorial(m)
        wrong.append(taken - end ** (m + 1) * scalars.phi(m + 1, end * linear))
    power = min(x.low for x in wrong)
    derivatives = ["N", "N'", "N''", "N'''", *(f"N^({m})" for m in range(4, len(wrong)))]
    leading = {_times_h(derivatives[m], power - 1 - m): x[power] for m, x in enumerate(wrong) if x.low == power}
    return power - 1, leading
