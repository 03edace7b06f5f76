"""`solver="auto"`: the row and schedule that a table has for a kind of problem and a number of calls.

`diffsolve validate auto -o solvers/auto.json` measures the table, see `validation/cost/choices.py`.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from importlib.resources import files
from typing import TypedDict

from diffsolve import Problem, SolverError
from diffsolve.denoiser import GuidedCall
from diffsolve.registry import Choice, register_chooser


class Pair(TypedDict):
    """What is taken at a number of calls; ratio: of its error to each problem's best, the geometric mean."""

    solver: str
    schedule: str
    ratio: float
    next: str


class Kind(TypedDict):
    """What was measured of a kind of problem: by number of calls, and for a tolerance {"solver", "why"}."""

    pairs: int
    problems: int
    calls: dict[str, Pair]
    tolerance: dict[str, str]


@lru_cache
def table() -> dict[str, Kind]:
    """kind -> what was measured."""
    found: dict[str, Kind] = json.loads((files(__package__) / "auto.json").read_text(encoding="utf-8"))["kinds"]
    return found


def kind_of(problem: Problem) -> str:
    """ "ode", "sde" (a reverse one), "guided" or "unguided". Raises SolverError for what the table knows nothing of."""
    if getattr(problem, "eta", None) is not None:
        return "sde"
    if not problem.forms:
        if hasattr(problem, "f") and not hasattr(problem, "g"):
            return "ode"
        raise SolverError(f"auto has no table for {type(problem).__name__}; leave solver out, or name one")
    denoiser = getattr(problem, "denoiser", None)
    scale = getattr(denoiser, "scale", getattr(problem, "guidance", 1.0))
    return "guided" if (isinstance(denoiser, GuidedCall) or hasattr(problem, "guidance")) and scale != 1 else "unguided"


@register_chooser("auto")
def auto(problem: Problem | None, calls: int, tolerant: bool, kind: str = "") -> Choice:
    """Of the table's pairs the one with the least error at about so many calls, or with least calls to a tolerance.

    kind: in place of the problem's own, where guidance is put on outside of it, as a pipeline does.
    """
    outside = bool(kind)
    kind = kind if problem is None else kind_of(problem)
    known = table()[kind]
    if tolerant:
        if "tolerance" not in known:
            raise SolverError("a reverse SDE has no row that chooses its steps; give auto a number of calls, nfe=")
        row = known["tolerance"]
        return Choice(row["solver"], None, f"{kind} problem with a tolerance: {row['solver']}, {row['why']}")
    at = min(known["calls"], key=lambda listed: abs(math.log(calls / int(listed))))
    found = known["calls"][at]
    pair = f"{found['solver']} on {found['schedule']}"
    why = f"{kind} problem, {calls} calls: {pair}, the least error of {known['pairs']} pairs at {at} calls, " \
          f"{found['ratio']:.2f} of the best of each of {known['problems']} problems (next {found['next']})"
    solver = "guarded_abm(guided=True)" if outside and found["solver"] == "guarded_abm" else found["solver"]
    return Choice(solver, found["schedule"], why)
