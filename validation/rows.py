"""Which rows of the catalogue are looked at."""

from __future__ import annotations

from diffsolve import list_solvers
from diffsolve.registry import SolverEntry


def flow_rows() -> list[SolverEntry]:
    """The rows that solve a flow or its SDE: all but those of problems with forms of their own, such as codes."""
    return [row for row in list_solvers() if row.form is not None]
