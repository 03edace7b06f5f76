"""`diffsolve validate auto` and `reach`: the table of solver="auto", and what a quality delivers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def auto(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The JSON, solvers/auto.json.")] = None,
    networks: Annotated[bool, typer.Option(help="Measure on the embedded networks too: ten minutes.")] = True,
) -> None:
    """What solver="auto" chooses, by kind of problem and number of calls: the table that it reads."""
    from rich.console import Console

    from ..cost.choices import choices
    from ..report import write_text
    from .stamp import this_command

    console = Console(stderr=True)
    with console.status("") as status:
        text = choices(this_command(), networks=networks, progress=status.update)
    if output is None:
        typer.echo(text)
    else:
        write_text(output, text + "\n")
        typer.echo(f"{output}")


def reach(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The Markdown file to write.")] = None,
    networks: Annotated[bool, typer.Option(help="On the embedded networks too: ten minutes.")] = True,
) -> None:
    """What solve(quality=...) delivers: asked, estimated and true errors, and what they cost."""
    from rich.console import Console

    from ..cost.reached import page, reached
    from ..report import write_text
    from .stamp import this_command

    console = Console(stderr=True)
    with console.status("") as status:
        text = page(reached(networks, status.update), this_command())
    if output is None:
        typer.echo(text)
    else:
        write_text(output, text)
        typer.echo(f"{output}")
