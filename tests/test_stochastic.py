"""Stochastic rows that no package offers as a function of its own, against what their sources say, written out.

Those of diffusers and k-diffusion are compared in test_parity.py.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from peers import Given, N
from scipy.integrate import quad
from stubs import gap
from torch import Tensor

import diffsolve as ds
from diffsolve.process import as_process

GRID = ds.make_grid(ds.Karras(), N, as_process("sd"))


def given() -> tuple[Given, Tensor]:
    problem = Given("mixture", "edm")
    return problem, problem.unit * GRID.sigmas[0]


def er_sde(order: int) -> Tensor:
    """ER-SDE-Solver as the paper's code and ComfyUI write it, with quadrature in place of their sums."""
    def phi(sigma: float) -> float:
        return sigma * (math.exp(sigma**0.3) + 10)

    (problem, x), nodes = given(), GRID.nodes.tolist()
    known: list[tuple[float, Tensor, Any]] = []
    for i, (s, t) in enumerate(pairwise(nodes)):
        r, value, slope = phi(t) / phi(s), problem.denoise(x, s), None
        x = r * x + (1 - r) * value
        if known and order > 1:
            slope = (value - known[-1][1]) / (s - known[-1][0])
            x = x + (t - s + quad(lambda u: 1 / phi(u), t, s, epsabs=1e-13)[0] * phi(t)) * slope
        if slope is not None and known[-1][2] is not None and order > 2:
            bend = (slope - known[-1][2]) / ((s - known[-2][0]) / 2)
            first = quad(lambda u, s=s: (u - s) / phi(u), t, s, epsabs=1e-13)[0]
            x = x + ((t - s) ** 2 / 2 + first * phi(t)) * bend
        known.append((s, value, slope))
        x = x + math.sqrt(t * t - (s * r) ** 2) * problem.draws[i, 0]
    return problem.denoise(x, nodes[-1])


@pytest.mark.parametrize(
    ("order", "solver"), [(1, "er_sde_1"), (2, "er_sde_2"), (3, "er_sde_3(published=True)")]
)
def test_er_sde(order: int, solver: str) -> None:
    problem, y = given()
    assert gap(problem.solve(solver, GRID, y).x, er_sde(order)) < 1e-10
    assert gap(problem.solve("er_sde_3", GRID, y).x, er_sde(order)) > 1e-4


@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_the_flow_rule_is_comfyuis_rf(eta: float) -> None:
    """sample_euler_ancestral_RF, whose sigma is our t and whose x is our y (1 - t)."""
    problem, y = given()
    times = [sigma / (1 + sigma) for sigma in GRID.nodes.tolist()]
    x = y * (1 - times[0])
    for i, (s, t) in enumerate(pairwise(times)):
        down = t * (1 + (t / s - 1) * eta)
        x = down / s * x + (1 - down / s) * problem.denoise(x / (1 - s), s / (1 - s))
        share = (1 - t) / (1 - down)
        x = share * x + math.sqrt(t * t - (down * share) ** 2) * problem.draws[i, 0]
    mine = problem.solve("ddim_eta(rule=flow)", ds.Grid(GRID.nodes), y, eta=eta).x
    assert gap(mine * (1 - times[-1]), x) < 1e-12
