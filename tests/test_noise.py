"""Noise is addressed by (seed, sample, place): standard, the same in every batch, and one path for all grids."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from stubs import STOCHASTIC, gap, mixture, slow
from torch import Tensor

import diffsolve as ds
from diffsolve.field import Noise
from diffsolve.problems import noise
from diffsolve.problems.inpaint import KNOWN_STREAM
from diffsolve.problems.noise import BrownianPath, SpaceTimePath
from diffsolve.problems.noise_source import NoiseSource, stream_of
from diffsolve.program import Advance
from diffsolve.solver import Span

LOW, HIGH = -2.7, 3.6
DTYPES = [torch.float32, torch.float64]


def clock(s: float) -> float:
    return math.exp(2 * s)


def path(samples: Any = range(4), shape: tuple[int, ...] = (3,), seed: int = 0, **options: Any) -> BrownianPath:
    return BrownianPath(seed, samples, shape, clock, LOW, HIGH, **{"dtype": torch.float64, **options})


def draws(*shape: int, samples: Any = range(1), seed: int = 0, stream: int = 1, dtype: Any = torch.float64) -> Tensor:
    return ds.normals(seed, samples, stream, shape, dtype, "cpu")


# -- normals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 12345, -1, 2**63, -(2**63), 2**64 - 1])
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
    unit = problem.prior(8, seed=2, sigma=1.0)
    assert torch.equal(unit * problem.process.sigma_max, full)
    addressed = ds.normals(2, range(8), 1, problem.shape, problem.dtype, "cpu")
    assert torch.equal(unit, addressed), "a seed's pictures stay the same from version to version"
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
    mixed = noise._Path._mixed

    def watched(self: Any, keys: Any) -> Tensor:
        made.extend(keys)
        return mixed(self, keys)

    monkeypatch.setattr(noise._Path, "_mixed", watched)
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


# -- the draws of a solve ----------------------------------------------------------------------------------------------

KINDS = list(Noise)
GRIDS = [("karras", 20), ("karras", 250), ("karras", 1000), ("linspace", 999)]


def field_of(solver: str, schedule: str, n: int, seed: int = 0, shape: Any = (4, 64, 64), **options: Any) -> Any:
    """A field of a solve over n steps, and its spans."""
    problem = ds.problems.Gaussian(torch.zeros(shape), 1.0, "sd", dtype=torch.float32)
    run = ds.start(problem, solver, schedule, n, seed=seed, **options)
    program = ds.plan(run.solver, run.solution.grid, run.field)
    return run.field, [op.span for op, *_ in program if isinstance(op, Advance)]


def scores(z: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """How far moments of numbers and products with the step after are from those of independent normals, in errors."""

    def corr(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a, b)[0, 1] * math.sqrt(len(a)))

    size = math.sqrt(len(z))
    hermite = {k: np.polynomial.hermite_e.hermeval(z, [0] * k + [1]) for k in (1, 2, 3, 4)}
    moments = {f"He{k}": float(value.mean() * size / math.sqrt(math.factorial(k))) for k, value in hermite.items()}
    squares = {"squares": corr(z * z, after * after), "squares of neighbours": corr(z[1:] ** 2, z[:-1] ** 2)}
    return moments | {"values": corr(z, after), "neighbours": corr(z[1:], z[:-1])} | squares


def check_normal(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Draws, each with the one after it: normal and independent, each by itself and all together."""
    p = [stats.kstest(z, "norm").pvalue for z, _ in pairs]
    assert sum(value > 0.01 for value in p) >= 0.96 * len(p) - (len(p) < 100)
    assert min(p) > 1e-5
    found = [scores(*pair) for pair in pairs]
    for name in found[0]:
        z = np.array([score[name] for score in found])
        assert np.abs(z).max() < 4.5, name
        assert abs(z.sum()) < 4 * math.sqrt(len(z)), f"{name}, over all pairs"


