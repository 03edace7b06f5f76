"""Reports, and reports on disk: one JSON and one PNG each."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JSON = Any
"""What JSON can say: numbers, strings, lists, and mappings of them."""


class Report(Protocol):
    """What every `validate_...` function hands back; printing it shows its figures."""

    @property
    def passed(self) -> bool | None:
        """Whether every claim that was looked at holds; None where it could not be decided."""

    def to_json(self) -> str: ...

    def plot(self) -> Figure: ...


@dataclass(frozen=True)
class Saved:
    """A report as it was written: `data` is its JSON, `text` what it prints, `picture` its plot, an SVG."""

    key: str
    kind: str
    title: str
    passed: bool | None
    seconds: float
    text: str
    data: dict[str, JSON]
    fingerprint: str = ""
    picture: str = ""

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "FAILS", None: "undecided"}[self.passed]


def as_json(data: object) -> str:
    """A report's figures as JSON; what is not a number is null."""
    return json.dumps(_plain(data), indent=2, allow_nan=False)


def _plain(value: object) -> JSON:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: an interrupted run leaves no half report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.half")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


def save(report: Report, folder: Path, key: str, kind: str, title: str, seconds: float, fingerprint: str = "") -> Saved:
    """Write `key`.png and `key`.json into `folder`."""
    from .svg import as_svg

    folder.mkdir(parents=True, exist_ok=True)
    figure = report.plot()
    figure.savefig(folder / f"{key}.png", dpi=100)
    data, took = json.loads(report.to_json()), round(seconds, 1)
    saved = Saved(key, kind, title, report.passed, took, str(report), data, fingerprint, as_svg(figure))
    write_text(folder / f"{key}.json", json.dumps(asdict(saved), indent=1))
    return saved


def load(folder: Path, key: str) -> Saved | None:
    """The report of that key, or None where there is none that can be read."""
    try:
        return Saved(**json.loads((folder / f"{key}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
