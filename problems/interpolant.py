"""The solution of an ODE within one step: the row's own continuous extension, or a Hermite interpolant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diffsolve import combine
from diffsolve.scalars import phi

Matrix = NDArray[np.float64]
_LARGE = 8.0  # |z| from which on phi is nearly a polynomial, and e^z far from one
_INSIDE = {5: (0.2, 0.8), 6: (0.15, 0.4, 0.85), 7: (0.1, 0.3, 0.7, 0.9), 4: (0.75,)}
"""Where slopes are asked for, by degree: least error for the effect of theirs, on a lattice of 0.05."""


@dataclass(frozen=True, eq=False)
class Piece:
    """u on [start, start + h]: its value is basis(theta) @ coefficients, of the vectors; theta = (s - start)/h.

    The basis is 1, theta, ..., theta^{d-1} and, z being linear h, d! theta^d phi_d(z theta), which is theta^d at z = 0;
    or e^{z theta} itself where |z| is large. With it the solutions of u' = linear u + N are met exactly for polynomials
    N of degree d - 1.
    """

    start: float
    h: float
    z: float
    coefficients: Matrix
    vectors: tuple[Tensor, ...]

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    def at(self, s: float) -> Tensor:
        """u at s."""
        return self._sum(_basis((s - self.start) / self.h, self.degree, self.z))

    def slope(self, s: float) -> Tensor:
        """u' at s."""
        return self._sum(_basis_slope((s - self.start) / self.h, self.degree, self.z) / self.h)

    def _sum(self, row: Matrix) -> Tensor:
        weights = (row @ self.coefficients).tolist()
        total: Tensor = combine(*zip(weights, self.vectors, strict=True))
        return total


def own(start: float, h: float, u: Tensor, slopes: Sequence[Tensor], rule: Sequence[Sequence[float]]) -> Piece:
    """The piece of a Runge-Kutta step; rule: see `Solver.continuous`, slopes: of u, stage by stage, the end's last."""
    powers = np.array(rule).T * h
    coefficients = np.zeros((len(powers) + 1, len(slopes) + 1))
    coefficients[0, 0], coefficients[1:, 1:] = 1.0, powers
    return Piece(start, h, 0.0, coefficients, (u, *slopes))


def hermite(
    start: float, h: float, linear: float, ends: tuple[Tensor, Tensor], slopes: tuple[Tensor, Tensor],
    inside: Sequence[Tensor] = (),
) -> Piece:  # fmt: skip
    """The piece through both ends, with their slopes u' and those at `_INSIDE`.

    Where |z| is large, the error of a step is |z| times as large in the slope that it decays to: that one is left out.
    """
    z = linear * h
    known = (slopes[z > 0],) if abs(z) > _LARGE else (*slopes, *inside)
    scale = np.array([1.0, 1.0, *[h] * len(known)])
    return Piece(start, h, z, _inverse(1 + len(known), z) * scale, (*ends, *known))


def refined(piece: Piece, linear: float, order: int, ends: tuple[Tensor, Tensor], slopes: tuple[Tensor, Tensor],
            rate: Callable[[Tensor, float], Tensor]) -> Piece:  # fmt: skip
    """The piece with an error as small as that of a step of the order; rate: u' at (u, s).

    Slopes that are asked for where the piece is known to O(h^q) make one that is known to O(h^{q+1}) (Enright, Jackson,
    Norsett & Thomsen 1986): none for orders up to 5, 2 for order 6, 9 for 7 and 8, where the piece is of degree 4.
    """
    needed = next((degree for degree in (3, 4, 5, 7) if degree >= order - 1), 7) if abs(piece.z) <= _LARGE else 0
    for degree in range(piece.degree + 1, needed + 1):
        places = [piece.start + theta * piece.h for theta in _INSIDE[degree]]
        piece = hermite(piece.start, piece.h, linear, ends, slopes, [rate(piece.at(s), s) for s in places])
    return piece


def _basis(theta: float, degree: int, z: float) -> Matrix:
    row: Matrix = np.power(theta, np.arange(degree + 1), dtype=np.float64)
    if abs(z) > _LARGE:
        row[-1] = math.exp(z * (theta - (z > 0)))
    elif z:
        row[-1] *= math.factorial(degree) * phi(degree, z * theta)
    return row


def _basis_slope(theta: float, degree: int, z: float) -> Matrix:
    powers = np.arange(degree + 1, dtype=np.float64)
    row: Matrix = powers * np.power(theta, np.maximum(powers - 1, 0), dtype=np.float64)
    if abs(z) > _LARGE:
        row[-1] = z * math.exp(z * (theta - (z > 0)))
    elif z:  # d/dx x^d phi_d(z x) = x^{d-1} phi_{d-1}(z x)
        row[-1] *= math.factorial(degree - 1) * phi(degree - 1, z * theta)
    return row


@lru_cache(maxsize=64)
def _inverse(degree: int, z: float) -> Matrix:
    """From (u_0, u_1, h u'_0, h u'_1, h u' inside) to what the basis is multiplied by."""
    rows = [_basis(0.0, degree, z), _basis(1.0, degree, z)]
    slopes = (float(z > 0),) if degree == 2 else (0.0, 1.0, *_INSIDE.get(degree, ()))
    rows += [_basis_slope(theta, degree, z) for theta in slopes]
    return np.linalg.inv(np.array(rows))
