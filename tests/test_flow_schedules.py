"""Schedules of the web interfaces and of flow models, beside their formulas as their authors write them."""

from __future__ import annotations

import math

import numpy as np
import pytest

import diffsolve as ds

FLOW = ds.RectifiedFlow(t_min=1e-3, t_max=1 - 1e-9)
COUNTS = (4, 7, 20, 33)


def times(schedule: str, n: int, process: ds.RectifiedFlow = FLOW) -> np.ndarray:
    sigmas = ds.make_grid(ds.get_schedule(schedule)[0], n, process).sigmas
    return sigmas / (1 + sigmas)


def levels(schedule: str, n: int) -> np.ndarray:
    return ds.make_grid(ds.get_schedule(schedule)[0], n, ds.VP()).sigmas


@pytest.mark.parametrize("n", COUNTS)
def test_linear_quadratic(n: int) -> None:
    """Mochi's: i threshold/m for i < m = n/2, then a parabola through its end, with the same slope, to 1."""
    m, threshold = n // 2, 0.025
    diff = m - threshold * n
    a = diff / (m * (n - m) ** 2)
    b = threshold / m - 2 * diff / (n - m) ** 2
    way = [i * threshold / m for i in range(m)] + [a * i * i + b * i + a * m * m for i in range(m, n)] + [1.0]
    assert times("linear_quadratic", n) == pytest.approx(1 - np.array(way), abs=1e-8)
    assert levels("linear_quadratic", n) == pytest.approx((1 - np.array(way)) * ds.VP().sigma_max, abs=1e-8)


@pytest.mark.parametrize("n", COUNTS)
def test_bong_tangent(n: int) -> None:
    """RES4LYF's: n + 2 values (2/pi atan(-slope (i - pivot)) + 1)/2, each arc stretched to its ends."""
    total, pivot = n + 2, int((n + 2) * 0.6)
    slope, first = 0.2 / (total / 40), int((n + 2) * 1.2 / 2)

    def arc(count: int, at: int, start: float, end: float) -> list[float]:
        s = [(2 / math.pi * math.atan(-slope * (i - at)) + 1) / 2 for i in range(count)]
        return [(v - s[-1]) / (s[0] - s[-1]) * (start - end) + end for v in s]

    theirs = arc(first, pivot, 1.0, 0.5)[:-1] + arc(total - first, pivot - first, 0.5, 0.0)
    assert times("bong_tangent", n) == pytest.approx(theirs, abs=1e-8)


@pytest.mark.parametrize("n", COUNTS)
def test_laplace(n: int) -> None:
    x = np.linspace(0, 1, n)
    logs = -0.5 * np.sign(0.5 - x) * np.log(1 - 2 * abs(0.5 - x) + 1e-5)
    p = ds.VP()
    assert levels("laplace", n)[:-1] == pytest.approx(np.clip(np.exp(logs), p.sigma_min, p.sigma_max), rel=1e-12)
    assert (np.diff(levels("laplace", 900)) < 0).all()  # where clipping alone would repeat the ends


@pytest.mark.parametrize(("n", "size"), [(4, 1024), (20, 1024), (50, 1024), (20, 2048), (20, 256)])
def test_flux2(n: int, size: int) -> None:
    tokens = (size // 16) ** 2
    at_200, at_10 = 0.00016927 * tokens + 0.45666666, 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    mu = at_200 if tokens > 4300 else slope * n + at_200 - 200 * slope
    t = np.linspace(1, 1 / n, n)
    shifted = math.exp(mu) / (math.exp(mu) + (1 / t - 1))
    assert times(f"flux2(width={size}, height={size})", n)[:-1] == pytest.approx(shifted, abs=1e-8)


@pytest.mark.parametrize("schedule", ["linspace", "karras", "beta", "linear_quadratic"])
def test_a_shift_of_any_schedule(schedule: str) -> None:
    t, moved = times(schedule, 9), times(f"shift(schedule={schedule}, shift=3)", 9)
    assert moved[1:-1] == pytest.approx(3 * t[1:-1] / (1 + 2 * t[1:-1]), rel=1e-9)
    assert moved[0] == t[0]
    assert times(f"shift(schedule={schedule}, shift=1)", 9) == pytest.approx(t, abs=1e-9)
    for n in (1, 2, 30):
        assert (np.diff(levels(f"shift(schedule={schedule}, shift=0.2)", n)) < 0).all()
    on_its_own = ds.solve(ds.problems.Gaussian([0.0], 1.0, FLOW), "euler", f"shift(schedule={schedule}, shift=3)", 4)
    assert on_its_own.sigmas[1] == pytest.approx(3 * on_its_own.problem.grid(
        ds.get_schedule(schedule)[0], 4, final="denoise", sigma_min=None, sigma_max=None, name="").sigmas[1])


def test_names() -> None:
    assert levels("kl_optimal", 9).tolist() == levels("cosine", 9).tolist()
    assert levels("beta57", 9).tolist() == levels("beta(a=0.5, b=0.7)", 9).tolist()
    with pytest.raises(ds.GridError, match="threshold must be a number"):
        ds.get_schedule("linear_quadratic(threshold=2)")
    with pytest.raises(ds.GridError, match="unknown schedule 'karas'"):
        ds.get_schedule("shift(schedule=karas)")
    with pytest.raises(ds.GridError, match="takes the name of a schedule"):
        ds.get_schedule("shift(schedule=uniform)")
