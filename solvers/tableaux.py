"""Runge-Kutta coefficients as data: rationals for the classical ones, phi-function terms for the exponential ones."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction as Q


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method; `error` = b - b_low for an embedded pair. Row i of `a` has i entries."""

    c: tuple[Q, ...]
    a: tuple[tuple[Q, ...], ...]
    b: tuple[Q, ...]
    order: int
    error: tuple[Q, ...] = ()


Term = tuple[Q, int]
"""(coefficient, k): coefficient times phi_k."""


@dataclass(frozen=True)
class ExponentialTableau:
    """An explicit exponential Runge-Kutta method for u' = L u + N.

    a[i][j] is a sum of terms coefficient * phi_k(c_i L h), and b[j] of coefficient * phi_k(L h), for j >= 1; the
    weights of the first stage follow from consistency (rows sum to c_i phi_1(c_i L h), b to phi_1(L h)). At L = 0,
    phi_k is 1/k!.
    """

    c: tuple[Q, ...]
    a: tuple[tuple[tuple[Term, ...], ...], ...]
    b: tuple[tuple[Term, ...], ...]
    order: int


def _row(entries: str) -> tuple[Q, ...]:
    return tuple(Q(entry) for entry in entries.split())


def _tableau(c: str, a: tuple[str, ...], b: str, order: int, error: str = "") -> Tableau:
    return Tableau(_row(c), tuple(_row(row) for row in a), _row(b), order, _row(error))


EULER = _tableau("0", ("",), "1", 1)
MIDPOINT = _tableau("0 1/2", ("", "1/2"), "0 1", 2)
HEUN = _tableau("0 1", ("", "1"), "1/2 1/2", 2, error="-1/2 1/2")
# Kutta 1901
RK4 = _tableau("0 1/2 1/2 1", ("", "1/2", "0 1/2", "0 0 1"), "1/6 1/3 1/3 1/6", 4)
# Dormand & Prince 1980, RK5(4)7M; the seventh stage serves the error estimate alone
DOPRI5 = _tableau(
    "0 1/5 3/10 4/5 8/9 1 1",
    (
        "",
        "1/5",
        "3/40 9/40",
        "44/45 -56/15 32/9",
        "19372/6561 -25360/2187 64448/6561 -212/729",
        "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
        "35/384 0 500/1113 125/192 -2187/6784 11/84",
    ),
    "35/384 0 500/1113 125/192 -2187/6784 11/84 0",
    5,
    error="71/57600 0 -71/16695 71/1920 -17253/339200 22/525 -1/40",
)


def dpm_2(r: Q = Q(1, 2)) -> ExponentialTableau:
    """DPM-Solver-2 (Lu et al. 2022, Algorithm 1 and eq. 3.8 for any r); r = 1/2 is the exponential midpoint rule."""
    return ExponentialTableau((Q(0), r), ((), ((),)), ((), ((1 / (2 * r), 1),)), 2)


def dpm_3(r1: Q = Q(1, 3), r2: Q = Q(2, 3)) -> ExponentialTableau:
    """DPM-Solver-3 (Lu et al. 2022, Algorithm 2)."""
    return ExponentialTableau((Q(0), r1, r2), ((), ((),), ((), ((r2 * r2 / r1, 2),))), ((), (), ((1 / r2, 2),)), 3)
