"""Pictures of every mode as what a VAE reads: tensors in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from diffsolve import ProblemError
from diffsolve.validate import check_dense

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 8.0  # of a tensor of pixels: what a VAE decodes leaves [-1, 1] a little, grey levels to 255 by far
_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # the modes whose levels PIL would cut at 255


def as_pixels(images: Image | Sequence[Image] | torch.Tensor) -> torch.Tensor:
    """PIL pictures of one size, or a tensor (B, 3, height, width) in [-1, 1], as that tensor. Raises ProblemError.

    Transparent parts become white. White is 65535 in 16 bits; of 32 bits or floats it is the least of 1 (floats), 255
    and 65535 that the picture does not exceed.
    """
    if isinstance(images, torch.Tensor):
        return _checked(images)
    from PIL import Image

    listed = [images] if isinstance(images, Image.Image) else images
    if not isinstance(listed, Sequence) or not listed or not all(isinstance(p, Image.Image) for p in listed):
        raise ProblemError(f"images are {type(images).__name__}; expected PIL pictures, or a tensor (B, 3, height, "
                           "width) in [-1, 1]")
    if len({p.size for p in listed}) != 1:
        raise ProblemError(f"expected pictures of one size, got {sorted({p.size for p in listed})}; resize them")
    arrays = [_levels(picture) for picture in listed]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _checked(pixels: torch.Tensor) -> torch.Tensor:
    check_dense(pixels, "the tensor of images")
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not len(pixels):
        raise ProblemError(f"images have the shape {tuple(pixels.shape)}; expected (B, 3, height, width)")
    if not pixels.is_floating_point():
        raise ProblemError(f"images are of {pixels.dtype}; expected floats in [-1, 1], such as x.float() / 127.5 - 1")
    largest = pixels.detach().abs().amax().item()
    if not largest <= LARGEST:
        raise ProblemError(f"images hold values up to {largest:g}; expected floats in [-1, 1], such as x / 127.5 - 1")
    return pixels


def _levels(picture: Image) -> NDArray[np.float32]:
    """(height, width, 3) in [-1, 1]."""
    from PIL import Image

    if picture.mode in _GREY:
        grey = np.asarray(picture).astype(np.float64)
        known = {"I": (255, 65535), "F": (1, 255, 65535)}.get(picture.mode, (65535,))
        most = next((level for level in known if grey.max() <= level), None)
        if most is None or not grey.min() >= 0:
            raise ProblemError(f"a picture of mode {picture.mode!r} holds levels from {grey.min():g} to "
                               f"{grey.max():g}; expected 0 to {known[-1]}: scale it")
        return np.repeat((grey / (most / 2) - 1).astype(np.float32)[..., None], 3, axis=2)
    try:
        rgba = picture.convert("RGBA")
    except (OSError, ValueError) as error:
        raise ProblemError(f"a picture of mode {picture.mode!r} can't be read as RGB ({error}); convert it") from error
    white = Image.new("RGBA", rgba.size, "white")
    rgb = Image.alpha_composite(white, rgba).convert("RGB")
    return np.asarray(rgb, np.float32) / np.float32(127.5) - 1
