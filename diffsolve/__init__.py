"""diffsolve: diffusion samplers as numerical integrators.

    import diffsolve as ds
    solution = ds.solve(problem, solver="heun", schedule="karras", n=20)

Names are loaded on first use (PEP 562), so that the command line answers before torch is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import scalars as scalars
    from .control import Controller as Controller
    from .control import IntegralController as IntegralController
    from .control import PIDController as PIDController
    from .diffusion import DiffusionField as DiffusionField
    from .diffusion import ProbabilityFlow as ProbabilityFlow
    from .diffusion import posterior_variances as posterior_variances
    from .discrete import DiscreteProblem as DiscreteProblem
    from .discrete import MaskAndReplace as MaskAndReplace
    from .errors import DiffsolveError as DiffsolveError
    from .errors import GridError as GridError
    from .errors import Interrupted as Interrupted
    from .errors import ModelError as ModelError
    from .errors import NonFiniteError as NonFiniteError
    from .errors import OutputError as OutputError
    from .errors import ProblemError as ProblemError
    from .errors import SolverError as SolverError
    from .errors import did_you_mean as did_you_mean
    from .form import FORMS as FORMS
    from .form import StochasticForm as StochasticForm
    from .form import as_form as as_form
    from .grid import AlignYourSteps as AlignYourSteps
    from .grid import Beta as Beta
    from .grid import Cosine as Cosine
    from .grid import Grid as Grid
    from .grid import Karras as Karras
    from .grid import Leading as Leading
    from .grid import Linspace as Linspace
    from .grid import PolyExponential as PolyExponential
    from .grid import Quadratic as Quadratic
    from .grid import Schedule as Schedule
    from .grid import SgmUniform as SgmUniform
    from .grid import Simple as Simple
    from .grid import Timesteps as Timesteps
    from .grid import Trailing as Trailing
    from .grid import make_grid as make_grid
    from .integrate import count_evaluations as count_evaluations
    from .integrate import solve as solve
    from .loop import march as march
    from .loop import spans_of as spans_of
    from .noise import BrownianPath as BrownianPath
    from .noise import SpaceTimePath as SpaceTimePath
    from .noise import normals as normals
    from .prediction import PREDICTIONS as PREDICTIONS
    from .prediction import Prediction as Prediction
    from .prediction import Scaling as Scaling
    from .prediction import as_prediction as as_prediction
    from .prediction import edm as edm
    from .problem import ODEProblem as ODEProblem
    from .problem import Problem as Problem
    from .problem import RightHandSide as RightHandSide
    from .problem import SemilinearODE as SemilinearODE
    from .process import EDM as EDM
    from .process import PROCESSES as PROCESSES
    from .process import VE as VE
    from .process import VP as VP
    from .process import ContinuousVP as ContinuousVP
    from .process import Process as Process
    from .process import RectifiedFlow as RectifiedFlow
    from .process import as_process as as_process
    from .registry import SolverEntry as SolverEntry
    from .registry import find_solver as find_solver
    from .registry import get_problem as get_problem
    from .registry import get_schedule as get_schedule
    from .registry import get_solver as get_solver
    from .registry import list_problems as list_problems
    from .registry import list_schedules as list_schedules
    from .registry import list_solvers as list_solvers
    from .registry import register_solver as register_solver
    from .reversed import slerp as slerp
    from .sde import SDEProblem as SDEProblem
    from .solution import Solution as Solution
    from .solver import Driver as Driver
    from .solver import Field as Field
    from .solver import FieldView as FieldView
    from .solver import Past as Past
    from .solver import Solver as Solver
    from .solver import Span as Span
    from .solver import Step as Step
    from .solver import combine as combine
    from .tape import Tape as Tape
    from .tape import record as record

_HOMES = {
    "control": ("Controller", "IntegralController", "PIDController"),
    "diffusion": ("DiffusionField", "ProbabilityFlow", "posterior_variances"),
    "discrete": ("DiscreteProblem", "MaskAndReplace"),
    "errors": ("DiffsolveError", "GridError", "Interrupted", "ModelError", "NonFiniteError", "OutputError",
               "ProblemError", "SolverError", "did_you_mean"),
    "form": ("FORMS", "StochasticForm", "as_form"),
    "grid": ("AlignYourSteps", "Beta", "Cosine", "Grid", "Karras", "Leading", "Linspace", "PolyExponential",
             "Quadratic", "Schedule", "SgmUniform", "Simple", "Timesteps", "Trailing", "make_grid"),
    "integrate": ("count_evaluations", "solve"),
    "loop": ("march", "spans_of"),
    "noise": ("BrownianPath", "SpaceTimePath", "normals"),
    "prediction": ("PREDICTIONS", "Prediction", "Scaling", "as_prediction", "edm"),
    "problem": ("ODEProblem", "Problem", "RightHandSide", "SemilinearODE"),
    "process": ("EDM", "PROCESSES", "VE", "VP", "ContinuousVP", "Process", "RectifiedFlow", "as_process"),
    "registry": ("SolverEntry", "find_solver", "get_problem", "get_schedule", "get_solver", "list_problems",
                 "list_schedules", "list_solvers", "register_solver"),
    "reversed": ("slerp",),
    "sde": ("SDEProblem",),
    "solution": ("Solution",),
    "solver": ("Driver", "Field", "FieldView", "Past", "Solver", "Span", "Step", "combine"),
    "tape": ("Tape", "record"),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_ROOMS = ("problems", "scalars", "solvers", "validation")

__all__ = sorted([*_HOME_OF, *_ROOMS])


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    elif name in _ROOMS:
        value = importlib.import_module(f".{name}", __name__)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("diffsolve")
    else:
        raise AttributeError(f"module 'diffsolve' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
