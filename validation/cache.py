"""Results on disk, found again by the content of what they came from; a folder that can't be used only costs time."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .references import _content, _NoContentError, cache_folder
from .report import write_text


def digest(*values: Any) -> str | None:
    """The values' content as a file's name; None where one of them, such as a lambda, can't be told from another."""
    found = hashlib.sha256()
    try:
        for piece in _content(values):
            found.update(piece)
    except (_NoContentError, RecursionError):
        return None
    return found.hexdigest()[:32]


def read_json(kind: str, key: str | None) -> Any:
    """What was kept, or None."""
    if key is None:
        return None
    try:
        return json.loads((cache_folder() / kind / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(kind: str, key: str | None, value: Any) -> None:
    if key is not None:
        try:
            write_text(cache_folder() / kind / f"{key}.json", json.dumps(value))
        except OSError:
            return


def read_array(kind: str, key: str | None) -> np.ndarray | None:
    """What was kept, or None."""
    if key is None:
        return None
    try:
        array: np.ndarray = np.load(cache_folder() / kind / f"{key}.npy", allow_pickle=False)
        return array
    except (OSError, ValueError, EOFError):
        return None


def write_array(kind: str, key: str | None, array: np.ndarray) -> None:
    """Under its name only once it is whole."""
    if key is None:
        return
    path = cache_folder() / kind / f"{key}.npy"
    part = Path(f"{path}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.save(file, array)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
