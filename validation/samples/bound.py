"""DDPM's variational bound, term by term, and the rate-distortion curve of its progressive decoding.

Ho et al. 2020 (arXiv 2006.11239): -log p(x_0) <= L_T + sum of L_{t-1} + L_0 (eq. 5), every term a KL divergence of
Gaussians but L_0, the last decoder. The terms are sums over all timesteps of a discrete VP process, each estimated with
one draw of noise a sample. Variances: "fixed_small" and "fixed_large" (section 3.2), "learned_range" (Nichol & Dhariwal
2021, arXiv 2102.09672, eq. 15).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from diffsolve import VP, ProbabilityFlow, ProblemError, normals
from diffsolve.solvers.wrappers import posterior_variances
from diffsolve.validate import choice

from ..palette import COLOURS
from ..report import as_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

STREAM = -1000  # of the keyed normals: timestep t draws from STREAM - t
LEVELS = 256

Variance = Literal["fixed_small", "fixed_large", "learned_range"]
Decoder = Literal["gaussian", "discrete"]


@dataclass(frozen=True)
class BoundReport:
    """The bound on -log p(x_0), in nats a sample, with standard errors over the samples.

    prior: L_T. terms: L_{t-1} for t = T, ..., 2, in the order in which they are sent. decoder_term: L_0. Each is a pair
    (mean, standard error), and so is total. rmse: sqrt of the mean of (x_0 - D)^2 a dimension at t = T, ..., 1, the
    distortion where the receiver has x_t. looseness: (mean, standard error) of bound less the data's own -log density,
    where the problem knows it and the decoder is continuous; it can't be negative.
    """

    variance: Variance
    decoder: Decoder
    samples: int
    dims: int
    prior: tuple[float, float]
    terms: tuple[tuple[float, float], ...]
    decoder_term: tuple[float, float]
    total: tuple[float, float]
    rmse: tuple[float, ...]
    looseness: tuple[float, float] | None = None

    @property
    def rate(self) -> tuple[float, ...]:
        """Bits a dimension sent until the receiver has x_t, t = T, ..., 1: the cumulative sum that Fig. 5 plots."""
        sums, sent = [], 0.0
        for term, _ in (self.prior, *self.terms):
            sent += self.bits(term)
            sums.append(sent)
        return tuple(sums)

    @property
    def passed(self) -> bool | None:
        """Whether the bound is above the data's -log density, within 4 standard errors; None where that is unknown."""
        return None if self.looseness is None else self.looseness[0] >= -4 * self.looseness[1]

    def bits(self, nats: float) -> float:
        """Nats a sample as bits a dimension."""
        return nats / (self.dims * math.log(2))

    def to_json(self) -> str:
        """The report as JSON; what is not a number is null."""
        more = {"bits_per_dim": self.bits(self.total[0]), "rate": self.rate, "passed": self.passed}
        return as_json(asdict(self) | more)

    def _rows(self) -> list[tuple[str, str, str]]:
        steps = len(self.terms)
        rows = [("L_T", *self.prior)]
        parts = 4
        for i in range(parts):  # by quarters of the timesteps, from noise to data
            first, last = i * steps // parts, (i + 1) * steps // parts
            if first < last:
                name = f"L_{steps - first} .. L_{steps - last + 1}"
                rows.append((name, sum(mean for mean, _ in self.terms[first:last]), math.nan))
        rows += [("L_0", *self.decoder_term), ("total", *self.total)]
        return [(name, f"{self.bits(m):.4f}", "" if math.isnan(e) else f"{self.bits(e):.4f}") for name, m, e in rows]

    def _title(self) -> str:
        return (
            f"variational bound of {self.samples} samples, {len(self.terms) + 1} timesteps, {self.variance}, "
            f"{self.decoder} decoder"
        )

    def _verdict(self) -> str:
        text = f"rate {self.rate[-1]:.4g} bits/dim at distortion {self.rmse[-1]:.4g} RMSE"
        if self.looseness is None:
            return text
        gap, error = (self.bits(v) for v in self.looseness)
        return f"{text}; {gap:.4f} ± {error:.4f} bits/dim above the data's own: {'passed' if self.passed else 'FAILED'}"

    def __str__(self) -> str:
        rows = [f"  {name:<18} {mean:>10} bits/dim {error and '± ' + error}" for name, mean, error in self._rows()]
        return "\n".join([self._title(), *map(str.rstrip, rows), f"  {self._verdict()}"])

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table("term", "bits/dim", "standard error", title=self._title(), caption=self._verdict())
        for row in self._rows():
            table.add_row(*row)
        return table

    def plot(self) -> Figure:
        """The terms over t, and the rate-distortion curve (Ho et al. 2020, Fig. 5)."""
        return _plot(self)


