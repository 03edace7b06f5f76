"""Solutions on disk: the tensors as safetensors, the rest as JSON in its metadata; the problem is left out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from ..errors import DiffsolveError, OutputError, ProblemError
from ..grid import Grid
from ..problem import Problem
from ..validate import on_disk
from .files import replace_file

if TYPE_CHECKING:
    from ..solution import Occurrence, Solution

KEY, VERSION = "diffsolve_solution", 1
PLAIN = ("nfe", "solver", "schedule", "steps", "seed", "reason", "seconds")


def save_solution(solution: Solution, path: str | Path) -> Path:
    """Write a solution without its problem as one .safetensors file; its path. Raises OutputError.

    Of `stats`, what is no number, text or list of them is left out.
    """
    from safetensors.torch import save_file

    if not isinstance(path, str | os.PathLike):
        raise OutputError(f"a file is named by a string or a path, got {type(path).__name__}")
    file = Path(path)
    if file.suffix != ".safetensors":
        raise OutputError(f"{str(path)!r} doesn't end in .safetensors; pass {f'{file.stem}.safetensors'!r}")
    tensors = {"x": solution.x, "grid": torch.from_numpy(np.array(solution.grid.nodes)),
               "nodes": torch.tensor(solution.nodes, dtype=torch.float64)}  # fmt: skip
    if solution.trajectory:
        tensors["trajectory"] = torch.stack(list(solution.trajectory))
    told = {name: getattr(solution, name) for name in PLAIN}
    told |= {"version": VERSION, "grid": {"name": solution.grid.name, "final": solution.grid.final}}
    told["stats"] = {k: v for k, v in ((k, _plain(v)) for k, v in solution.stats.items()) if v is not None}
    for i, event in enumerate(solution.events or ()):
        tensors |= {f"event.{i}.x": event["x"], f"event.{i}.time": event["time"]}
    happened = None if solution.events is None else [[e["event"], e["t"], e["sample"]] for e in solution.events]
    told |= {"times": solution.times, "events": happened}
    whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    try:
        replace_file(file, lambda beside: save_file(whole, beside, metadata={KEY: json.dumps(told)}))
    except OSError as error:
        raise OutputError(f"{file} can't be written ({error.strerror or error}); name another place") from error
    except Exception as error:  # safetensors' own, which is no OSError
        raise OutputError(f"{file} can't be written ({error}); name another place") from error
    return file


def load_solution(path: str | Path, problem: Problem | None = None, device: str | torch.device = "cpu") -> Solution:
    """The solution that `Solution.save` wrote. problem: what it is of, for `images()`; None where that is not needed.

    Raises ProblemError for a file that holds none.
    """
    from safetensors import safe_open

    from ..solution import Solution

    try:
        with safe_open(on_disk(path), "pt", device=str(device)) as opened:
            told = json.loads((opened.metadata() or {})[KEY])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no dict)
        if told["version"] != VERSION:
            raise ProblemError(f"it is of version {told['version']}, this is {VERSION}: update diffsolve")
        if tensors["nodes"].ndim != 1:
            raise ProblemError(f"its nodes have the shape {tuple(tensors['nodes'].shape)}, expected one row")
        grid = Grid(tensors["grid"].cpu().double().numpy(), **_strings(told["grid"], ("name", "final")))
        trajectory = tensors.get("trajectory")
        kinds = {f.name: type(f.default) for f in fields(Solution)} | {"nfe": int, "steps": int, "solver": str,
                                                                       "schedule": str}  # fmt: skip
        plain = {name: _of(kinds[name], told[name], name) for name in PLAIN}
        return Solution(
            x=tensors["x"], grid=grid, problem=cast(Problem, problem), **plain,
            trajectory=None if trajectory is None else list(trajectory.unbind()),
            nodes=tensors["nodes"].cpu().double().tolist(), stats=dict(told["stats"]), times=_times(told),
            events=_events(told, tensors),
        )  # fmt: skip
    except Exception as error:  # safetensors' and json's errors share no base class
        reason = str(error) if isinstance(error, DiffsolveError | OSError) else repr(error)
        raise ProblemError(f"{path} can't be read as a solution ({reason}); give a file of Solution.save") from error


def _times(told: Mapping[str, Any]) -> list[float] | None:
    times = told.get("times")
    return None if times is None else [_of(float, t, "times") for t in _of(list, times, "times")]


def _events(told: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> list[Occurrence] | None:
    known = told.get("events")
    if known is None:
        return None
    found: list[Occurrence] = []
    for i, (event, t, sample) in enumerate(_of(list, known, "events")):
        found.append({
            "event": _of(int, event, "event"), "t": _of(float, t, "t"),
            "sample": None if sample is None else _of(int, sample, "sample"),
            "x": tensors[f"event.{i}.x"], "time": tensors[f"event.{i}.time"].cpu(),
        })  # fmt: skip
    return found


def _plain(value: object) -> Any:
    """What JSON can hold of a value, or None."""
    if isinstance(value, np.ndarray | torch.Tensor | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str) else None


def _strings(told: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: _of(str, told[name], name) for name in names}


def _of(kind: type, value: Any, name: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ProblemError(f"its {name} is {value!r}, expected {kind.__name__}")
    return value
