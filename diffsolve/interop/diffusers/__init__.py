"""diffusers: any solver as the scheduler of a pipeline, and what goes with it. Loaded where it is used.

    from diffsolve.interop.diffusers import DiffsolveScheduler
    pipe.scheduler = DiffsolveScheduler.from_config(pipe.scheduler.config, solver="dpmpp_2m", schedule="karras")
    image = run(pipe, solver="dpm_adaptive", rtol=0.05, prompt="a red apple").images[0]
"""

from __future__ import annotations

import importlib

_HOMES = {
    "DiffsolveScheduler": ".scheduler",
    "DiffsolveSchedulerOutput": ".output",
    "entry": ".rows",
    "from_pipe": ".pipeline",
    "run": ".pipeline",
    "SchedulerMixin": ".scheduler",  # diffusers looks for it in the module that model_index.json names
}

__all__ = ["DiffsolveScheduler", "DiffsolveSchedulerOutput", "from_pipe", "run"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return [*__all__]
