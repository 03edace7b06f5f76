"""The command `diffsolve batch`: many pictures, over processes and machines, to be killed and started again."""

from __future__ import annotations

import inspect
import json
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..errors import OutputError, ProblemError
from .lines import read_lines
from .picture import Settings
from .report import reported
from .sample import sample

_SAMPLE = inspect.signature(sample).parameters
_HINTS = get_type_hints(sample, include_extras=True)
_SHARED = [field.name for field in fields(Settings) if field.name not in ("prompt", "batch")]


def batch(
    prompts: Annotated[str, typer.Argument(help="A file of JSON lines, or one prompt.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of the pictures and index.jsonl.")],
    count: Annotated[int | None, typer.Option(help="Pictures of each prompt.", show_default="1")] = None,
    shard: Annotated[
        str | None, typer.Option(help="Of array jobs: i/n, i from 0.", show_default="all of them")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Pictures under way at a time.", show_default="as --rows")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Of each network call; the last bits depend on it.", show_default="4, cuda 16"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what came of it as one JSON object.")] = False,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Open weights that are pickles.")] = False,
    **options: Any,
) -> None:
    """Draw many pictures, one PNG each, and an index of them; the same command goes on where it was stopped.

    A line is an object with the prompt and what else `diffsolve sample` takes: {"prompt": "red apple", "seed": 3, "n":
    12}. Under torchrun, accelerate launch, mpirun or srun each process draws its share.
    """
    with reported():
        from ..parallel import Board, Share

        share = Share.of(shard)
        if count is not None and not 0 < count <= 10**9:
            raise ProblemError(f"count is {count}; expected a whole number of at least 1")
        pictures = read_lines(prompts, Settings(**{k: v for k, v in options.items() if v is not None}), count)
        _check_folder(output)
        Board(output / ".batch" / "ranks", share).say()
        from .many import draw_many, rehearsed  # torch comes with it

        rehearsed(pictures)
        before = signal.signal(signal.SIGTERM, _as_interrupt)
        try:
            told = draw_many(pictures, output, share, allow_pickle, max_batch, rows)
        finally:
            signal.signal(signal.SIGTERM, before)
        if share.rank == 0:
            typer.echo(json.dumps(told) if as_json else _in_words(told))
        if told["missing"]:
            raise typer.Exit(1)


def _declare(command: Callable[..., None]) -> None:
    """Give the command those options of `sample` that hold for each picture."""
    own = [p.replace(annotation=_hint) for p, _hint in zip(
        list(inspect.signature(command).parameters.values())[:-1],
        get_type_hints(command, include_extras=True).values(), strict=False)]  # fmt: skip
    more = [_SAMPLE[name].replace(annotation=_HINTS[name], kind=inspect.Parameter.KEYWORD_ONLY) for name in _SHARED]
    command.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*own, *more]} | {"return": None}


_declare(batch)


def _check_folder(output: Path) -> None:
    """Make the folder. Raises OutputError."""
    try:
        (output / ".batch" / "parts").mkdir(parents=True, exist_ok=True)
        (output / ".batch" / "ranks").mkdir(exist_ok=True)
    except OSError as error:
        reason = f"{output} can't be made a folder of pictures ({error.strerror})"
        raise OutputError(f"{reason}; name another with -o") from error


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _in_words(told: dict[str, Any]) -> str:
    failed = f", {told['failed']} failed (index.jsonl says why)" if told["failed"] else ""
    missing = f", {told['missing']} missing: the same command draws them" if told["missing"] > told["failed"] else ""
    seconds = f"{told['seconds']:.1f} s, {told['nfe']} NFE" if told["drawn"] else "all were there"
    ranks = f" by {told['ranks']} processes" if told["ranks"] > 1 else ""
    return f"{told['output']}: {told['pictures']} pictures, {told['drawn']} drawn{ranks}{failed}{missing}; {seconds}"
