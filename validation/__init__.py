"""Order and error analysis of any registered solver: each `validate_...` hands back a report that prints itself.

Names are loaded on first use, so that the command line can list its commands before torch is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bound import BoundReport as BoundReport
    from .bound import variational_bound as variational_bound
    from .budget import ErrorBudgetReport as ErrorBudgetReport
    from .budget import error_budget as error_budget
    from .claims import ClaimsReport as ClaimsReport
    from .claims import validate_claims as validate_claims
    from .conditions import ConditionsReport as ConditionsReport
    from .conditions import validate_conditions as validate_conditions
    from .distances import Estimate as Estimate
    from .distances import frechet_distance as frechet_distance
    from .distances import paired_distance as paired_distance
    from .distances import picture_psnr as picture_psnr
    from .distances import sliced_wasserstein as sliced_wasserstein
    from .likelihood import LikelihoodReport as LikelihoodReport
    from .likelihood import log_likelihood as log_likelihood
    from .order import OrderReport as OrderReport
    from .order import validate_order as validate_order
    from .precision import WorkPrecisionReport as WorkPrecisionReport
    from .precision import work_precision as work_precision
    from .problems import Case as Case
    from .quality import QualityReport as QualityReport
    from .quality import sample_quality as sample_quality
    from .references import sampling_cases as sampling_cases
    from .slopes import Slope as Slope
    from .slopes import fit_slope as fit_slope
    from .stability import StabilityReport as StabilityReport
    from .stability import validate_stability as validate_stability
    from .strong_weak import StochasticReport as StochasticReport
    from .strong_weak import validate_strong as validate_strong
    from .strong_weak import validate_weak as validate_weak

_HOME_OF = {
    "BoundReport": "bound",
    "Case": "problems",
    "ClaimsReport": "claims",
    "ConditionsReport": "conditions",
    "ErrorBudgetReport": "budget",
    "Estimate": "distances",
    "LikelihoodReport": "likelihood",
    "OrderReport": "order",
    "QualityReport": "quality",
    "Slope": "slopes",
    "StabilityReport": "stability",
    "StochasticReport": "strong_weak",
    "WorkPrecisionReport": "precision",
    "error_budget": "budget",
    "fit_slope": "slopes",
    "frechet_distance": "distances",
    "log_likelihood": "likelihood",
    "paired_distance": "distances",
    "picture_psnr": "distances",
    "sample_quality": "quality",
    "sampling_cases": "references",
    "sliced_wasserstein": "distances",
    "validate_claims": "claims",
    "validate_conditions": "conditions",
    "validate_order": "order",
    "validate_stability": "stability",
    "validate_strong": "strong_weak",
    "validate_weak": "strong_weak",
    "variational_bound": "bound",
    "work_precision": "precision",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
