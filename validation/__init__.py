"""Order and error analysis of any registered solver: each `validate_...` hands back a report that prints itself.

The folders are questions: orders, stability, cost, samples; claims and site are made of their answers. Names are loaded
on first use, so that the command line can list its commands before torch is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .claims.report import ClaimsReport as ClaimsReport
    from .claims.report import validate_claims as validate_claims
    from .cost.budget import ErrorBudgetReport as ErrorBudgetReport
    from .cost.budget import error_budget as error_budget
    from .cost.cells import WorkPrecisionReport as WorkPrecisionReport
    from .cost.precision import work_precision as work_precision
    from .orders.conditions import ConditionsReport as ConditionsReport
    from .orders.conditions import validate_conditions as validate_conditions
    from .orders.order import OrderReport as OrderReport
    from .orders.order import validate_order as validate_order
    from .orders.slopes import Slope as Slope
    from .orders.slopes import fit_slope as fit_slope
    from .orders.strong_weak import StochasticReport as StochasticReport
    from .orders.strong_weak import validate_strong as validate_strong
    from .orders.strong_weak import validate_weak as validate_weak
    from .problems import Case as Case
    from .references import sampling_cases as sampling_cases
    from .samples.bound import BoundReport as BoundReport
    from .samples.bound import variational_bound as variational_bound
    from .samples.distances import Estimate as Estimate
    from .samples.distances import frechet_distance as frechet_distance
    from .samples.distances import paired_distance as paired_distance
    from .samples.distances import picture_psnr as picture_psnr
    from .samples.distances import sliced_wasserstein as sliced_wasserstein
    from .samples.likelihood import LikelihoodReport as LikelihoodReport
    from .samples.likelihood import log_likelihood as log_likelihood
    from .samples.quality import QualityReport as QualityReport
    from .samples.quality import sample_quality as sample_quality
    from .stability.stability import StabilityReport as StabilityReport
    from .stability.stability import validate_stability as validate_stability

_HOMES = {
    "claims.report": ("ClaimsReport", "validate_claims"),
    "cost.budget": ("ErrorBudgetReport", "error_budget"),
    "cost.cells": ("WorkPrecisionReport",),
    "cost.precision": ("work_precision",),
    "orders.conditions": ("ConditionsReport", "validate_conditions"),
    "orders.order": ("OrderReport", "validate_order"),
    "orders.slopes": ("Slope", "fit_slope"),
    "orders.strong_weak": ("StochasticReport", "validate_strong", "validate_weak"),
    "problems": ("Case",),
    "references": ("sampling_cases",),
    "samples.bound": ("BoundReport", "variational_bound"),
    "samples.distances": ("Estimate", "frechet_distance", "paired_distance", "picture_psnr", "sliced_wasserstein"),
    "samples.likelihood": ("LikelihoodReport", "log_likelihood"),
    "samples.quality": ("QualityReport", "sample_quality"),
    "stability.stability": ("StabilityReport", "validate_stability"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
