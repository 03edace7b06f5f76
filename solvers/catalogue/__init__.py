"""The catalogue. A row is a name for method x form, with its claimed order, its names elsewhere and its source."""

from . import classical as classical
from . import exponential as exponential
from . import multistep as multistep
from . import stochastic as stochastic