@torch.no_grad()
def variational_bound(
    problem: ProbabilityFlow,
    x0: Tensor,
    variance: Variance = "fixed_small",
    decoder: Decoder = "gaussian",
    *,
    seed: int = 0,
) -> BoundReport:
    """DDPM's bound on -log p(x0) over all the timesteps of the problem's process: one network call each.

    x0: data (B, *shape), at sigma = 0. variance: of the steps' Gaussians; "learned_range" needs a problem made with
    learned_range=True. decoder: "gaussian" is a density, "discrete" the probability of 8-bit levels in [-1, 1] (Ho et
    al. 2020, eq. 13). In L_0 the small variance would be 0; that of L_1 stands in for it, and for the fixed large
    one, as in DDPM's code.
    Raises ProblemError for a process that is not discrete, data off the 8-bit levels, or a variance that is not there.
    """
    process = problem.process
    if not isinstance(process, VP):
        raise ProblemError(f"the bound is a sum over the timesteps of a discrete VP process, got {process!r}")
    choice(variance, "variance", get_args(Variance), ProblemError)
    choice(decoder, "decoder", get_args(Decoder), ProblemError)
    x = problem.start(x0, range(len(x0)) if isinstance(x0, Tensor) else (), 0, 0.0, None, None)
    if decoder == "discrete":
        _check_levels(x)
    sigmas = process.table.tolist()
    top = sigmas[-1]
    sums = [_of_prior(x, top)]
    errors = []
    for t in range(len(sigmas) - 1, -1, -1):
        y = x + sigmas[t] * normals(seed, range(len(x)), STREAM - t, problem.shape, x.dtype, x.device)
        found = problem.denoiser(y, sigmas[t])
        denoised, share = found.denoised, found.variance if variance == "learned_range" else None
        if variance == "learned_range" and share is None:
            raise ProblemError("variance='learned_range' needs a problem made with learned_range=True")
        errors.append((x - denoised).double().flatten(1).square().mean(1))
        below = sigmas[t - 1] if t else 0.0
        small, large = _variances(process, sigmas, t)
        wanted = _log_variance(variance if t else "fixed_small", small, large, share)
        if t:
            # in VE coordinates both means are D or x_0 times 1 - (below/sigma)^2, plus the same share of y
            gap = (1 - (below / sigmas[t]) ** 2) * (x - denoised)
            sums.append(_kl(gap, math.log(small), wanted))
        else:
            sums.append(_decoded(x, denoised, wanted, decoder))
    each = torch.stack(sums)
    loose = None
    if decoder == "gaussian" and hasattr(problem, "log_density"):
        own = problem.log_density(x).double()
        loose = mean_and_error(each.sum(0) + own) if bool(own.isfinite().all()) else None
    means = [mean_and_error(term) for term in each]
    return BoundReport(
        variance, decoder, len(x), math.prod(problem.shape), means[0], tuple(means[1:-1]), means[-1],
        mean_and_error(each.sum(0)), tuple(float(e.mean().sqrt()) for e in errors), loose,
    )  # fmt: skip


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of independent values, and its standard error; NaN for one value."""
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error


def _variances(process: VP, sigmas: list[float], t: int) -> tuple[float, float]:
    """(small, large) of the step from t down, in VE coordinates; at t = 0, where small is 0, that of t = 1 instead."""
    if t:
        return posterior_variances(process, sigmas[t], sigmas[t - 1])
    large = posterior_variances(process, sigmas[0], 0.0)[1]
    if len(sigmas) < 2:
        return large, large
    # as a variance of x_{t-1}, which is alpha y
    small = posterior_variances(process, sigmas[1], sigmas[0])[0] * process.alpha(sigmas[0]) ** 2
    return small, large


def _log_variance(variance: Variance, small: float, large: float, share: Tensor | None) -> Tensor:
    """log of the model's variance; `share` is what a learned one says."""
    if share is not None:
        return share.double() * math.log(large / small) + math.log(small)
    return torch.tensor(math.log(large if variance == "fixed_large" else small), dtype=torch.float64)


