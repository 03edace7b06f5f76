"""The solver zoo: a few methods, and the catalogue of rows (method, form, order, source) made of them."""

from . import forms as forms  # isort: skip  (rows name a form: first)
from . import catalogue as catalogue
from . import controllers as controllers
from . import schedules as schedules
from .adams import Adams as Adams
from .discrete import AncestralJumps as AncestralJumps
from .ending import Ending as Ending
from .langevin import Langevin as Langevin
from .predictor_corrector import PredictorCorrector as PredictorCorrector
from .repaint import RePaint as RePaint
from .runge_kutta import ExponentialRungeKutta as ExponentialRungeKutta
from .runge_kutta import RungeKutta as RungeKutta
from .tableaux import ExponentialTableau as ExponentialTableau
from .tableaux import Tableau as Tableau
from .wrappers import Ancestral as Ancestral
from .wrappers import CFGpp as CFGpp
from .wrappers import Churn as Churn
from .wrappers import LargeVariance as LargeVariance
from .wrappers import LearnedVariance as LearnedVariance
from .wrappers import Restart as Restart

__all__ = [
    "Adams", "Ancestral", "AncestralJumps", "CFGpp", "Churn", "Ending", "ExponentialRungeKutta",
    "ExponentialTableau", "Langevin", "LargeVariance", "LearnedVariance", "PredictorCorrector", "RePaint", "Restart",
    "RungeKutta", "Tableau", "catalogue",
]  # fmt: skip
