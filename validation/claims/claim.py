"""What a claim is: its text, where it is told, and the function that tests it on one problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from .bench import EMBEDDED, Bench

Verdict = Literal["holds", "does not hold", "only when"]
Curve = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Finding:
    """A claim as it was tested on one problem. figures: the numbers, in words; curves: (x, y) by label, for a plot.

    key, says, on: the claim's own and the problem's name, filled in by the claim.
    """

    verdict: Verdict
    figures: str
    condition: str = ""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    axes: tuple[str, str] = ("", "")
    key: str = ""
    says: str = ""
    on: str = ""

    @property
    def said(self) -> str:
        return f"{self.verdict} {self.condition}".strip()


Test = Callable[[Bench], Finding]


@dataclass(frozen=True)
class Claim:
    """A claim as it is told, and its test. source: who says so. on_mixtures_only: it asks for what is known exactly."""

    key: str
    says: str
    source: str
    run: Test
    on_mixtures_only: bool = False

    def concerns(self, bench: Bench) -> bool:
        return not (self.on_mixtures_only and bench.name == EMBEDDED)

    def test(self, bench: Bench) -> Finding:
        return replace(self.run(bench), key=self.key, says=self.says, on=bench.name)


CLAIMS: dict[str, Claim] = {}
"""Every claim whose module was imported, by its key, in the order in which they are told."""


def claim(says: str, *, key: str, source: str, on_mixtures_only: bool = False) -> Callable[[Test], Test]:
    """Make a function of a Bench the test of a claim: it measures, and says what it finds."""

    def register(run: Test) -> Test:
        CLAIMS[key] = Claim(key, says, source, run, on_mixtures_only)
        return run

    return register
