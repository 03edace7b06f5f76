"""The linear stability of any traceable solver: one step on u' = (L + mu) u, read off its own algebra.

A step is linear in its vectors, so on this problem it is a matrix that takes (u, past) to the next (u, past), a
polynomial in m = mu h for a given L h. A one-step method's matrix is 1 x 1, its stability function R; a multistep
method's eigenvalues at m = 0 are the roots of rho (with zeros), and their paths in m its root loci (Hairer, Norsett &
Wanner I, III.3; Hairer & Wanner II, IV.2 and V.1). Nothing here asks which method it is: a plugin's step is read alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from diffsolve import Field, Noise, Past, Solver, SolverError, Span, record
from diffsolve.field import Evaluation, Vector
from diffsolve.problems.ode import GivenForm
from diffsolve.program import Advance

Array = np.ndarray
Points = np.ndarray | complex
SETTLED = 24  # steps within which a multistep method must have filled its past
ON_CIRCLE = 1e-6  # moduli nearer to 1 than this lie on the circle: a double root is known to sqrt(eps) only
LEAK = 1e-12  # how far above 1 rounding may lift a modulus
GROWTH = 1e-6  # an excess over 1 that is still this small at twice the distance has grown from 0
TERMS = 14  # of the expansion of a step's principal root in h
LINES = ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (1.0, -0.6))  # (L, mu) on which consistency is looked at; L = 0: the first


class _Linear(Field):
    """The field of u' = (L + mu) u on vectors of coefficients of m = mu h, at h = 1: N = m u shifts them by one."""

    def __init__(self, linear: float) -> None:
        self.form = GivenForm(linear)

    def evaluate(self, u: Vector, s: float, /) -> Evaluation:
        shifted = np.zeros_like(u)
        shifted[..., 1:] = u[..., :-1]
        return Evaluation(shifted)

    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Vector:
        return 0.0


class _Homogeneous(_Linear):
    """N = 0: what is left is the solver's own treatment of the linear part."""

    def evaluate(self, u: Vector, s: float, /) -> Evaluation:
        return Evaluation(u * 0)


def _spans(number: Callable[[int], float] = float) -> list[Span]:
    """number: the kind of scalar that their ends are."""
    return [Span(number(1 + i), number(2 + i), i, 2 * SETTLED) for i in range(SETTLED)]


def step_matrix(solver: Solver, linear: float = 0.0) -> Array:
    """The map of (u, past) to the next (u, past) over a step of length 1: coefficients (k, k, degree + 1) of m.

    linear: L h. A multistep method is taken once its past is full, on even steps. Raises SolverError for a solver that
    isn't linear in its vectors, or whose past does not settle.
    """
    spans, told = _spans(), solver.history + 2
    width = _width(solver, linear, spans[:told])
    past: Past = ()
    for span in spans:
        if span.index == told:  # its past is longer than it says
            width = _width(solver, linear, spans)
        size = 1 + len(past)
        basis = np.zeros((size, size, width))
        basis[range(size), range(size), 0] = 1.0
        given = tuple((node, vector) for (node, _), vector in zip(past, basis[1:], strict=True))
        step = solver.step(_Linear(linear), basis[0], span, given)
        full = len(step.past) == len(past) and span.index > solver.history
        past = step.past
        if full:
            return np.stack([np.asarray(vector) for vector in (step.y, *(value for _, value in past))])
    raise SolverError(f"the past of {solver!r} still grows after {SETTLED} steps; it must be bounded")


def _width(solver: Solver, linear: float, spans: Sequence[Span]) -> int:
    """One more than the powers of m that a step can have. Raises SolverError for what is not linear."""
    tape = record(solver, _Linear(linear), [(Advance(span, span.end),) for span in spans])
    return 1 + max(len(step.operations) for step in tape.structure)


def needed(matrix: Array) -> Array:
    """Without the parts of the past that no kept part reads, and the powers of m that never occur."""
    kept = [0]
    while len(grown := [j for j in range(len(matrix)) if j == 0 or matrix[kept, j].any()]) > len(kept):
        kept = grown
    matrix = matrix[np.ix_(kept, kept)]
    top = max(np.flatnonzero(matrix.any(axis=(0, 1))), default=0)
    return matrix[..., : top + 1]