def _of_prior(x: Tensor, top: float) -> Tensor:
    """KL(q(x_T | x_0) || N(0, 1)), a sample."""
    kept = 1 / (1 + top * top)  # alpha^2
    return 0.5 * (kept * x.double().square() - kept - math.log1p(-kept)).flatten(1).sum(1)


def _kl(gap: Tensor, log_q: float, log_p: Tensor) -> Tensor:
    """KL of two diagonal Gaussians whose means are `gap` apart, a sample."""
    ratio = log_q - log_p
    return 0.5 * (ratio.exp() - 1 - ratio + gap.double().square() * (-log_p).exp()).flatten(1).sum(1)


def _decoded(x: Tensor, mean: Tensor, log_p: Tensor, decoder: Decoder) -> Tensor:
    """-log p(x_0 | x_1), a sample: of a Gaussian density, or of its mass between the half-way points of the levels."""
    gap, deviation = (x - mean).double(), (log_p / 2).exp()
    if decoder == "gaussian":
        return 0.5 * (gap.square() * (-log_p).exp() + math.log(2 * math.pi) + log_p).flatten(1).sum(1)
    half = 1 / (LEVELS - 1)
    high, low = (gap + half) / deviation, (gap - half) / deviation
    logs = torch.where(
        x <= -1 + half / 2, torch.special.log_ndtr(high),
        torch.where(x >= 1 - half / 2, torch.special.log_ndtr(-low), _log_between(low, high)),
    )  # fmt: skip
    return -logs.flatten(1).sum(1)


def _log_between(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)), accurate in both tails."""
    flip = low > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    top = torch.special.log_ndtr(high)
    return top + torch.log(-torch.expm1(torch.special.log_ndtr(low) - top))


def _check_levels(x: Tensor) -> None:
    steps = (x.double() + 1) * (LEVELS - 1) / 2
    off = (steps - steps.round()).abs().max()
    if float(off) > 1e-3 or float(x.abs().max()) > 1 + 1e-6:
        raise ProblemError(
            "the discrete decoder takes 8-bit data, k/127.5 - 1 with k = 0..255; pass such, or decoder='gaussian'"
        )


def _plot(report: BoundReport) -> Figure:
    """The terms over t; distortion over the rate sent; and both over the share of the reverse process that is done."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    terms, curve, progress = figure.subplots(1, 3)
    t = np.arange(len(report.terms), 0, -1)
    terms.plot(t, [report.bits(m) for m, _ in report.terms], color=COLOURS[0], linewidth=1.2)
    terms.set(yscale="log", xlabel="t (sent from right to left)", ylabel="bits/dim", title="the terms L_t, t >= 1")
    rate, rmse = np.array(report.rate), np.array(report.rmse)
    curve.plot(rate, rmse, color=COLOURS[0])
    curve.set(xlabel="rate, bits/dim", ylabel="distortion, RMSE", title="rate-distortion", ylim=(0, None))
    done = np.arange(len(rmse)) / len(rmse)
    progress.plot(done, rmse, color=COLOURS[1], label="distortion, RMSE")
    progress.plot([], [], color=COLOURS[2], label="rate, bits/dim")
    progress.set(xlabel="share of the reverse process done", ylabel="distortion, RMSE", title="progressive decoding",
                 ylim=(0, None))  # fmt: skip
    other = progress.twinx()
    other.plot(done, rate, color=COLOURS[2])
    other.set(ylabel="rate, bits/dim", ylim=(0, None))
    other.spines[["top"]].set_visible(False)
    progress.legend(fontsize=9, loc="upper center")
    for axes in (terms, curve, progress):
        axes.grid(color="0.92")
        axes.spines[["top"]].set_visible(False)
    figure.suptitle(f"{report.bits(report.total[0]):.4f} bits/dim: {report._title()}", fontsize=11)
    return figure
