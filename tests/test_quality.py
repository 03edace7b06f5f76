"""Distances between sets of samples, the features that ship, and the quality report."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import emoji_model

import diffsolve as ds
from diffsolve.problems.emoji import features
from diffsolve.validation import (
    frechet_distance,
    paired_distance,
    picture_psnr,
    sample_quality,
    sliced_wasserstein,
)
from diffsolve.validation.samples import distances, quality_run
from diffsolve.validation.samples.distances import Moments, median, precision_recall


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Nothing is read from, or left in, the user's cache."""
    monkeypatch.setenv("DIFFSOLVE_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def gaussians(seed: int, count: int, dim: int = 6):
    """Two sets, and the exact Frechet distance of the Gaussians they are from, which do not commute."""
    fixed, r = np.random.default_rng(7), np.random.default_rng(seed)
    a, b, shift = fixed.normal(size=(dim, dim)), fixed.normal(size=(dim, dim)), fixed.normal(size=dim)
    # tr (A A^T B B^T)^(1/2) by the textbook's other route, the eigenvalues of a product that is not symmetric
    root = np.sqrt(np.linalg.eigvals(a @ a.T @ b @ b.T).real).sum()
    exact = shift @ shift + np.trace(a @ a.T) + np.trace(b @ b.T) - 2 * root
    return r.normal(size=(count, dim)) @ a.T, r.normal(size=(count, dim)) @ b.T + shift, exact


def test_frechet_distance_of_known_gaussians():
    x, y, exact = gaussians(0, 40_000)
    found = frechet_distance(x, y, resamples=20)
    assert found.value == pytest.approx(exact, rel=0.02)
    assert found == frechet_distance(x, y, resamples=20, seed=0)


@pytest.mark.slow
def test_frechet_interval_covers_once_the_bias_is_taken_off():
    covered = 0
    for seed in range(40):
        x, y, exact = gaussians(seed, 200)
        found = frechet_distance(x, y, resamples=100, seed=seed)
        assert found.bias > 0
        covered += found.low - found.bias <= exact <= found.high - found.bias
    assert covered >= 33  # of 40: at a true 95 % fewer than 34 come once in 3,000


def test_fewer_samples_lift_the_frechet_distance():
    x, _, _ = gaussians(0, 4000)
    few, many = frechet_distance(x[:60], x[60:120]), frechet_distance(x[:2000], x[2000:])
    assert few.value > 5 * many.value
    assert few.value < 3 * few.bias  # and are told to be mostly bias


@pytest.mark.parametrize("count", [8, 500])  # fewer samples than dimensions too: a singular covariance
def test_identical_sets_have_no_distance(count):
    x = np.random.default_rng(0).normal(size=(count, 12)) * np.logspace(-3, 2, 12)
    scale = np.square(x).sum(1).mean()
    for rows in ("independent", "paired", "fixed"):
        assert frechet_distance(x, x, rows=rows, resamples=10).value < 1e-12 * scale
        assert sliced_wasserstein(x, x, rows=rows, resamples=10).value == 0
    assert sliced_wasserstein(x, x, rows="paired", resamples=10).high == 0
    assert paired_distance(x, x).high == 0
    assert picture_psnr(x.reshape(-1, 3, 2, 2), x.reshape(-1, 3, 2, 2)).value == pytest.approx(120)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(1500, 1500), (1500, 1000)])
@pytest.mark.parametrize("dim", [1, 5])
def test_sliced_wasserstein_of_shifted_gaussians(n, m, dim):
    r = np.random.default_rng(3)
    shift = np.full(dim, 2.0)
    found = sliced_wasserstein(r.normal(size=(n, dim)), r.normal(size=(m, dim)) + shift, resamples=60)
    exact = np.linalg.norm(shift) / math.sqrt(dim)
    assert found.value == pytest.approx(exact, rel=0.1)
    assert found.low <= exact <= found.high


def test_wasserstein_of_unequal_counts_is_exact():
    # quantile functions 0, 3 on halves and 0, 1, 2 on thirds
    found = sliced_wasserstein([[0.0], [3.0]], [[0.0], [1.0], [2.0]], resamples=2)
    assert found.value == pytest.approx(math.sqrt(0 + 1 / 6 * 1 + 1 / 6 * 4 + 1 / 3 * 1))


def test_median_interval_is_of_order_statistics():
    found = median(np.arange(101.0))
    assert (found.value, found.low, found.high) == (50, 40, 60)
    r, covered = np.random.default_rng(0), 0
    for _ in range(200):
        e = median(r.standard_cauchy(25))
        covered += e.low <= 0 <= e.high
    assert covered >= 184


def test_paired_distance_of_a_known_error():
    x = torch.randn(50, 3, 4, 4)
    assert paired_distance(1.25 * x, x).value == pytest.approx(0.25, rel=1e-5)
    assert picture_psnr(torch.zeros(4, 3, 2, 2), torch.full((4, 3, 2, 2), 0.2)).value == pytest.approx(20)


