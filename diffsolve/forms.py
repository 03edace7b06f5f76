"""Where forms stood before the kernel had a register of them; the concrete ones are in `diffsolve.solvers.forms`."""

from .deprecated import elsewhere
from .form import FORMS as FORMS
from .form import StochasticForm as StochasticForm
from .form import as_form as as_form

_NAMES = ("Angle", "Data", "Flow", "Log", "Noise", "SDE", "SDENoise", "SDESigma", "SDETime", "Sigma", "Time")
__getattr__ = elsewhere(
    __name__, ExtendedSDEForm="diffsolve.solvers.er_sde.ExtendedSDEForm",
    **{f"{name}Form": f"diffsolve.solvers.forms.{name}Form" for name in _NAMES},
)  # fmt: skip
