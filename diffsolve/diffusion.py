"""The probability-flow ODE of a denoiser as a problem: dy/dsigma = eps = (y - D)/sigma, in VE coordinates."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from .errors import GridError, ProblemError, SolverError, finite
from .form import Form, StochasticForm, as_form
from .grid import Final, Grid, make_grid
from .noise import LEVELS, PRIOR_STREAM, BrownianPath, SpaceTimePath, normals
from .prediction import Prediction, as_prediction
from .problem import Problem, RightHandSide, Samples, Uniform, check_like, placed
from .process import Process, as_process
from .registry import list_solvers
from .solver import Solver, Span

Network = Callable[[Tensor, Tensor], Tensor]


class ProbabilityFlow(Problem):
    """A diffusion model as an ODE (and, for stochastic solvers, as its reverse SDE).

    network: (x, t) -> raw, with x = c_in y of shape (B, *shape) and t a float tensor (B,), the noise level as the
    network was trained to be told it. process: a Process or its name ("sd", "ddpm", "cosine", "vp", "ve", "edm",
    "flow"). prediction: a Prediction or its name ("eps", "v", "x0", "flow", "edm"). shape: one sample's shape.
    learned_range: the network has twice the channels, and the second half is v of Nichol & Dhariwal 2021, eq. 15, from
    -1 (the smaller variance of DDPM's step) to 1 (the larger), as `denoise_ranged` and `Field.learned` read it.

    Subclasses that know their denoiser override `denoise`, and may offer `exact(y, s0, s1)`, the exact flow.
    """

    default_solver, default_schedule = "damped_abm", "karras"
    reverse_eta: float | None = None  # of `sde`

    def __init__(
        self,
        network: Network | None,
        process: str | Process = "sd",
        prediction: str | Prediction = "eps",
        *,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
        learned_range: bool = False,
    ) -> None:
        if network is not None and not callable(network):
            raise ProblemError(f"network must be a function (x, t) -> raw, got {type(network).__name__}")
        self.network = network
        self.process = as_process(process)
        self.prediction = as_prediction(prediction)
        try:
            self.shape = tuple(operator.index(size) for size in shape)
        except TypeError as error:
            raise ProblemError(f"shape is one sample's shape, such as (4, 64, 64), got {shape!r}") from error
        placed(device)
        self.dtype, self.device = _state_dtype(dtype), torch.device(device)
        self.learned_range = learned_range

    @property
    def span(self) -> tuple[float, float]:
        """(sigma_max, sigma_min) of the process: where a solve starts and ends unless told otherwise."""
        return self.process.sigma_max, self.process.sigma_min

    def denoise(self, y: Tensor, sigma: float) -> Tensor:
        """D(y, sigma) = E[x_0 | y]: the denoised estimate, of y's shape (B, *shape) and dtype. One network call."""
        return self.denoise_ranged(y, sigma)[0]

    def denoise_ranged(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor | None]:
        """The denoised estimate and, with learned_range, where the log variance lies from small (0) to large (1)."""
        if self.network is None:
            raise ProblemError(f"{type(self).__name__} has neither a network nor a denoise of its own")
        k = self.prediction.scaling(sigma, self.process)
        t = torch.full((y.shape[0],), k.c_noise, dtype=y.dtype, device=y.device)
        raw, share = self.network(y * k.c_in, t), None
        if self.learned_range:
            check_like(raw, torch.cat([y, y], 1), "the network of twice the channels at sigma = {:g}", sigma)
            raw, share = raw.chunk(2, 1)
            share = (share + 1) / 2
        check_like(raw, y, "the network at sigma = {:g}", sigma)
        out = raw * k.c_out
        return out.add_(y, alpha=k.c_skip) if k.c_skip else out, share

    def denoise_both(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The denoised estimate with guidance and without, for one network call; here there is none, so one for two."""
        guided = self.denoise(y, sigma)
        return guided, guided

    def eps(self, y: Tensor, sigma: float) -> Tensor:
        """The noise estimate (y - D)/sigma = dy/dsigma; -eps/sigma is the score of y."""
        return (y - self.denoise(y, sigma)) / sigma

    def prior(self, batch: int | Sequence[int] = 1, seed: int = 0, sigma: float | None = None) -> Tensor:
        """Noise of standard deviation `sigma` (default sigma_max), shape (B, *shape).

        batch: how many samples, or which; sample i is the same in every batch.
        """
        samples = range(batch) if isinstance(batch, int) else batch
        scale = self.process.sigma_max if sigma is None else sigma
        return normals(seed, samples, PRIOR_STREAM, self.shape, self.dtype, self.device) * scale

    def noised(self, x: Tensor, sigma: float, seed: int = 0) -> Tensor:
        """Clean data x (B, *shape) at noise level sigma in VE coordinates: the start of an img2img run.

        Raises ProblemError for an x of another shape, or a sigma that is no number of at least 0.
        """
        if not isinstance(x, Tensor) or tuple(x.shape[1:]) != self.shape or x.ndim == 0:
            got = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ProblemError(f"x is clean data, a tensor of shape (B, {_inside(self.shape)}), got {got}")
        level = finite(sigma.item() if isinstance(sigma, Tensor) and sigma.ndim == 0 else sigma)
        if level is None or level < 0:
            raise ProblemError(f"sigma must be a finite number of at least 0, got {sigma!r}")
        return x + self.prior(x.shape[0], seed, sigma).to(x)

    def reversed(self) -> ProbabilityFlow:
        """The flow from sigma_min up to sigma_max: encodes data to the noise that decodes to them; see `Reversed`."""
        from .reversed import Reversed

        return Reversed(self)

    def sde(self, eta: float = 1.0) -> ProbabilityFlow:
        """The reverse SDE with eta times its noise (Song et al. 2021, eq. 6): for stochastic solvers alone.

        They take this eta unless they are told the same. Raises SolverError for an eta that can't be used.
        """
        problem = copy(self)
        problem.reverse_eta, problem.default_solver = StochasticForm.checked(eta), "dpmpp_2m_sde"
        return problem

    def decode(self, x: Tensor) -> list[Any]:
        """Pictures of the data-coordinate states x; problems that have none raise ProblemError."""
        raise ProblemError(f"{type(self).__name__} has no pictures; read Solution.x")

    def grid(
        self, schedule: Any, n: int, *, final: Final, sigma_min: float | None, sigma_max: float | None, name: str
    ) -> Grid:
        if isinstance(schedule, Uniform):
            raise GridError("schedule 'uniform' places an ODE's times; a diffusion takes 'karras', 'linspace', ...")
        return make_grid(
            schedule, n, self.process, sigma_min=sigma_min, sigma_max=sigma_max, final=final, name=name
        )

    def start(
        self, x: Any, samples: Samples, seed: int, node: float, dtype: torch.dtype | None, device: Any
    ) -> Tensor:
        wanted, device = _state_dtype(dtype or self.dtype), placed(device or self.device)
        if x is None:
            return normals(seed, samples, PRIOR_STREAM, self.shape, wanted, device) * node
        if not isinstance(x, Tensor):
            raise ProblemError(f"x must be a tensor of shape (B, {_inside(self.shape)}), got {type(x).__name__}")
        if x.ndim != len(self.shape) + 1 or tuple(x.shape[1:]) != self.shape or x.shape[0] < 1:
            raise ProblemError(f"x has shape {tuple(x.shape)}, expected (B, {_inside(self.shape)})")
        if x.dtype not in (torch.float32, torch.float64):
            raise ProblemError(f"x has dtype {x.dtype}; the state is kept in float32 or float64, so pass x.float()")
        if x.device != device:
            raise ProblemError(f"x is on {x.device}, the problem on {device}; pass x.to({str(device)!r})")
        return x.to(wanted if dtype is not None else torch.promote_types(x.dtype, wanted))

    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> RightHandSide:
        if eta is not None and not solver.stochastic:
            like = [row.name for row in list_solvers() if row.stochastic and row.name.startswith(f"{solver.name}_")]
            raise SolverError(
                f"eta = {eta!r} was given, but {solver.name or solver!r} solves the ODE; "
                f"eta belongs to stochastic solvers{' such as ' if like else ''}{', '.join(map(repr, like))}"
            )
        if self.reverse_eta is not None:
            eta = self._agreed(solver, eta)
        eta = solver.eta if eta is None else eta
        form = as_form(solver.form, self.process, eta)
        if not isinstance(form, StochasticForm):  # a solver that adds noise of its own reads eta itself
            eta = StochasticForm.checked(eta) if solver.stochastic else 0.0
        else:
            eta = form.eta
        return DiffusionField(self, form, eta, x, samples, seed)

    def _agreed(self, solver: Solver, eta: float | None) -> float | None:
        if not solver.stochastic:
            raise SolverError(
                f"{solver.name or solver!r} solves the ODE, and this problem is the reverse SDE (eta = "
                f"{self.reverse_eta:g}); take a stochastic solver such as 'euler_ancestral', or solve the flow itself"
            )
        if eta not in (None, self.reverse_eta):
            raise SolverError(
                f"eta = {eta!r} was given, but the problem is sde(eta={self.reverse_eta:g}); leave eta out"
            )
        return self.reverse_eta


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype not in (torch.float32, torch.float64):
        raise ProblemError(f"the state is float32 or float64, got {dtype}; a network in half precision casts inside")
    return dtype


def _inside(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def posterior_variances(process: Process, start: float, end: float) -> tuple[float, float]:
    """(small, large): the variances of DDPM's step from sigma = start down to end, in VE coordinates.

    small is that of q(y_end | y_start, x_0), large that of q(y_start | y_end) in the units of the end: beta~ and beta
    of Ho et al. 2020, section 3.2, over the squared alpha of the end.
    """
    spread = start * start - end * end
    return spread * (end / start) ** 2, spread * (process.alpha(start) / process.alpha(end)) ** 2


class DiffusionField(RightHandSide):
    """The flow of a ProbabilityFlow (or its reverse SDE) in one form: N = a u + b D(u/scale, sigma)."""

    def __init__(
        self, problem: ProbabilityFlow, form: Form, eta: float, x: Tensor, samples: Samples, seed: int
    ) -> None:
        super().__init__()
        self.problem, self.form, self.eta = problem, form, eta
        self.linear, self.finite_at_zero = form.linear, form.finite_at_zero
        self._noise_key = (x, samples, seed)
        self._paths: dict[tuple[str, int], Any] = {}
        self._share: Tensor | None = None

    def variable(self, node: float) -> float:
        return self.form.variable(node) if node > 0 or self.form.finite_at_zero else float("inf")

    def sigma(self, s: float) -> float:
        return self.form.sigma(s)

    def time(self, s: float) -> float:
        return self.problem.process.t(self.form.sigma(s))

    def alpha(self, s: float) -> float:
        return self.problem.process.alpha(self.form.sigma(s))

    def at_time(self, t: float) -> float:
        return self.form.variable(self.problem.process.sigma(t))

    def state_slope(self, s: float) -> float:
        return self.form.weights(self.form.sigma(s))[0]

    def eps_slope(self, s: float) -> float:
        sigma = self.form.sigma(s)
        return -1 / (self.form.weights(sigma)[1] * sigma)

    def scale(self, s: float) -> float:
        return self.form.scale(self.form.sigma(s))

    def enter(self, x: Tensor, node: float) -> Tensor:
        scale = self.form.scale(node)
        return x if scale == 1 else x * scale

    def leave(self, u: Tensor, node: float) -> Tensor:
        scale = self.form.scale(node) if node > 0 else 1.0
        return u if scale == 1 else u / scale

    def evaluate(self, u: Tensor, s: float) -> Tensor:
        sigma = self.form.sigma(s)
        return self._rate(u, self._denoise(u, sigma), sigma)

    def both(self, u: Tensor, s: float) -> tuple[Tensor, Tensor]:
        sigma = self.form.sigma(s)
        guided, plain = self.problem.denoise_both(self.leave(u, sigma), sigma)
        check_like(plain, u, "the denoiser without guidance at sigma = {:g}", sigma)
        check_like(guided, u, "the denoiser at sigma = {:g}", sigma)
        self.nfe += 1
        value = self._rate(u, guided, sigma)
        self.latest = (u, value, s)
        return value, value if plain is guided else self._rate(u, plain, sigma)

    def _rate(self, u: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        on_state, on_denoised = self.form.weights(sigma)
        if on_state == 0:
            return denoised if on_denoised == 1 else denoised * on_denoised
        return (u * on_state).add_(denoised, alpha=on_denoised)

    def _denoise(self, u: Tensor, sigma: float) -> Tensor:
        y = self.leave(u, sigma)
        if self.problem.learned_range:
            denoised, self._share = self.problem.denoise_ranged(y, sigma)
        else:
            denoised = self.problem.denoise(y, sigma)
        check_like(denoised, u, "the denoiser at sigma = {:g}", sigma)
        return denoised

    def denoise(self, u: Tensor, s: float) -> Tensor:
        self.nfe += 1
        return self._denoise(u, self.form.sigma(s))

    def denoised(self) -> Tensor | None:
        if self.latest is None:
            return None
        u, value, s = self.latest
        on_state, on_denoised = self.form.weights(self.form.sigma(s))
        return (value - u * on_state) / on_denoised

    def noise(self, span: Span) -> float:
        return self.form.noise(span.start, span.end)

    def diffusion(self, s: float) -> float:
        return self.form.diffusion(s)

    def climb(self, span: Span) -> float:
        low, high = self.form.sigma(span.start), self.form.sigma(span.end)
        return self.form.scale(high) * math.sqrt(high * high - low * low)

    def draw(self, span: Span) -> Tensor:
        if self.eta == 0 and not span.up:  # the path stands still, and nothing is drawn
            return torch.zeros_like(self._noise_key[0])
        start, end = (self._depth(s) for s in ((span.end, span.start) if span.up else (span.start, span.end)))
        path: BrownianPath = self._path("up" if span.up else "form", span.visit)
        return path.draw(start, end)

    def wiener(self, span: Span) -> Tensor:
        return self._space_time(span).wiener(span.start, span.end) if self.eta else torch.zeros_like(self._noise_key[0])

    def area(self, span: Span) -> Tensor:
        return self._space_time(span).area(span.start, span.end) if self.eta else torch.zeros_like(self._noise_key[0])

    def learned(self, span: Span) -> Tensor:
        start, end = self.form.sigma(span.start), self.form.sigma(span.end)
        if self._share is None:
            raise SolverError("a learned variance needs a problem made with learned_range=True")
        small, large = posterior_variances(self.problem.process, start, end)
        logs = self._share * math.log(large / small) + math.log(small)
        return self.draw(span) * (logs / 2).exp() * self.form.scale(end)

    def _ends(self) -> tuple[float, float]:
        """-log sigma over which a path runs: from sigma_max to below sigma_min, the end of which stands for 0."""
        top, bottom = self.problem.span
        return -math.log(max(top, bottom)), 0.5 - math.log(min(top, bottom))

    def _depth(self, s: float) -> float:
        sigma = self.form.sigma(s)
        return -math.log(sigma) if sigma > 0 else self._ends()[1]

    def _path(self, kind: str, visit: int) -> Any:
        """The path of a visit: one for every time that the solve passes over the same noise levels."""
        if (kind, visit) not in self._paths:
            x, samples, seed = self._noise_key
            form, (low, high) = self.form, self._ends()
            options = {"stream": 3 * visit + _PATHS.index(kind), "dtype": x.dtype, "device": x.device}

            def clock(depth: float) -> float:
                at_zero = depth == high and form.stochastic and form.finite_at_zero
                return form.clock(form.variable(0.0 if at_zero else math.exp(-depth)))

            if kind == "wiener":
                first, last = (form.variable(sigma) for sigma in self.problem.span)
                # as many cells as it takes for 1/256 of the range of log sigma to be one, at the fine end
                least = last - form.variable(self.problem.span[1] * math.exp((high - low) / 256))
                levels = min(max(math.ceil(math.log2((last - first) / least)), LEVELS - 2), 22)
                path: Any = SpaceTimePath(
                    seed, samples, x.shape[1:], first, last, depth=levels + 16, levels=levels, **options
                )
            else:
                path = BrownianPath(seed, samples, x.shape[1:], clock, low, high, depth=LEVELS + 16, **options)
            self._paths[kind, visit] = path
        return self._paths[kind, visit]

    def _space_time(self, span: Span) -> SpaceTimePath:
        path: SpaceTimePath = self._path("wiener", span.visit)
        return path


_PATHS = ("form", "up", "wiener")
