"""What a tape is made of: five kinds of operation on numbered registers, without a number in them."""

from __future__ import annotations

from dataclasses import dataclass

from .field import Noise, Rule

Registers = tuple[int, ...]


@dataclass(frozen=True)
class Evaluate:
    """An evaluation at the sum of the registers `row`; `parts` names the registers that its parts go to."""

    parts: tuple[tuple[str, int], ...]
    row: Registers


@dataclass(frozen=True)
class Combine:
    """register `out` = the sum of the registers `row` in their coefficients."""

    out: int
    row: Registers


@dataclass(frozen=True)
class Draw:
    """register `out` = a standard normal of an interval."""

    out: int
    kind: Noise


@dataclass(frozen=True)
class Projected:
    """register `out` = the problem's constraint put on the sum of `row`."""

    out: int
    row: Registers


@dataclass(frozen=True)
class Blend:
    """register `out` = near + w (far - near), register `share` = w (B, 1, ..., 1), as `field.blend` has it.

    row: near, far, the vectors of the evidence, and last, where `goes_on`, the share of the step before.
    """

    out: int
    share: int
    row: Registers
    rule: Rule
    goes_on: bool


Operation = Evaluate | Combine | Draw | Projected | Blend
