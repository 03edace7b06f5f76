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
from typing import TYPE_CHECKING, Any

import numpy as np

import diffsolve as ds

from .report import as_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray
SETTLED = 24  # steps within which a multistep method must have filled its past
ON_CIRCLE = 1e-6  # moduli nearer to 1 than this lie on the circle: a double root is known to sqrt(eps) only
LEAK = 1e-12  # how far above 1 rounding may lift a modulus
GROWTH = 1e-6  # an excess over 1 that is still this small at twice the distance has grown from 0
TERMS = 14  # of the expansion of a step's principal root in h
LINES = ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (1.0, -0.6))  # (L, mu) on which consistency is looked at; L = 0: the first


class _Linear(ds.Field):
    """The field of u' = (L + mu) u on vectors of coefficients of m = mu h, at h = 1: N = m u shifts them by one."""

    def __init__(self, linear: Any) -> None:
        self.linear = linear

    def __call__(self, u: Array, s: float) -> Array:
        shifted = np.zeros_like(u)
        shifted[..., 1:] = u[..., :-1]
        return shifted

    def draw(self, span: ds.Span) -> float:
        return 0.0

    wiener = area = draw


class _Homogeneous(_Linear):
    """N = 0: what is left is the solver's own treatment of the linear part."""

    def __call__(self, u: Any, s: float) -> Any:
        return u * 0


def _spans(number: Callable[[int], Any] = float) -> list[ds.Span]:
    return [ds.Span(number(1 + i), number(2 + i), i, 2 * SETTLED) for i in range(SETTLED)]


def step_matrix(solver: ds.Solver, linear: float = 0.0) -> Array:
    """The map of (u, past) to the next (u, past) over a step of length 1: coefficients (k, k, degree + 1) of m.

    linear: L h. A multistep method is taken once its past is full, on even steps. Raises SolverError for a solver that
    isn't linear in its vectors, or whose past does not settle.
    """
    tape = ds.record(solver, _Linear(linear), _spans())  # refuses what is not linear
    width = 1 + max(len(step.operations) for step in tape.steps)
    past: ds.Past = ()
    for span in _spans():
        size = 1 + len(past)
        basis = np.zeros((size, size, width))
        basis[range(size), range(size), 0] = 1.0
        given = tuple((node, vector) for (node, _), vector in zip(past, basis[1:], strict=True))
        step = solver.step(_Linear(linear), basis[0], span, given)
        full = len(step.past) == len(past) and span.index > solver.history
        past = step.past
        if full:
            return np.stack([np.asarray(vector) for vector in (step.y, *(value for _, value in past))])
    raise ds.SolverError(f"the past of {solver!r} still grows after {SETTLED} steps; it must be bounded")


def _needed(matrix: Array) -> Array:
    """Without the parts of the past that no kept part reads, and the powers of m that never occur."""
    kept = [0]
    while len(grown := [j for j in range(len(matrix)) if j == 0 or matrix[kept, j].any()]) > len(kept):
        kept = grown
    matrix = matrix[np.ix_(kept, kept)]
    top = max(np.flatnonzero(matrix.any(axis=(0, 1))), default=0)
    return matrix[..., : top + 1]


def _at(m: Any, matrix: Array) -> Array:
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
    def of(cls, solver: ds.Solver, linear: float) -> Region:
        matrix = _needed(step_matrix(solver, linear))
        measure = cls(linear, matrix, 0.0, 0.0).radius
        return cls(linear, matrix, _reach(lambda t: measure(-t)), _reach(lambda t: measure(1j * t)))

    def roots(self, m: Any) -> Array:
        """The roots zeta at each m, over the growth of the linear part; (*m.shape, k)."""
        at = np.moveaxis(_at(np.asarray(m), self.matrix), (0, 1), (-2, -1))
        roots = at[..., 0] if len(self.matrix) == 1 else np.linalg.eigvals(at)
        return roots * math.exp(-max(self.linear, 0.0))

    def radius(self, m: Any) -> Array:
        """The largest |zeta| at each m."""
        return np.abs(self.roots(m)).max(-1)

    def locus(self, count: int = 720) -> Array:
        """The boundary locus: every m with a root on the unit circle, (angles, branches); nan where a branch ends."""
        size = len(self.matrix)
        degree = size * (self.matrix.shape[-1] - 1)
        ring = np.exp(2j * np.pi * np.arange(degree + 1) / (degree + 1))
        at = _at(ring, self.matrix)
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


