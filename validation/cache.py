"""Results on disk, found again by the content of what they came from; a folder that can't be used only costs time."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import FunctionType, MethodType

import numpy as np
import torch
from torch import Tensor

from .report import JSON, write_text


def cache_folder() -> Path:
    """Where results are kept: $DIFFSOLVE_CACHE, or diffsolve/ in the system's cache folder."""
    if given := os.environ.get("DIFFSOLVE_CACHE"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "diffsolve"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "diffsolve" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffsolve"


def digest(*values: object) -> str | None:
    """The values' content as a file's name; None where one of them, such as a lambda, can't be told from another."""
    found = hashlib.sha256()
    try:
        for piece in _content(values):
            found.update(piece)
    except (_NoContentError, RecursionError):
        return None
    return found.hexdigest()[:32]


class _NoContentError(Exception):
    """A value, such as a lambda, whose content can't be told from outside."""


def _content(value: object, inside: tuple[int, ...] = ()) -> Iterator[bytes]:
    """`value` as bytes that are equal for equal content, from run to run. inside: ids of the objects that hold it."""
    inside = (*inside, id(value))
    yield f"{type(value).__module__}.{type(value).__qualname__}(".encode()
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        yield f"{array.dtype}{array.shape}".encode()
        yield np.ascontiguousarray(array).tobytes()
    elif value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype | torch.device):
        yield repr(value).encode()
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _content(item, inside)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield from _content(key, inside)
            yield from _content(value[key], inside)
    elif isinstance(value, FunctionType):
        if "<" in value.__qualname__:  # a lambda, or made inside a function: its name doesn't say what it does
            raise _NoContentError
        yield f"{value.__module__}.{value.__qualname__}".encode()
    elif isinstance(value, MethodType):
        yield value.__func__.__qualname__.encode()
        if id(value.__self__) not in inside:
            yield from _content(value.__self__, inside)
    elif callable(value) and not isinstance(type(value).__call__, FunctionType):
        raise _NoContentError
    elif isinstance(value, torch.nn.Module):
        yield repr(value).encode()
        yield from _content(dict(value.state_dict()), inside)
    elif hasattr(value, "__dict__"):
        yield from _content({k: v for k, v in vars(value).items() if not _is_memory(value, k)}, inside)
    else:
        raise _NoContentError
    yield b")"


def _is_memory(value: object, name: str) -> bool:
    """Whether an attribute is what its object has worked out for itself, and so comes and goes with its use."""
    return name.startswith("_") or isinstance(getattr(type(value), name, None), cached_property)


def read_json(kind: str, key: str | None) -> JSON:
    """What was kept, or None."""
    if key is None:
        return None
    try:
        return json.loads((cache_folder() / kind / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(kind: str, key: str | None, value: JSON) -> None:
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
