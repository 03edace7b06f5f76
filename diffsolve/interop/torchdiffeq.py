"""torchdiffeq's methods (Chen et al. 2018), by their names there: `solve(problem, "torchdiffeq:dopri5(rtol=1e-6)")`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from ..errors import SolverError, did_you_mean
from ..field import Field
from ..registry import SolverEntry, library_entry
from ..solver import Driver, Span
from ..validate import above_zero

if TYPE_CHECKING:
    from ..control import Controller

# method: order, evaluations a step (None: as many as its error control takes, or its start)
METHODS: dict[str, tuple[int, int | None]] = {
    "euler": (1, 1), "midpoint": (2, 2), "heun2": (2, 2), "heun3": (3, 3), "rk4": (4, 4),
    "explicit_adams": (4, None), "implicit_adams": (4, None), "fehlberg2": (2, None), "adaptive_heun": (2, None),
    "bosh3": (3, None), "dopri5": (5, None), "dopri8": (8, None),
}  # fmt: skip


ADAPTIVE = [name for name, (_, stages) in METHODS.items() if stages is None and not name.endswith("_adams")]


def entry(method: str) -> SolverEntry:
    """The row of a method. Raises SolverError for one that torchdiffeq does not have."""
    if method not in METHODS:
        raise SolverError(f"torchdiffeq has no method {method!r}{did_you_mean(method, METHODS)}")
    order, stages = METHODS[method]
    return library_entry(
        f"torchdiffeq:{method}", partial(TorchDiffEq, method), order=order, stages=stages, form="sigma",
        source="Chen et al. 2018, torchdiffeq",
    )  # fmt: skip


class TorchDiffEq(Driver):
    """`torchdiffeq.odeint` over the whole grid, in any form; the states at its nodes.

    rtol, atol: of the adaptive ones, which step to the grid's end and no further, 1e-7 and 1e-9 unless a solve says
    otherwise, and of implicit_adams' corrector. options: odeint's own; explicit_adams is given max_order=4, since it
    explodes at its default of 12. rk4 is Kutta's 3/8 rule there.
    """

    def __init__(self, method: str, rtol: float | None = None, atol: float | None = None, **options: object) -> None:
        given = {name: above_zero(v, name) for name, v in (("rtol", rtol), ("atol", atol)) if v is not None}
        self.method, self.options, self.stages = method, options, METHODS[method][1]
        if given and method not in (*ADAPTIVE, "implicit_adams"):
            raise self._fixed()
        self.rtol, self.atol = given.get("rtol", 1e-7), given.get("atol", 1e-9)
        if method.endswith("_adams"):
            self.options.setdefault("max_order", 4)

    def tolerating(self, rtol: float | None, atol: float | None, controller: Controller | None) -> Self:
        if controller is not None:
            raise SolverError(f"{self!r} has a rule of its own for its steps; leave controller out")
        if self.method not in ADAPTIVE:
            raise self._fixed()
        one = [above_zero(v, name) for name, v in (("rtol", rtol), ("atol", atol)) if v is not None]
        return self.with_changes(rtol=one[0], atol=one[-1])

    def _fixed(self) -> SolverError:
        able = ", ".join(f"torchdiffeq:{name}" for name in ADAPTIVE)
        return SolverError(
            f"torchdiffeq's {self.method} takes the grid's steps and does not estimate their error; leave out rtol "
            f"and atol, or take one of: {able}"
        )

    def run(self, f: Field, y: Tensor, spans: Sequence[Span]) -> Iterator[Tensor]:
        from torchdiffeq import odeint

        def rate(t: Tensor, u: Tensor) -> Tensor:
            value: Tensor = f(u, float(t))
            return value + u * f.form.linear if f.form.linear else value

        nodes = [spans[0].start, *(span.end for span in spans)]
        t = torch.tensor(nodes, dtype=torch.float64, device=y.device)
        options = dict(self.options)
        if self.method in ADAPTIVE:
            options.setdefault("step_t", t[-1:])  # else it steps past the end, to where there may be no sigma
        with warnings.catch_warnings():
            for trouble in ("nexpected arguments", "did not converge"):
                warnings.filterwarnings("error", message=f".*{trouble}")
            try:
                states = odeint(rate, y, t, rtol=self.rtol, atol=self.atol, method=self.method, options=options)
            except (AssertionError, TypeError, UserWarning, ValueError) as error:
                raise SolverError(f"torchdiffeq's {self.method} failed: {error}") from error
        yield from states[1:]
