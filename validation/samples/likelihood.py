"""The log-likelihood of data under a flow, by any solver of the ODE: what it maps to, and how the map stretches space.

Along dy/dsigma = eps the density changes by d log p/dsigma = -div eps (Chen et al. 2018; Song et al. 2021, arXiv
2011.13456, eq. 39). The divergence's integral Q is solved beside the state: (y, Q) is a flow itself, whose "denoiser"
of Q is Q - sigma div eps = Q - d + tr(dD/dy), so every form and every solver integrates both.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from diffsolve import (
    FunctionDenoiser,
    NetworkDenoiser,
    ProbabilityFlow,
    ProblemError,
    Solver,
    get_solver,
    normals,
    solve,
)
from diffsolve.denoiser import Denoiser, Network, Raw
from diffsolve.problems import StableDiffusion
from diffsolve.problems.guidance import Guidance

from ..palette import COLOURS
from ..references import a_mixture
from ..report import as_json
from .bound import mean_and_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

STREAM = -200  # of the keyed normals that probes are made of: -200, -201, ...
TOLERANCE = 1e-3  # nats a dimension, between the mean and the exact one, beyond what the probes' spread explains

Probe = Literal["rademacher", "gaussian"]


class WithDivergence(ProbabilityFlow):
    """A flow and the integral of its divergence: states (B, d + K), y flattened and then Q from each of K probes.

    probes: (B, K, d), fixed for the whole solve, with E[z z^T] = 1 (Hutchinson 1990), or None for the exact trace,
    which costs d backward passes instead of K. Raises ProblemError for a network that can't be differentiated.
    """

    def __init__(self, inner: ProbabilityFlow, probes: Tensor | None) -> None:
        self.dims = math.prod(inner.shape)
        extra = 1 if probes is None else probes.shape[1]
        self.inner, self.probes = _differentiable(inner.denoiser), probes
        self.inner_shape = inner.shape
        super().__init__(
            process=inner.process, shape=(self.dims + extra,), dtype=inner.dtype, device=inner.device,
            denoiser=FunctionDenoiser(self._denoised),
        )  # fmt: skip

    def _denoised(self, y: Tensor, sigma: float) -> Tensor:
        with torch.enable_grad():
            state = y[:, : self.dims].detach().requires_grad_()
            denoised = self.inner(state.reshape(-1, *self.inner_shape), sigma).denoised.flatten(1)
            traces = self._traces(denoised, state)
        return torch.cat([denoised.detach(), y[:, self.dims :] - self.dims + traces], 1)

    def _traces(self, denoised: Tensor, state: Tensor) -> Tensor:
        """z^T (dD/dy) z of each probe, (B, K), or the trace itself, (B, 1)."""
        if not denoised.requires_grad:
            raise ProblemError(_CUT)

        def pulled(z: Tensor) -> Tensor:
            return torch.autograd.grad(denoised, state, z, retain_graph=True)[0]

        if self.probes is None:
            basis = torch.eye(self.dims, dtype=state.dtype, device=state.device)
            return sum(pulled(e.expand_as(state))[:, [i]] for i, e in enumerate(basis))  # type: ignore[return-value]
        return torch.stack([(pulled(z) * z).sum(1) for z in self.probes.to(state).unbind(1)], 1)


_CUT = "the divergence needs the denoiser's derivative, and it hands back none: take off its torch.no_grad or detach"


def _differentiable(denoiser: Denoiser) -> Denoiser:
    """The same, refusing a network that hands back no derivative: what a skip connection adds to it would hide that."""
    if isinstance(denoiser, NetworkDenoiser):
        network = _checked(denoiser.network)
        return NetworkDenoiser(network, denoiser.process, denoiser.prediction, denoiser.learned_range)
    if isinstance(denoiser, Guidance):
        changed = copy(denoiser)
        changed.denoiser = _differentiable(denoiser.denoiser)
        return changed
    return denoiser


def _checked(network: Network) -> Network:
    def checked(x: Tensor, t: Tensor) -> Raw:
        raw = network(x, t)
        for part in raw if isinstance(raw, tuple) else (raw,):
            if not part.requires_grad:
                raise ProblemError(_CUT)
        return raw

    return checked


@dataclass(frozen=True)
class LikelihoodReport:
    """Log-likelihoods of samples, in nats, at the noise level `sigma`, with the standard error over the probes.

    errors: nan where there is one probe, 0 where the trace is exact. exact: the problem's own log-density at `sigma`,
    where it was asked for. nfe: denoiser calls a sample, each with a backward pass for each probe.
    """

    solver: str
    schedule: str
    n: int
    nfe: int
    dims: int
    sigma: float
    probes: int | Literal["exact"]
    nats: tuple[float, ...]
    errors: tuple[float, ...]
    exact: tuple[float, ...] | None = None

    @property
    def mean(self) -> tuple[float, float]:
        """The mean over samples, in nats, and its standard error: the samples' spread, the probes' included."""
        return mean_and_error(_column(self.nats))

    @property
    def mismatch(self) -> tuple[float, float] | None:
        """The mean of computed less exact, in nats, and how much of it the probes may explain (one standard error)."""
        if self.exact is None:
            return None
        mean, spread = mean_and_error(_column(self.nats) - _column(self.exact))
        return mean, 0.0 if self.probes == "exact" else spread

    @property
    def passed(self) -> bool | None:
        """The mean is within TOLERANCE nats a dimension of the exact one and 4 standard errors; None if not known."""
        if self.mismatch is None:
            return None
        gap, error = self.mismatch
        return abs(gap) <= TOLERANCE * self.dims + 4 * error

    def bits_per_dim(self, levels: int | None = None) -> tuple[float, ...]:
        """-log2 p a dimension of each sample; with `levels`, of data in [-1, 1] that had so many levels (256: 8 bits)
        before uniform noise filled the gaps: log2(levels/2) more."""
        offset = math.log2(levels / 2) if levels else 0.0
        return tuple(offset - value / (self.dims * math.log(2)) for value in self.nats)

    def to_json(self) -> str:
        """The report as JSON; what is not a number is null."""
        more = {"bits_per_dim": self.bits_per_dim(), "mean": self.mean, "mismatch": self.mismatch}
        return as_json(asdict(self) | more | {"passed": self.passed})

    def __str__(self) -> str:
        return "\n".join([self._title(), *("  " + "  ".join(cells) for cells in self._rows()), f"  {self._verdict()}"])

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table("sample", "nats", "bits/dim", *(["exact"] if self.exact else []), title=self._title())
        for cells in self._rows():
            table.add_row(*cells)
        table.caption = self._verdict()
        return table

    def _title(self) -> str:
        trace = "exact trace" if self.probes == "exact" else f"{self.probes} probes"
        return f"log-likelihood at sigma = {self.sigma:.3g}: {self.solver}, {self.n} steps, {self.nfe} NFE, {trace}"

    def _rows(self) -> list[list[str]]:
        shown = []
        for i, (nats, error, bits) in enumerate(zip(self.nats, self.errors, self.bits_per_dim(), strict=True)):
            spread = f" ± {error:.2g}" if error > 0 else ""
            known = [f"{self.exact[i]:.5g}"] if self.exact else []
            shown.append([str(i), f"{nats:.5g}{spread}", f"{bits:.4f}", *known])
        return shown[:8] + ([["..."] * len(shown[0])] if len(shown) > 8 else [])

    def _verdict(self) -> str:
        mean, error = self.mean
        bits = -mean / self.dims / math.log(2)
        text = f"mean of {len(self.nats)}: {mean:.5g} ± {error:.2g} nats, {bits:.4f} bits/dim"
        if self.mismatch is None:
            return text
        gap, spread = self.mismatch
        return f"{text}; off by {gap:.1e} ± {spread:.1e}: {'passed' if self.passed else 'FAILED'}"

    def plot(self) -> Figure:
        """bits/dim of each sample with its standard error, beside the exact ones where they are known."""
        return _plot(self)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_likelihood(
    problem: ProbabilityFlow,
    x: Tensor,
    solver: str | Solver = "rk4",
    schedule: object = None,
    n: int = 50,
    *,
    probes: int | Literal["exact"] = 1,
    probe: Probe = "rademacher",
    prior: Literal["normal", "exact"] = "normal",
    form: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    seed: int = 0,
) -> LikelihoodReport:
    """The log-density at x of what the flow makes of its prior (Song et al. 2021, eq. 39), by any solver of the ODE.

    x: (B, *shape) at the grid's lowest node in VE coordinates: data, or `problem.noised(data, sigma_min)`. probes: how
    many random vectors estimate the divergence of each sample (unbiased), or "exact": d backward passes an evaluation.
    probe: their law. prior: "normal" is N(0, sigma_max^2), what `solve` starts from; "exact" is the problem's own
    `log_density` at sigma_max, and the report then compares with its log_density at the end.
    Raises ProblemError for a network without derivatives, or what these can't be; SolverError for a stochastic solver.
    """
    count = _count(probes)
    if probe not in ("rademacher", "gaussian") or prior not in ("normal", "exact"):
        raise ProblemError(
            f"probe is 'rademacher' or 'gaussian', got {probe!r}; prior is 'normal' or 'exact', got {prior!r}"
        )
    density = getattr(problem, "log_density", None)
    if prior == "exact" and density is None:
        raise ProblemError(f"{type(problem).__name__} has no log_density; take prior='normal'")
    method = get_solver(solver)
    start = problem.start(x, range(len(x)) if isinstance(x, Tensor) else (), 0, 0.0, None, None)
    zs = None if count is None else _probes(start, count, probe, seed)
    flow = WithDivergence(problem, zs).reversed()
    both = torch.cat([start.flatten(1), start.new_zeros(len(start), count or 1)], 1)
    run = solve(
        flow, method, problem.default_schedule if schedule is None else schedule, n, x=both, form=form,
        sigma_min=sigma_min, sigma_max=sigma_max,
    )  # fmt: skip
    low, high = float(run.sigmas[0]), float(run.sigmas[-1])
    dims = math.prod(problem.shape)
    end, integrals = run.x[:, :dims].reshape(start.shape), run.x[:, dims:].double()
    if density is not None and prior == "exact":
        logs = density(end, high).double()
    else:
        logs = -0.5 * end.double().flatten(1).square().sum(1) / high**2 - dims * math.log(high * math.sqrt(2 * math.pi))
    spread = torch.full_like(logs, 0.0 if count is None else math.nan)
    if count is not None and count > 1:
        spread = integrals.std(1) / math.sqrt(count)
    known = tuple(density(start, low).tolist()) if density is not None and prior == "exact" else None
    return LikelihoodReport(
        run.solver, run.schedule, run.n, run.nfe, dims, low, probes, tuple((logs + integrals.mean(1)).tolist()),
        tuple(spread.tolist()), known,
    )  # fmt: skip


def _count(probes: object) -> int | None:
    if probes == "exact":
        return None
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ProblemError(f"probes must be a whole number of at least 1 or 'exact', got {probes!r}")
    return probes


def _probes(x: Tensor, count: int, law: Probe, seed: int) -> Tensor:
    """(B, count, d): sample i's are the same in every batch."""
    size = (math.prod(x.shape[1:]),)
    drawn = [normals(seed, range(len(x)), STREAM - k, size, x.dtype, x.device) for k in range(count)]
    z = torch.stack(drawn, 1)
    return z if law == "gaussian" else torch.where(z < 0, -1.0, 1.0).to(z)


def data_of(model: str, prompt: str, count: int) -> tuple[ProbabilityFlow, Tensor]:
    """A flow and data at sigma = 0: a mixture and its draws, or a model, unguided, and what it draws of `prompt`."""
    if not model:
        mixture = a_mixture()
        return mixture, mixture.sample(count)
    problem = StableDiffusion.from_pretrained(model)(prompt, guidance=1)
    return problem, solve(problem, "dpmpp_2m", n=30, batch=count).x


def _plot(report: LikelihoodReport) -> Figure:
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
