"""Order conditions that hold for every L h, however large: stiff conditions, with z = L h as a symbol.

For exponential Runge-Kutta methods they are those of Hochbruck & Ostermann 2005 (SIAM J. Numer. Anal. 43, sec. 4;
again in their survey of 2010, sec. 2.3), with arbitrary operators J and K between the factors: each factor gets a z of
its own, since operators do not commute. The weak form of a condition of the top order p has b_i(0) in place of b_i(z),
and psi_p(0) = 0 in place of psi_p(z) = 0; it suffices for order p where all conditions of lower order hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from diffsolve import Span, scalars
from diffsolve.solvers import Adams, ExponentialTableau
from diffsolve.solvers.tableaux import Weights

if TYPE_CHECKING:
    from sympy import Expr

HIGHEST = 4


@dataclass(frozen=True)
class StiffCondition:
    """One condition: its residual as a sympy expression (0 where it holds for every z), and the weak form's."""

    order: int
    formula: str
    residual: Expr
    weak: Expr


class Phi:
    """Linear combinations of phi_k(c z) as sympy expressions, and their values at z = 0 as they are."""

    def __init__(self, tableau: ExponentialTableau) -> None:
        from sympy import Rational

        self.c = [Rational(c.numerator, c.denominator) for c in tableau.c]
        self.rows, self.last = tableau.a, tableau.b

    def phi(self, k: int, c: Expr, z: Expr) -> Expr:
        from sympy import Rational

        return scalars.phi(k, c * z) if c * z != 0 else Rational(1, math.factorial(k))

    def weights(self, row: Weights, c: Expr, z: Expr) -> list[Expr]:
        """A row's weights; the first, where it has no terms, follows from the row's sum c phi_1(c z)."""
        from sympy import Rational

        def exact(q: Fraction | int) -> Expr:
            return Rational(q.numerator, q.denominator)

        known = [
            sum(exact(q) * self.phi(k, exact(*own) if own else c, z) for q, k, *own in terms) for terms in row
        ]
        if row and not row[0]:
            known[0] = c * self.phi(1, c, z) - sum(known[1:])
        return known

    def a(self, i: int, z: Expr) -> list[Expr]:
        return self.weights(self.rows[i], self.c[i], z)

    def b(self, z: Expr) -> list[Expr]:
        return self.weights(self.last, 1, z)

    def psi(self, j: int, z: Expr) -> Expr:
        """phi_j(z) - sum b_i(z) c_i^(j-1)/(j-1)!: what the quadrature leaves of a polynomial."""
        return self.phi(j, 1, z) - self._moment(self.b(z), j)

    def stage(self, j: int, i: int, z: Expr) -> Expr:
        """psi_{j,i}: the same of stage i."""
        c = self.c[i]
        return c**j * self.phi(j, c, z) - self._moment(self.a(i, z), j)

    def _moment(self, weights: Sequence[Expr], j: int) -> Expr:
        return sum(w * c ** (j - 1) for w, c in zip(weights, self.c, strict=False)) / math.factorial(j - 1)


def stiff_conditions(tableau: ExponentialTableau) -> Iterator[StiffCondition]:
    """The conditions up to order 4, in their published order."""
    from sympy import symbols

    x, y, z = symbols("x y z")
    p, stages = Phi(tableau), range(len(tableau.c))
    b = {"strong": p.b(x), "weak": p.b(0)}
    second = [p.stage(2, i, z) for i in stages]
    through = [sum(a * s for a, s in zip(p.a(i, y), second, strict=False)) for i in stages]

    def both(order: int, formula: str, inner: Sequence[Expr]) -> StiffCondition:
        strong, weak = (sum(w * s for w, s in zip(b[kind], inner, strict=True)) for kind in ("strong", "weak"))
        return StiffCondition(order, formula, strong, weak)

    def quadrature(j: int) -> StiffCondition:
        return StiffCondition(j, f"psi_{j}(z) = 0", p.psi(j, z), p.psi(j, 0))

    yield quadrature(1)
    yield quadrature(2)
    for i in stages:
        residual = p.stage(1, i, z)
        yield StiffCondition(2, f"psi_1,{i + 1}(z) = 0", residual, residual)
    yield quadrature(3)
    yield both(3, "sum b_i J psi_2,i(z) = 0", second)
    yield quadrature(4)
    yield both(4, "sum b_i J psi_3,i(z) = 0", [p.stage(3, i, z) for i in stages])
    yield both(4, "sum b_i J sum a_ij J psi_2,j(z) = 0", through)
    yield both(4, "sum b_i c_i K psi_2,i(z) = 0", [c * s for c, s in zip(p.c, second, strict=True)])


@dataclass(frozen=True)
class StiffOrder:
    """strong: the order whose conditions hold for every z; weak: that with its top order in the weak form."""

    strong: int
    weak: int
    failing: str


def stiff_order(tableau: ExponentialTableau) -> StiffOrder:
    """The stiff order up to 4, and the first condition that fails with its residual."""
    strong = weak = HIGHEST
    failing = ""
    for condition in stiff_conditions(tableau):
        if condition.order > min(weak, strong + 1):
            break
        if not vanishes(condition.residual):
            if not failing:
                failing = f"{condition.formula}, order {condition.order}: leaves {reduced(condition.residual)}"
            strong = min(strong, condition.order - 1)
            weak = min(weak, condition.order if vanishes(condition.weak) else condition.order - 1, strong + 1)
    return StiffOrder(strong, max(weak, strong), failing)


def exact_moments(solver: Adams, places: Sequence[Fraction]) -> int:
    """How many of 1, s, s^2, ... a step's weights integrate exactly for every L h, over nodes at `places` (h = 1)."""
    from sympy import Rational, Symbol

    z = Symbol("z")
    nodes = [Rational(p.numerator, p.denominator) for p in places]
    span = Span(Rational(0), Rational(1))
    weights = solver.weights(z, span, nodes)
    for m in range(len(places)):
        taken = sum(w * x**m for w, x in zip(weights, nodes, strict=True))
        if not vanishes(taken - math.factorial(m) * scalars.phi(m + 1, z)):
            return m
    return len(places)


def vanishes(expression: Expr) -> bool:
    """Whether a rational function of z's and e^(c z)'s, c rational, is 0: z and e^z are algebraically independent."""
    from sympy import expand, numer, together

    return expand(numer(together(_algebraic(expression)))) == 0


def reduced(expression: Expr) -> Expr:
    """The same in fewer terms, for reading."""
    from sympy import factor

    powers: dict[Expr, Expr] = {}
    return factor(_algebraic(expression, powers)).subs({symbol: value for value, symbol in powers.items()})


def _algebraic(expression: Expr, powers: dict[Expr, Expr] | None = None) -> Expr:
    """e^(c z) as a power of a symbol for e^(z/q), q the common denominator of the c's."""
    from sympy import Dummy, exp, ilcm, sympify

    expression = sympify(expression)
    powers = {} if powers is None else powers
    arguments = [node.args[0].as_coeff_Mul() for node in expression.atoms(exp)]
    q = ilcm(1, 1, *(coefficient.q for coefficient, _ in arguments))
    for _, z in arguments:
        powers.setdefault(exp(z / q), Dummy(f"E_{z}"))
    return expression.replace(exp, lambda argument: _power(argument, q, powers))


def _power(argument: Expr, q: int, powers: dict[Expr, Expr]) -> Expr:
    from sympy import exp

    coefficient, z = argument.as_coeff_Mul()
    return powers[exp(z / q)] ** (coefficient * q)
