"""A denoiser of k-diffusion's kind as a problem, with the noise that its samplers are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from .. import ProbabilityFlow
from ..errors import ProblemError, SolverError
from ..field import Noise
from ..problem import RightHandSide, freeze
from ..solver import Solver, Span
from ..validate import Samples, at_least

Model = Callable[..., Tensor | tuple[Tensor, Tensor]]
"""(x, sigma, **extra_args) -> denoised, or the pair (conditional, unconditional)."""
NoiseSampler = Callable[[Tensor, Tensor], Tensor]
"""(sigma, sigma_next) -> a standard normal of x's shape; the same interval of one step is asked for once."""


class KDiffusionProblem(ProbabilityFlow):
    """A denoiser of k-diffusion's kind as a problem: `ds.solve(KDiffusionProblem(model), "dpmpp_2m", x=x)`.

    sigma_min, sigma_max: what it was trained on; by default the model's own attributes of that name. shape: one
    sample's; without it every solve is given x. extra_args: of every call. noise_sampler, s_noise: of stochastic
    solvers, in place of the path that is keyed by the seed, and what every normal is multiplied by. dtype: of the
    state; of a model in half precision see `sampler`. Raises ProblemError.
    """

    def __init__(
        self,
        model: Model,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        shape: Sequence[int] | None = None,
        *,
        extra_args: Mapping[str, object] | None = None,
        noise_sampler: NoiseSampler | None = None,
        s_noise: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not callable(model):
            raise ProblemError(f"model must be a function (x, sigma, ...) -> denoised, got {type(model).__name__}")
        ends = trained_range(model)
        low, high = ends if ends else (sigma_min, sigma_max)
        low, high = (low if sigma_min is None else sigma_min), (high if sigma_max is None else sigma_max)
        if low is None or high is None:
            raise ProblemError("the model has no sigma_min and sigma_max of its own; pass both")
        given = dict(extra_args or {})
        network = model if not given else lambda x, sigma: model(x, sigma, **given)
        flow = ProbabilityFlow.from_denoiser(network, low, high, shape or (), dtype=dtype, device=device)
        super().__init__(denoiser=flow.denoiser, process=flow.process, shape=shape or (), dtype=dtype, device=device)
        freeze(self, _noise=noise_sampler, _s_noise=at_least(s_noise, "s_noise"), _shapeless=shape is None)

    def start(
        self, x: object, samples: Samples, seed: int, node: float, dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> Tensor:  # fmt: skip
        if not self._shapeless:  # type: ignore[attr-defined]
            return super().start(x, samples, seed, node, dtype, device)
        if not isinstance(x, Tensor) or x.ndim == 0:
            raise ProblemError("this problem knows no shape: pass shape= to it, or x, the state at the first sigma")
        shaped = self.replace(shape=tuple(x.shape[1:]))
        return super(KDiffusionProblem, shaped).start(x, samples, seed, node, dtype, device)

    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> RightHandSide:
        found = super().field(solver, x, samples, seed, eta)
        sampler, scale = self._noise, self._s_noise  # type: ignore[attr-defined]
        if found.eta and (sampler is not None or scale != 1):
            freeze(found, normal=_Normals(found, x, sampler, scale))
        return found


class _Normals:
    """The normals of a field from a noise sampler, or its own, times s_noise. A step's are kept until the next one."""

    def __init__(self, field: RightHandSide, x: Tensor, sampler: NoiseSampler | None, scale: float) -> None:
        self.own, self.form, self.x, self.sampler, self.scale = field.normal, field.form, x, sampler, scale
        self.step: tuple[int, int] | None = None
        self.drawn: dict[tuple[Noise, float, float], Tensor] = {}

    def __call__(self, span: Span, kind: Noise = Noise.INCREMENT) -> Tensor:
        if self.sampler is None:
            return self.scale * cast(Tensor, self.own(span, kind))
        if self.step != (span.index, span.visit):
            self.step, self.drawn = (span.index, span.visit), {}
        key = kind, span.start, span.end
        if key not in self.drawn:
            self.drawn[key] = self._ask(kind, span) * self.scale
        return self.drawn[key]

    def _ask(self, kind: Noise, span: Span) -> Tensor:
        if kind is Noise.LEVY_AREA:
            raise SolverError("this method needs two normals of an interval, a noise sampler has one; leave it out")
        ends = (self.x.new_tensor(self.form.sigma(s)) for s in (span.start, span.end))
        z = self.sampler(*ends)  # type: ignore[misc]
        if not isinstance(z, Tensor) or z.shape != self.x.shape:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise SolverError(f"noise_sampler gave {got}, expected a tensor of shape {tuple(self.x.shape)}")
        return z.to(self.x)


def trained_range(model: object) -> tuple[float, float] | None:
    """(sigma_min, sigma_max) that a model, or what it wraps, has as attributes; None where it has none."""
    for _ in range(4):
        low, high = getattr(model, "sigma_min", None), getattr(model, "sigma_max", None)
        if low is not None and high is not None:
            return float(low), float(high)
        model = getattr(model, "inner_model", None)
    return None