def principal_root(solver: ds.Solver, line: tuple[float, float]) -> Array:
    """Coefficients of h^0, h^1, ... of the root that should be e^{(L + mu) h}, at (L, mu) = line; nan where none is.

    Eigenpairs of a matrix power series, order by order (Kato, Perturbation Theory for Linear Operators, II.2).
    """
    return _principal(_expansion(solver, *line))


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


def _expansion(solver: ds.Solver, linear: float, mu: float) -> Array:
    """Coefficients (TERMS, k, k) of h^0, h^1, ... of the step's matrix at (linear h, mu h)."""
    from numpy.polynomial import chebyshev

    if linear == 0:
        powers = np.moveaxis(step_matrix(solver), -1, 0)[:TERMS]
        powers = powers * mu ** np.arange(len(powers))[:, None, None]
        return np.concatenate([powers, np.zeros((TERMS - len(powers), *powers.shape[1:]))])
    nodes = chebyshev.chebpts1(20)
    samples = [_at(mu * h, step_matrix(solver, linear * h)) for h in nodes]
    fit = chebyshev.chebfit(nodes, np.reshape(samples, (len(nodes), -1)), len(nodes) - 1)
    fit[np.abs(fit) < 1e-14 * np.abs(fit).max()] = 0
    series = np.zeros((TERMS, fit.shape[1]))
    for entry, column in enumerate(fit.T):
        powers = chebyshev.cheb2poly(column)[:TERMS]
        series[: len(powers), entry] = powers
    return series.reshape(TERMS, *samples[0].shape)


def _consistency(solver: ds.Solver, linear: bool) -> tuple[int, float]:
    """(order on the linear problem, first wrong coefficient at L = 0)."""
    orders, constant = [], 0.0
    for line in LINES if linear else LINES[:1]:
        exact = np.array([sum(line) ** j / math.factorial(j) for j in range(TERMS)])
        terms = _expansion(solver, *line)
        wrong = _principal(terms) - exact
        reach = len(_needed(np.moveaxis(terms, 0, -1))) - 1  # values so many steps back have coefficients reach^j/j!
        rounding = 1e-10 * max(1.0, np.abs(terms).max()) * max(reach**j / math.factorial(j) for j in range(TERMS))
        first = next((j for j in range(TERMS) if not abs(wrong[j]) < rounding), TERMS)
        orders.append(first - 1)
        if line[0] == 0 and first < TERMS:
            constant = float(wrong[first])
    return min(orders), constant


def _exact_linear_part(solver: ds.Solver) -> bool:
    """Whether a step with N = 0 multiplies u by e^{L h} for every L, shown with a symbol for L."""
    import sympy

    field = _Homogeneous(sympy.Symbol("L", real=True))
    past: ds.Past = ()
    try:
        for span in _spans(sympy.Integer)[: solver.history + 2]:
            step = solver.step(field, sympy.Integer(1), span, past)
            past = step.past
        return bool(sympy.nsimplify(sympy.simplify(step.y), rational=True) == sympy.exp(field.linear))
    except (TypeError, ValueError, AttributeError):  # the step asks for numbers: nothing is shown
        return False


