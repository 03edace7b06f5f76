"""Diffusion over codes: a jump process on classes and a mask, solved backwards by the same `solve`.

x_t holds K classes 0..K-1 and the mask K; t is a whole timestep, 0 (data) to T (all but noise). A step jumps from any t
to any s < t with the transitions of that very interval, so a grid is any falling list of timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffsolve import Grid, GridError, NonFiniteError, Problem, ProblemError, RightHandSide, Solver, SolverError, Span
from diffsolve.field import Evaluation
from diffsolve.grid import Final, explicit, steps_of
from diffsolve.problem import Uniform, freeze
from diffsolve.validate import (
    Device,
    Samples,
    at_most,
    check_batch,
    check_dense,
    placed,
    samples_of,
    seed_of,
    shape_of,
    whole,
)

from .noise import PRIOR_STREAM, normals
from .ode import GivenForm

if TYPE_CHECKING:
    from PIL.Image import Image

MOST, _CLASSES, _TIMES = 10**6, "the number of classes", "the number of timesteps"
_NO_LESS = -70.0  # log p(x_0) below it counts as it, as in VQ-Diffusion: a class that was cut away may be all there is


@dataclass(frozen=True, eq=False)
class MaskAndReplace:
    """The forward process of VQ-Diffusion (Gu et al. 2022, arXiv 2111.14822, eq. 7 and 8).

    kept, masked: alpha-bar and gamma-bar at t = 0..T, float64: the chance that a class of x_0 is still kept, and that
    it is masked; else it was replaced by any of the `classes` alike. Both are cumulative, so that the transitions over
    any interval follow. Raises ProblemError unless they start at 1 and 0, kept falls, masked grows, and their sum is at
    most 1.
    """

    classes: int
    kept: NDArray[np.float64]
    masked: NDArray[np.float64]

    def __post_init__(self) -> None:
        at_most(whole(self.classes, _CLASSES, ProblemError), _CLASSES, MOST, ProblemError)
        for name in ("kept", "masked"):
            try:
                object.__setattr__(self, name, np.array(getattr(self, name), np.float64))
            except (TypeError, ValueError, OverflowError, RuntimeError) as error:
                raise ProblemError(f"{name} must be T + 1 numbers, got {getattr(self, name)!r}") from error
        if self.kept.ndim != 1 or len(self.kept) < 2 or self.kept.shape != self.masked.shape:
            raise ProblemError(
                f"kept and masked are T + 1 numbers each, got shapes {self.kept.shape} and {self.masked.shape}"
            )
        if (self.kept[0], self.masked[0]) != (1, 0):
            raise ProblemError(f"kept and masked start at 1 and 0, got {self.kept[0]:g} and {self.masked[0]:g}")
        replaced = 1 - self.kept - self.masked
        ok = (np.diff(self.kept) < 0) & (np.diff(self.masked) >= 0) & (replaced[1:] > -1e-12) & (self.kept[1:] > 0)
        if not ok.all():
            t = int(np.argmin(ok)) + 1
            raise ProblemError(
                f"kept must fall and stay above 0, masked grow, and their sum stay within 1; at t = {t} they are "
                f"{self.kept[t]:g} and {self.masked[t]:g}"
            )

    @classmethod
    def linear(
        cls, classes: int, steps: int = 100, kept: tuple[float, float] = (0.99999, 9e-6),
        masked: tuple[float, float] = (9e-6, 0.99999),
    ) -> MaskAndReplace:
        """Both linear in t from t = 1 to t = `steps`: the paper's schedule (sec. 4.1)."""
        steps = at_most(whole(steps, _TIMES, ProblemError), _TIMES, MOST, ProblemError)
        return cls(
            classes, np.concatenate(([1.0], np.linspace(*kept, steps))),
            np.concatenate(([0.0], np.linspace(*masked, steps))),
        )  # fmt: skip

    @property
    def steps(self) -> int:
        """T."""
        return len(self.kept) - 1

    def between(self, s: int, t: int) -> tuple[float, float, float]:
        """(alpha, beta, gamma) from s to t > s: a class is kept with alpha, turns to each class with beta, is masked
        with gamma. A mask stays one.
        """
        alpha = self.kept[t] / self.kept[s]
        unmasked = (1 - self.masked[t]) / (1 - self.masked[s])
        return float(alpha), max(0.0, float(unmasked - alpha)) / self.classes, float(1 - unmasked)

    def likelihood(self, x: Tensor, s: int, t: int, dtype: torch.dtype) -> Tensor:
        """q(x_t = x | x_s = j) for every class j: (B, K, *shape), of codes (B, *shape)."""
        alpha, beta, gamma = self.between(s, t)
        places = torch.arange(self.classes, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        same = (x.unsqueeze(1) == places).to(dtype)
        return torch.where(x.unsqueeze(1) == self.classes, gamma, same * alpha + beta)

    def posterior(self, x: Tensor, p: Tensor, s: int, t: int) -> Tensor:
        """p(x_s | x_t = x), the sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t) (eq. 11): (B, K + 1, *shape), mask last.

        p: p(x_0 | x_t), (B, K, *shape), normalised or not; what comes back has its scale. What x_t rules out is nought.
        """
        seen = self.likelihood(x, 0, t, p.dtype)
        weight = torch.where(seen > 0, p / seen, 0)
        total = weight.sum(1, keepdim=True)
        alpha, beta, gamma = self.between(0, s) if s else (1.0, 0.0, 0.0)
        codes = self.likelihood(x, s, t, p.dtype) * (weight * alpha + total * beta)
        mask = torch.where(x.unsqueeze(1) == self.classes, total * gamma, 0)
        return torch.cat((codes, mask), 1)

    def corrupt(self, x: Tensor, t: Tensor | int, uniform: Tensor) -> Tensor:
        """x_t of clean codes x (B, *shape), by uniform numbers of its shape; t: one timestep, or one a sample (B,)."""
        at = torch.as_tensor(t, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        kept, masked = (torch.from_numpy(a).to(uniform)[at] for a in (self.kept, self.masked))
        share = (uniform - kept) / (1 - masked - kept).clamp(min=1e-12)
        other = (share * self.classes).long().clamp(0, self.classes - 1)
        noisy = torch.where(uniform < 1 - masked, other, self.classes)
        return torch.where(uniform < kept, x, noisy)


@dataclass(frozen=True, eq=False, init=False, repr=False)
class DiscreteProblem(Problem):
    """Codes from a diffusion over classes: VQ-Diffusion (Gu et al. 2022), solved by solvers of codes, "vq_diffusion".

    network: (x, t) -> logits of x_0, (B, K, *shape) floats, with x (B, *shape) int64 codes, K the mask, and t (B,)
    int64 from 1 to T. transition: a MaskAndReplace. shape: of one sample. A grid is whole timesteps that fall, from T
    unless x is given. Sample i is the same in whatever batch it is drawn.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    transition: MaskAndReplace
    shape: tuple[int, ...]
    device: torch.device

    default_solver, default_schedule = "vq_diffusion", "uniform"
    forms = False

    def __init__(
        self, network: Callable[[Tensor, Tensor], Tensor], transition: MaskAndReplace, *, shape: Sequence[int],
        device: Device = "cpu",
    ) -> None:
        if not callable(network):
            raise ProblemError(f"network must be a function (x, t) -> logits, got {type(network).__name__}")
        if not isinstance(transition, MaskAndReplace):
            raise ProblemError(f"transition must be a MaskAndReplace, got {type(transition).__name__}")
        freeze(self, network=network, transition=transition, shape=shape_of(shape), device=placed(device))

    @property
    def classes(self) -> int:
        """K."""
        return self.transition.classes

    @property
    def mask(self) -> int:
        """The code of the mask, K."""
        return self.classes

    def prior(self, batch: int | Sequence[int] = 1, seed: int = 0) -> Tensor:
        """x_T (B, *shape): masks, but for the few places that the forward process leaves unmasked (eq. 9)."""
        samples = samples_of(batch)
        check_batch(len(samples), self.shape, self.device)
        return self._prior(samples, seed_of(seed), self.device)

    def _prior(self, samples: Samples, seed: int, device: torch.device) -> Tensor:
        uniform = torch.special.ndtr(normals(seed, samples, PRIOR_STREAM, self.shape, torch.float64, device))
        share = uniform / max(1 - float(self.transition.masked[-1]), 1e-12)
        return torch.where(share < 1, (share * self.classes).long().clamp(max=self.classes - 1), self.mask)

    def noised(self, x: Tensor, t: int, seed: int = 0) -> Tensor:
        """Clean codes x (B, *shape) at timestep t: the start of a run over the grid that starts there.

        Raises ProblemError for x that are no codes, or a t that is no timestep.
        """
        if isinstance(t, bool) or t not in range(self.transition.steps + 1):
            raise ProblemError(f"t must be a timestep, a whole number from 0 to {self.transition.steps}, got {t!r}")
        normal = normals(seed, range(len(x)), PRIOR_STREAM, self.shape, torch.float64, x.device)
        return self.transition.corrupt(self._checked(x), t, torch.special.ndtr(normal))

    def decode(self, x: Tensor) -> list[Image]:
        """Pictures of codes (B, *shape); problems that have none raise ProblemError."""
        raise ProblemError(f"{type(self).__name__} has no pictures; read Solution.x")

    def grid(
        self, schedule: object, n: int, *, final: Final, sigma_min: float | None, sigma_max: float | None, name: str
    ) -> Grid:
        if sigma_min is not None or sigma_max is not None:
            raise GridError("codes have timesteps and no sigma; leave sigma_min and sigma_max out")
        top = self.transition.steps
        if isinstance(schedule, Uniform):
            steps = steps_of(n)
            if steps > top:
                raise GridError(f"n is {steps}, but the process has {top} timesteps; take at most so many steps")
            return Grid(np.linspace(top, 0, steps + 1).round(), "uniform")
        try:
            nodes = schedule.nodes if isinstance(schedule, Grid) else explicit(schedule)
        except GridError as error:
            raise GridError(f"codes take schedule='uniform' or falling timesteps, got {schedule!r}") from error
        grid = Grid(nodes, name or "explicit")
        if not ((nodes == nodes.round()).all() and nodes[0] > nodes[-1] and top >= nodes[0] and nodes[-1] >= 0):
            raise GridError(f"timesteps are whole numbers that fall from at most {top} to at least 0, got {schedule!r}")
        return grid

    def start(
        self, x: object, samples: Samples, seed: int, node: float, dtype: torch.dtype | None, device: Device | None
    ) -> Tensor:
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype == torch.int64):
            raise ProblemError(f"dtype is {dtype}, but codes are int64; leave dtype out")
        where = placed(self.device if device is None else device)
        if x is not None:
            return self._checked(x).to(where, copy=True)
        if node != self.transition.steps:
            raise GridError(f"the timesteps start at {node:g}, the prior is at {self.transition.steps}; pass x")
        return self._prior(samples, seed, where)

    def _checked(self, x: object) -> Tensor:
        if not isinstance(x, Tensor) or x.dtype != torch.int64:
            kind = f"dtype {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ProblemError(f"codes are an int64 tensor, got {kind}; pass x.long()")
        check_dense(x, "x")
        if x.ndim != len(self.shape) + 1 or tuple(x.shape[1:]) != self.shape or len(x) < 1:
            raise ProblemError(f"codes have shape {tuple(x.shape)}, expected (B, {', '.join(map(str, self.shape))})")
        low, high = int(x.min()), int(x.max())
        masks = bool(self.transition.masked[-1] > 0)
        if low < 0 or high >= self.classes + masks:
            allowed = f"0 to {self.classes - 1}, " + (f"and {self.mask} the mask" if masks else "and nothing is masked")
            raise ProblemError(f"codes are {allowed}; got {low if low < 0 else high}")
        return x

    def field(self, solver: Solver, x: Tensor, samples: Samples, seed: int, eta: float | None) -> CodesField:
        if solver.form is not None:
            raise SolverError(
                f"{solver!r} solves a diffusion of numbers, and {type(self).__name__} is one of codes; "
                "take a solver of codes, such as 'vq_diffusion'"
            )
        if eta is not None:
            raise SolverError(f"eta = {eta!r} was given, but a jump process has none; leave eta out")
        return CodesField(self, samples, seed)


class CodesEvaluation(Evaluation):
    """p(x_0 | x_t), (B, K, *shape); denoised: the likeliest codes."""

    __slots__ = ()

    @property
    def denoised(self) -> Tensor:
        likeliest: Tensor = self.value.argmax(1)
        return likeliest

    @denoised.setter
    def denoised(self, _: Tensor | None) -> None:
        pass


class CodesField(RightHandSide):
    """What a solver of codes is given: f(x, t) is p(x_0 | x_t), (B, K, *shape), of one network call."""

    def __init__(self, problem: DiscreteProblem, samples: Samples, seed: int) -> None:
        self.form, self.problem, self.transition, self._key = GivenForm(), problem, problem.transition, (seed, samples)

    def answer(self, u: Tensor, s: float) -> Tensor:
        return self.problem.network(u, torch.full((len(u),), int(s), device=u.device))

    def accept(self, u: Tensor, s: float, reply: object) -> Evaluation:
        expected = (len(u), self.problem.classes, *self.problem.shape)
        if not isinstance(reply, Tensor) or reply.shape != expected or not reply.is_floating_point():
            got = (tuple(reply.shape), reply.dtype) if isinstance(reply, Tensor) else type(reply).__name__
            raise ProblemError(f"the network at t = {int(s)} returned {got}, expected floats of shape {expected}")
        self.count(s)
        p = reply.to(torch.promote_types(reply.dtype, torch.float32)).log_softmax(1).clamp(min=_NO_LESS).exp()
        if not bool(p.sum().isfinite()):  # codes can't hold a NaN, so it is looked for here
            raise NonFiniteError(f"the network's logits at t = {int(s)} make probabilities that are NaN")
        self.newest = CodesEvaluation(p)
        return self.newest

    def posterior(self, x: Tensor, p: Tensor, span: Span) -> Tensor:
        """p(x_s | x_t) from span.start = t to span.end = s, see MaskAndReplace.posterior."""
        return self.transition.posterior(x, p, int(span.end), int(span.start))

    def choose(self, p: Tensor, span: Span) -> Tensor:
        """Codes drawn from p (B, classes, *shape), of any scale: the class whose exponential clock p rings first."""
        return (p / self.clocks(p, span)).argmax(1)

    def clocks(self, p: Tensor, span: Span, stream: int = 0) -> Tensor:
        """Exponential numbers of p's shape, keyed by seed, sample, span and stream (0 or 1)."""
        place = 2 * int(span.start) + stream  # past the prior's stream
        normal = normals(*self._key, place, p.shape[1:], p.dtype, p.device)
        clocks: Tensor = -torch.special.log_ndtr(normal)
        return clocks

    def is_masked(self, x: Tensor) -> Tensor:
        return x == self.problem.mask

    def masked_share(self, s: float) -> float:
        """gamma-bar: the share of the places that the process has masked at s."""
        return float(self.transition.masked[int(s)])
