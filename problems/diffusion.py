"""The probability-flow ODE of a denoiser as a problem: dy/dsigma = eps = (y - D)/sigma, in VE coordinates."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from diffsolve.denoiser import Denoiser, Network, Output
from diffsolve.errors import GridError, ProblemError, SolverError
from diffsolve.field import Evaluation, Noise
from diffsolve.form import FORMS, Form, StochasticForm, as_form
from diffsolve.grid import Final, Grid, Schedule, explicit, make_grid
from diffsolve.prediction import Prediction
from diffsolve.problem import SWAPPED, Call, Problem, RightHandSide, Uniform, freeze
from diffsolve.process import Process, as_process
from diffsolve.registry import list_solvers
from diffsolve.solver import Driver, Solver, Span
from diffsolve.validate import (
    Device,
    Samples,
    above_zero,
    at_least,
    check_batch,
    check_like,
    flag,
    placed,
    samples_of,
    seed_of,
    shape_of,
    state_dtype,
    unchanged,
    without_gradient,
)

from .guidance import BEYOND, FunctionDenoiser, Guidance, NetworkDenoiser, check_scale
from .noise import PRIOR_STREAM, normals
from .noise_source import NoiseSource
from .states import Codec, Constraint, check_function, check_noise, check_rows, checked_state, rounds_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffsolve.denoiser import Sigma


@dataclass(frozen=True, eq=False, init=False, repr=False)
class ProbabilityFlow(Problem):
    """A diffusion model as an ODE (and, with `eta`, as its reverse SDE): a frozen record.

    network: (x, t) -> raw, with x = c_in y of shape (B, *shape) and t a float tensor (B,), the noise level as the
    network was trained to be given it; or `denoiser`, in its place. process: a Process or its name ("sd", "ddpm",
    "cosine", "vp", "ve", "edm", "flow"). prediction: a Prediction or its name ("eps", "v", "x0", "flow", "edm"). shape:
    one sample's shape. learned_range: see NetworkDenoiser.

    eta: of the reverse SDE, None for the flow. upward: from low noise to high. constraint: put on the state after every
    step. codec: to pictures and back. `sde`, `reversed` and `Inpaint` are this record with one of them changed, so they
    go together in any order.

    Subclasses that know their denoiser pass it on, or override `denoise`; they may offer `exact(y, s0, s1)`, the flow.
    """

    denoiser: Denoiser
    process: Process
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    eta: float | None
    upward: bool
    constraint: Constraint | None
    codec: Codec | None

    default_schedule = "karras"
    adaptive_solver = "adaptive_abm"

    def __init__(
        self,
        network: Network | None = None,
        process: str | Process = "sd",
        prediction: str | Prediction = "eps",
        *,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: Device = "cpu",
        learned_range: bool = False,
        denoiser: Denoiser | None = None,
        eta: float | None = None,
        upward: bool = False,
        constraint: Constraint | None = None,
        codec: Codec | None = None,
    ) -> None:
        forward = as_process(process)
        if denoiser is None and network is not None:
            denoiser = NetworkDenoiser(network, forward, prediction, learned_range)
        if type(self).denoise is not ProbabilityFlow.denoise:
            denoiser = FunctionDenoiser(self.denoise, denoiser)
        elif denoiser is None:
            raise ProblemError(f"{type(self).__name__} has neither a network nor a denoiser nor a denoise of its own")
        check_function(denoiser, "denoiser", 2, "(y, sigma) -> Output")
        freeze(
            self, denoiser=denoiser, process=forward, shape=shape_of(shape), dtype=state_dtype(dtype),
            device=placed(device), eta=None if eta is None else StochasticForm.checked(eta),
            upward=flag(upward, "upward", ProblemError),
            constraint=constraint, codec=codec,
        )  # fmt: skip

    @classmethod
    def from_denoiser(
        cls, denoiser: Network, sigma_min: float, sigma_max: float, shape: Sequence[int], **options: Any
    ) -> Self:
        """The flow of a denoiser D(y, sigma) of k-diffusion's kind: y (B, *shape) = x_0 + sigma noise, sigma (B,).

        sigma_min, sigma_max: what it was trained on. options: dtype, device, codec, ... of the constructor. Raises
        ProblemError.
        """
        low, high = above_zero(sigma_min, "sigma_min", ProblemError), above_zero(sigma_max, "sigma_max", ProblemError)
        process = replace(cast(Any, as_process("edm")), t_min=low, t_max=high)
        return cls(denoiser, process, "x0", shape=shape, **options)

    def sde(self, eta: float = 1.0) -> Self:
        """The reverse SDE with eta times its noise (Song et al. 2021, eq. 6): for stochastic solvers alone.

        They take this eta unless they are given the same. Raises SolverError for an eta that can't be used.
        """
        return self.replace(eta=StochasticForm.checked(eta))

    def reversed(self) -> Self:
        """The same solved the other way: from sigma_min up to sigma_max (Song et al. 2021, app. D.2), or back again.

        `solve(problem.reversed(), solver, x=x)` encodes: x is the state at the lowest node in VE coordinates (clean
        data serve, sigma_min being small beside them), the result the state at the highest, which
        `solve(problem, x=...)` takes. Schedules are passed upwards; explicit nodes may be listed either way. Nothing
        follows the last node. With `sde(eta)` it is the SDE of the same marginals, at eta = 1 the forward process.
        """
        return self.replace(upward=not self.upward)

    @property
    def weights_count(self) -> bool:  # type: ignore[override]
        """Every loaded network requires gradients by default; what a constraint holds is the caller's own."""
        return bool(getattr(self.constraint, "requires_grad", False))

    @property
    def default_solver(self) -> str:  # type: ignore[override]
        return "guarded_abm" if self.eta is None else "dpmpp_2m_sde"

    @property
    def span(self) -> tuple[float, float]:
        """The noise levels where a solve starts and ends unless told otherwise: sigma_max and sigma_min, or upwards."""
        low, high = self.process.sigma_min, self.process.sigma_max
        return (low, high) if self.upward else (high, low)

    def denoise(self, y: Tensor, sigma: Sigma) -> Tensor:
        """D(y, sigma) = E[x_0 | y]: the denoised estimate, of y's shape (B, *shape) and dtype. One network call."""
        check_rows(y, "y", self.shape)
        inside = self.denoiser.inside if isinstance(self.denoiser, FunctionDenoiser) else None
        return (inside or self.denoiser)(y, sigma).denoised

    def eps(self, y: Tensor, sigma: float) -> Tensor:
        """The noise estimate (y - D)/sigma = dy/dsigma; -eps/sigma is the score of y."""
        return (y - self.denoise(y, sigma)) / sigma

    def prior(self, batch: int | Sequence[int] | None = None, seed: int = 0, sigma: float | None = None) -> Tensor:
        """Noise of standard deviation `sigma` (default sigma_max), shape (B, *shape).

        batch: how many samples, or which (None: `default_batch`); sample i is the same in every batch.
        """
        samples = samples_of(batch, default=self.default_batch)
        check_batch(len(samples), self.shape, self.device)
        scale = self.process.sigma_max if sigma is None else sigma
        return normals(seed_of(seed), samples, PRIOR_STREAM, self.shape, self.dtype, self.device) * scale

    def noised(self, x: Tensor, sigma: float, seed: int = 0) -> Tensor:
        """Clean data x (B, *shape) at noise level sigma in VE coordinates: the start of an img2img run.

        Raises ProblemError for an x of another shape, or a sigma that is no number of at least 0.
        """
        check_rows(x, "clean data x", self.shape, strict=True)
        without_gradient("sigma", ProblemError, sigma)
        level = sigma.item() if isinstance(sigma, Tensor) and sigma.ndim == 0 else sigma
        return x + self.prior(x.shape[0], seed, at_least(level, "sigma", ProblemError)).to(x)

    def decode(self, x: Tensor) -> list[Image]:
        """Pictures of the data-coordinate states x; problems that have none raise ProblemError."""
        if self.codec is None:
            raise ProblemError(f"{type(self).__name__} has no pictures; read Solution.x")
        return self.codec.decode(x)

    def encode(self, images: Image | Sequence[Image]) -> Tensor:
        """Data coordinates of pictures, where the problem has pictures: what `reversed()` takes on to their noise."""
        if self.codec is None:
            raise ProblemError(f"{type(self).__name__} has no pictures to encode")
        return self.codec.encode(images)

    def grid(
        self, schedule: object, n: int, *, final: Final, sigma_min: float | None, sigma_max: float | None, name: str
    ) -> Grid:
        if isinstance(schedule, Uniform):
            raise GridError("schedule 'uniform' places an ODE's times; a diffusion takes 'karras', 'linspace', ...")
        if self.upward:
            final = "none"
            if not isinstance(schedule, Grid | Schedule):
                nodes = explicit(schedule)
                schedule = nodes[::-1] if nodes.ndim == 1 and len(nodes) > 1 and nodes[0] < nodes[-1] else nodes
        grid = make_grid(
            schedule, n, self.process, sigma_min=sigma_min, sigma_max=sigma_max, final=final, name=name
        )
        if not self.upward:
            return grid
        if len(grid.nodes) < 2:
            raise GridError(f"an encode goes from a noise level up to another, got the one node {grid.nodes[0]:g}")
        return replace(grid, nodes=np.sort(grid.nodes), final="none")

    def start(
        self, x: object, samples: Samples, seed: int, node: float, dtype: torch.dtype | None, device: Device | None
    ) -> Tensor:
        wanted = state_dtype(self.dtype if dtype is None else dtype)
        device = self.device if device is None else placed(device)
        if self.default_batch > 1:
            rounds_of(len(samples), self.default_batch)
        if self.constraint is not None:
            self.constraint.check(self.shape, len(samples))
        if x is None and self.upward:
            raise ProblemError(
                f"a reversed problem encodes what it is given: pass x, the state at sigma = {node:g} in VE "
                "coordinates (data, or problem.noised(data, sigma))"
            )
        if x is None:
            return normals(seed, samples, PRIOR_STREAM, self.shape, wanted, device) * node
        given = checked_state(x, self.shape, device)
        if not self.upward:
            check_noise(given, node)
        return given.to(wanted if dtype is not None else torch.promote_types(given.dtype, wanted), copy=True)

    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> RightHandSide:
        eta = self._agreed_eta(solver, eta)
        if solver.form is None:
            raise SolverError(f"{solver!r} is no method of a flow; take one such as 'dpmpp_2m'")
        if self.constraint is not None and isinstance(solver, Driver):
            raise SolverError(f"{solver!r} takes the whole run in hand, so nothing can be put back on its way")
        if eta is not None:
            StochasticForm.checked(eta)
        make = as_form if isinstance(solver.form, str) and isinstance(self.process, Hashable) else as_form.__wrapped__
        form: Form = make(solver.form, self.process, solver.eta if eta is None else eta, self.upward)
        if isinstance(form, StochasticForm):
            eta = form.eta
        else:  # a solver that adds noise of its own reads eta itself
            eta = StochasticForm.checked(solver.eta if eta is None else eta) if solver.stochastic else 0.0
        if self.upward:
            self._check_upward(solver, form)
        check_scale(solver, self.denoiser)
        return DiffusionField(self, form, eta, x, samples, seed, getattr(solver, "areas", True))

    def _agreed_eta(self, solver: Solver, eta: float | None) -> float | None:
        """The eta of a solve: the one given or the problem's, which must not differ; None is the solver's own."""
        name = solver.name or repr(solver)
        if eta is not None and not solver.stochastic:
            like = [row.name for row in list_solvers() if row.stochastic and row.name.startswith(f"{solver.name}_")]
            raise SolverError(
                f"eta = {eta!r} was given, but {name} solves the ODE; "
                f"eta belongs to stochastic solvers{' such as ' if like else ''}{', '.join(map(repr, like))}"
            )
        if self.eta is None:
            return eta
        if not solver.stochastic:
            raise SolverError(
                f"{name} solves the ODE, and this problem is the reverse SDE (eta = {self.eta:g}); "
                "take a stochastic solver such as 'euler_ancestral', or solve the flow itself"
            )
        if eta not in (None, self.eta):
            raise SolverError(f"eta = {eta!r} was given, but the problem is sde(eta={self.eta:g}); leave eta out")
        return self.eta

    def _check_upward(self, solver: Solver, form: Form) -> None:
        name = solver.name or repr(solver)
        if self.eta is None and (solver.stochastic or form.stochastic):
            adds = f"{name} adds noise" if solver.stochastic else f"{solver.form!r} has noise"
            raise SolverError(
                f"{adds}, and this is the flow upwards; choose a solver of the ODE, such as 'ddim', "
                "or reverse problem.sde(eta)"
            )
        if (self.eta and not form.stochastic) or (solver.stochastic and type(solver).plan is not Solver.plan):
            raise SolverError(
                f"{name} puts noise in on its way down; upwards take a solver in a stochastic form, "
                f"such as {next(n for n in FORMS if FORMS[n].stochastic)!r}"
            )


