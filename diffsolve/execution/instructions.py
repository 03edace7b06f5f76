"""What a step's plan is made of: calls, draws and passes over numbered slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from ..field import Noise, Rule
from ..solver import Span

NEAR_ONE = 2e-15
"""How near 1 a product of a scale and its reciprocal is, and relative to them, how near 0 a sum that cancels."""


@dataclass(frozen=True)
class Meaning:
    """A call at (u, s): the network is given `given` u; N = u_share u + raw_share raw, D = (skip, out) of (u, raw).

    The last four are of an answer that is N itself (an ODE's) where `folded` is false.
    """

    given: float
    folded: bool
    u_share: float = 0.0
    raw_share: float = 1.0
    skip: float = 0.0
    out: float = 1.0
    told: float = 0.0  # the time that the network is told
    network: bool = False  # which may work in place: it is given a tensor of its own
    sigma: float = 0.0


Meanings = Callable[[float], Meaning]
"""s -> Meaning."""


@dataclass(frozen=True, eq=False)
class Pass:
    """slots[outputs] = table @ slots[inputs + outputs], a row at a time; of `watched` outputs finiteness is asked."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    table: NDArray[np.float64]
    watched: int = 0

    @cached_property
    def told(self) -> tuple[int, int, int, int]:
        """What compiled code is told of it, between how many numbers there are and where they are."""
        return len(self.inputs), len(self.outputs), self.table.ctypes.data, self.watched

    @cached_property
    def job(self) -> Callable[..., bytes]:
        return Struct(f"{5 + len(self.inputs) + len(self.outputs)}Q").pack

    def with_table(self, table: NDArray[np.float64]) -> Pass:
        """The same with other numbers, a part of a table that stays where it is."""
        return Pass(self.inputs, self.outputs, table, self.watched)


@dataclass(frozen=True, eq=False)
class Ask:
    """A network call: of slots[x] at s; its answers go to slots, by their part: "raw" and "unconditional", or N's."""

    x: int
    s: float
    meaning: Meaning
    parts: tuple[tuple[str, int], ...]
    index: int = 0  # among the calls of the run


@dataclass(frozen=True, eq=False)
class Normal:
    """slots[out] = a standard normal of the span."""

    out: int
    span: Span
    kind: Noise
    line: int = 0  # of the step's tape


@dataclass(frozen=True, eq=False)
class Constrain:
    """slots[out] = the problem's constraint put on slots[x]."""

    x: int
    out: int
    span: Span
    node: float


@dataclass(frozen=True, eq=False)
class Mix:
    """slots[out], slots[share] = field.blend of slots: near, far, evidence, and where `goes_on` a share of before."""

    row: tuple[int, ...]
    out: int
    share: int
    rule: Rule
    goes_on: bool


Instruction = Pass | Ask | Normal | Constrain | Mix
