"""What the command line says beside its results: lines on the error stream."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ..errors import DiffsolveError


def note(text: str, colour: str | None = None) -> None:
    """A line on the error stream."""
    typer.secho(" ".join(text.split()), fg=colour, err=True)


@contextmanager
def reported() -> Iterator[None]:
    """What diffsolve raises and warns of, as lines for a reader; anything else is a bug and keeps its traceback."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        note(f"warning: {message}", "yellow")

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except DiffsolveError as error:
            note(f"error: {error}", "red")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            note("interrupted; nothing was written", "yellow")
            raise typer.Exit(130) from error
