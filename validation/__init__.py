"""Order and error analysis of any registered solver."""

from .order import OrderReport as OrderReport
from .order import validate_order as validate_order
from .problems import Case as Case
from .slopes import Slope as Slope
from .slopes import fit_slope as fit_slope

__all__ = ["Case", "OrderReport", "Slope", "fit_slope", "validate_order"]
