"""Reports on disk: one JSON and one PNG a report, and a self-contained HTML page of them all."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Report(Protocol):
    """What every `validate_...` function hands back; printing it shows its figures."""

    @property
    def passed(self) -> bool | None:
        """Whether every claim that was looked at holds; None where it could not be decided."""

    def to_json(self) -> str: ...

    def plot(self) -> Figure: ...


@dataclass(frozen=True)
class Saved:
    """A report as it was written: `data` is its JSON, `text` what it prints, `picture` the PNG beside it."""

    key: str
    kind: str
    title: str
    passed: bool | None
    seconds: float
    text: str
    data: dict[str, Any]
    fingerprint: str = ""

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "FAILS", None: "undecided"}[self.passed]


def as_json(data: Any) -> str:
    """A report's figures as JSON; what is not a number is null."""
    return json.dumps(_plain(data), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
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
    folder.mkdir(parents=True, exist_ok=True)
    report.plot().savefig(folder / f"{key}.png", dpi=100)
    data = json.loads(report.to_json())
    saved = Saved(key, kind, title, report.passed, round(seconds, 1), str(report), data, fingerprint)
    write_text(folder / f"{key}.json", json.dumps(asdict(saved), indent=1))
    return saved


def load(folder: Path, key: str) -> Saved | None:
    """The report of that key, or None where there is none that can be read."""
    try:
        return Saved(**json.loads((folder / f"{key}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: .9rem; } td, th { padding: .2rem .7rem; text-align: left; }
tr:nth-child(even), pre { background: #f4f4f4; } pre { padding: .7rem; overflow-x: auto; font-size: .8rem; }
img { max-width: 100%; } .FAILS { color: #b00020; font-weight: bold; } .holds { color: #00693e; }
summary { cursor: pointer; padding: .2rem 0; } h2 { margin-top: 2.5rem; }
"""


def page(reports: Iterable[Saved], folder: Path, heading: str, introduction: str, tables: Iterable[str] = ()) -> str:
    """One HTML page with every report's figures and picture inside it, failures unfolded."""
    kinds: dict[str, list[Saved]] = {}
    for saved in reports:
        kinds.setdefault(saved.kind, []).append(saved)
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(heading)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(heading)}</h1><p>{html.escape(introduction)}</p>",
        *tables,
    ]
    for kind, group in kinds.items():
        parts.append(f"<h2>{html.escape(kind)}</h2>")
        parts += [_section(saved, folder, unfolded=len(group) == 1) for saved in group]
    return "\n".join(parts)


def _small(picture: Path) -> bytes:
    """The PNG with a palette: a third of the size, and lines and text look the same."""
    from PIL import Image

    packed = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def _section(saved: Saved, folder: Path, unfolded: bool) -> str:
    picture = base64.b64encode(_small(folder / f"{saved.key}.png")).decode()
    opened = " open" if unfolded or saved.passed is False else ""
    return (
        f"<details{opened}><summary><b>{html.escape(saved.title)}</b> "
        f"<span class='{saved.verdict}'>{saved.verdict}</span> ({saved.seconds:g} s)</summary>"
        f"<img alt='{html.escape(saved.title)}' src='data:image/png;base64,{picture}'>"
        f"<pre>{html.escape(saved.text)}</pre></details>"
    )


def table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """An HTML table; a cell that reads holds, FAILS or undecided is coloured."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    cells = (("".join(f"<td class='{html.escape(str(c))}'>{html.escape(str(c))}</td>" for c in row)) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<h2>{html.escape(caption)}</h2><table><tr>{head}</tr>{body}</table>"
