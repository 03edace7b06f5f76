"""The pictures of a LikelihoodReport and of a BoundReport."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .bound import BoundReport
    from .likelihood import LikelihoodReport


def plot_likelihood(report: LikelihoodReport) -> Figure:
    """bits/dim of each sample with its standard error, beside the exact ones where they are known."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel="sample, by its likelihood", ylabel="-log₂ p, bits/dim")
    bits, nats = np.array(report.bits_per_dim()), report.dims * math.log(2)
    order = np.argsort(bits)
    errors = np.nan_to_num(np.array(report.errors)) / nats
    places = np.arange(1, len(bits) + 1)
    if report.exact is not None:
        axes.plot(places, -np.array(report.exact)[order] / nats, "_", color="black", markersize=14, label="exact")
    axes.errorbar(places, bits[order], errors[order], fmt="o", color=COLOURS[0], markersize=4, capsize=2,
                  label=f"{report.solver}, {report.nfe} NFE")  # fmt: skip
    mean = -report.mean[0] / nats
    axes.axhline(mean, color=COLOURS[1], linewidth=1, linestyle="--", label=f"mean {mean:.4f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9)
    axes.set_title(f"log-likelihood at sigma = {report.sigma:.3g}, {report.dims} dimensions", loc="left", fontsize=11)
    return figure


def plot_bound(report: BoundReport) -> Figure:
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
