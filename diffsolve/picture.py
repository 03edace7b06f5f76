"""The PNG that `diffsolve sample` writes: where it may go, how a batch becomes one, and the settings it carries."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from .errors import OutputError, ProblemError

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK = "diffsolve"


@dataclass(frozen=True)
class Settings:
    """What a picture is asked for: the options of `diffsolve sample`, None where the model or the solver decides."""

    prompt: str = ""
    negative: str = ""
    model: str = "emoji"
    config: str | None = None
    solver: str = "damped_abm"
    schedule: str = "karras"
    n: int = 20
    nfe: int | None = None
    seed: int = 0
    batch: int = 1
    guidance: float | None = None
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


def grid(images: Sequence[Image], scale: int = 1) -> Image:
    """The pictures of a batch side by side, row by row, in a near-square; each pixel `scale` pixels wide and high."""
    from PIL import Image

    columns = math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet if scale == 1 else sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


def write(path: Path, sheet: Image, settings: Settings, result: dict[str, Any], made_with: dict[str, Any]) -> None:
    """Write the sheet with its metadata: JSON under `diffsolve`, and A1111's line under `parameters`.

    Raises OutputError; the picture is then in a temporary folder that the message names.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", parameters(settings, result, made_with))
    info.add_text(CHUNK, json.dumps({"settings": asdict(settings), "result": result, "made_with": made_with}))
    data = BytesIO()
    sheet.save(data, "PNG", pnginfo=info)
    try:
        path.write_bytes(data.getvalue())
    except OSError as error:
        spare = Path(tempfile.mkdtemp()) / path.name
        spare.write_bytes(data.getvalue())
        raise OutputError(f"{path} can't be written ({error.strerror}); the picture is in {spare}") from error


def parameters(settings: Settings, result: dict[str, Any], made_with: dict[str, Any]) -> str:
    """The settings as A1111 writes them, with its names where a solver or schedule has one there."""
    from .registry import find_solver, list_schedules, parse

    aliases = {entry.name: entry.aliases for entry in list_schedules()}.get(parse(result["schedule"])[0], {})
    pairs = {
        "Steps": result["steps"],
        "Sampler": find_solver(parse(settings.solver)[0]).aliases.get("A1111", settings.solver),
        "Schedule type": aliases.get("A1111", result["schedule"]),
        "CFG scale": settings.guidance,
        "Seed": settings.seed,
        "Size": f"{settings.width}x{settings.height}",
        "Model": settings.model,
        "Version": f"diffsolve {made_with['diffsolve']}",
    }
    negative = [f"Negative prompt: {settings.negative}"] if settings.negative else []
    return "\n".join([settings.prompt, *negative, ", ".join(f"{k}: {v}" for k, v in pairs.items())])


def read(path: Path) -> tuple[Settings, dict[str, Any], dict[str, Any]]:
    """(settings, result, made_with) of a picture that `write` wrote. Raises ProblemError for any other file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = image.info.get(CHUNK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not an image file"
        raise ProblemError(f"{path} can't be read as a picture ({reason}); give a PNG of `diffsolve sample`") from error
    if not isinstance(text, str):
        raise ProblemError(f"{path} holds no diffsolve settings; expected a PNG as `diffsolve sample` wrote it")
    try:
        told = json.loads(text)
        settings, hints = told["settings"], get_type_hints(Settings)
        for field in fields(Settings):
            value, kind = settings.get(field.name, field.default), hints[field.name]
            if not isinstance(value, kind | int if isinstance(0.0, kind) else kind):
                raise ProblemError(f"{path}: its setting {field.name} is {value!r}, expected {field.type}")
        known = {field.name: settings[field.name] for field in fields(Settings) if field.name in settings}
        return Settings(**known), dict(told["result"]), dict(told["made_with"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ProblemError):
            raise
        raise ProblemError(f"{path}: its diffsolve settings can't be read ({error!r})") from error