def at_points(m: Points, matrix: Array) -> Array:
    """The matrix polynomial at each m: (k, k, *m.shape)."""
    return np.polynomial.polynomial.polyval(m, np.moveaxis(matrix, -1, 0))


@dataclass(frozen=True, eq=False)
class Region:
    """Where a step does not grow: |zeta(m)| <= 1 for each root zeta, m = mu h, at one value of L h.

    At L > 0 (the noise form) u = e^{L h} y grows by itself, so that |zeta| e^{-L h} is meant.
    real, imaginary: ends of the intervals [-real, 0] and [-imaginary i, imaginary i], to 1e-6; inf beyond 1e4.
    """

    linear: float
    matrix: Array
    real: float
    imaginary: float

    @classmethod
    def of(cls, solver: Solver, linear: float) -> Region:
        matrix = needed(step_matrix(solver, linear))
        measure = cls(linear, matrix, 0.0, 0.0).radius
        return cls(linear, matrix, _reach(lambda t: measure(-t)), _reach(lambda t: measure(1j * t)))

    def roots(self, m: Points) -> Array:
        """The roots zeta at each m, over the growth of the linear part; (*m.shape, k)."""
        at = np.moveaxis(at_points(np.asarray(m), self.matrix), (0, 1), (-2, -1))
        roots = at[..., 0] if len(self.matrix) == 1 else np.linalg.eigvals(at)
        return roots * math.exp(-max(self.linear, 0.0))

    def radius(self, m: Points) -> Array:
        """The largest |zeta| at each m."""
        return np.abs(self.roots(m)).max(-1)

    def locus(self, count: int = 720) -> Array:
        """The boundary locus: every m with a root on the unit circle, (angles, branches); nan where a branch en"""
        size = len(self.matrix)
        degree = size * (self.matrix.shape[-1] - 1)
        ring = np.exp(2j * np.pi * np.arange(degree + 1) / (degree + 1))
        at = at_points(ring, self.matrix)
        circle = math.exp(max(self.linear, 0.0)) * np.exp(1j * np.linspace(0, 2 * np.pi, count))
        values = np.linalg.det(circle[:, None, None, None] * np.eye(size) - np.moveaxis(at, -1, 0))
        found = np.full((count, max(degree, 1)), np.nan, complex)
        for row, coefficients in zip(found, np.fft.fft(values, axis=1) / (degree + 1), strict=True):
            coefficients[np.abs(coefficients) < 1e-12 * np.abs(coefficients).max()] = 0
            roots = np.sort_complex(np.polynomial.polynomial.polyroots(np.trim_zeros(coefficients, "b")))
            row[: len(roots)] = roots
        return found


def _reach(radius: Callable[[Array], Array]) -> float:
    """How far along a ray from 0 the radius stays at most 1."""
    rungs = np.geomspace(1e-4, 0.01, 100), np.linspace(0.01, 20, 2000), np.geomspace(20, 1e4, 1000)
    ladder = np.unique(np.concatenate([[0.0], *rungs]))
    grows = np.flatnonzero(radius(ladder) > 1 + LEAK)
    if len(grows) == 0:
        return math.inf
    if grows[0] == 0:
        return 0.0
    low, high = ladder[grows[0] - 1 : grows[0] + 1]
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (low, middle) if radius(np.array([middle]))[0] > 1 + LEAK else (middle, high)
    return 0.0 if radius(np.array([2 * high]))[0] - 1 < GROWTH else float(low)


def root_condition(matrix: Array) -> bool:
    """No eigenvalue outside the unit circle, and none on it that is defective."""
    eigenvalues = np.linalg.eigvals(matrix)
    if np.abs(eigenvalues).max() > 1 + ON_CIRCLE:
        return False
    for root in eigenvalues[np.abs(eigenvalues) > 1 - ON_CIRCLE]:
        algebraic = int((np.abs(eigenvalues - root) < 1e3 * ON_CIRCLE).sum())
        rank = np.linalg.matrix_rank(matrix - root * np.eye(len(matrix)), tol=1e3 * ON_CIRCLE)
        if len(matrix) - rank < algebraic:
            return False
    return True


