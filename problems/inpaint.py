"""Inpainting: a diffusion problem of which a part is known. The known part is put back after every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffsolve import ProblemError, Span

from .diffusion import ProbabilityFlow
from .noise import normals

if TYPE_CHECKING:
    from PIL.Image import Image

    from .stable_diffusion import Text2Image

KNOWN_STREAM = -16  # of the keyed noise, and downwards


class Known:
    """The constraint of an Inpaint: where `mask` is 1 the state is `known`, noised to its level.

    known: data coordinates, (1, *shape) or (B, *shape), 0 where it is not known. mask: bool, of known's shape. After
    each step the known part is known + sigma z, with z keyed by seed, sample, node and visit, and at sigma = 0 it is
    known itself, to the bit (Lugmayr et al. 2022, arXiv 2201.09865, eq. 8).
    """

    def __init__(self, known: Tensor, mask: Tensor) -> None:
        self.known, self.mask, self.requires_grad = known, mask, known.requires_grad

    def check(self, shape: tuple[int, ...], samples: int) -> None:
        if len(self.known) not in (1, samples):
            raise ProblemError(f"known has {len(self.known)} rows, the batch {samples}; expected one, or as many")

    def project(self, y: Tensor, sigma: float, span: Span, seed: int, samples: Sequence[int]) -> Tensor:
        known = self.known.to(y)
        if sigma > 0:
            stream = KNOWN_STREAM - span.index - span.count * span.visit
            known = known + sigma * normals(seed, samples, stream, known.shape[1:], known.dtype, known.device)
        return torch.where(self.mask.to(y.device), known, y)


class Inpaint:
    """`problem` where `mask` is 1 is `known`: RePaint (Lugmayr et al. 2022, arXiv 2201.09865).

    Hands back the problem itself with the constraint `Known`, so that it goes together with `sde` and `reversed`.
    known: data coordinates, (*shape), (1, *shape) or (B, *shape). mask: 0 and 1 (or bool), 1 = known, of a shape that
    broadcasts to known's. Any solver does; the unknown part is in harmony with the known one where the solver goes back
    up in noise now and then, as `repaint` does.

    Raises ProblemError for a mask that is not of 0 and 1 or does not fit, or known values that are not finite.
    """

    def __new__(cls, problem: ProbabilityFlow, known: object, mask: object) -> ProbabilityFlow:  # type: ignore[misc]
        if not isinstance(problem, ProbabilityFlow):
            called = "; call the model with a prompt first" if callable(problem) else ""
            raise ProblemError(f"problem must be a ProbabilityFlow, got {type(problem).__name__}{called}")
        return problem.replace(constraint=_known(problem, known, mask))

    @staticmethod
    def picture(problem: Text2Image, image: Image | Tensor, keep: object) -> ProbabilityFlow:
        """The rest of a picture, in the latents of a Stable Diffusion model.

        image: PIL, or (1, 3, height, width) in [-1, 1], of the problem's size. keep: (height, width) of 0 and 1, 1
        where the picture is to stay. A latent is known where all of its pixels are. Raises ProblemError.
        """
        keep = torch.as_tensor(keep)
        if keep.shape != (problem.height, problem.width):
            raise ProblemError(f"keep has shape {tuple(keep.shape)}, expected {(problem.height, problem.width)}")
        factor = problem.model.factor
        latent = keep.reshape(keep.shape[0] // factor, factor, keep.shape[1] // factor, factor).amin((1, 3))
        return Inpaint(problem, problem.model.encode(image), latent)


def _known(problem: ProbabilityFlow, known: object, mask: object) -> Known:
    """The constraint, checked; what was passed in is copied."""
    try:
        known, mask = (torch.as_tensor(value, device=problem.device) for value in (known, mask))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProblemError(f"known and mask must be tensors or nested numbers: {error}") from error
    known = known.unsqueeze(0) if tuple(known.shape) == problem.shape else known
    if tuple(known.shape[1:]) != problem.shape or not known.is_floating_point():
        expected = ", ".join(map(str, problem.shape))
        raise ProblemError(f"known is {tuple(known.shape)} {known.dtype}, expected floats of shape (B, {expected})")
    if not bool(((mask == 0) | (mask == 1)).all()):
        odd = mask[(mask != 0) & (mask != 1)].flatten()[0].item()
        raise ProblemError(f"mask must hold 0 (to be painted) and 1 (known), got {odd:g}; compare it: mask > 0.5")
    try:
        where = (mask == 1).broadcast_to(known.shape)
    except RuntimeError as error:
        raise ProblemError(
            f"mask has shape {tuple(mask.shape)}, expected what broadcasts to known's {tuple(known.shape)}"
        ) from error
    kept = known.where(where, 0)
    if not bool(kept.isfinite().all()):
        raise ProblemError("known has NaN or infinite values where the mask says that it is known")
    return Known(kept, where)
