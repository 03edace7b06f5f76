"""What the contract tests share: the registry as parameters, tiny exact problems, and problems that watch a solve."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch

import diffsolve as ds
from diffsolve.registry import SolverEntry
from diffsolve.testing.world import FINALS as FINALS
from diffsolve.testing.world import Stub as Stub
from diffsolve.testing.world import StubForm as StubForm
from diffsolve.testing.world import Watched as Watched
from diffsolve.testing.world import advances as advances
from diffsolve.testing.world import by_hand as by_hand
from diffsolve.testing.world import gap as gap
from diffsolve.testing.world import gaussian as gaussian
from diffsolve.testing.world import mixture as mixture
from diffsolve.testing.world import numbers as numbers
from diffsolve.testing.world import spans as spans

torch.set_num_threads(1)  # the problems are tiny; threads would only wait for each other

# A solver with a controller takes what steps it will: test_adaptive.py.
ENTRIES = [entry for entry in ds.list_solvers() if entry.form is not None and entry.solver.controller is None]
SOLVERS = [entry.name for entry in ENTRIES]
DETERMINISTIC = [entry.name for entry in ENTRIES if not entry.stochastic]
STOCHASTIC = [entry.name for entry in ENTRIES if entry.stochastic]
TRACEABLE = [name for name in SOLVERS if ds.get_solver(name).traceable]
ONE_STEP = [entry.name for entry in ENTRIES if "one-step" in entry.tags]  # of the state alone, wherever in the run


def kind(entry: SolverEntry) -> tuple[object, ...]:
    """What rows of one kind have in common: the class, the rule of its weights, where its noise is from, its form's."""
    solver, form = entry.solver, ds.FORMS[entry.form]
    rule = getattr(getattr(solver, "rule", None), "__qualname__", None)
    return type(solver), rule, solver.history > 0, solver.stochastic, form.stochastic, bool(form.linear)


KINDS: dict[tuple[object, ...], str] = {}  # the first row of each, by name
for _entry in ENTRIES:
    KINDS.setdefault(kind(_entry), _entry.name)
ONE_OF_EACH = list(KINDS.values())
ONE_OF_EACH_KIND = ["rk4", "dpm_solver_3", "dpmpp_2m", "lms", "plms", "unipc", "damped_abm"]  # of methods of the flow


slow = partial(pytest.param, marks=pytest.mark.slow)
"""A parameter of the slow set."""


def rows(names: Sequence[str], fast: Sequence[str] = ONE_OF_EACH) -> list[Any]:
    """Names as parameters: those of `fast`, by default one row of each kind, in the fast set, the rest in the slow."""
    return [name if name in fast else slow(name) for name in names]


SCHEDULES = [entry.name for entry in ds.list_schedules() if entry.name != "uniform"]
PROCESSES = list(ds.PROCESSES)
BAD = float("nan")
