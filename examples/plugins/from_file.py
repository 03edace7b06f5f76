"""A Runge-Kutta method whose coefficients are in a file, by default tableau.json beside this one.

u_{n+1} = u_n + h sum_i b_i k_i with k_i = F(u_n + h sum_j a_ij k_j, s_n + c_i h). Fractions stay fractions, and its
order is proved exactly.
"""

import json
from fractions import Fraction
from pathlib import Path

import diffsolve as ds
from diffsolve.solvers import RungeKutta, Tableau


@ds.register_solver("from_file", order=3, stages=3, source="Kutta 1901, read from a file")
def from_file(path: str = str(Path(__file__).with_name("tableau.json"))) -> RungeKutta:
    """path: of a JSON file with c, a, b and order. Raises SolverError where it can't be read."""
    try:
        read = json.loads(Path(path).read_text(encoding="utf-8"))
        c, b = (tuple(map(Fraction, read[part])) for part in "cb")
        a = tuple(tuple(map(Fraction, row)) for row in read["a"])
        return RungeKutta(Tableau(c, a, b, int(read["order"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ds.SolverError(f"can't read a tableau (c, a, b, order) from {path}: {error!r}") from error
