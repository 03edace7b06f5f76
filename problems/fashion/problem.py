"""Fashion-MNIST, class by class, as a probability flow: the second network that comes with diffsolve."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffsolve import EDM, ModelError, ProblemError, Process, RectifiedFlow
from diffsolve.errors import did_you_mean
from diffsolve.process import as_process
from diffsolve.validate import Device, above_zero, at_least, placed, whole

from ..calling import Calling
from ..diffusion import ProbabilityFlow
from ..guidance import Guided, NetworkDenoiser
from ..predictions import edm
from ..states import rounds_of
from ..weights import fill, path_of, read_json, read_weights
from .data import CLASSES
from .network import NO_CLASS, FashionUNet

if TYPE_CHECKING:
    from PIL.Image import Image


EMBEDDED = Path(__file__).parent / "model"
SIDE = 32
LOW, HIGH = 0.002, 80.0  # the noise levels that the network was trained on
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
Label = int | str | None


class Fashion(ProbabilityFlow):
    """The flow that ends in grey pictures of classes of Fashion-MNIST; states are (B, 1, 32, 32), about [-1, 1].

    label: one of `Fashion.CLASSES` or its number, or a list of them (row i of the batch draws label i % len(label), B
    being a multiple); None draws from all classes at once, by the unconditional network. guidance: w in
    D = D(no label) + w (D(label) - D(no label)); at 1 there is one network call a row, else two. interval: the noise
    levels, (low, high), outside which there is no guidance and one call a row. process: "edm",
    "flow" for the same denoiser on the straight path x_t = (1 - t) x_0 + t eps, or a Process. model: a folder that
    `python -m diffsolve.problems.fashion.train` wrote, by default the network that ships. dtype: of the network,
    float32, float64, float16 or bfloat16; the state is float32 or better. The raw network is EDM's, D = c_skip y +
    c_out F(c_in y, log(sigma)/4) (Karras et al. 2022).

    Raises ProblemError for a label, guidance or process that can't be; ModelError for a folder.
    """

    CLASSES = CLASSES

    def __init__(
        self,
        label: Label | Sequence[Label] = None,
        guidance: float = 1.0,
        *,
        process: str | Process = "edm",
        model: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: Device = "cpu",
        interval: tuple[float, float] | None = None,
    ) -> None:
        self.labels, self.guidance = _classes(label), at_least(guidance, "guidance", ProblemError)
        self.default_batch = len(self.labels)
        if self.guidance != 1 and NO_CLASS in self.labels:
            raise ProblemError(f"guidance is {guidance!r}, but no label to be guided to; expected 1, or a label")
        if dtype not in DTYPES:
            raise ProblemError(f"dtype is {dtype}; expected {', '.join(map(str, DTYPES))}")
        place = placed(device)
        self.network, self.sigma_data = load(EMBEDDED if model is None else path_of(model), dtype, place)
        forward = _process(process)
        self.calling = Calling()
        labelled = Labelled(self.network, torch.tensor(self.labels, device=place), self.guidance != 1, self.calling)
        inside = NetworkDenoiser(labelled, forward, edm(self.sigma_data))
        super().__init__(
            process=forward, shape=(1, SIDE, SIDE), dtype=torch.promote_types(dtype, torch.float32),
            device=place, codec=Grey(),
            denoiser=Guided(inside, self.guidance, interval) if self.guidance != 1 else inside,
        )  # fmt: skip


class Labelled:
    """The network with labels: (x, t) -> raw; with `guided` (with the labels, without), of one batch twice as large."""

    def __init__(self, network: FashionUNet, labels: Tensor, guided: bool, calling: Calling) -> None:
        self.network, self.labels, self.guided, self.calling = network, labels, guided, calling

    def told(self) -> dict[str, object]:
        """What there is to say of its calls in Solution.stats."""
        return self.calling.told()

    @cached_property
    def one_side(self) -> Labelled | None:
        """The network that is told the labels alone; None where this is one."""
        return Labelled(self.network, self.labels, False, self.calling) if self.guided else None

    def stack_key(self) -> Hashable:
        """What networks have in common whose calls go together: the weights, and whether there are two sides."""
        return self.network, self.guided

    def stacked(self, parts: Sequence[tuple[Labelled, int]]) -> Labelled:
        """The network of a batch with so many rows of each, in this order."""
        labels = torch.cat([part._of_rows(rows) for part, rows in parts])
        return Labelled(self.network, labels, self.guided, self.calling)

    def _of_rows(self, rows: int) -> Tensor:
        return self.labels.repeat(rounds_of(rows, len(self.labels), "labels"))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        labels, inputs = self._of_rows(len(x)), x.to(self.network.exit.weight.dtype)
        if not self.guided:
            return self.calling(self.network, inputs, t, labels).to(x.dtype)
        sides = torch.cat((labels, torch.full_like(labels, NO_CLASS)))
        raw = self.calling(self.network, torch.cat((inputs, inputs)), torch.cat((t, t)), sides).to(x.dtype)
        conditional, unconditional = raw.chunk(2)
        return conditional, unconditional


class Grey:
    """Between states (B, 1, 32, 32) and grey 8-bit pictures of as many pixels."""

    def decode(self, x: Tensor) -> list[Image]:
        """Pictures of states, clipped to [-1, 1]. Raises ProblemError for another shape, or where one is not finite."""
        from PIL import Image

        if x.ndim != 4 or tuple(x.shape[1:]) != (1, SIDE, SIDE):
            raise ProblemError(f"states have the shape {tuple(x.shape)}; expected (B, 1, {SIDE}, {SIDE})")
        if not torch.isfinite(x).all():
            raise ProblemError("the states hold NaN or infinity; take more steps or less guidance")
        levels = (x.detach() / 2 + 0.5).clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
        return [Image.fromarray(picture[0].numpy()) for picture in levels]

    def encode(self, images: Image | Sequence[Image]) -> Tensor:
        """States of pictures of 32 x 32, or of 28 x 28 as the data set has them, on black. Raises ProblemError."""
        from PIL import Image

        listed = [images] if isinstance(images, Image.Image) else list(images)
        if not listed or not all(isinstance(p, Image.Image) and p.size in ((SIDE, SIDE), (28, 28)) for p in listed):
            raise ProblemError(f"expected PIL pictures of {SIDE} x {SIDE} or 28 x 28 pixels")
        edges = [(SIDE - picture.width) // 2 for picture in listed]
        rows = [np.pad(np.asarray(picture.convert("L"), np.float32), edge)
                for picture, edge in zip(listed, edges, strict=True)]
        return torch.from_numpy(np.stack(rows)[:, None] / np.float32(127.5) - 1)


def load(folder: Path, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> tuple[FashionUNet, float]:
    """(network in evaluation mode, sigma_data) of a folder that `train` wrote; read once. Raises ModelError."""
    file, weights = folder / "config.json", folder / "model.safetensors"
    if not (file.is_file() and weights.is_file()):
        raise ModelError(f"{folder} holds no Fashion-MNIST network; expected config.json and model.safetensors in it")
    return _load(folder, weights.stat().st_mtime_ns, dtype, placed(device))


@lru_cache(maxsize=4)
def _load(folder: Path, changed: int, dtype: torch.dtype, device: torch.device) -> tuple[FashionUNet, float]:
    file, weights = folder / "config.json", folder / "model.safetensors"
    config = read_json(file)
    widths = config.get("widths")
    if not isinstance(widths, list) or not 1 <= len(widths) <= 4:
        raise ModelError(f"{file}: widths is {str(widths)[:60]}, expected a list of 1 to 4 numbers of channels")
    sizes = tuple(whole(width, f"{file}: widths", ModelError, 1, 4096) for width in widths)
    patch = whole(config.get("patch"), f"{file}: patch", ModelError, 1, SIDE)
    sigma_data = above_zero(config.get("sigma_data"), f"{file}: sigma_data", ModelError)
    if any(width % 48 for width in sizes) or SIDE % (patch << (len(sizes) - 1)):
        raise ModelError(f"{file}: widths are {widths}, patch {patch}; expected widths that are multiples of 48, and "
                         f"patch times 2 for each further width to divide {SIDE}")
    with torch.device("meta"):
        network = FashionUNet(sizes, patch)
    state = read_weights(weights)
    fill(network, state, {name: name for name in network.state_dict()}, weights, dtype, device)
    return network, sigma_data


def _classes(label: Label | Sequence[Label]) -> list[int]:
    listed = list(label) if isinstance(label, Sequence) and not isinstance(label, str) else [label]
    if not listed:
        raise ProblemError("label is an empty list; expected a class of Fashion-MNIST, or several")
    return [_class(one) for one in listed]


def _class(label: object) -> int:
    if label is None:
        return NO_CLASS
    if not isinstance(label, str):
        return whole(label, "label", ProblemError, 0, len(CLASSES) - 1)
    plain = {name.lower(): i for i, name in enumerate(CLASSES)}
    wanted = " ".join(label.lower().replace("_", " ").split())
    if wanted not in plain:
        known = ", ".join(CLASSES)
        raise ProblemError(f"label is {label!r}, no class of Fashion-MNIST{did_you_mean(wanted, plain)}: {known}")
    return plain[wanted]


def _process(process: str | Process) -> Process:
    """The named one with its ends at the noise levels of the training."""
    if process == "edm":
        return EDM(LOW, HIGH)
    if process == "flow":
        return RectifiedFlow(t_min=LOW / (1 + LOW), t_max=HIGH / (1 + HIGH))
    if isinstance(process, str):
        raise ProblemError(f"process is {process!r}; expected 'edm', 'flow' or a Process")
    return as_process(process)
