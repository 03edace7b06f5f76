"""The solver zoo: a few methods, and the catalogue of rows (method, form, order, source) made of them."""

from . import catalogue as catalogue
from .adams import Adams as Adams
from .runge_kutta import ExponentialRungeKutta as ExponentialRungeKutta
from .runge_kutta import RungeKutta as RungeKutta
from .tableaux import ExponentialTableau as ExponentialTableau
from .tableaux import Tableau as Tableau

__all__ = ["Adams", "ExponentialRungeKutta", "ExponentialTableau", "RungeKutta", "Tableau", "catalogue"]
