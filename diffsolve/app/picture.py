"""The PNG that `diffsolve sample` writes: where it may go, how a batch becomes one, and the settings it carries."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

from ..errors import OutputError, ProblemError
from ..parallel import Record
from .files import replace_file

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK = "diffsolve"
DTYPES = ("float32", "float16", "bfloat16", "float64")
MOST_PIXELS = 2**28  # of a sheet: 0.8 GB


@dataclass(frozen=True)
class Settings:
    """What a picture is asked for: the options of `diffsolve sample`, None where the model or the solver decides.

    Raises ProblemError, naming the option, for what no model can be asked.
    """

    prompt: str = ""
    negative: str = ""
    model: str = "emoji"
    config: str | None = None
    revision: str | None = None
    process: str | None = None
    prediction: str | None = None
    solver: str = "guarded_abm"
    schedule: str = "karras"
    n: int = 20
    nfe: int | None = None
    quality: str | None = None
    seed: int = 0
    batch: int = 1
    first: int = 0
    guidance: float | None = None
    guidance_min: float | None = None
    guidance_max: float | None = None
    height: int | None = None
    width: int | None = None
    dtype: str = "float32"
    device: str | None = None
    final: str = "denoise"
    sigma_min: float | None = None
    sigma_max: float | None = None
    eta: float | None = None
    rtol: float | None = None
    atol: float | None = None
    scale: int = 1
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        from ..validate import above_zero, at_least, choice, whole  # imports torch, which --help does without

        hints = _hints()
        for field in fields(self):
            value, kind = getattr(self, field.name), hints[field.name]
            wanted = kind | int if isinstance(0.0, kind) else kind
            if isinstance(value, bool) is not (kind is bool) or not isinstance(value, wanted):
                raise ProblemError(f"{field.name} is {value!r}, expected {field.type}")
            if isinstance(value, str) and not _is_text(value):
                raise ProblemError(f"{field.name} is {value!r}, which is no text: a half of a character stands alone")
        for name, most in (("n", 10**6), ("nfe", 10**7), ("batch", 10**6), ("height", 10**6), ("width", 10**6),
                           ("scale", 1000)):  # fmt: skip
            if getattr(self, name) is not None:
                whole(getattr(self, name), name, ProblemError, 1, most)
        whole(self.first, "first", ProblemError, 0, 10**12)
        whole(self.seed, "seed", ProblemError, -(2**63), 2**64 - 1)
        for name in ("guidance", "guidance_min", "guidance_max", "eta", "rtol", "atol"):
            if getattr(self, name) is not None:
                at_least(getattr(self, name), name, ProblemError)
        for name in ("sigma_min", "sigma_max"):
            if getattr(self, name) is not None:
                above_zero(getattr(self, name), name, ProblemError)
        choice(self.final, "final", ("denoise", "none", "step"), ProblemError)
        choice(self.dtype, "dtype", DTYPES, ProblemError)


    @property
    def interval(self) -> tuple[float, float] | None:
        """The noise levels where there is guidance, None for all of them."""
        if self.guidance_min is None and self.guidance_max is None:
            return None
        return self.guidance_min or 0.0, math.inf if self.guidance_max is None else self.guidance_max


@cache
def _hints() -> Record:
    return get_type_hints(Settings)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_output(path: Path) -> None:
    """Raise OutputError unless a picture can be written to `path`; leaves nothing behind."""
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder; name a file in it, such as -o {path / 'out.png'}")
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path} doesn't end in .png, the one format that is written; pass -o {path.stem}.png")
    if not os.path.isdir(path.parent):
        raise OutputError(f"{path}: there is no folder {path.parent}; create it first, or name another with -o")
    new = not os.path.lexists(path)
    try:
        with path.open("ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise OutputError(f"{path} can't be written ({error.strerror}); name another place with -o") from error


def sheet_of(count: int, width: int, height: int, scale: int = 1) -> tuple[int, int]:
    """(columns, rows) of so many pictures. Raises OutputError where the sheet would be too large to hold."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    pixels = columns * width * rows * height * scale**2
    if pixels > MOST_PIXELS:
        raise OutputError(f"the picture would have {pixels} pixels and take {pixels * 3 / 1e9:.1f} GB; take a smaller "
                          "--scale, --batch, --height or --width")
    return columns, rows


