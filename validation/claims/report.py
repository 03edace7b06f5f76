"""What people say of samplers, tested: each claim with a verdict and the figures that it rests on.

The claims are the folklore of the web interfaces and the papers' own summaries. They are tested on mixtures, whose flow
is known, and on the embedded model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from diffsolve import SolverError
from diffsolve.errors import did_you_mean

from ..report import as_json
from . import models, samplers
from .bench import benches
from .claim import CLAIMS, Claim, Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

CHAPTERS = (samplers, models)  # their import fills CLAIMS


@dataclass(frozen=True)
class ClaimsReport:
    """Every finding; passed means that each claim was decided, not that it holds."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return bool(self.findings) and all(f.verdict and f.figures for f in self.findings)

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(f.key for f in self.findings))

    def of(self, key: str) -> list[Finding]:
        """The findings of one claim, one for each problem that it was tested on."""
        return [f for f in self.findings if f.key == key]

    def _verdict(self) -> str:
        counts = [(v, sum(f.verdict == v for f in self.findings)) for v in ("holds", "only when", "does not hold")]
        return f"{len(self.findings)} findings: {', '.join(f'{n} {v}' for v, n in counts)}"

    def __str__(self) -> str:
        lines = [f"  {f.says} [{f.on}]: {f.said}. {f.figures}" for f in self.findings]
        return "\n".join([f"claims: {self._verdict()}", *lines])

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table("claim", "on", "verdict", "figures", title="What is said of samplers", caption=self._verdict())
        colours = {"holds": "green", "does not hold": "red", "only when": "yellow"}
        for f in self.findings:
            table.add_row(f.says, f.on, f"[{colours[f.verdict]}]{f.said}[/]", f.figures)
        return table

    def to_json(self) -> str:
        return as_json({
            "passed": self.passed,
            "findings": [
                {"key": f.key, "says": f.says, "on": f.on, "verdict": f.verdict, "condition": f.condition,
                 "figures": f.figures, "curves": {k: [list(x), list(y)] for k, (x, y) in f.curves.items()}}
                for f in self.findings
            ],
        })  # fmt: skip

    def to_markdown(self) -> str:
        """The page docs/claims.md."""
        parts = [
            "# What is said of samplers, tested\n",
            "Made by `diffsolve validate claims --markdown docs/claims.md`. Each claim is tested on mixtures, whose "
            "flow is known, and on the embedded model; differences are medians over samples of the relative RMS.\n",
            f"{self._verdict()}.\n",
            "![Curves of the claims](claims.png)\n",
        ]
        for key in self.keys:
            found = self.of(key)
            parts.append(f"## {found[0].says}\n\nSaid by {CLAIMS[key].source}.\n")
            parts += [f"- **{f.said[0].upper()}{f.said[1:]}** ({f.on}). {f.figures}" for f in found]
            parts.append("")
        return "\n".join(parts)

    def plot(self) -> Figure:
        """A panel for each finding that has curves."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter

        drawn = [f for f in self.findings if f.curves]
        columns = 3
        rows = -(-len(drawn) // columns) or 1
        figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
        for place, f in enumerate(drawn, 1):
            axes = figure.add_subplot(rows, columns, place)
            for label, (x, y) in f.curves.items():
                axes.plot(x, y, marker=".", label=label)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(f.axes[0])
            axes.set_ylabel(f.axes[1])
            axes.set_title(f"{f.key}, {f.on}", fontsize=9)
            axes.legend(fontsize=6)
        return figure


def claims() -> dict[str, Claim]:
    """Every claim, by its key."""
    return dict(CLAIMS)


Spread = Callable[[Callable[[tuple[bool, int, str]], Finding], Iterable[tuple[bool, int, str]]], Iterable[Finding]]
"""As `map`, such as `diffsolve.interop.ray.spread`."""


def validate_claims(
    keys: Sequence[str] | None = None, *, quick: bool = False, watch: Callable[[str], object] = bool,
    spread: Spread = map,
) -> ClaimsReport:  # fmt: skip
    """Test every claim (or those of `keys`) and say whether it holds.

    quick: mixtures only. watch: called with the name of each test as it begins. spread: over what the tests go. Raises
    SolverError for an unknown key.
    """
    for key in keys or ():
        if key not in CLAIMS:
            raise SolverError(f"unknown claim {key!r}{did_you_mean(key, CLAIMS)}")

    def tests() -> Iterator[tuple[bool, int, str]]:
        for index, bench in enumerate(_benches(quick)):
            for claim in (CLAIMS[key] for key in keys or CLAIMS):
                if claim.concerns(bench):
                    watch(f"{claim.key}, {bench.name}")
                    yield quick, index, claim.key

    found = list(spread(_tested, tests()))
    return ClaimsReport(tuple(sorted(found, key=lambda f: list(CLAIMS).index(f.key))))


def _tested(of: tuple[bool, int, str]) -> Finding:
    quick, index, key = of
    return CLAIMS[key].test(_benches(quick)[index])


_benches = lru_cache(maxsize=2)(benches)
