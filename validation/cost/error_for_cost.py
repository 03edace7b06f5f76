"""Our solvers against the peers': what is run for the comparison, and its page."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version

from ..report import JSON, Saved
from ..rows import flow_rows
from .cells import DEFAULT, TIE, WON, Cell, WorkPrecisionReport, summary, versus

PEERS = ("diffusers", "k_diffusion", "torchdiffeq", "azula")
SCHEDULES = ("karras", "karras(rho=12)", "exponential")
VARIANTS = (
    # The peers' own methods where the catalogue's rows have other defaults: azula's, DEIS, UniPC, DPM-Solver on eps.
    *(f"lms(order={n}, form={form})" for form in ("sigma", "noise", "v", "data") for n in (2, 3, 4)),
    *(f"unipc(order={n}, variant={b}, form={form})"
      for n in (1, 2, 3) for b in ("bh1", "bh2") for form in ("data", "noise")),
    "dpmpp_2m(form=noise)", "dpmpp_3m_published(form=noise)",
    # Beyond them.
    "lms(order=5, form=v)", "abm(order=5, form=flow)", "abm(order=5, form=data)", "abm(order=5, predictor=4)",
    "damped_abm(order=3)", "damped_abm(tilt=0)", "damped_abm(order=5, reach=2, trust=0.67)",
    "damped_abm(order=5, tilt=0, reach=2, trust=0.67)", "damped_abm(order=5, tilt=1, reach=2, trust=0.67)",
    "damped_abm(order=5, tilt=0.5, reach=2.5, trust=0.8)", "damped_abm(order=6, reach=2, trust=0.67)",
)  # fmt: skip


def field() -> list[str]:
    """Every deterministic row of the catalogue, and the options that make a row another method."""
    return [row.name for row in flow_rows() if not row.stochastic] + list(VARIANTS)


def markdown(done: Sequence[Saved], command: str) -> str:
    """A page of work-precision reports: how it was made, each one's sentences, then each one's table."""
    made = {name: _version(name) for name in ("diffsolve", "torch", "numpy", *PEERS)}
    versions = ", ".join(f"{name.replace('_', '-')} {number}" for name, number in made.items() if number)
    lines = [
        "# Error for cost",
        "",
        f"    {command}",
        "",
        f"{date.today().isoformat()}; {versions}; Python {platform.python_version()}. Median relative error of the "
        "state at sigma_min against the exact flow. Each cell shows the best of ours and the best of the peers in the "
        f"same run, both chosen in hindsight; the last column is {DEFAULT}, what solve() takes by itself, over that "
        f"peer. A tie is a ratio within {TIE - 1:.1%} of 1: mostly the same method.",
    ]
    reports = [read(saved.data) for saved in done]
    everything = [cell for report in reports for cell in versus(report)]
    if len(done) > 1:
        lines += ["", "## All of them", "", *(f"- {line}" for line in summary(everything))]
    for saved, report in zip(done, reports, strict=True):
        cells = versus(report)
        ours, theirs = (len({c.label for c in report.cells if bool(c.peer) == peer}) for peer in (False, True))
        lines += ["", f"## {saved.title[0].upper()}{saved.title[1:]}", ""]
        lines += [f"{ours} pairs of ours, {theirs} of the peers'; {saved.seconds:.0f} s on one core.", ""]
        lines += [f"- {line}" for line in (*summary(cells), *report.notes)]
        for label, mean, share, most in report.against_peers()[:3]:
            figures = f"geometric mean {mean:.2f}, at most {WON:g} in {share:.0%}, largest {most:.2f}"
            lines.append(f"- {label}, for every cell: {figures}")
        lines += ["", "| problem | NFE | our best | error | best peer | error | ratio | default |"]
        lines += ["|" + "---|" * 8]
        for c in cells:
            lines.append(
                f"| {c.problem} | {c.budget} | {c.ours.label} | {c.ours.median:.1e} | {c.peer.label} | "
                f"{c.peer.median:.1e} | {c.ratio:.2f} | {_ratio(c.default_ratio)} |"
            )
    return "\n".join(lines) + "\n"


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _version(package: str) -> str:
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return ""


def read(data: dict[str, JSON]) -> WorkPrecisionReport:
    """The report whose `to_json` gave `data`."""
    def cell(kept: dict[str, JSON]) -> Cell:
        return Cell(**{k: v for k, v in kept.items() if v is not None or k == "budget"})  # a null was not finite

    cells = tuple(cell(kept) for kept in data["cells"])
    return WorkPrecisionReport(
        cells, tuple(data["budgets"]), data["references"], data["converged"], tuple(data["notes"])
    )
