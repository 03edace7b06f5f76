"""Weights: reading them from files of one kind, in one piece or in shards, and putting them into a model.

Weights are read from safetensors; a pickle is opened only on `allow_pickle=True`. Whatever can't be used is a
ModelError that names the file, what was expected and what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffsolve import ModelError
from diffsolve.validate import text_of

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
DANGER = ("a pickle can run code while it is read; if you trust its source, allow_pickle=True opens it (through "
          "torch's weights_only reader); better still, convert it to safetensors")
# Names that stand in the files and belong to no part that is used here: of the training, of CLIP's other half, or left
# by older writers.
NO_WEIGHTS = re.compile(r"(^|\.)(position_ids|logit_scale|logvar|text_projection(\.weight)?)$|(^|\.)model_ema\."
                        r"|^first_stage_model\.loss\.|^vision_model\.|^visual_projection\.")
_FORMATS = (  # how the formats begin that are found under another's name
    (rb"version https://git-lfs", "a Git LFS pointer, not the weights: run `git lfs pull`"),
    (rb"PK\x03\x04",
     "a zip archive, as torch.save writes: if you trust its source, name it .ckpt and pass allow_pickle=True"),
    (rb"\x80[\x02-\x05]", "a pickle: if you trust its source, name it .ckpt and pass allow_pickle=True"),
    (rb"GGUF", "GGUF, which is not read here: fetch the safetensors file"),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page, such as a download's error: fetch the file itself"),
    (rb"\s*[{\[]", "JSON, not weights: fetch the file that holds them"),
    (rb"\x1f\x8b", "a gzip archive: unpack it"),
    (rb"\x89HDF", "HDF5, which is not read here: fetch the safetensors file"),
    (rb".{6}\x00\x00\{", "a safetensors file: name it .safetensors"),
)  # fmt: skip


@contextmanager
def reported(what: str, remedy: str) -> Iterator[None]:
    """Turn what the libraries raise into a ModelError: what failed, their reason, the remedy."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # the libraries share no base class
        reason = next(iter(str(error).strip().splitlines()), "").rstrip(".")[:300]
        raise ModelError(f"{what} ({type(error).__name__}: {reason}); {remedy}") from error


def path_of(name: str | Path) -> Path:
    """The path of that name, ~ included. Raises ModelError where no file can be called so."""
    if not isinstance(name, str | Path):
        raise ModelError(f"a model is named by a string or a path, got {type(name).__name__}")
    with reported(f"{str(name)[:200]!r} names no file", "check the spelling"):
        path = Path(name).expanduser()
        path.is_dir()
        path.is_file()
        return path


def true_format(file: Path) -> str | None:
    """What a file is by its first bytes, with what to do; None where they tell nothing."""
    with file.open("rb") as opened:
        start = opened.read(64)
    if not start:
        return "empty: fetch it again"
    return next((what for pattern, what in _FORMATS if re.match(pattern, start, re.DOTALL)), None)


