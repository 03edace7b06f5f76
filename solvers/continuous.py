"""The solution within a step of an explicit Runge-Kutta method, from the stages that the step has: dense output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
_POWERS = 4  # of theta: the error within a step is O(h^5), as the estimates of pairs of orders 5 and 4 are
_NODES = np.linspace(0.0, 1.0, 21)


def continuous_extension(a: Sequence[Sequence[float]], b: Sequence[float], c: Sequence[float]) -> Matrix | None:
    """(stages + 1, 4) coefficients B of u(theta) = u_0 + h sum_i (sum_k B_ik theta^k) F_i, k = 1..4, or None.

    a, b, c: of the stages that the solution reads; the last row of B is of F at the step's end. It has order 4, is once
    continuously differentiable from step to step, and has the least error of order 5 among those (Hairer, Norsett &
    Wanner 1993, sec. II.6). None: the stages do not suffice.
    """
    stages = len(b)
    weights = np.zeros((stages + 1, stages + 1))
    for i, row in enumerate((*a[:stages], b)):
        weights[i, : len(row)] = row
    nodes, last = np.array([*c[:stages], 1.0]), np.eye(stages + 1)[-1]
    each, powers = np.eye(stages + 1), np.arange(1, _POWERS + 1)
    rows, right = [], []
    for order, gamma, tree in _trees(weights, nodes):
        rows.append(np.kron(tree, np.eye(_POWERS)))
        right.append((powers == order) / gamma)
    rows += [np.kron(each, row) for row in (np.ones(_POWERS), powers, powers == 1)]
    right += [np.array([*b, 0.0]), last, np.eye(stages + 1)[0]]
    system, wanted = np.vstack(rows), np.concatenate(right)
    found, *_ = np.linalg.lstsq(system, wanted, rcond=None)
    if np.abs(system @ found - wanted).max() > 1e-9:
        return None
    _, sizes, spaces = np.linalg.svd(system)
    free = spaces[int((sizes > 1e-9 * sizes[0]).sum()) :].T  # what the conditions leave open
    theta = _NODES[:, None] ** powers
    errors = np.vstack([np.kron(tree, theta) for _, tree in _trees_of_5(weights, nodes)])
    missed = errors @ found - np.concatenate([_NODES**5 / gamma for gamma, _ in _trees_of_5(weights, nodes)])
    found = found - free @ np.linalg.lstsq(errors @ free, missed, rcond=1e-9)[0]
    return np.asarray(found.reshape(stages + 1, _POWERS))


def _trees(a: Matrix, c: Matrix) -> list[tuple[int, int, Matrix]]:
    """(order, gamma, Phi) of the rooted trees of up to four nodes, the rows of `a` summing to c."""
    e = a @ c
    return [
        (1, 1, np.ones_like(c)), (2, 2, c), (3, 3, c * c), (3, 6, e), (4, 4, c**3), (4, 8, c * e), (4, 12, a @ (c * c)),
        (4, 24, a @ e),
    ]  # fmt: skip


def _trees_of_5(a: Matrix, c: Matrix) -> list[tuple[int, Matrix]]:
    e = a @ c
    return [
        (5, c**4), (10, c * c * e), (20, e * e), (15, c * (a @ (c * c))), (30, c * (a @ e)), (20, a @ c**3),
        (40, a @ (c * e)), (60, a @ (a @ (c * c))), (120, a @ (a @ e)),
    ]  # fmt: skip
