"""Diffusion over codes: one whose p(x_0 | x_t) is exact, and a small trained model of pictures in a palette."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from diffsolve import ModelError, ProblemError
from diffsolve.validate import Device, check_dense, placed, whole

from .discrete import DiscreteProblem, MaskAndReplace
from .weights import fill, path_of, read_json, read_weights

if TYPE_CHECKING:
    from PIL.Image import Image

EMBEDDED = Path(__file__).parent / "vq" / "model"
# Of a model's config, with the most that is read.
SIZES = {"classes": 65536, "side": 4096, "patch": 64, "width": 65536, "depth": 256, "heads": 1024}


class CodeTable(DiscreteProblem):
    """Codes of L places whose joint distribution is a table: p(x_0 | x_t) is exact at every place, by enumeration.

    table: (K,) * L numbers >= 0, normalised here. transition: a MaskAndReplace of K classes; by default the paper's,
    linear over 100 timesteps. The places of a step are drawn one by one given x_t, as any model draws them: what is
    left of the error is of first order in the step, and none where L = 1. Computed in float64. Raises ProblemError.
    """

    def __init__(self, table: object, transition: MaskAndReplace | None = None, *, device: Device = "cpu") -> None:
        try:
            self.table = torch.as_tensor(table, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ProblemError(f"table must be a tensor or nested numbers, got {table!r}: {error}") from error
        check_dense(self.table, "table")
        shape = tuple(self.table.shape)
        if not shape or len(set(shape)) != 1 or self.table.numel() > 1 << 16:
            raise ProblemError(f"table has shape {shape}, expected (K,) * L with at most 65536 numbers")
        if not bool((self.table >= 0).all()) or not 0 < float(self.table.sum()) < math.inf:
            raise ProblemError("table must hold finite numbers of at least 0 that do not all vanish")
        self.table = (self.table / self.table.sum()).to(device)
        process = MaskAndReplace.linear(shape[0]) if transition is None else transition
        super().__init__(self._exact, process, shape=(len(shape),), device=device)
        if self.classes != shape[0]:
            raise ProblemError(f"the transition has {self.classes} classes, the table {shape[0]}")
        self._words = torch.tensor(list(itertools.product(range(shape[0]), repeat=len(shape))), device=device)

    def _exact(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(x_0 | x_t) of each place, (B, K, L), up to a constant; even where no word can have led to x."""
        seen = self.transition.likelihood(x, 0, int(t[0]), torch.float64)  # q(x_t | x_0) of each place
        places = torch.arange(self.shape[0], device=x.device)
        joint = self.table.flatten() * seen[:, self._words, places].prod(-1)
        total = torch.zeros_like(seen)
        for place in range(self.shape[0]):
            total[:, :, place].index_add_(1, self._words[:, place], joint)
        return torch.where(total.sum(1, keepdim=True) > 0, total, 1.0).log()

    def frequencies(self, x: Tensor) -> Tensor:
        """How often each word is among codes (B, L) without masks: shares of the table's shape."""
        strides = self.classes ** torch.arange(self.shape[0] - 1, -1, -1, device=x.device)
        counts = (self._checked(x) * strides).sum(1).bincount(minlength=self.table.numel())
        return counts.reshape(self.table.shape) / len(x)


class VQDiffusion(DiscreteProblem):
    """Pictures of side x side codes, each a colour of a palette, by the transformer that comes with diffsolve.

    palette: (K, 3) uint8. Made by `from_pretrained`; trained by `python -m diffsolve.problems.vq.train`.
    """

    def __init__(
        self, network: Any, palette: Tensor, transition: MaskAndReplace, *, side: int, device: Device = "cpu"
    ) -> None:
        super().__init__(network, transition, shape=(side, side), device=device)
        if tuple(palette.shape) != (self.classes, 3) or palette.dtype != torch.uint8:
            raise ProblemError(
                f"palette is {tuple(palette.shape)} {palette.dtype}, expected ({self.classes}, 3) torch.uint8"
            )
        self.palette = palette.cpu()

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None, *, device: Device = "cpu") -> Self:
        """The model of a folder that `train` wrote, or the embedded one. Raises ModelError."""
        from .vq.network import CodeTransformer

        where, place = EMBEDDED if folder is None else path_of(folder), placed(device)
        file, weights = where / "config.json", where / "model.safetensors"
        if not (file.is_file() and weights.is_file()):
            raise ModelError(f"{where} holds no code model; expected config.json and model.safetensors in it")
        config = read_json(file)
        sizes = {name: whole(config.get(name), f"{file}: {name}", ModelError, 1, most) for name, most in SIZES.items()}
        side, patch, width, heads = (sizes[name] for name in ("side", "patch", "width", "heads"))
        if side % patch or width % (2 * heads) or width % patch**2:
            raise ModelError(
                f"{file}: side is {side}, patch {patch}, width {width}, heads {heads}; expected that patch divides "
                "side, and patch^2 and 2 heads the width"
            )
        with torch.device("meta"):
            network = CodeTransformer(**sizes)
        state = read_weights(weights)
        if "palette" not in state:
            raise ModelError(f"{weights} lacks the palette; fetch it again")
        palette = state.pop("palette")
        fill(network, state, {name: name for name in network.state_dict()}, weights, torch.float32, place)
        try:
            return cls(network, palette, MaskAndReplace.linear(network.classes), side=network.side, device=place)
        except ProblemError as error:
            raise ModelError(f"{weights}: {error}") from error

    def decode(self, x: Tensor) -> list[Image]:
        """PIL images of codes (B, side, side); a mask is grey."""
        from PIL import Image

        colours = torch.cat((self.palette, torch.full((1, 3), 128, dtype=torch.uint8)))
        return [Image.fromarray(picture.numpy()) for picture in colours[self._checked(x).cpu()]]
