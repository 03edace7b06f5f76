"""Order and error analysis of any registered solver."""

from .conditions import ConditionsReport as ConditionsReport
from .conditions import validate_conditions as validate_conditions
from .order import OrderReport as OrderReport
from .order import validate_order as validate_order
from .problems import Case as Case
from .slopes import Slope as Slope
from .slopes import fit_slope as fit_slope
from .stability import StabilityReport as StabilityReport
from .stability import validate_stability as validate_stability

__all__ = [
    "Case", "ConditionsReport", "OrderReport", "Slope", "StabilityReport", "fit_slope", "validate_conditions",
    "validate_order", "validate_stability",
]  # fmt: skip
