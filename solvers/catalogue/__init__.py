"""The catalogue. A row is a name for method x form, with its claimed order, its names elsewhere and its source."""

from . import adaptive as adaptive
from . import classical as classical
from . import community as community
from . import discrete as discrete
from . import exponential as exponential
from . import flow as flow
from . import multistep as multistep
from . import recommended as recommended
from . import reversible as reversible
from . import sde as sde
from . import stochastic as stochastic
from . import wrapped as wrapped
