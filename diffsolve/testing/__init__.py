"""Checks that a solver, a schedule, a process or a problem does what all of diffsolve counts on, a plugin's too.

    from diffsolve.testing import check_solver, parametrize_with_checks

    def test_my_solver():
        check_solver("my_solver")

    @parametrize_with_checks(["my_solver", MySolver(order=3)], expected_failed_checks={"check_batch": "reads the mean"})
    def test_each(solver, check):
        check(solver)
"""

from .kit import ChecksFailed as ChecksFailed
from .kit import Result as Result
from .kit import check_problem as check_problem
from .kit import check_process as check_process
from .kit import check_schedule as check_schedule
from .kit import check_solver as check_solver
from .kit import checks_of as checks_of
from .kit import parametrize_with_checks as parametrize_with_checks

__all__ = [
    "ChecksFailed", "Result", "check_problem", "check_process", "check_schedule", "check_solver", "checks_of",
    "parametrize_with_checks",
]  # fmt: skip
