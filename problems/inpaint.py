"""Inpainting: a diffusion problem of which a part is known. The known part is put back after every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffsolve import DiffusionField, Driver, ProbabilityFlow, ProblemError, Solver, SolverError, Span, normals

if TYPE_CHECKING:
    from PIL.Image import Image

    from .stable_diffusion import Text2Image

KNOWN_STREAM = -16  # of the keyed noise, and downwards


class Inpaint(ProbabilityFlow):
    """`problem` where `mask` is 1 is `known`: RePaint (Lugmayr et al. 2022, arXiv 2201.09865, eq. 8).

    known: data coordinates, (*shape), (1, *shape) or (B, *shape). mask: 0 and 1 (or bool), 1 = known, of a shape that
    broadcasts to known's. After each step the known part is known + sigma z, with z keyed by seed, sample, node and
    visit, and at sigma = 0 it is known itself, to the bit. Any solver does; the unknown part is in harmony with it
    where the solver goes back up in noise now and then, as `repaint` does.

    Raises ProblemError for a mask that is not of 0 and 1 or does not fit, or known values that are not finite.
    """

    def __init__(self, problem: ProbabilityFlow, known: Any, mask: Any) -> None:
        if not isinstance(problem, ProbabilityFlow):
            called = "; call the model with a prompt first" if callable(problem) else ""
            raise ProblemError(f"problem must be a ProbabilityFlow, got {type(problem).__name__}{called}")
        super().__init__(
            problem.network, problem.process, problem.prediction, shape=problem.shape, dtype=problem.dtype,
            device=problem.device, learned_range=problem.learned_range,
        )  # fmt: skip
        self.problem = problem
        self.default_solver, self.default_schedule = problem.default_solver, problem.default_schedule
        try:
            known, mask = (torch.as_tensor(value, device=self.device) for value in (known, mask))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ProblemError(f"known and mask must be tensors or nested numbers: {error}") from error
        known = known.unsqueeze(0) if tuple(known.shape) == self.shape else known
        if tuple(known.shape[1:]) != self.shape or not known.is_floating_point():
            expected = ", ".join(map(str, self.shape))
            raise ProblemError(f"known is {tuple(known.shape)} {known.dtype}, expected floats of shape (B, {expected})")
        if not bool(((mask == 0) | (mask == 1)).all()):
            odd = mask[(mask != 0) & (mask != 1)].flatten()[0].item()
            raise ProblemError(f"mask must hold 0 (to be painted) and 1 (known), got {odd:g}; compare it: mask > 0.5")
        try:
            self.mask = (mask == 1).broadcast_to(known.shape)
        except RuntimeError as error:
            raise ProblemError(
                f"mask has shape {tuple(mask.shape)}, expected what broadcasts to known's {tuple(known.shape)}"
            ) from error
        self.known = known.where(self.mask, 0)
        if not bool(self.known.isfinite().all()):
            raise ProblemError("known has NaN or infinite values where the mask says that it is known")

    @classmethod
    def picture(cls, problem: Text2Image, image: Image | Tensor, keep: Any) -> Inpaint:
        """The rest of a picture, in the latents of a Stable Diffusion model.

        image: PIL, or (1, 3, height, width) in [-1, 1], of the problem's size. keep: (height, width) of 0 and 1, 1
        where the picture is to stay. A latent is known where all of its pixels are. Raises ProblemError.
        """
        keep = torch.as_tensor(keep)
        if keep.shape != (problem.height, problem.width):
            raise ProblemError(f"keep has shape {tuple(keep.shape)}, expected {(problem.height, problem.width)}")
        factor = problem.model.factor
        latent = keep.reshape(keep.shape[0] // factor, factor, keep.shape[1] // factor, factor).amin((1, 3))
        return cls(problem, problem.model.encode(image), latent)

    def denoise(self, y: Tensor, sigma: float) -> Tensor:
        return self.problem.denoise(y, sigma)

    def denoise_ranged(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor | None]:
        return self.problem.denoise_ranged(y, sigma)

    def denoise_both(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return self.problem.denoise_both(y, sigma)

    def decode(self, x: Tensor) -> list[Any]:
        return self.problem.decode(x)

    def start(
        self, x: Any, samples: Sequence[int], seed: int, node: float, dtype: torch.dtype | None, device: Any
    ) -> Tensor:
        if len(self.known) not in (1, len(samples)):
            raise ProblemError(f"known has {len(self.known)} rows, the batch {len(samples)}; expected one, or as many")
        return super().start(x, samples, seed, node, dtype, device)

    def field(
        self, solver: Solver, x: Tensor, samples: Sequence[int], seed: int, eta: float | None
    ) -> InpaintField:
        if isinstance(solver, Driver):
            raise SolverError(f"{solver!r} takes the whole run in hand, so nothing can be put back on its way")
        plain = super().field(solver, x, samples, seed, eta)
        return InpaintField(self, plain, x, samples, seed)


class InpaintField(DiffusionField):
    """The right-hand side of an Inpaint: the problem's own, and `settle`."""

    settles = True

    def __init__(self, problem: Inpaint, plain: Any, x: Tensor, samples: Sequence[int], seed: int) -> None:
        super().__init__(problem, plain.form, plain.eta, x, samples, seed)
        self._known, self._mask, self._key = problem.known.to(x), problem.mask.to(x.device), (seed, samples)

    def known(self, span: Span) -> Tensor:
        """The known part at the end of a span, in the form's u."""
        if span.last:
            return self._known
        z = normals(
            *self._key, KNOWN_STREAM - span.index - span.count * span.visit, self._known.shape[1:], self._known.dtype,
            self._known.device,
        )  # fmt: skip
        return (self._known + self.sigma(span.end) * z) * self.scale(span.end)

    def settle(self, u: Tensor, span: Span) -> Tensor:
        return u if span.up else torch.where(self._mask, self.known(span), u)