def rate(form: Form, u: Tensor, sigma: float, denoised: Tensor) -> Tensor:
    """N = on_state u + on_denoised D."""
    on_state, on_denoised = form.weights(sigma)
    if on_state == 0:
        return denoised if on_denoised == 1 else denoised * on_denoised
    return (u * on_state).add_(denoised, alpha=on_denoised)


def _copied(output: Output) -> Output:
    """What somebody else's denoiser handed back, which may be a buffer of its own."""
    if not (isinstance(output, Output) and isinstance(output.denoised, Tensor)):
        return output  # refused where it is read
    parts = [part.clone() if isinstance(part, Tensor) else None for part in output[1:]]
    return Output(output.denoised.clone(), *parts)


class DiffusionField(RightHandSide):
    """The flow of a ProbabilityFlow (or its reverse SDE) in one form: N = a u + b D(u/scale, sigma)."""

    denoiser: Denoiser

    def __init__(
        self, problem: ProbabilityFlow, form: Form, eta: float, x: Tensor, samples: Samples, seed: int, areas: bool
    ) -> None:
        self.problem, self.form, self.eta = problem, form, eta
        self.denoiser, self.constrained = problem.denoiser, problem.constraint is not None
        self._guidance = problem.denoiser if isinstance(problem.denoiser, Guidance) else None
        self.guided = self._guidance is not None
        self._fresh = bool(getattr(problem.denoiser, "fresh", False))
        self._address, self._areas = (x, samples, seed), areas

    def evaluate(self, u: Tensor, s: float, /) -> Evaluation:
        if not isinstance(u, Tensor):
            raise SolverError(SWAPPED.format(type(u).__name__))
        sigma = self.form.sigma(s)
        self.count(sigma)  # before: a call that fails was made
        output = self.denoiser(self.form.from_form(u, sigma), sigma) if self._fresh else self.answer(u, s)
        return self._evaluated(u, sigma, output)

    def answer(self, u: Tensor, s: float) -> Output:
        sigma = self.form.sigma(s)
        with unchanged(u, "the denoiser at sigma = {:g}", sigma):
            return _copied(self.denoiser(self.form.from_form(u, sigma), sigma))

    def accept(self, u: Tensor, s: float, reply: Any) -> Evaluation:
        sigma = self.form.sigma(s)
        if isinstance(reply, Output):
            reply = _copied(reply)
        elif isinstance(self.denoiser, NetworkDenoiser | Guidance):
            reply = self.denoiser.output(self.form.from_form(u, sigma), reply, sigma)
        else:
            raise ProblemError(f"{type(self.denoiser).__name__} is no network: answer with an Output(denoised)")
        self.count(sigma)
        return self._evaluated(u, sigma, reply)

    def count(self, sigma: float) -> None:
        if sigma < 0:
            raise SolverError(BEYOND.format(sigma))
        self.nfe += 1
        if self._guidance is not None:
            self.samples += self._guidance.sides(sigma) if self._guidance.one_sided else 2

    def told(self) -> dict[str, object]:
        inside = self.denoiser if self._guidance is None else self._guidance.denoiser
        said: dict[str, object] = {"samples": self.samples} if self.samples else {}
        network: dict[str, object] = getattr(getattr(inside, "network", None), "told", dict)()
        return said | {"network": network} if network else said

    def request(self, u: Tensor, s: float) -> Call:
        sigma = self.form.sigma(s)
        y = self.form.from_form(u, sigma)
        inside = self.denoiser if self._guidance is None else self._guidance.denoiser
        if isinstance(inside, NetworkDenoiser):
            return Call(*inside.inputs(y, sigma), y, sigma, u, s)
        return Call(y, torch.full((len(y),), sigma, dtype=y.dtype, device=y.device), y, sigma, u, s)

    def _evaluated(self, u: Tensor, sigma: float, output: Output) -> Evaluation:
        if not isinstance(output, Output):
            got = type(output).__name__
            raise ProblemError(f"the denoiser at sigma = {sigma:g} returned {got}, expected an Output")
        denoised, free, variance = output
        check_like(denoised, u, "the denoiser at sigma = {:g}", sigma)
        unconditional = None if free is None else partial(rate, self.form, u, sigma, free)
        found = Evaluation(rate(self.form, u, sigma, denoised), denoised, variance, unconditional)
        self.newest = found
        return found

    def project(self, u: Tensor, span: Span, node: float) -> Tensor:
        constraint, form = self.problem.constraint, self.form
        if constraint is None:
            return u
        _, samples, seed = self._address
        return form.to_form(constraint.project(form.from_form(u, node), node, span, seed, samples), node)

    def normal(self, span: Span, kind: Noise = Noise.INCREMENT) -> Tensor:
        if self.eta == 0 and kind is not Noise.RENOISE:  # the path stands still, and nothing is drawn
            return torch.zeros_like(self._address[0])
        return self._source.normal(span, kind)

    def normal_job(self, span: Span, kind: Noise) -> int:  # for a pass in compiled code; 0 where it can't
        return 0 if self.eta == 0 and kind is not Noise.RENOISE else self._source.job(span, kind)

    @cached_property
    def _source(self) -> NoiseSource:
        return NoiseSource(self.form, self.problem.upward, *self._address, self._areas)
