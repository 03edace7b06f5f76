"""diffsolve: diffusion samplers as numerical integrators.

    import diffsolve as ds
    solution = ds.solve(problem, solver="heun", schedule="karras", n=20)

Names are loaded on first use (PEP 562), so that the command line answers before torch is imported.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "control": ("Controller",),
    "denoiser": ("Output",),
    "engine": ("solve_many",),
    "errors": ("DiffsolveError", "GridError", "Interrupted", "ModelError", "NonFiniteError", "OutputError",
        "ProblemError", "SolverError"),
    "field": ("EvaluationCache", "Field", "FieldView", "Noise", "combine"),
    "form": ("FORMS",),
    "grid": ("Grid", "Schedule", "make_grid"),
    "integrate": ("solve", "start"),
    "app.stored": ("load_solution",),
    "prediction": ("PREDICTIONS", "Prediction"),
    "problem": ("Problem", "RightHandSide"),
    "problems": ("FunctionDenoiser", "NetworkDenoiser", "ODEProblem", "ProbabilityFlow", "SDEProblem",
        "SemilinearODE", "normals", "slerp"),
    "problems.guidance": ("Guided",),
    "problems.processes": ("EDM", "PROCESSES", "VE", "VP", "ContinuousVP", "RectifiedFlow"),
    "process": ("Process",),
    "program": ("count_evaluations", "plan"),
    "registry": ("find_solver", "get_problem", "get_schedule", "get_solver", "list_problems",
        "list_schedules", "list_solvers", "register_solver"),
    "run": ("Run",),
    "solution": ("Solution",),
    "solver": ("Driver", "Past", "Renoise", "Solver", "Span", "Step"),
    "solvers.controllers": ("IntegralController", "PIDController"),
    "solvers.schedules": ("Karras", "Timesteps"),
    "tape": ("record",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_ROOMS = ("problems", "scalars", "solvers", "validation")

__all__ = sorted([*_HOME_OF, *_ROOMS])


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    elif name in _ROOMS:
        value = importlib.import_module(f".{name}", __name__)
    elif name == "ray":
        value = importlib.import_module(".interop.ray", __name__)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("diffsolve")
    else:
        from .deprecated import MOVED, moved

        if name not in MOVED:
            raise AttributeError(f"module 'diffsolve' has no attribute {name!r}")
        return moved(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
