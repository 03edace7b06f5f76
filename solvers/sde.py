"""Classical methods for stochastic differential equations, du = F(u, s) ds + g dW with F = L u + N, in Ito's sense."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffsolve import Field, Noise, Past, Solver, SolverError, Span, Step, combine
from diffsolve.field import Vector

from .runge_kutta import drift


class EulerMaruyama(Solver):
    """u + h F + g sqrt|h| z, g and F at the start; Milstein's method with its correction g g'/2 |h| (z^2 - 1).

    The correction is 0 where the noise does not depend on the state (Kloeden & Platen 1992, sec. 10.2 and 10.3).
    """

    stochastic = True
    areas = False  # W is all that it asks of its path

    def __init__(self, corrected: bool = False) -> None:
        self.order, self.corrected = 1, corrected

    # y_1 = y_0 + h F + sqrt|h| g z + |h|/2 g g' (z^2 - 1), F, g and g' at (s_0, y_0)
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        terms = [(1.0, y), (span.h, drift(f, y, span.start))]
        if not f.eta:
            return Step(combine(*terms), past=past)
        z = f.normal(span, Noise.WIENER)
        terms.append((math.sqrt(abs(span.h)), f.g_prod(y, span.start, z)))
        if self.corrected and not f.additive:
            terms.append((abs(span.h) / 2, f.gdg_prod(y, span.start) * (z * z - 1)))
        return Step(combine(*terms), past=past)

    def evaluations(self, span: Span, known: int) -> int:
        return 1


@dataclass(frozen=True)
class AdditiveTableau:
    """A stochastic Runge-Kutta method for additive noise: drift weights a, alpha at nodes c, noise at `noise_nodes`.

    b: what the area I_(1,0)/h is multiplied by in each stage, by stage; `steps` and `areas`: what the increment and the
    area are multiplied by at the end.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    alpha: tuple[float, ...]
    b: tuple[tuple[float, ...], ...]
    noise_nodes: tuple[float, ...]
    steps: tuple[float, ...]
    areas: tuple[float, ...]
    order: int


SRA1 = AdditiveTableau(
    (0, 3 / 4), ((), (3 / 4,)), (1 / 3, 2 / 3), ((), (3 / 2,)), (1, 0), (1, 0), (-1, 1), 2
)  # fmt: skip
SRA3 = AdditiveTableau(
    (0, 1, 1 / 2), ((), (1,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), ((), (0,), (1, 1 / 2)),
    (1, 0, 0), (1, 0, 0), (-1, 1, 0), 3,
)  # fmt: skip


class AdditiveRungeKutta(Solver):
    """Roessler's methods SRA of strong order 1.5 for noise that does not depend on the state.

    Roessler 2010 (SIAM J. Numer. Anal. 48(3), 922-952), eq. 6.1, with I_(1,0) = |h|^{3/2} (z/2 + z2/(2 sqrt 3)). At
    eta = 0 they are Runge-Kutta methods.
    """

    stochastic = True

    def __init__(self, tableau: AdditiveTableau) -> None:
        self.tableau, self.order, self.stages = tableau, tableau.order, len(tableau.c)

    # J = sqrt|h| (z/2 + z2/(2 sqrt 3)) = I_(1,0)/|h|, and g_l is g at the noise's node l
    # k_i = F(y_0 + h sum_{j<i} a_ij k_j + sum_l b_il g_l J, s_0 + c_i h)
    # y_1 = y_0 + h sum_i alpha_i k_i + sum_l g_l (steps_l sqrt|h| z + areas_l J)
    def step(self, f: Field, y: Vector, span: Span, past: Past) -> Step:
        t, h = self.tableau, span.h
        noises: dict[float, tuple[Vector, Vector]] = {}
        if f.eta:
            if not f.additive:
                raise SolverError(_ADDITIVE.format(self.name or "this method"))
            z, z2, root = f.normal(span, Noise.WIENER), f.normal(span, Noise.LEVY_AREA), math.sqrt(abs(h))
            area = combine((root / 2, z), (root / math.sqrt(12), z2))
            for c in set(t.noise_nodes):
                at = span.end if c == 1 else span.start + c * h
                noises[c] = f.g_prod(y, at, z), f.g_prod(y, at, area)
        slopes: list[Vector] = []
        for c, drifts, shares in zip(t.c, t.a, t.b, strict=True):
            terms = [(1.0, y), *((h * a, k) for a, k in zip(drifts, slopes, strict=True) if a)]
            terms += [(b, noises[p][1]) for b, p in zip(shares, t.noise_nodes, strict=False) if b and noises]
            slopes.append(drift(f, combine(*terms), span.start + c * h))
        terms = [(1.0, y), *((h * a, k) for a, k in zip(t.alpha, slopes, strict=True))]
        for c, step, share in zip(t.noise_nodes, t.steps, t.areas, strict=True):
            if noises:
                terms += [(step * math.sqrt(abs(h)), noises[c][0])] if step else []
                terms += [(share, noises[c][1])] if share else []
        return Step(combine(*terms), past=past)

    def evaluations(self, span: Span, known: int) -> int:
        return len(self.tableau.c)


_ADDITIVE = "{} is for additive noise, g(t); where g reads the state take 'milstein' or 'euler_maruyama'"