@pytest.mark.parametrize(("x", "y", "said"), [
    (np.zeros((4, 3)), np.zeros((4, 2)), "equal widths"),
    (np.zeros((4, 3)), np.zeros((5, 3)), "rows in pairs"),
    (np.full((4, 3), np.nan), np.zeros((4, 3)), "12 values that are not finite"),
    (np.zeros(4), np.zeros(4), "expected .N, d."),
])  # fmt: skip
def test_sets_that_do_not_fit_are_refused(x, y, said):
    with pytest.raises(ds.ProblemError, match=said):
        paired_distance(x, y)


def test_moments_stand_for_their_population():
    x, y, _ = gaussians(0, 300)
    known = Moments(y.mean(0), np.cov(y.T))
    ours, theirs = (frechet_distance(x, b, rows="fixed", resamples=5) for b in (known, y))
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), rel=1e-9)
    for wrong, said in ((Moments(y.mean(0)[:-1], np.cov(y.T)), "expected .d,. and .d, d."),
                        (Moments(np.zeros(3), np.eye(3)), "equal widths")):  # fmt: skip
        with pytest.raises(ds.ProblemError, match=said):
            frechet_distance(x, wrong, rows="fixed", resamples=2)
    with pytest.raises(ds.ProblemError, match="rows='fixed'"):
        frechet_distance(x, known)


def test_precision_and_recall_of_known_sets():
    r = np.random.default_rng(0)
    left, right = r.normal(size=(200, 4)), r.normal(size=(200, 4)) + 40
    both = np.concatenate([left, right])
    assert [e.value for e in precision_recall(both, both)] == [1, 1]
    assert [e.value for e in precision_recall(left, right)] == [0, 0]
    precision, recall = precision_recall(r.normal(size=(300, 4)), both)  # true to one half of the data
    assert precision.value > 0.9
    assert 0.4 < recall.value <= 0.5
    assert recall.low < recall.value < recall.high
    wide = precision_recall(3 * r.normal(size=(300, 4)), left)  # covers all, and much that is none of it
    assert wide[0].value < 0.5 < wide[1].value
    with pytest.raises(ds.ProblemError, match="more than 3"):
        precision_recall(left[:3], right)


def test_precision_and_recall_are_the_papers():
    """Equations 1 and 2 of Kynkaanniemi et al. 2019, written out."""
    r = np.random.default_rng(1)
    x, y = r.normal(size=(30, 3)), r.normal(size=(40, 3)) + 0.8

    def share(points, manifold):
        hits = 0
        for point in points:
            reach = [sorted(np.linalg.norm(manifold - centre, axis=1))[3] for centre in manifold]
            hits += any(np.linalg.norm(point - c) <= far for c, far in zip(manifold, reach, strict=True))
        return hits / len(points)

    assert [e.value for e in precision_recall(x, y)] == [share(x, y), share(y, x)]


def test_features_load_and_repeat():
    net, known = ds.problems.load_features(), ds.problems.training_features()
    assert not net.training
    assert known.shape == (len(ds.problems.training_names()), 64)
    assert features.FILE.stat().st_size < 400_000
    pictures = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = net(pictures)
    assert torch.equal(first, ds.problems.load_features()(pictures))
    torch.testing.assert_close(net(pictures[3:4]), first[3:4])
    torch.testing.assert_close(net(3 * pictures), net((3 * pictures).clamp(-1, 1)))
    assert net.classify(pictures).shape == (5, len(features.CATEGORIES))
    with pytest.raises(ds.ProblemError, match=r"expected \(B, 3, 32, 32\)"):
        net(pictures[:, :, :16])


def test_features_of_a_new_training_are_those_of_its_weights(tmp_path):
    pictures = torch.rand(40, 3, 32, 32) * 2 - 1
    net, accuracy = features.train(pictures, torch.arange(40) % 8, steps=2, batch=4, lr=1e-3, seed=0)
    file = tmp_path / "f.safetensors"
    features.write(net, pictures, {"names": [str(i) for i in range(40)]}, file)
    assert 0 <= accuracy <= 1
    assert features.training_names(file)[39] == "39"
    known = features.training_features(file)
    torch.testing.assert_close(features.load_features(file)(pictures), known, rtol=2e-3, atol=1e-3)


@pytest.fixture
def few_resamples(monkeypatch):
    """What a report says and keeps does not depend on how finely its intervals are drawn."""
    whole = distances._bootstrap

    def few(*given):
        *others, resamples, seed = given
        return whole(*others, min(resamples, 20), seed)

    monkeypatch.setattr(distances, "_bootstrap", few)


@pytest.fixture
def mixture(few_resamples):
    means = [[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]]
    return ds.problems.GaussianMixture(means, [0.3, 0.2, 0.4])


def quality(mixture, solvers=("euler", "heun"), budgets=(10, 20, 40), **options):
    options = {"count": 200, "batch": 80, "reference": ("heun", 60), **options}
    return sample_quality(solvers, problem=mixture, budgets=budgets, **options)


