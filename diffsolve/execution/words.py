"""How a solve ended, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..solution import Solution


def status(solution: Solution) -> str:
    """A sentence for every end: what was reached, at what cost, and where it was not the end, why and what to do."""
    stats, at = solution.stats, solution.nodes[-1] if solution.nodes else math.nan
    name = "t" if _timed(solution) else "sigma"
    steps = "1 step" if solution.steps == 1 else f"{solution.steps} steps"
    cost = f"{steps}, {solution.nfe} evaluations"
    if "rejected" in stats:
        errors = stats["errors"]
        cost += f", {stats['rejected']} attempts rejected"
        cost += f", the largest error {max(errors):.2g} of what is tolerated" if errors else ""
    if "estimate" in stats:
        cost += f" in all, {stats['calls']} of the grid; its error is estimated at {stats['estimate']:.2g}, "
        cost += f"{stats['asked']:g} was asked for"
    where = f"at {name} = {at:.4g}"
    short = {
        "end": f"reached {name} = {at:.4g} in {cost}",
        "max_nfe": f"stopped {where} after {cost}: the budget has no room for another attempt; raise nfe, or rtol and "
                   "atol, or go on from there",
        "stopped": f"stopped {where} after {cost}: a callback asked for it",
        "event": f"ended {where} after {cost}: a terminal event happened",
        "interrupted": f"interrupted {where} after {cost}",
        "cancelled": f"cancelled {where} after {cost}",
        "failed": f"failed {where} after {cost}: {stats.get('failure', 'see the error')}",
    }  # fmt: skip
    return short.get(solution.reason, f"{solution.reason} {where} after {cost}")


def _timed(solution: Solution) -> bool:
    return not getattr(solution.problem, "forms", True)