@dataclass(frozen=True, eq=False)
class StabilityReport:
    """What one step does to u' = (L + mu) u.

    order: as claimed; linear_order: the p of zeta = e^{(L + mu) h} + O(h^{p+1}), a necessary condition only, since this
    problem can't see a wrong node; constant: the first wrong coefficient at L = 0. roots: of rho, largest first.
    regions: one for each L h. statements: what has been shown, and no more. scale_free: whether a step knows its length
    through L h and mu h alone; if not, it is shown at length 1, and linear_order says nothing of shorter ones.
    """

    name: str
    form: str
    order: int
    linear_order: int
    constant: float
    roots: tuple[complex, ...]
    zero_stable: bool
    regions: tuple[Region, ...]
    statements: tuple[str, ...]
    scale_free: bool = True

    @property
    def passed(self) -> bool:
        """Zero-stable, and consistent of the claimed order on the linear problem where that can be told."""
        return self.zero_stable and (self.linear_order >= max(self.order, 1) or not self.scale_free)

    @property
    def multistep(self) -> bool:
        return len(self.roots) > 1

    def to_json(self) -> str:
        """The report as JSON; an interval without an end is null."""
        data = {
            "solver": self.name, "form": self.form, "order": self.order, "linear_order": self.linear_order,
            "constant": self.constant, "roots": [[r.real, r.imag] for r in self.roots], "zero_stable": self.zero_stable,
            "regions": [
                {
                    "Lh": r.linear, "real": r.real, "imaginary": r.imaginary, "matrix": r.matrix.tolist(),
                }
                for r in self.regions
            ],
            "statements": list(self.statements), "passed": self.passed,
        }  # fmt: skip
        return as_json(data)

    def __str__(self) -> str:
        kind = f"{len(self.roots)} roots" if self.multistep else "one-step"
        top = f"at least {self.linear_order}" if self.linear_order == TERMS - 1 else f"{self.linear_order}"
        lines = [
            f"{self.name} ({self.form} form, {kind}): {'passed' if self.passed else 'FAILED'}",
            f"  order on linear problems {top}, claimed {self.order} (necessary, not sufficient)",
            f"  {'zero-stable' if self.zero_stable else 'NOT zero-stable'}; moduli of the roots of rho: "
            + ", ".join(f"{abs(r):.3g}" for r in self.roots),
            f"  {'L h':>6} {'real interval':>18} {'imaginary interval':>22}",
        ]
        for r in self.regions:
            imaginary = f"[-{r.imaginary:.6f}i, {r.imaginary:.6f}i]"
            lines.append(f"  {r.linear:6g} {f'[-{r.real:.6f}, 0]':>18} {imaginary:>22}")
        return "\n".join([*lines, *(f"  {s}" for s in self.statements)])

    def plot(self) -> Figure:
        """Left the regions in m = mu h, right the moduli of the roots on the negative real axis beside e^m."""
        from .stability_plot import plot_stability

        return plot_stability(self)


def validate_stability(solver: str | ds.Solver, steps: Sequence[float] = (0.0, 0.5, 2.0)) -> StabilityReport:
    """The stability of any traceable solver, a plugin's too. A stochastic one is looked at in its mean.

    steps: lengths h in the form's variable at which a form with a linear part (L = 1 noise, -1 data, -2 sde) is shown.
    Raises SolverError for a solver that can't be traced.
    """
    method = ds.get_solver(solver)
    linear = ds.as_form(method.form, ds.as_process("sd")).linear
    start = _needed(step_matrix(method))[..., 0]
    roots = sorted(np.linalg.eigvals(start).astype(complex).tolist(), key=abs, reverse=True)
    regions = tuple(Region.of(method, linear * h + 0.0) for h in (steps if linear else (0.0,)))
    order, constant = _consistency(method, bool(linear))
    return StabilityReport(
        method.name or type(method).__name__, method.form, method.order, order, constant, tuple(roots),
        root_condition(start), regions, tuple(_shown(method, regions, bool(linear))), method.scale_free,
    )  # fmt: skip


def _shown(solver: ds.Solver, regions: Sequence[Region], linear: bool) -> list[str]:
    near, far = (np.poly(_at(m, regions[0].matrix)) for m in (-1.0, -3.0))
    shown = [] if solver.scale_free else ["its weights depend on the length of a step itself: shown at length 1"]
    if not np.allclose(near, far, rtol=1e-9, atol=1e-12):
        shown.append("not A-stable: the coefficients of its characteristic polynomial are polynomials in mu h that are "
                     "not constant, so a root has no bound on the left half-plane")  # fmt: skip
    if linear and _exact_linear_part(solver):
        shown.append("exact in the linear part: u' = L u is multiplied by e^{L h} for every L h (shown symbolically), "
                     "so it is A- and L-stable there")  # fmt: skip
    return shown
