"""Names as they were before the kernel's second version; each still works in this version, and warns of the new one."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .field import Evaluation, Field

MOVED = {
    **{name: ("diffsolve.solvers.schedules", name) for name in (
        "AlignYourSteps", "Beta", "Cosine", "Leading", "Linspace", "PolyExponential", "Quadratic", "SgmUniform",
        "Simple", "Trailing")},
    "BrownianPath": ("diffsolve.problems.noise", "BrownianPath"),
    "SpaceTimePath": ("diffsolve.problems.noise", "SpaceTimePath"),
    "DiffusionField": ("diffsolve.problems.diffusion", "DiffusionField"),
    "DiscreteProblem": ("diffsolve.problems", "DiscreteProblem"),
    "MaskAndReplace": ("diffsolve.problems", "MaskAndReplace"),
    "SolverEntry": ("diffsolve.registry", "SolverEntry"),
    "StochasticForm": ("diffsolve.form", "StochasticForm"),
    "Scaling": ("diffsolve.prediction", "Scaling"),
    "Tape": ("diffsolve.tape", "Tape"),
    "as_form": ("diffsolve.form", "as_form"),
    "as_prediction": ("diffsolve.prediction", "as_prediction"),
    "as_process": ("diffsolve.process", "as_process"),
    "edm": ("diffsolve.problems.predictions", "edm"),
    "did_you_mean": ("diffsolve.errors", "did_you_mean"),
    "march": ("diffsolve.program", "fixed_step_loop"),
    "posterior_variances": ("diffsolve.solvers.wrappers", "posterior_variances"),
    "spans_of": ("diffsolve.program", "spans_of"),
}  # fmt: skip
"""Public names that have another home: name -> (module, name there)."""

_OF_FORM = {
    "at_time": "variable_at_time", "eps_slope": "deps_dN", "state_slope": "dN_du",
    **{name: name for name in (
        "linear", "sigma", "variable", "time", "alpha", "rescale", "diffusion", "finite_at_zero")},
}  # fmt: skip
_DRAWS = {"draw": "INCREMENT", "wiener": "WIENER", "area": "LEVY_AREA"}
_OF_FIELD: dict[str, tuple[str, Callable[[Field], object]]] = {
    "spread": ("g_prod", lambda f: f.g_prod),
    "milstein": ("gdg_prod", lambda f: f.gdg_prod),
    "scale": ("form.scale(form.sigma(s))", lambda f: lambda s: f.form.scale(f.form.sigma(s))),
    "noise": ("form.noise_std(span.start, span.end)", lambda f: lambda h: f.form.noise_std(h.start, h.end)),
    "both": ("evaluate(u, s), with .value and .unconditional", lambda f: lambda u, s: _both(f.evaluate(u, s))),
}


def warn(old: str, new: str, level: int = 3) -> None:
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=level)


def former_field_member(field: Field, name: str) -> Any:
    """What `f.name` stood for. Raises AttributeError for what never was a member."""
    from .field import Noise

    found: object
    if name in _OF_FORM:
        new, found = f"form.{_OF_FORM[name]}", getattr(field.form, _OF_FORM[name])
    elif name in _DRAWS:
        new, found = f"normal(span, Noise.{_DRAWS[name]})", partial(field.normal, kind=Noise[_DRAWS[name]])
    elif name in _OF_FIELD:
        new, of = _OF_FIELD[name]
        found = of(field)
    else:
        raise AttributeError(f"{type(field).__name__!r} object has no attribute {name!r}")
    warn(f"f.{name}", f"f.{new}", 4)
    return found


def _both(told: Evaluation) -> tuple[object, object]:
    return told.value, told.value if told.unconditional is None else told.unconditional


def adopt_former(cls: type, names: Mapping[str, str]) -> None:
    """Give a subclass's attributes that have a former name their new one."""
    for old, new in names.items():
        if old in vars(cls) and not isinstance(vars(cls)[old], property):
            warn(f"{cls.__name__}.{old}", new, 4)
            setattr(cls, new, vars(cls)[old])
            delattr(cls, old)


def former_attribute(old: str, new: str) -> Any:
    """A property that reads and sets the attribute `new`."""

    def read(self: object) -> Any:
        warn(f".{old}", f".{new}")
        return getattr(self, new)

    def write(self: object, value: object) -> None:
        warn(f".{old}", f".{new}")
        setattr(self, new, value)

    return property(read, write)


def former_claims(
    former: dict[str, Any], order_as_started: int | None, order: int | None
) -> tuple[int | None, int | None]:
    """The claims of `register_solver` by their former names: started=, and 0 for no order. Raises TypeError."""
    if "started" in former:
        warn("started=", "order_as_started=", 4)
        order_as_started = former.pop("started")
    if former:
        raise TypeError(f"register_solver() got an unexpected keyword argument {next(iter(former))!r}")
    if order == 0 and not isinstance(order, bool):
        warn("order=0", "order=None", 4)
        order = None
    return order_as_started, order


def moved(name: str) -> Any:
    """A public name that has another home now."""
    module, new = MOVED[name]
    warn(f"diffsolve.{name}", f"{module}.{new}", 4)
    return getattr(importlib.import_module(module), new)