@pytest.mark.slow
def test_more_evaluations_come_nearer(mixture):
    report = quality(mixture)
    assert report.passed
    for solver in ("euler", "heun"):
        cells = [c for c in report.cells if c.solver == solver]
        for name in ("paired", "wasserstein_reference"):
            distances = [c.measures[name].value for c in cells]
            assert distances == sorted(distances, reverse=True)
    assert report.best("paired", 40).solver == "heun"
    assert report.reference_error.value < report.best("paired", 40).measures["paired"].value
    floor, own = report.floors["wasserstein_data"], report.reference.measures["wasserstein_data"]
    assert not floor.below(own)  # 200 samples of the exact flow can't be told from 200 true ones


@pytest.mark.slow
def test_report_can_be_read(mixture):
    report = quality(mixture, ("euler", "dopri5", "euler_ancestral"), budgets=(5, 20))
    told = json.loads(report.to_json())
    assert told["passed"]
    assert [c["status"] for c in told["cells"]] == ["ok", "ok", "too dear", "ok", "ok", "ok"]
    assert "paired" not in told["cells"][4]["measures"]  # it adds noise of its own
    assert told["cells"][0]["measures"]["paired"]["low"] <= told["cells"][0]["measures"]["paired"]["value"]
    text = str(report)
    assert "too dear: it needs at least 7 evaluations" in text
    assert "20 evaluations: nearest to the flow" in text
    assert "(perfect samples)" in text
    report.plot().canvas.draw()


@pytest.mark.slow
def test_a_second_call_draws_nothing(mixture, monkeypatch):
    first = quality(mixture)
    again = ds.problems.GaussianMixture(mixture.means, mixture.variances.sqrt(), process="sd")
    monkeypatch.setattr(quality_run, "solve", None)
    assert quality(again) == first
    with pytest.raises(TypeError):  # other content, another key
        quality(ds.problems.GaussianMixture(mixture.means * 2, [0.3, 0.2, 0.4]))


@pytest.mark.slow
def test_an_interrupted_call_goes_on(mixture, monkeypatch):
    solve, calls = quality_run.solve, []

    def counted(*args, **options):
        calls.append(options)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return solve(*args, **options)

    monkeypatch.setattr(quality_run, "solve", counted)
    with pytest.raises(KeyboardInterrupt):
        quality(mixture, ("euler",), (10,))
    report = quality(mixture, ("euler",), (10,))
    assert len(calls) == 3 + 1 + 3 + 1  # the third batch again, the cell, the first batch with half the steps
    monkeypatch.setenv("DIFFSOLVE_CACHE", "")  # none of it depends on what was kept
    monkeypatch.setattr("diffsolve.validation.cache.read_json", lambda kind, key: None)
    monkeypatch.setattr("diffsolve.validation.cache.read_array", lambda kind, key: None)
    monkeypatch.setattr("diffsolve.validation.cache.write_json", lambda kind, key, value: None)
    monkeypatch.setattr("diffsolve.validation.cache.write_array", lambda kind, key, array: None)
    assert quality(mixture, ("euler",), (10,)).cells[0].measures == report.cells[0].measures


def test_what_diverges_and_what_raises_fails(mixture):
    class Explodes(ds.Solver):
        def step(self, f, y, span, past):
            return ds.Step(y * 1e200 + f(y, span.start), past=past)

    class Raises(ds.Solver):
        traceable = False

        def step(self, f, y, span, past):
            raise RuntimeError("no")

    report = quality(mixture, (Explodes(), Raises(), "euler"), (10,))
    assert [c.status for c in report.cells] == ["diverged", "failed", "ok"]
    assert not report.passed
    assert "FAILED" in str(report)
    assert report.cells[1].note == "RuntimeError: no"
    report.plot().canvas.draw()


@pytest.mark.slow
def test_batches_do_not_matter(mixture):
    cells = quality(mixture, ("heun",), (10,)).cells
    other = quality(mixture, ("heun",), (10,), batch=200)
    assert other.cells[0].measures["paired"].value == pytest.approx(cells[0].measures["paired"].value, rel=1e-9)


def test_problems_without_known_data_are_refused(mixture):
    for problem in (ds.ODEProblem(lambda t, x: x, (0.0, 1.0), [1.0]), SimpleNamespace()):
        with pytest.raises(ds.ProblemError, match="can't be measured"):
            quality(problem)
    with pytest.raises(ds.ProblemError, match="count is 1"):
        sample_quality(("euler",), problem=mixture, count=1)


@pytest.mark.slow
@pytest.mark.usefixtures("few_resamples")
def test_quality_of_the_embedded_model():
    report = sample_quality(("euler", "dpmpp_2m"), problem=emoji_model(), budgets=(3, 8), count=8, batch=8,
                            reference=("dpmpp_2m", 16))  # fmt: skip
    assert report.passed
    assert report.guidance == 4
    assert report.measures == ["frechet_data", "frechet_reference", "wasserstein_reference", "paired", "psnr"]
    coarse, fine = (next(c for c in report.cells if c.solver == "dpmpp_2m" and c.budget == b) for b in (3, 8))
    for name in ("paired", "frechet_reference", "wasserstein_reference"):
        assert fine.measures[name].value < coarse.measures[name].value
    assert fine.measures["psnr"].value > coarse.measures["psnr"].value
    assert report.floors["frechet_data"].value < coarse.measures["frechet_data"].value
    report.plot().canvas.draw()
