"""The command line: `diffsolve sample`, `solvers`, `schedules`, `problems`, and what plugins add.

torch is imported inside the commands.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from .report import reported
from .sample import sample
from .tables import problems, schedules, solvers

app = typer.Typer(
    help="Diffusion samplers as numerical integrators.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def main() -> None:
    """The entry point of the `diffsolve` command."""
    try:
        with reported():  # what a plugin's command does not report itself
            app()
    except typer.Exit as stop:
        raise SystemExit(stop.exit_code) from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"diffsolve {version('diffsolve')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def _fill(commands: typer.Typer) -> None:
    """Put in the commands of our own, and those of the entry points `diffsolve.commands`."""
    own: tuple[Callable[..., None], ...] = (sample, solvers, schedules, problems)
    for command in own:
        commands.command()(command)
    for point in entry_points(group="diffsolve.commands"):
        try:
            commands.add_typer(point.load(), name=point.name)
        except Exception as error:  # one broken plugin must not take the others with it
            text = f"the command {point.name!r} ({point.value}) could not be loaded: {error!r}"
            warnings.warn(text, stacklevel=2)


with reported():
    _fill(app)
