"""One step of any solver, run exactly on u' = L u + N(u, s) with an arbitrary N: the universal tree problem.

A step only adds multiples of vectors, so it runs as it is on vectors that are truncated B-series, with scalars that
are power series in h: its local error comes out as a sum over trees, whatever kind of method it is. L is a scalar and
passes through every derivative of N, so the elementary differentials are the trees of N alone times powers of L h, with
two leaves beside t: "s", a derivative of N in time, and "u", the state itself (Hairer, Norsett & Wanner I, sec. II.2
and II.12; Butcher 2016, ch. 3).

A multistep method gets an exact start: it takes its steps from exact states, so that the past is what it makes of them,
on a grid that is "smooth" (nodes s(i h) of a smooth map with every derivative there, so that neighbouring steps differ
by O(h): what a schedule is), "even", or "any" (neighbouring steps in fixed uneven ratios, however small h is).
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, cycle, islice
from numbers import Number

from diffsolve import Field, Noise, Past, Solver, SolverError, Span, Step
from diffsolve.field import Evaluation
from diffsolve.problems.ode import GivenForm

from .series import Coefficient, Series, rational
from .trees import Tree, trees

State = "u"
TIME = "s"
NOISE = "w"
S0 = Fraction(3, 5)  # where the step starts: no place where a wrong node could look right, inside every form's range
SPARE = ((0, 2), (0, 8), (0, 16), (1, 16), (2, 16), (4, 24))  # (powers of h, more of a scalar) for divisions by h
SETTLED = 24  # steps within which a multistep method must have filled its past
CLOSING = 3  # last steps of a grid, which may be of a lower order than the others
RECENT = 32  # evaluations that are remembered
GRIDS = ("smooth", "even", "any")
MAP = (1, 2, -1, 3, -2, 1, -3)  # s(x) = x + 2 x^2 - x^3 + ..., with no pattern to it
GAPS = (Fraction(5, 7), Fraction(11, 8), Fraction(3, 4), Fraction(13, 9))


class InconsistentError(SolverError):
    """An evaluation that does not tend to N(u, s) at the step's start as h -> 0, so that there is nothing to expand."""


class _NeedsStateLeafError(Exception):
    """The problem was built without the leaf "u", and a step needs it."""


class Vector:
    """The sum of coefficient(h) x elementary differential over trees (and "u", the state), up to O(h^end)."""

    __slots__ = ("end", "terms")
    __array_ufunc__ = None

    def __init__(self, terms: Mapping[Tree | str, Series], end: int) -> None:
        self.end = end
        self.terms = {key: cut for key, value in terms.items() if (cut := value.cut(end))}

    @property
    def low(self) -> int:
        """The lowest power of h."""
        return min((value.low for value in self.terms.values()), default=self.end)

    def __add__(self, other: object) -> Vector:
        if not isinstance(other, Vector):
            return _refuse("add", other)
        terms = dict(self.terms)
        for key, value in other.terms.items():
            terms[key] = terms[key] + value if key in terms else value
        return Vector(terms, min(self.end, other.end))

    def __sub__(self, other: object) -> Vector:
        return self + -other if isinstance(other, Vector) else _refuse("subtract", other)

    def __neg__(self) -> Vector:
        return self * -1

    def __mul__(self, k: object) -> Vector:
        if not isinstance(k, Number):
            return _refuse("multiply by", k)
        end = min(self.end + k.low, k.end + self.low) if isinstance(k, Series) else self.end
        return Vector({key: value * k for key, value in self.terms.items()}, end)

    __rmul__ = __mul__

    def __truediv__(self, k: object) -> Vector:
        if not isinstance(k, Number):
            return _refuse("divide by", k)
        return self * (1 / (k if isinstance(k, Series) else rational(k)))


def _refuse(what: str, other: object) -> Vector:
    raise SolverError(f"a step may not {what} a {type(other).__name__}: it is sums of float multiples of vectors")