def principal_root(solver: Solver, line: tuple[float, float]) -> Array:
    """Coefficients of h^0, h^1, ... of the root that should be e^{(L + mu) h}, at (L, mu) = line; nan where none is.

    Eigenpairs of a matrix power series, order by order (Kato, Perturbation Theory for Linear Operators, II.2).
    """
    return _principal(_expansion(partial(step_matrix, solver), *line))


def _principal(terms: Array) -> Array:
    size = terms.shape[-1]
    values, vectors = np.linalg.eig(terms[0])
    first = int(np.argmin(np.abs(values - 1)))
    roots, v = [values[first].real], [vectors[:, first].real]
    if abs(values[first] - 1) > ON_CIRCLE or not v[0].any():
        return np.full(TERMS, np.nan)
    bordered = np.block([[terms[0] - np.eye(size), -v[0][:, None]], [v[0][None], np.zeros((1, 1))]])
    for j in range(1, TERMS):
        known = sum(roots[i] * v[j - i] for i in range(1, j)) - sum(terms[i] @ v[j - i] for i in range(1, j + 1))
        try:
            solution = np.linalg.solve(bordered, np.append(known, 0.0))
        except np.linalg.LinAlgError:  # 1 is a double root
            return np.full(TERMS, np.nan)
        v.append(solution[:-1])
        roots.append(solution[-1])
    return np.array(roots)


def _expansion(matrix: Callable[[float], Array], linear: float, mu: float) -> Array:
    """Coefficients (TERMS, k, k) of h^0, h^1, ... of the step's matrix at (linear h, mu h)."""
    from numpy.polynomial import chebyshev

    if linear == 0:
        powers = np.moveaxis(matrix(0.0), -1, 0)[:TERMS]
        powers = powers * mu ** np.arange(len(powers))[:, None, None]
        return np.concatenate([powers, np.zeros((TERMS - len(powers), *powers.shape[1:]))])
    nodes = chebyshev.chebpts1(20)
    samples = [at_points(mu * h, matrix(linear * h)) for h in nodes.tolist()]
    fit = chebyshev.chebfit(nodes, np.reshape(samples, (len(nodes), -1)), len(nodes) - 1)
    fit[np.abs(fit) < 1e-14 * np.abs(fit).max()] = 0
    series = np.zeros((TERMS, fit.shape[1]))
    for entry, column in enumerate(fit.T):
        powers = chebyshev.cheb2poly(column)[:TERMS]
        series[: len(powers), entry] = powers
    return series.reshape(TERMS, *samples[0].shape)


def consistency(solver: Solver, linear: bool) -> tuple[int, float]:
    """(order on the linear problem, first wrong coefficient at L = 0)."""
    matrix = cache(partial(step_matrix, solver))  # lines share their L h
    orders, constant = [], 0.0
    for line in LINES if linear else LINES[:1]:
        exact = np.array([sum(line) ** j / math.factorial(j) for j in range(TERMS)])
        terms = _expansion(matrix, *line)
        wrong = _principal(terms) - exact
        reach = len(needed(np.moveaxis(terms, 0, -1))) - 1  # values so many steps back have coefficients reach^j/j!
        rounding = 1e-10 * max(1.0, np.abs(terms).max()) * max(reach**j / math.factorial(j) for j in range(TERMS))
        first = next((j for j in range(TERMS) if not abs(wrong[j]) < rounding), TERMS)
        orders.append(first - 1)
        if line[0] == 0 and first < TERMS:
            constant = float(wrong[first])
    return min(orders), constant


def exact_linear_part(solver: Solver) -> bool:
    """Whether a step with N = 0 multiplies u by e^{L h} for every L, shown with a symbol for L."""
    import sympy

    field = _Homogeneous(sympy.Symbol("L", real=True))
    past: Past = ()
    try:
        for span in _spans(sympy.Integer)[: solver.history + 2]:
            step = solver.step(field, sympy.Integer(1), span, past)
            past = step.past
        return bool(sympy.nsimplify(sympy.simplify(step.y), rational=True) == sympy.exp(field.form.linear))
    except (TypeError, ValueError, AttributeError):  # the step asks for numbers: nothing is shown
        return False
