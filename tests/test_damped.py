"""The damped weights: what they become where nothing is damped, what they are exact for, what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

import diffsolve as ds
from diffsolve.solvers.damped import damped
from diffsolve.validation import sampling_cases, work_precision

NODES = [-0.9, -0.7, -0.3, 0.0]


def test_undamped_and_untilted_it_is_abm() -> None:
    flow = ds.problems.GaussianMixture([[0.0, 1.0], [1.0, -1.0]], [0.4, 0.3])
    method = ds.solvers.PredictorCorrector(3, 4, hold="denoised")
    method.form = "noise"
    plain = ds.solve(flow, method, n=9, batch=3).x
    assert not torch.allclose(plain, ds.solve(flow, "abm(order=4, predictor=3)", n=9, batch=3).x, rtol=1e-4)
    same = ds.solve(flow, "damped_abm(tilt=0, reach=1e9, trust=1e9)", n=9, batch=3).x
    assert torch.allclose(same, plain, rtol=1e-10, atol=0)
    assert not torch.allclose(ds.solve(flow, "damped_abm", n=9, batch=3).x, plain, rtol=1e-3)


@pytest.mark.parametrize("end", [(), (0.4,)], ids=["explicit", "implicit"])
@pytest.mark.parametrize("power", [0, 1, 2, 3])
def test_undamped_weights_are_exact_for_tilted_polynomials(power: int, end: tuple[float, ...]) -> None:
    h, tilt, nodes = 0.4, 0.6, [*NODES, *end]
    weights = damped(tilt, 1e9, 1e9)(1.0, h, nodes)
    taken = sum(w * math.exp(-tilt * s) * s**power for w, s in zip(weights, nodes, strict=True))
    s = torch.linspace(0, h, 20001, dtype=torch.float64)
    exact = torch.trapezoid(torch.exp(h - s) * torch.exp(-tilt * s) * s**power, s)
    assert taken == pytest.approx(float(exact), rel=1e-7)


def test_a_long_step_reads_the_newest_value_and_a_wide_correction_nothing() -> None:
    rule = damped(0.6, 0.2, 0.4)
    assert rule(1.0, 0.4, [0.0]) == pytest.approx([math.expm1(0.4)], rel=1e-14)  # alone it is exact for a constant
    assert rule(1.0, 1.5, NODES) == pytest.approx([0, 0, *rule(1.0, 1.5, NODES[-2:])], abs=1e-12)
    assert rule(1.0, 7.0, NODES) == pytest.approx([0, 0, 0, math.expm1(7.0)], abs=1e-9)
    assert rule(1.0, 6.0, [*NODES, 6.0])[-1] == pytest.approx(0, abs=1e-12)
    assert abs(rule(1.0, 0.1, NODES)[0]) > 1e-4
    assert rule(1.0, 0.1, [*NODES, 0.1])[-1] > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tilt": -1.0}, "tilt must be a number from 0 to 10, got -1.0"),
        ({"tilt": 11.0}, "tilt must be a number from 0 to 10, got 11.0"),
        ({"reach": 0.0}, "reach must be a finite number above 0, got 0.0"),
        ({"trust": -0.5}, "trust must be a finite number above 0, got -0.5"),
        ({"reach": math.nan}, "reach must be a finite number above 0, got nan"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ds.SolverError, match=message):
        damped(**options)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_one_row_on_karras_for_every_cell(seed: int) -> None:
    """Against deis on karras, the best single peer, over gauss and mixtures in new dimensions, 5 to 50 evaluations."""
    problems = sampling_cases(seed, 32, dims=(8, 3, 32), modes=(7, 4))
    report = work_precision(["damped_abm", "deis", "dpmpp_2m", "unipc"], ["karras"], problems=problems)
    error = {(c.solver, c.problem, c.budget): min(c.median, 1.0) for c in report.cells}
    places = [(problem, budget) for problem in report.problems for budget in report.budgets]
    for other in ("deis", "dpmpp_2m", "unipc"):
        logs = [math.log(error["damped_abm", *place] / error[other, *place]) for place in places]
        assert math.exp(sum(logs) / len(logs)) < 0.7, other
    assert {c.status for c in report.cells if c.solver == "damped_abm"} == {"ok"}
