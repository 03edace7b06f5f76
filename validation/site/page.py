"""One HTML page of many reports: their figures, their pictures and their verdicts, in two megabytes at most."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable

from ..report import Saved
from ..svg import STYLE as PICTURES

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: .9rem; } td, th { padding: .2rem .7rem; text-align: left; }
tr:nth-child(even), pre { background: #f4f4f4; } pre { padding: .7rem; overflow-x: auto; font-size: .8rem; }
.FAILS { color: #b00020; font-weight: bold; } .holds { color: #00693e; }
summary { cursor: pointer; padding: .2rem 0; } h2 { margin-top: 2.5rem; }
"""
_LOOK = re.compile(r'<path ([^>]*?) ?d="')
SHARED = 500  # looks that have a class: more would need names as long as themselves


def page(reports: Iterable[Saved], heading: str, introduction: str, tables: Iterable[str] = (), stamp: str = "") -> str:
    """The page, failures unfolded. stamp: the comment at its top that says what it was made from."""
    kinds: dict[str, list[Saved]] = {}
    for saved in reports:
        kinds.setdefault(saved.kind, []).append(saved)
    parts = [f"<h1>{html.escape(heading)}</h1><p>{html.escape(introduction)}</p>", *tables]
    for kind, group in kinds.items():
        parts.append(f"<h2>{html.escape(kind)}</h2>")
        parts += [_section(saved, unfolded=len(group) == 1) for saved in group]
    body, classes = _with_classes("\n".join(parts))
    title = f"<!doctype html><meta charset='utf-8'><title>{html.escape(heading)}</title>"
    return f"{stamp}{title}<style>{_STYLE}{PICTURES}{classes}</style>\n{body}"


def _section(saved: Saved, unfolded: bool) -> str:
    opened = " open" if unfolded or saved.passed is False else ""
    return (
        f"<details{opened}><summary><b>{html.escape(saved.title)}</b> "
        f"<span class='{saved.verdict}'>{saved.verdict}</span> ({saved.seconds:g} s)</summary>"
        f"{saved.picture}<pre>{html.escape(saved.text, quote=False)}</pre></details>"
    )


def _with_classes(body: str) -> tuple[str, str]:
    """The body with a class in the place of each look that its pictures have in common, and the classes' styles."""
    looks = [look for look, _ in Counter(_LOOK.findall(body)).most_common(SHARED)]
    name = {look: f"p{number}" for number, look in enumerate(looks)}
    styles = "".join(f".{name[look]}{{{_css(look)}}}" for look in looks)
    return _LOOK.sub(lambda m: f'<path class={name[m[1]]} d="' if m[1] in name else m[0], body), styles


def _css(look: str) -> str:
    return ";".join(f"{key}:{value}" for key, value in re.findall(r'([\w-]+)="([^"]*)"', look))


def table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """An HTML table; a cell that reads holds, FAILS or undecided is coloured."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<h2>{html.escape(caption)}</h2><table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    text = html.escape(str(value))
    look = f" class='{text}'" if text in ("holds", "FAILS", "undecided") else ""
    return f"<td{look}>{text}</td>"
