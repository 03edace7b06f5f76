"""The commands that list what there is: `diffsolve solvers`, `schedules`, `problems`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ProblemError, SolverError, did_you_mean
from .report import note, reported

if TYPE_CHECKING:
    from ..registry import SolverEntry

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
OF_SOLVER = (
    "name", "order", "order_as_started", "strong", "weak", "form", "stages", "stochastic", "source", "aliases", "tags",
    "note",
)  # fmt: skip
OF_SCHEDULE = ("name", "aliases", "source")
PEERS = ("k-diffusion", "diffusers", "A1111")  # these have a column each
Row = tuple[list[str], Mapping[str, str], str]
"""(cells, names elsewhere, source)."""


def solvers(
    tags: Annotated[str, typer.Option(help="Only those with all of these tags or forms: multistep,data.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the solvers: order, cost, form, source, and their names elsewhere."""
    with reported():
        from ..registry import list_solvers

        entries = list_solvers(tags)
        if not entries:
            raise _no_such_tags(tags, list_solvers())
        if as_json:
            _print_json(OF_SOLVER, entries)
            return
        rows = [(_cells(entry), entry.aliases, entry.source) for entry in entries]
        _print_table(["name", "order", "NFE", "form", "noise"], rows)
        note("order: as started/with an exact start, where they differ; NFE: calls a step; noise: solves the SDE")
        note("other libraries' methods go by their names there: torchdiffeq:dopri5, torchsde:srk")


def schedules(as_json: AsJson = False) -> None:
    """List the schedules: where they put the steps, and their names elsewhere."""
    with reported():
        from ..registry import list_schedules

        entries = list_schedules()
        if as_json:
            _print_json(OF_SCHEDULE, entries)
        else:
            _print_table(["name"], [([e.name], e.aliases, e.source) for e in entries])


def problems() -> None:
    """List the problems that are installed."""
    with reported():
        from ..registry import get_problem, list_problems

        for name in list_problems():
            try:
                about = (get_problem(name).__doc__ or "").strip().partition("\n")[0]
            except ProblemError as error:  # one broken plugin must not take the others with it
                note(f"warning: {error}", "yellow")
            else:
                typer.echo(f"{name}: {about}")


def _cells(entry: SolverEntry) -> list[str]:
    order, started, stages = (
        "-" if number is None else str(number) for number in (entry.order, entry.order_as_started, entry.stages)
    )
    orders = order if order == started else f"{started}/{order}"
    return [entry.name, orders, stages, entry.form or "-", "yes" if entry.stochastic else ""]


def _no_such_tags(tags: str, rows: Sequence[SolverEntry]) -> SolverError:
    known = {tag for row in rows for tag in (*row.tags, row.form) if tag}
    unknown = [tag for tag in (part.strip() for part in tags.split(",")) if tag not in known]
    return SolverError(
        f"no solver has the tags {tags!r}{did_you_mean(unknown[0], known) if unknown else '; ask for fewer'}"
    )


def _print_json(names: Sequence[str], rows: Iterable[object]) -> None:
    typer.echo(json.dumps([{name: getattr(row, name) for name in names} for row in rows], indent=2, default=list))


def _print_table(columns: Sequence[str], rows: Sequence[Row]) -> None:
    """A line for each row where that fits or is piped, else in a narrow layout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)  # a pipe has no edge: nothing is folded
    found = {peer for _, aliases, _ in rows for peer in aliases}
    peers = [peer for peer in PEERS if peer in found]
    others = sorted(found.difference(peers))

    def named(aliases: Mapping[str, str], which: Sequence[str], between: str) -> str:
        return between.join(f"{peer} {aliases[peer]}" for peer in which if peer in aliases)

    def table(heads: Sequence[str], lines: Sequence[Sequence[str]], below: int) -> Table:
        made = Table(box=None, pad_edge=False, padding=(0, 1, below, 0))
        for i, head in enumerate((*columns, *heads)):
            made.add_column(head, no_wrap=i < len(columns), overflow="fold")
        for (cells, _, _), line in zip(rows, lines, strict=True):
            made.add_row(*(Text(cell) for cell in (*cells, *line)))
        return made

    lines = [[*(names.get(p, "") for p in peers), named(names, others, ", "), source] for _, names, source in rows]
    shown = table([*peers, "elsewhere", "source"], lines, 0)
    if console.measure(shown, options=console.options.update(width=1000)).maximum > console.width:
        lines = [["\n".join(filter(None, (named(names, [*peers, *others], "\n"), text)))] for _, names, text in rows]
        shown = table(["elsewhere; source"], lines, 1)
    console.print(shown)
