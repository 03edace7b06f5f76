"""`diffsolve validate auto` and `reach`: the table of solver="auto", and what a quality delivers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

Networks = Annotated[bool, typer.Option(help="On the embedded networks too: ten minutes.")]


def auto(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The JSON, solvers/auto.json.")] = None,
    networks: Networks = True,
) -> None:
    """What solver="auto" chooses, by kind of problem and number of calls: the table that it reads."""
    from ..cost.choices import Kept, choices
    from .stamp import kept, this_command, words

    known, stamp = Kept(kept("solvers/auto.json")), words("solvers/auto.json")
    _written(output, lambda update: choices(this_command(), known, stamp, networks=networks, progress=update))


def reach(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The Markdown file to write.")] = None,
    networks: Networks = True,
) -> None:
    """What solve(quality=...) delivers: asked, estimated and true errors, and what they cost."""
    from ..cost.reached import page, reached
    from .stamp import line, this_command

    stamp = line("docs/quality.md")
    _written(output, lambda update: stamp + page(reached(networks, update), this_command()))


def _written(output: Path | None, make: Callable[[Callable[[str], None]], str]) -> None:
    """Make a text, which says how far it is, and put it into the file or on the screen."""
    from rich.console import Console

    from ..report import write_text

    with Console(stderr=True).status("") as status:
        text = make(status.update)
    if output is None:
        typer.echo(text)
    else:
        write_text(output, text if text.endswith("\n") else text + "\n")
        typer.echo(f"{output}")
