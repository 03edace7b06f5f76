"""Distances between sets of samples, each with a 95 % interval: Frechet, sliced Wasserstein, and paired."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from diffsolve import ProblemError, normals

Array = np.ndarray
Samples = torch.Tensor | ArrayLike
"""(N, d) or (N, *shape)."""
Rows = Literal["independent", "paired", "fixed"]
LEVEL = 0.95
DIRECTIONS = -96  # the stream of the keyed normals that projections are drawn from


@dataclass(frozen=True)
class Estimate:
    """A distance and the 95 % interval of its spread at this number of samples.

    bias: how far a finite number of samples lifts it, as the bootstrap estimates it; 0 for a median. Two distances at
    equal counts share most of it and are compared as they are; value - bias is nearer to the distance of infinitely
    many. Where the distance itself is near 0 it is almost all bias.
    """

    value: float
    low: float
    high: float
    bias: float = 0.0

    def below(self, other: Estimate) -> bool:
        """Whether it is smaller than `other`, their intervals apart."""
        return self.high < other.low

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of a whole population, where its samples are not at hand."""

    mean: Samples
    covariance: Samples


def frechet_distance(
    a: Samples, b: Samples | Moments, *, rows: Rows = "independent", resamples: int = 200, seed: int = 0
) -> Estimate:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two sets of features (N, d), (M, d), in float64.

    It is the square of the 2-Wasserstein distance of the two Gaussians; features that are not Gaussian are told apart
    by mean and covariance only. Too few samples lift it (see Estimate.bias), so compare at equal counts alone.
    rows: what the interval resamples: both sets, both by the same rows ("paired": row i of both shares its noise or its
    prompt), or a alone ("fixed": b is the whole population, which may be given by its Moments).
    """
    x = _matrix(a, "a")
    y = x[:0] if isinstance(b, Moments) else _matrix(b, "b")
    known = _given_moments(b) if isinstance(b, Moments) else _moments(y)
    if isinstance(b, Moments) and rows != "fixed":
        raise ProblemError(f"rows is {rows!r}, but b is known by its moments alone; expected rows='fixed'")
    _check_widths(x, known[0][None] if rows == "fixed" else y, rows)

    def resampled(i: Array, j: Array | None) -> float:
        return _frechet(_moments(x[i]), known if j is None else _moments(y[j]))

    return _bootstrap(_frechet(_moments(x), known), resampled, len(x), len(y), rows, resamples, seed)


def _moments(x: Array) -> tuple[Array, Array]:
    """The mean, and a factor L of the covariance L L^T: a square root that needs no inverse and stays real."""
    centred = x - x.mean(0)
    return x.mean(0), _root(centred.T @ centred / max(len(x) - 1, 1))


def _given_moments(known: Moments) -> tuple[Array, Array]:
    mean, covariance = np.asarray(known.mean, np.float64), _matrix(known.covariance, "covariance")
    if mean.shape != covariance.shape[:1] or covariance.shape[0] != covariance.shape[1]:
        raise ProblemError(f"a mean {mean.shape} and a covariance {covariance.shape}; expected (d,) and (d, d)")
    return mean, _root(covariance)


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    root: Array = vectors * np.sqrt(np.maximum(values, 0))
    return root


def _frechet(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """tr (C_a C_b)^(1/2) is the sum of the singular values of L_a^T L_b."""
    (mean, root), (other, factor) = a, b
    shared = np.linalg.svd(root.T @ factor, compute_uv=False).sum()
    spread = np.square(root).sum() + np.square(factor).sum() - 2 * shared
    return float(np.square(mean - other).sum() + max(spread, 0.0))


def precision_recall(samples: Samples, real: Samples, neighbours: int = 3) -> tuple[Estimate, Estimate]:
    """(precision, recall) of features (N, d) against real ones (M, d) (Kynkaanniemi et al. 2019, eq. 1, 2).

    precision: the share of samples within the real ones' manifold, the balls about each that reach to its
    `neighbours`-th neighbour; recall: the share of real ones within that of the samples. Intervals are Wilson's, of
    the share alone. N and M move both: compare at equal counts. Raises ProblemError for no more than `neighbours` rows.
    """
    x, y = _matrix(samples, "samples"), _matrix(real, "real")
    _check_widths(x, y, "independent")
    if min(len(x), len(y)) <= neighbours:
        raise ProblemError(f"there are {len(x)} and {len(y)} rows; expected more than {neighbours} of either")
    apart = _distances(x, y)
    reach_x, reach_y = (np.partition(_distances(z, z), neighbours, axis=1)[:, neighbours] for z in (x, y))
    return _share(np.any(apart <= reach_y, 1)), _share(np.any(reach_x[:, None] >= apart, 0))


def _distances(x: Array, y: Array) -> Array:
    """(N, M), by one matrix product."""
    return torch.cdist(torch.from_numpy(x), torch.from_numpy(y), compute_mode="use_mm_for_euclid_dist").numpy()


def _share(hits: Array) -> Estimate:
    from scipy.stats import binomtest

    found = binomtest(int(hits.sum()), len(hits)).proportion_ci(LEVEL, "wilson")
    return Estimate(float(hits.mean()), float(found.low), float(found.high))


def sliced_wasserstein(
    x: Samples, y: Samples, *, projections: int = 256, rows: Rows = "independent", resamples: int = 100, seed: int = 0
) -> Estimate:
    """The sliced 2-Wasserstein distance of samples x (N, *shape) and y (M, *shape): root mean square over directions.

    Each direction's distance is that of the two empirical distributions, exact for N != M too. In d dimensions a shift
    by v has |v|/sqrt(d). The interval covers the samples and the choice of directions. rows: see frechet_distance.
    """
    a, b = _matrix(x, "x"), _matrix(y, "y")
    _check_widths(a, b, rows)
    directions = _normals(seed, projections, a.shape[1])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    p, q = directions @ a.T, directions @ b.T
    left, right, lengths = _quantile_steps(len(a), len(b))
    known = np.sort(q)
    pick = np.random.default_rng([seed, 2])

    def squares(first: Array, second: Array) -> Array:
        return np.square(np.sort(first)[:, left] - second[:, right]) @ lengths

    def resampled(i: Array, j: Array | None) -> float:
        found = squares(p[:, i], known if j is None else np.sort(q[:, j]))
        return math.sqrt(float(found[pick.integers(projections, size=projections)].mean()))

    value = math.sqrt(float(squares(p, known).mean()))
    return _bootstrap(value, resampled, len(a), len(b), rows, resamples, seed)


def _quantile_steps(n: int, m: int) -> tuple[Array, Array, Array]:
    """The pieces on which both empirical quantile functions are constant: their indices and their lengths."""
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    starts = np.concatenate(([0], ends[:-1]))
    return starts // m, starts // n, (ends - starts) / (n * m)


def paired_distance(x: Samples, reference: Samples) -> Estimate:
    """The median over samples of |x_i - r_i|/|r_i|, where row i of both began in the same noise.

    Its interval is of order statistics, and so holds for any distribution of the errors.
    """
    a, b = _matrix(x, "x"), _matrix(reference, "reference")
    _check_widths(a, b, "paired")
    return median(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1))


def picture_psnr(pictures: Samples, reference: Samples) -> Estimate:
    """The median over pictures (N, c, h, w) in [-1, 1], clipped, of 10 log10(1/mean square error on [0, 1]), in dB."""
    a, b = (np.clip(_matrix(p, "pictures"), -1, 1) for p in (pictures, reference))
    _check_widths(a, b, "paired")
    errors = np.maximum(np.square((a - b) / 2).mean(1), 1e-12)  # no more than 120 dB: equal pictures are finite too
    return median(-10 * np.log10(errors))


def median(values: Array) -> Estimate:
    """The median with its interval by order statistics: the whole range where there are fewer than 6 values."""
    from scipy.stats import binom

    ordered, count = np.sort(values), len(values)
    below = max(int(binom.ppf((1 - LEVEL) / 2, count, 0.5)) - 1, 0)
    return Estimate(float(np.median(ordered)), float(ordered[below]), float(ordered[count - 1 - below]))


def _bootstrap(
    value: float, resampled: Callable[[Array, Array | None], float], n: int, m: int, rows: Rows, resamples: int,
    seed: int,
) -> Estimate:  # fmt: skip
    """The spread of a distance over resampled rows, put around its value on the rows as they are.

    Resampling lifts a distance by about as much as sampling did, which is the bias, so that the quantiles are moved
    back by it.
    """
    generator = np.random.default_rng([seed, 1])
    found = np.empty(resamples)
    for k in range(resamples):
        i = generator.integers(n, size=n)
        found[k] = resampled(i, None if rows == "fixed" else i if rows == "paired" else generator.integers(m, size=m))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) + (value - found.mean())
    return Estimate(value, max(float(low), 0.0), float(high), float(found.mean()) - value)


def _normals(seed: int, rows: int, width: int) -> Array:
    return normals(seed, range(rows), DIRECTIONS, (width,), torch.float64, "cpu").numpy()


def _matrix(values: Samples, what: str) -> Array:
    """(N, d) in float64. Raises ProblemError."""
    matrix = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, np.float64)
    if matrix.ndim < 2 or len(matrix) < 2:
        raise ProblemError(f"{what} has the shape {matrix.shape}; expected (N, d) or (N, *shape) with N >= 2")
    if not np.isfinite(matrix).all():
        raise ProblemError(f"{what} has {np.count_nonzero(~np.isfinite(matrix))} values that are not finite")
    return matrix.reshape(len(matrix), -1)


def _check_widths(a: Array, b: Array, rows: Rows) -> None:
    if rows not in ("independent", "paired", "fixed"):
        raise ProblemError(f"rows is 'independent', 'paired' or 'fixed', got {rows!r}")
    if a.shape[1] != b.shape[1] or (rows == "paired" and len(a) != len(b)):
        raise ProblemError(f"the sets have the shapes {a.shape} and {b.shape}; expected equal widths"
                              + (", and rows in pairs" if rows == "paired" else ""))