def grid(images: Sequence[Image], scale: int = 1) -> Image:
    """The pictures of a batch side by side, row by row, in a near-square; each pixel `scale` pixels wide and high."""
    from PIL import Image

    width, height = images[0].size
    columns, rows = sheet_of(len(images), width, height, scale)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet if scale == 1 else sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


def write(path: Path, sheet: Image, settings: Settings, result: Record, made_with: Record) -> None:
    """Write the sheet with its metadata: JSON under `diffsolve`, and A1111's line under `parameters`.

    Raises OutputError; the picture is then in a temporary folder that the message names.
    """
    data = encoded(sheet, settings, result, made_with)
    try:
        replace_file(path, lambda beside: beside.write_bytes(data))
    except OSError as error:
        try:
            spare = Path(tempfile.mkdtemp()) / path.name
            spare.write_bytes(data)
        except OSError as again:
            raise OutputError(f"{path} can't be written ({error.strerror}), nor can a temporary folder "
                              f"({again.strerror}); the picture is lost") from error
        raise OutputError(f"{path} can't be written ({error.strerror}); the picture is in {spare}") from error


def encoded(sheet: Image, settings: Settings, result: Record, made_with: Record) -> bytes:
    """The PNG of the sheet with its metadata."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", parameters(settings, result, made_with))
    info.add_text(CHUNK, json.dumps({"settings": asdict(settings), "result": result, "made_with": made_with}))
    data = BytesIO()
    sheet.save(data, "PNG", pnginfo=info)
    return data.getvalue()


def parameters(settings: Settings, result: Record, made_with: Record) -> str:
    """The settings as A1111 writes them, with its names where a solver or schedule has one there."""
    from ..register import parse
    from ..registry import CHOOSERS, find_solver, list_schedules

    aliases = {entry.name: entry.aliases for entry in list_schedules()}.get(parse(result["schedule"])[0], {})
    solver = result["solver"] if settings.solver in CHOOSERS else settings.solver
    pairs = {
        "Steps": result["steps"],
        "Sampler": find_solver(parse(solver)[0]).aliases.get("A1111", solver),
        "Schedule type": aliases.get("A1111", result["schedule"]),
        "CFG scale": settings.guidance,
        "Seed": settings.seed,
        "Size": f"{settings.width}x{settings.height}",
        "Model": settings.model,
        "Version": f"diffsolve {made_with['diffsolve']}",
    }
    negative = [f"Negative prompt: {settings.negative}"] if settings.negative else []
    return "\n".join([settings.prompt, *negative, ", ".join(f"{k}: {v}" for k, v in pairs.items())])


def read(path: Path) -> tuple[Settings, Record, Record]:
    """(settings, result, made_with) of a picture that `write` wrote. Raises ProblemError for any other file."""
    from PIL import Image

    from ..validate import on_disk  # imports torch, which --help does without

    try:
        with Image.open(on_disk(path)) as image:
            text = image.info.get(CHUNK)
    except Exception as error:  # PIL's errors share no base class
        reason = getattr(error, "strerror", None) or "not an image file"
        raise ProblemError(f"{path} can't be read as a picture ({reason}); give a PNG of `diffsolve sample`") from error
    if not isinstance(text, str):
        raise ProblemError(f"{path} holds no diffsolve settings; expected a PNG as `diffsolve sample` wrote it")
    try:
        saved = json.loads(text)
        settings, result, made_with = (dict(saved[part]) for part in ("settings", "result", "made_with"))
        known = {field.name: settings[field.name] for field in fields(Settings) if field.name in settings}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProblemError(f"{path}: its diffsolve settings can't be read ({error!r})") from error
    try:
        return Settings(**known), _scalars(result), _scalars(made_with)
    except ProblemError as error:
        raise ProblemError(f"{path}: its setting {error}") from error


def _scalars(told: Record) -> Record:
    """What a picture tells beside its settings, but for what is no text or number."""
    return {k: v for k, v in told.items() if isinstance(v, int | float) or (isinstance(v, str) and _is_text(v))}