class Universal(Field):
    """The field f(u, s) that a step is given, with its exact flow; right up to `order` powers of h."""

    def __init__(self, linear: float, order: int, state_leaf: bool, more: int) -> None:
        self.form, self.order, self.state_leaf = GivenForm(linear), order, state_leaf
        leaves = (TIME, State) if state_leaf else (TIME,)
        self.trees = [tree for nodes in range(1, order + 1) for tree in trees(nodes, leaves)]
        self.h = Series.variable(order + 2 + more)
        self._flow = self._solve()
        self._found: deque[tuple[object, Evaluation]] = deque(maxlen=RECENT)  # what methods that share stages share

    def _compose(self, parts: Mapping[Tree | str, Series]) -> dict[Tree | str, Series]:
        """N's Taylor series about the start: a tree's coefficient is the product of its children's over symmetries."""
        value: dict[Tree | str, Series] = {(): Series.constant(1, self.order)}
        for tree in self.trees[1:]:
            rest, child = value.get(tree[:-1]), parts.get(tree[-1])
            if rest is not None and child is not None:
                product = (rest * child).cut(self.order)
                if product:
                    value[tree] = product / tree.count(tree[-1])
        return value

    def _solve(self) -> dict[Tree | str, Series]:
        """alpha' = L alpha + (its coefficient in N), tree after tree: a tree's children come before it."""
        linear = rational(self.form.linear)

        def integral(rate: Series | None, first: int) -> Series:
            c: list[Coefficient] = [Fraction(first)]
            for n in range(self.order):
                c.append((linear * c[n] + (rate[n] if rate else 0)) / (n + 1))
            return Series(0, c)

        flow: dict[Tree | str, Series] = {State: integral(None, 1)}
        parts: dict[Tree | str, Series] = {TIME: self.h, State: flow[State] - 1}
        value: dict[Tree | str, Series] = {}
        for tree in self.trees:
            if tree:
                value[tree] = (value[tree[:-1]] * parts[tree[-1]]).cut(self.order) / tree.count(tree[-1])
            else:
                value[tree] = Series.constant(1, self.order)
            flow[tree] = parts[tree] = integral(value[tree].cut(self.order), 0)
        return flow

    def exact(self, place: Series) -> Vector:
        """u(s0 + place), place = O(h)."""
        powers = [Series.constant(1, self.order + 1)]
        while len(powers) <= self.order:
            powers.append((powers[-1] * place).cut(self.order + 1))
        moved = {
            key: sum((powers[value.low + n] * x for n, x in enumerate(value.c) if x), powers[0] * 0)
            for key, value in self._flow.items()
        }
        return Vector(moved, self.order + 1)

    def evaluate(self, y: object, s: Series | Coefficient, /) -> Evaluation:
        if not isinstance(y, Vector):
            raise SolverError(f"f(y, s) takes the state, then the form's variable; got {type(y).__name__} first")
        _refuse_noise(y)
        time = self.h * 0 + (s - S0)
        terms = {TIME: time, **y.terms}
        asked = y.end, {key: (each.low, each.denominator, each.numerators) for key, each in terms.items()}
        exactly = all(each.numerators is not None for each in terms.values())
        for known, found in self._found if exactly else ():  # a float may be equal to one, and is none
            if known == asked:
                return found
        parts = dict(y.terms)
        drift = parts.pop(State, Series(0, [])) - 1
        if min(time.low, drift.low, *(value.low for value in parts.values())) < 1:
            where = "time" if time.low < 1 else "state"
            raise InconsistentError(f"a {where} at which N is evaluated does not tend to the step's start as h -> 0")
        if drift and not self.state_leaf:
            raise _NeedsStateLeafError
        parts |= {TIME: time, State: drift}
        found = Evaluation(Vector(self._compose(parts), min(y.end, time.end, self.order)))
        if exactly:
            self._found.appendleft((asked, found))
        return found

    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Vector:
        return Vector({NOISE: Series.constant(1, self.order + 1)}, self.order + 1)


def _refuse_noise(y: Vector) -> None:
    if NOISE in y.terms:
        raise SolverError("it adds noise even at eta = 0, and noise has no order to prove here")


@lru_cache(maxsize=8)
def _universal(linear: float, order: int, state_leaf: bool, more: int) -> Universal:
    return Universal(linear, order, state_leaf, more)


@dataclass(frozen=True)
class Defect:
    """numerical - exact after one step from the exact state: O(h^(order + 1)), its coefficients there by tree.

    Without any `terms` it is 0 as far as was looked, and the order at least `order`; inconsistent says in words what
    has no series at all.
    """

    order: int
    terms: Mapping[Tree | str, Coefficient]
    inconsistent: str = ""


@dataclass(frozen=True)
class Steps:
    """The defects of a solver's steps: those that fill its past, a full one, the same as the last ones of a grid, and
    that of its embedded solution.

    exact: every coefficient is rational, so that nothing rests on a float being small.
    """

    starting: tuple[Defect, ...]
    full: Defect
    closing: tuple[Defect, ...]
    embedded: Defect | None
    exact: bool

    @property
    def multistep(self) -> bool:
        return bool(self.starting)


