"""The command line: `diffsolve sample`, `solvers`, `schedules`, `problems`, `new-solver`, ..., and what plugins add.

torch is imported inside the commands.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from ..errors import SolverError
from ..register import points
from . import lean
from .batch import batch
from .new import COMMANDS
from .report import reported
from .sample import sample
from .tables import problems, schedules, solvers

app = typer.Typer(
    help="Diffusion samplers as numerical integrators.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def main() -> None:
    """The entry point of the `diffsolve` command."""
    lean.own_process = True
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
    own: tuple[Callable[..., None], ...] = (sample, batch, solvers, schedules, problems, *COMMANDS)
    for command in own:
        commands.command()(command)
    for point in points("diffsolve.commands").values():
        try:
            if point.name in {command.__name__ for command in own}:
                raise SolverError(point.refused(f"the name {point.name!r} is taken by diffsolve itself"))
            _add(commands, point.open(SolverError, _checked), point.name)
        except SolverError as error:  # one broken plugin must not take the others with it
            warnings.warn(str(error), stacklevel=2)


def _add(commands: typer.Typer, found: typer.Typer, name: str) -> None:
    """A plugin's commands under its name; a single one has the name to itself."""
    alone = found.registered_commands[0].callback if len(found.registered_commands) == 1 else None
    if alone is None or found.registered_callback is not None or found.registered_groups:
        commands.add_typer(found, name=name)
    else:
        commands.command(name)(alone)


def _checked(found: object) -> typer.Typer:
    """A plugin's commands. What typer can't make commands of fails here, rather than in every call."""
    if not isinstance(found, typer.Typer):
        raise SolverError(f"it names a {type(found).__name__}, expected a typer.Typer")
    typer.main.get_command(found)
    return found


try:
    with reported():
        _fill(app)
except typer.Exit as stop:
    raise SystemExit(stop.exit_code) from None


if __name__ == "__main__":
    main()
