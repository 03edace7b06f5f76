"""The solver zoo: a few methods, and the catalogue of rows (method, form, order, source) made of them."""

from . import forms as forms  # isort: skip  (rows name a form: first)
from . import catalogue as catalogue
from . import choosing as choosing
from . import controllers as controllers
from . import flow_schedules as flow_schedules
from . import schedules as schedules
from .adams import Adams as Adams
from .discrete import AncestralJumps as AncestralJumps
from .ending import Ending as Ending
from .heunpp import HeunPlusPlus as HeunPlusPlus
from .langevin import Langevin as Langevin
from .predictor_corrector import PredictorCorrector as PredictorCorrector
from .predictor_corrector import TwiceEvaluated as TwiceEvaluated
from .repaint import RePaint as RePaint
from .reversible import Leapfrog as Leapfrog
from .runge_kutta import ExponentialRungeKutta as ExponentialRungeKutta
from .runge_kutta import RungeKutta as RungeKutta
from .tableaux import ExponentialTableau as ExponentialTableau
from .tableaux import Tableau as Tableau
from .wrappers import Ancestral as Ancestral
from .wrappers import CFGpp as CFGpp
from .wrappers import Churn as Churn
from .wrappers import LargeVariance as LargeVariance
from .wrappers import LearnedVariance as LearnedVariance
from .wrappers import MovedCFGpp as MovedCFGpp
from .wrappers import Restart as Restart

__all__ = [
    "Adams", "Ancestral", "AncestralJumps", "CFGpp", "Churn", "Ending", "ExponentialRungeKutta",
    "ExponentialTableau", "HeunPlusPlus", "Langevin", "LargeVariance", "Leapfrog", "LearnedVariance", "MovedCFGpp",
    "PredictorCorrector", "RePaint", "Restart", "RungeKutta", "Tableau", "TwiceEvaluated", "catalogue",
]  # fmt: skip