def take_steps(solver: Solver, linear: float, order: int, grid: str = "smooth", exact: bool = True) -> Steps:
    """The solver's steps as far as h^(order + 1), its own past handed on.

    Each is from the exact state, or (exact=False) only the first, and defects add up.

    The past grows to some length, and is then renewed once more before the step that counts, since a method may keep
    what it evaluated at predictions of a lower order. Raises SolverError where the step is not linear in its vectors.
    """
    if not solver.traceable:
        raise SolverError("it declares traceable = False")
    before = 2 * _memory(solver, linear)
    for powers, more in SPARE:
        for state_leaf in (True,) if linear else (False, True):
            try:
                steps = _take(solver, _universal(linear, order + powers, state_leaf, more), order, before, grid, exact)
            except _NeedsStateLeafError:
                continue
            if steps is not None:
                return steps
            break
    raise SolverError("its coefficients divide by h more often than can be followed")


def _take(
    solver: Solver, field: Universal, order: int, before: int, grid: str, reset: bool
) -> Steps | None:
    """None where the known terms end before h^order."""
    places = grid_nodes(field.h, before, grid)
    defects: list[Defect] = []
    past: Past = ()
    end = field.exact(places[0])
    count = before + SETTLED  # of the grid, so that the step that counts is far from its end
    for index in range(before + 1):
        a, b = places[index : index + 2]
        span = Span(a + S0, b + S0, index, count)  # type: ignore[arg-type]
        start = field.exact(a) if reset or not index else end
        try:
            step = _stepped(solver, field, start, span, past)
        except InconsistentError as error:
            wrong = Defect(0, {}, str(error))
            return Steps(tuple(defects), wrong, (), None, True)
        exact_end = field.exact(b)
        end, defect = step.y, step.y - exact_end
        if defect.end <= order:
            return None
        defects.append(_leading(defect, order))
        if index < before:
            past = step.past
    closing = [
        _leading(_stepped(solver, field, start, replace(span, index=i), past).y - exact_end, order)
        for i in range(count - CLOSING, count)
    ]
    if step.error is None:
        step = _stepped(solver, field, start, replace(span, adaptive=True), past)
    lower = None if step.error is None else step.y - exact_end - step.error
    embedded = None if lower is None else _leading(lower, min(order, lower.end - 1))
    exact = all(isinstance(x, Fraction) for value in defect.terms.values() for x in value.c)
    return Steps(tuple(defects[: before // 2]), defects[-1], tuple(closing), embedded, exact)


def _stepped(solver: Solver, field: Universal, y: Vector, span: Span, past: Past) -> Step:
    step = solver.step(field, y, span, past)
    if not isinstance(step, Step):
        raise SolverError(f"its step returned {type(step).__name__}, expected diffsolve.Step(y, error, past)")
    if not isinstance(step.y, Vector):
        raise SolverError(f"its step's y is a {type(step.y).__name__}, expected a sum of the vectors it was given")
    _refuse_noise(step.y)
    return step


def grid_nodes(h: Series, before: int, grid: str) -> list[Series]:
    """Nodes, relative to s0, of `before` earlier steps and of one from 0."""
    if grid == "any":
        places = [h, h * 0]
        for gap in islice(cycle(GAPS), before):
            places.append(places[-1] - h * gap)
        return places[::-1]
    weights = MAP if grid == "smooth" else MAP[:1]
    powers = list(accumulate([h] * len(weights), operator.mul))
    return [
        sum((power * (x * k**n) for n, (x, power) in enumerate(zip(weights, powers, strict=True), 1)), h * 0)
        for k in range(-before, 2)
    ]


def _leading(wrong: Vector, order: int) -> Defect:
    power = min(wrong.low, order + 1)
    if power > order:
        return Defect(order, {})
    return Defect(power - 1, {key: value.c[0] for key, value in wrong.terms.items() if value.low == power})


def _memory(solver: Solver, linear: float) -> int:
    """The length that the past grows to, found by stepping; 0 for a one-step method."""
    field = _universal(linear, 1, True, SPARE[2][1])
    past: Past = ()
    for index in range(SETTLED):
        a, b = field.h * index, field.h * (index + 1)
        span = Span(a + S0, b + S0, index, SETTLED)  # type: ignore[arg-type]
        before = len(past)
        try:
            past = _stepped(solver, field, field.exact(a), span, past).past
        except InconsistentError:
            return before
        if len(past) == before:
            return before
    raise SolverError(f"its past still grows after {SETTLED} steps; it must be bounded")
