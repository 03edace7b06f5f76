"""The training set of the embedded model: the emoji artwork of one pinned npm package.

`fetch` runs `npm pack`, checks the archive's SHA-256 and unpacks only what is read here; nothing is fetched at
install or at import. The package's code and data are MIT (Cal Henderson); the artwork is Google's Noto Emoji,
Apache-2.0 (the model card repeats this).
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "emoji-datasource-google"
VERSION = "16.0.0"
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
LEFT_OUT = ("Flags", "Component")


@dataclass(frozen=True)
class Emoji:
    """One picture and what it is called: `captions[0]` is its name, the others are short names and keywords."""

    file: str
    name: str
    category: str
    captions: tuple[str, ...]


def fetch(cache: Path) -> Path:
    """The unpacked package under `cache`, downloading it with `npm pack` on the first call.

    Raises RuntimeError where the archive is not the pinned one: a model card that names data must mean those bytes.
    """
    folder = cache / "package"
    if (folder / "emoji.json").is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"{PACKAGE}-{VERSION}.tgz"
    if not archive.is_file():
        subprocess.run(["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"], cwd=cache, check=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SHA256:
        raise RuntimeError(f"{archive} has SHA-256 {digest}, expected {SHA256}; delete it and fetch again")
    with tarfile.open(archive) as tar:
        wanted = [m for m in tar if m.name == "package/emoji.json" or m.name.startswith("package/img/google/64/")]
        tar.extractall(cache, members=wanted, filter="data")
    return folder


def _words(text: str) -> str:
    text = re.sub(r"[_\-:,&()“”’.!/]+", " ", text.lower())
    return re.sub(r"\s+", " ", text).strip()


def read(folder: Path) -> list[Emoji]:
    """Every emoji with a picture but flags and skin-tone variants, in the package's order (about 1,600)."""
    found = []
    for row in json.loads((folder / "emoji.json").read_text(encoding="utf-8")):
        if not row["has_img_google"] or row["category"] in LEFT_OUT:
            continue
        name = _words(row["name"] or row["short_name"])
        short = [_words(s) for s in row["short_names"]]
        keyword = _words(f"{short[0]} {row['subcategory']}")
        captions = tuple(dict.fromkeys([name, *short, f"{name}, {keyword}"]))
        found.append(Emoji(row["image"], name, row["category"], captions))
    return found


def unambiguous(emojis: list[Emoji]) -> list[tuple[int, str]]:
    """(index, caption) of every caption that names exactly one picture: the ones adherence can be asked of."""
    owners: dict[str, set[int]] = {}
    for i, e in enumerate(emojis):
        for c in e.captions:
            owners.setdefault(c, set()).add(i)
    return [(i, c) for i, e in enumerate(emojis) for c in e.captions if owners[c] == {i}]


def pictures(folder: Path, emojis: list[Emoji], size: int) -> np.ndarray:
    """(N, 3, size, size) float32 in [-1, 1], composed on white before they are scaled down."""
    out = np.empty((len(emojis), 3, size, size), np.float32)
    for i, e in enumerate(emojis):
        with Image.open(folder / "img/google/64" / e.file) as png:
            rgba = png.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        rgb = Image.alpha_composite(white, rgba).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        out[i] = np.asarray(rgb, np.float32).transpose(2, 0, 1) / 127.5 - 1
    return out
