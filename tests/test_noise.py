"""Noise is addressed by (seed, sample, place): standard, the same in every batch, and one path for all grids."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from stubs import gap, mixture
from torch import Tensor

import diffsolve as ds
from diffsolve import noise
from diffsolve.noise import BrownianPath

LOW, HIGH = -2.7, 3.6
DTYPES = [torch.float32, torch.float64]


def clock(s: float) -> float:
    return math.exp(2 * s)


def path(samples: Any = range(4), shape: tuple[int, ...] = (3,), seed: int = 0, **options: Any) -> BrownianPath:
    return BrownianPath(seed, samples, shape, clock, LOW, HIGH, **{"dtype": torch.float64, **options})


def draws(*shape: int, samples: Any = range(1), seed: int = 0, stream: int = 1, dtype: Any = torch.float64) -> Tensor:
    return ds.normals(seed, samples, stream, shape, dtype, "cpu")


# -- normals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 12345, -1, 2**63, -(2**70) + 3, 10**30])
def test_they_are_standard_normals(seed: int) -> None:
    n = 100_000
    z = draws(n, seed=seed)[0].numpy()
    # four moments, each within 4.5 of its own standard errors; then the whole distribution
    assert abs(z.mean()) < 4.5 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 4.5 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4.5 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4.5 * math.sqrt(96 / n)
    assert stats.kstest(z, "norm").pvalue > 1e-4
    assert 4 < np.abs(z).max() < 6.8, "32 bits reach 6.76 standard deviations"


def test_across_samples_too() -> None:
    """The first number of each of many samples: neighbouring keys must not give neighbouring numbers."""
    n = 40_000
    for options in ({}, {"seed": 7}, {"stream": 3}):
        z = draws(2, samples=range(n), **options).numpy()
        for column in z.T:
            assert stats.kstest(column, "norm").pvalue > 1e-4
            for lag in (1, 2, 64):
                assert abs(np.corrcoef(column[:-lag], column[lag:])[0, 1]) < 4.5 / math.sqrt(n)
        assert abs(np.corrcoef(z.T)[0, 1]) < 4.5 / math.sqrt(n)


def test_every_address_has_its_own_noise() -> None:
    n = 20_000
    addresses = list(product((0, 1, 2, -1), (0, 1, 5, 2**40), (1, 2, 3, -1)))
    rows = torch.cat([draws(n, samples=[i], seed=seed, stream=stream) for seed, i, stream in addresses])
    correlation = np.corrcoef(rows.numpy()) - np.eye(len(addresses))
    assert np.abs(correlation).max() < 5.5 / math.sqrt(n)
    assert torch.equal(draws(5, seed=3), draws(5, seed=3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (7,), (4, 5, 5), (3, 11, 13), (2049,)], ids=str)
def test_a_sample_is_the_same_in_every_batch_to_the_last_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    alone = draws(*shape, samples=[3], dtype=dtype)[0]
    assert alone.shape == shape
    assert alone.dtype == dtype
    for samples in (range(8), range(17), [3, 1], [0, 2, 3], [9, 3, 3], (-1, 3), torch.arange(5).tolist()):
        batch = draws(*shape, samples=samples, dtype=dtype)
        assert torch.equal(batch[list(samples).index(3)], alone)
    assert torch.equal(alone.float(), draws(*shape, samples=[3], dtype=torch.float32)[0]), "one noise for both"


def test_the_prior_is_the_noise_at_its_level() -> None:
    problem = mixture((4, 2))
    full = problem.prior(8, seed=2)
    assert torch.equal(problem.prior([3], seed=2), full[3:4])
    assert torch.equal(problem.prior([6, 3], seed=2), full[[6, 3]])
    assert torch.equal(problem.prior(8, seed=2, sigma=1.0) * problem.process.sigma_max, full)
    solution = ds.solve(problem, n=2, batch=range(3, 5), seed=2, save="all")
    assert torch.equal(solution.trajectory[0], full[3:5])


# -- Brownian paths ----------------------------------------------------------------------------------------------------

PLACES = [-2.7, -2.69, -1.3, 0.0, 0.1234567, 0.2, 1.0, 3.0, 3.59, 3.6]


def test_increments_add_up() -> None:
    b = path()
    for i, j, k in ((0, 3, 9), (1, 2, 3), (2, 5, 8), (0, 1, 2), (4, 5, 9)):
        s, m, e = PLACES[i], PLACES[j], PLACES[k]
        whole = b.increment(s, e)
        assert torch.allclose(whole, b.increment(s, m) + b.increment(m, e), rtol=0, atol=1e-14 * clock(HIGH))
        assert torch.allclose(b.increment(e, s), -whole, rtol=0, atol=0)


def test_a_finer_grid_refines_the_same_path() -> None:
    for n in (2, 3, 10):
        coarse, fine = (np.linspace(LOW, HIGH, m + 1) for m in (n, 7 * n))
        one, other = path(), path()
        steps = [other.increment(a, b) for a, b in pairwise(fine)]
        for i in range(n):
            whole = one.increment(coarse[i], coarse[i + 1])
            assert torch.allclose(whole, torch.stack(steps[7 * i : 7 * i + 7]).sum(0), rtol=1e-9, atol=1e-12)


def test_the_path_does_not_know_what_was_asked_before() -> None:
    intervals = [(a, b) for a in PLACES for b in PLACES if a < b]
    forward, backward = path(), path()
    answers = {i: forward.draw(*i) for i in intervals}
    for interval in reversed(intervals):
        assert torch.equal(backward.draw(*interval), answers[interval])
        assert torch.equal(path().draw(*interval), answers[interval])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 5, 3)], ids=str)
def test_a_samples_path_is_the_same_in_every_batch_to_the_last_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    alone = path([3], shape, dtype=dtype)
    for samples in (range(8), [3, 0], [1, 3, 2], range(33)):
        batch = path(samples, shape, dtype=dtype)
        for interval in ((-2.7, -1.0), (0.1, 0.2), (0.5, 3.5)):
            assert torch.equal(batch.draw(*interval)[list(samples).index(3)], alone.draw(*interval)[0])
    assert alone.draw(0.1, 0.2).dtype == dtype
    assert gap(alone.draw(0.1, 0.2), path([3], shape).draw(0.1, 0.2)) < 1e-3


@pytest.mark.parametrize("interval", [(-2.7, 3.6), (-2.7, -2.6), (0.0, 0.01), (1.0, 2.5), (3.59, 3.6)])
def test_an_increment_has_the_clocks_variance_and_a_draw_that_of_one(interval: tuple[float, float]) -> None:
    n = 20_000
    b = path(range(n), (1,))
    z = b.draw(*interval).squeeze(1).numpy()
    assert abs(z.mean()) < 4.5 / math.sqrt(n)
    assert abs(z.var() - 1) < 4.5 * math.sqrt(2 / n)
    assert stats.kstest(z, "norm").pvalue > 1e-4
    variance = clock(interval[1]) - clock(interval[0])
    assert b.increment(*interval).var() == pytest.approx(variance, rel=4.5 * math.sqrt(2 / n) + 1e-3)


def test_neighbouring_intervals_are_independent() -> None:
    n = 20_000
    b = path(range(n), (1,))
    nodes = [-2.7, -1.0, -0.9, 0.8, 1.0, 3.0, 3.6]
    z = torch.cat([b.draw(s, e) for s, e in pairwise(nodes)], 1).numpy()
    assert np.abs(np.corrcoef(z.T) - np.eye(6)).max() < 4.5 / math.sqrt(n)


def test_a_walk_along_the_path_makes_every_number_once(monkeypatch: Any) -> None:
    made: list[int] = []
    places = noise._Keyed.places

    def watched(self: Any, key: int) -> Tensor:
        made.append(key)
        return places(self, key)

    monkeypatch.setattr(noise._Keyed, "places", watched)
    b = path()
    for start, end in pairwise(np.linspace(LOW, HIGH, 40)):
        b.draw(start, end)
    assert len(made) == len(set(made))
    assert len(made) < 39 * 10, "the tree's upper levels are shared"


def test_what_the_path_can_not_answer() -> None:
    resolution = (HIGH - LOW) / 2**20
    assert path().draw(0.0, 2 * resolution).isfinite().all()
    too_short = r"from 0 to 1e-07 is shorter than .* resolution, 6\.0.*e-06; take fewer steps"
    with pytest.raises(ds.SolverError, match=too_short):
        path().draw(0.0, 1e-7)
    with pytest.raises(ds.SolverError, match=r"noise was asked for at 4, outside the path's range \[-2\.7, 3\.6\]"):
        path().draw(0.0, 4.0)


def test_a_stochastic_solve_converges_along_its_path() -> None:
    """The strong error of Euler's method against a fine run on the same path: it would not fall on another one."""
    problem = mixture()
    x = problem.prior(16, seed=5)

    def run(n: int, seed: int = 5) -> Tensor:
        return ds.solve(problem, "euler_ancestral", "lambda", n, x=x, seed=seed).x

    fine = run(256)
    errors = [gap(run(n), fine) for n in (4, 16, 64)]
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2
    assert gap(run(64, seed=6), fine) > 5 * errors[2]