def read_weights(file: Path, allow_pickle: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of one .safetensors file, or of a pickle where that is allowed; of an .index.json those of all its
    files. Raises ModelError."""
    if not file.is_file():
        raise ModelError(f"{file}: {'is a folder' if file.is_dir() else 'no such file'}; expected one file of weights")
    if file.suffix == ".json":
        return _read_shards(file, allow_pickle)
    with reported(f"{file} can't be read", "check that it may be read"):
        found = true_format(file)
    if file.suffix in PICKLES:
        if found is not None and not found.startswith(("a pickle", "a zip", "empty")):
            raise ModelError(f"{file} is {found}")
        if not allow_pickle:
            raise ModelError(f"{file} is a pickle, refused: {DANGER}")
        with reported(f"{file} can't be read", "it is truncated or holds more than weights: fetch it again"):
            state = torch.load(file, map_location="cpu", weights_only=True)
            return {k: v for k, v in state.get("state_dict", state).items() if isinstance(v, torch.Tensor)}
    if file.suffix != ".safetensors":
        raise ModelError(f"{file}: expected a .safetensors file or, with allow_pickle=True, {', '.join(PICKLES)}"
                         f"{'' if found is None else f'; it is {found}'}")
    if found is not None and not found.startswith("a safetensors"):
        raise ModelError(f"{file} can't be read: it is {found}")
    from safetensors.torch import load_file

    with reported(f"{file} can't be read", "it is truncated or no safetensors file: fetch it again"):
        return load_file(file)


def read_metadata(file: Path) -> dict[str, str]:
    """The text that a .safetensors file carries beside its tensors; none of another file."""
    if file.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    remedy = "it is truncated or no safetensors file: fetch it again"
    with reported(f"{file} can't be read", remedy), safe_open(file, "pt") as opened:
        return dict(opened.metadata() or {})


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError."""
    with reported(f"{file} can't be read", "fetch it again"):
        return dict(json.loads(text_of(file)))


def _read_shards(index: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """The tensors that an index names, from the files beside it that it says they are in."""
    homes = read_json(index).get("weight_map")
    if not isinstance(homes, dict) or not homes or not all(isinstance(name, str) for name in homes.values()):
        raise ModelError(f"{index}: expected a weight_map from the names of the weights to those of files; fetch it "
                         "again")
    state: dict[str, torch.Tensor] = {}
    for name in sorted(set(homes.values())):
        if Path(name).name != name or Path(name).suffix == ".json":
            raise ModelError(f"{index} names the file {name!r}; expected one of weights in its own folder")
        part = read_weights(index.parent / name, allow_pickle)
        lost = sorted(weight for weight, home in homes.items() if home == name and weight not in part)
        if lost:
            raise ModelError(f"{index.parent / name} lacks {lost[0]}, which {index.name} says is in it; fetch both "
                             "again")
        state |= part
    return state


def fill(model: torch.nn.Module, state: Mapping[str, torch.Tensor], names: Mapping[str, str], file: Path,
         dtype: torch.dtype, device: str | torch.device) -> None:
    """Give `model` its weights, all of them: names[weight] is the name in `state`, and nothing else may be there.

    Raises ModelError, naming the first weight that is missing, unknown, of another shape, or not finite.
    """
    kind, weights, loaded = type(model).__name__, model.state_dict(), {}
    remedy = "the file is incomplete, or belongs to another config"
    missing = [there for there in names.values() if there not in state]
    if missing:
        raise ModelError(f"{file}: {len(missing)} of the {len(names)} weights of the {kind} are missing, first "
                         f"{missing[0]}; {remedy}")
    unknown = [there for there in set(state) - set(names.values()) if not NO_WEIGHTS.search(there)]
    if unknown:
        raise ModelError(f"{file}: {len(unknown)} weights have no place in the {kind}, first {min(unknown)}; {remedy}")
    for here, there in names.items():
        value, expected = state[there], weights[here].shape
        if value.shape != expected and value.shape != (*expected, 1, 1):  # a linear map kept as a 1x1 convolution
            raise ModelError(f"{file}: {there} has the shape {tuple(value.shape)}, the {kind} expects "
                             f"{tuple(expected)}; {remedy}")
        loaded[here] = _usable(value, file, there, dtype).reshape(expected).to(device)
    model.load_state_dict(loaded, assign=True)
    for name, buffer in list(model.named_buffers()):  # those that no file holds
        if buffer.is_meta:
            owner = model.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], torch.arange(buffer.shape[-1]).expand(buffer.shape))
    model.to(device).eval().requires_grad_(False)


def _usable(value: torch.Tensor, file: Path, name: str, dtype: torch.dtype) -> torch.Tensor:
    """A weight in the network's dtype. Raises ModelError where it is no number there, or is quantised."""
    if not value.is_floating_point():
        raise ModelError(f"{file}: {name} is of {value.dtype}, a quantised weight; expected floating point")
    cast = value.to(dtype)
    # one pass without a copy: a sum that is finite has only finite terms
    if torch.isfinite(cast.sum(dtype=torch.promote_types(dtype, torch.float32))) or torch.isfinite(cast).all():
        return cast
    if torch.isfinite(value.float()).all():
        raise ModelError(f"{file}: {name} is too large for {dtype}; load the model in float32 or bfloat16")
    raise ModelError(f"{file}: {name} holds NaN or infinity; the file is damaged, or its training diverged")