@pytest.mark.parametrize(("schedule", "n"), GRIDS, ids=str)
@pytest.mark.parametrize("count", [12, slow(100)])
def test_every_draw_of_a_solve_is_normal_and_independent_of_the_next(schedule: str, n: int, count: int) -> None:
    rng, pairs = np.random.default_rng(n), []
    for seed in range(count // 4):
        field, spans = field_of("euler_ancestral", schedule, n, seed, batch=4 if count > 50 else 1)
        steps = rng.integers(0, len(spans) - 2, 4)
        pairs += [tuple(field.normal(spans[k]).flatten().double().numpy() for k in (i, i + 1)) for i in steps]
    check_normal(pairs)


@pytest.mark.parametrize(
    ("solver", "kinds", "options"),
    [
        ("sra1", (Noise.WIENER, Noise.LEVY_AREA), {}),
        ("score_sde_vp", (Noise.INCREMENT, Noise.WIENER, Noise.LEVY_AREA), {}),
        ("score_sde_ve", (Noise.INCREMENT, Noise.RENOISE), {}),
        ("er_sde_2", (Noise.INCREMENT,), {}),
        slow("seeds_2", (Noise.INCREMENT,), {"eta": 0.2}),
        ("ddpm", (Noise.INCREMENT, Noise.RENOISE), {"eta": 50.0}),
        ("restart", (Noise.INCREMENT, Noise.RENOISE), {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [25, 400])
def test_every_kind_of_noise_is_normal_in_every_form(solver: str, kinds: Any, options: Any, n: int) -> None:
    field, spans = field_of(solver, "karras", n, seed=1, **options)
    for kind in kinds:
        draws = [field.normal(span, kind).flatten().double().numpy() for span in (*spans[:3], *spans[-5:-1])]
        check_normal(list(pairwise(draws)))


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_a_draw_of_any_row_is_of_few_normals(solver: str) -> None:
    """Even where the clock stands still beyond the last level, as that of score_sde_vp does."""
    field, spans = field_of(solver, "karras", 20, shape=(4, 8, 8))
    layout = field._source.clock.brownian
    assert len(layout.edges) == 65
    path = BrownianPath(0, range(1), (4,), layout.time, layout.low, layout.high, layout=layout)
    position = field._source.clock.position
    for span in spans[:-1]:
        start, end = sorted((position(span.start), position(span.end)))
        a, b = path._place(start), path._place(end)
        recipe = layout.recipe(1, 2, a, b, ((1.0, 0.0),), rest=True)
        assert sum(recipe._integers[4:6]) + 1 < 16


@pytest.mark.parametrize("length", [1e-3, 1e-4, 4e-5])
@pytest.mark.parametrize("width", [1, 2])
def test_short_steps_are_as_normal_as_long_ones(length: float, width: int) -> None:
    """Adaptive ones may be of any length: 2^15 numbers over neighbouring steps."""
    n, start = 1 << 15, 0.1234
    if width == 1:
        b = path(range(n // 4), (4,))
        z = [b.draw(start + k * length, start + (k + 1) * length).flatten().numpy() for k in range(3)]
    else:
        s = SpaceTimePath(0, range(n // 4), (4,), LOW, HIGH, dtype=torch.float64)
        ends = [(start + k * length, start + (k + 1) * length) for k in range(2)]
        z = [query(*end).flatten().numpy() for end in ends for query in (s.wiener, s.area)]
    for one in z:
        assert stats.kstest(one, "norm").pvalue > 1e-4
    assert np.abs(np.cov(z) - np.eye(len(z))).max() < 5 * math.sqrt(2 / n)


def test_w_alone_is_a_path_of_half_as_many_normals() -> None:
    """Of euler_maruyama: normal as the others are; its areas can't be asked for."""
    field, spans = field_of("euler_maruyama", "karras", 25, seed=1)
    draws = [field.normal(span, Noise.WIENER).flatten().double().numpy() for span in (*spans[:3], *spans[-5:-1])]
    check_normal(list(pairwise(draws)))
    with pytest.raises(ds.SolverError, match="has areas = False, and asks for a Levy area"):
        field.normal(spans[0], Noise.LEVY_AREA)


# -- one noise for one purpose -----------------------------------------------------------------------------------------


def test_visits_streams_and_kinds_are_independent() -> None:
    """The same interval of every path, and the noise of the prior and of what an Inpaint knows."""
    field, spans = field_of("euler_ancestral", "karras", 20)
    span, shape = spans[7], (4, 64, 64)
    rows = {
        (kind, visit): field.normal(Span(span.start, span.end, visit=visit), kind)[0]
        for kind, visit in product(KINDS, (0, 1, 2, 7, -1, -2))
    }
    streams = {"prior": noise.PRIOR_STREAM, "known": KNOWN_STREAM, "known after": KNOWN_STREAM - 1, "data": -1}
    rows |= {(name, 0): ds.normals(0, [0], stream, shape, torch.float32, "cpu")[0] for name, stream in streams.items()}
    z = torch.stack(list(rows.values())).flatten(1).double().numpy()
    for power in (z, z * z):
        assert np.abs(np.corrcoef(power) - np.eye(len(z))).max() < 5.5 / math.sqrt(z.shape[1])


def test_no_two_purposes_share_a_stream(monkeypatch: Any) -> None:
    """Every stream that bits are made of: of paths, by kind and visit, the prior, the data, what is known, the book."""
    for width in (1, 2):
        noise._book(width, torch.device("cpu"), torch.float32)  # made once, and not by a path
    streams: list[int] = []
    bits = noise._bits

    def watched(seed: int, samples: Any, stream: int, *rest: Any) -> Tensor:
        streams.append(stream)
        return bits(seed, samples, stream, *rest)

    monkeypatch.setattr(noise, "_bits", watched)
    field, spans = field_of("euler_ancestral", "karras", 20, shape=(2,))
    for visit, kind in product(range(-40, 40), KINDS):
        field.normal(Span(spans[3].start, spans[3].end, visit=visit), kind)
    paths = set(streams)
    assert len(paths) == 80 * 3 + (noise.PRIOR_STREAM in paths), "z and z2 are of one path"
    known = {KNOWN_STREAM - index for index in range(1000 * 100)}
    assert not paths & (known | set(noise._BOOKS) | {-1, -2})
    assert not known & ({noise.PRIOR_STREAM, -1, -2} | set(noise._BOOKS))


def restarted_langevin() -> Any:
    inner = ds.get_solver("euler_ancestral(form=sde_sigma)")
    return ds.solvers.Restart(ds.solvers.Langevin(inner, corrections=2), times=2)


@pytest.mark.parametrize("solver", [*STOCHASTIC, restarted_langevin], ids=lambda s: getattr(s, "__name__", s))
def test_two_steps_never_read_the_same_part_of_a_path(solver: Any, monkeypatch: Any) -> None:
    """Whatever goes back, adds noise of its own or corrects: what one step has used is new to no other."""
    asked: list[tuple[int, int, float, float]] = []
    run = ds.start(mixture(), solver() if callable(solver) else solver, "karras", 12, batch=2, final="none")
    normal = NoiseSource.normal

    def watched(self: NoiseSource, span: Span, kind: Noise) -> Tensor:
        stream = stream_of(kind, span.visit)
        low, high = sorted((self.clock.position(span.start), self.clock.position(span.end)))
        asked.append((run.solution.steps, stream, low, high))
        return normal(self, span, kind)

    monkeypatch.setattr(NoiseSource, "normal", watched)
    for _ in run:
        pass
    assert asked
    for (step, stream, low, high), (other, same, start, end) in product(asked, asked):
        if step != other and stream == same:
            assert max(low, start) > min(high, end) - 1e-9, f"steps {step} and {other}"
