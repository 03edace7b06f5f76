"""`diffsolve tune MODEL -n 10`: found by the command line through the entry point group `diffsolve.commands`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from diffsolve import ProbabilityFlow

app = typer.Typer()

EMBEDDED: dict[str, tuple[float, list[str], list[str]]] = {
    "emoji": (4.0, ["red apple", "penguin", "rocket", "crown", "pizza", "ghost", "cactus", "blue heart"],
              ["green apple", "owl", "sailboat", "gem stone", "taco", "robot", "tulip", "soccer ball"]),
    "fashion": (2.0, ["ankle boot", "bag", "trouser", "pullover"], ["dress", "coat", "sandal", "shirt"]),
}  # fmt: skip
"""Of an embedded model its guidance, what is fitted to, and what is judged on."""


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help="As --model of `diffsolve sample`: emoji, fashion, a folder, a file.")],
    n: Annotated[int, typer.Option("-n", "--steps", help="Steps.")] = 10,
    solver: Annotated[str | None, typer.Option(help="The grid is fitted to it.", show_default="the default")] = None,
    guidance: Annotated[float | None, typer.Option(show_default="as of `diffsolve sample`")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What to fit to; again for more.", show_default="some of an embedded model")
    ] = None,
    held: Annotated[
        list[str] | None, typer.Option(help="What to judge the grid on.", show_default="the same, from other noise")
    ] = None,
    seed: int = 0,
    rounds: Annotated[int, typer.Option(help="At most; each takes n + 2 solves or so.")] = 6,
    config: Annotated[
        str | None, typer.Option(help="For a single file: a folder or hub id of configs.", show_default="SD 1.5's")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub id.", show_default="its newest")] = None,
    device: str | None = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The JSON to write.", show_default="MODEL-SOLVER-N.json")
    ] = None,
) -> None:
    """Fit a grid to a model, without training; then `--schedule FILE.json`, or schedule="FILE.json"."""
    from rich.console import Console

    from diffsolve import SolverError
    from diffsolve.errors import OutputError

    from ..cost import tune as tuning
    from ..report import write_text
    from .stamp import this_command

    usual, fitted_to, judged_on = EMBEDDED.get(model, (7.5, [], []))
    prompts = prompt or fitted_to
    others = held or (prompts if prompt else judged_on)
    if not prompts:
        raise SolverError(f"{model} comes without prompts to fit to; name some, eight or so: --prompt ... --prompt ...")
    if len(others) != len(prompts):
        raise SolverError(f"as many --held as --prompt are judged on, got {len(others)} and {len(prompts)}")
    tuning.method_of(solver or "guarded_abm", n)  # before a model is loaded
    if output is not None and output.suffix != ".json":
        raise OutputError(f"{output}: the file of a schedule is known by its ending, .json; pass -o {output}.json")
    scale = usual if guidance is None else guidance
    asked = _asker(model, scale, config, revision, device or "cpu")
    made = [asked(each) for each in (prompts, others)]
    console = Console(stderr=True, highlight=False)
    with console.status(f"fitting {n} steps ...") as status:
        found = tuning.tune(
            made[0], solver, n, batch=len(prompts) * -(-tuning.STARTS // len(prompts)), held=made[1], seed=seed,
            rounds=rounds, progress=lambda said: status.update(f"fitting: {said}"),
            provenance={"model": model, "guidance": scale, "prompts": prompts, "held": others, "seed": seed,
                        "command": this_command()},
        )  # fmt: skip
    name = "".join(c if c.isalnum() else "-" for c in f"{Path(model).stem}-{found.solver}").strip("-")
    path = output or Path(f"{name}-{n}.json")
    try:
        write_text(path, found.to_json())
    except OSError as error:
        raise OutputError(f"{path} can't be written ({error.strerror or error}); name another place") from error
    typer.echo(f"{found}\n{path}: use it as --schedule {path}, or schedule={str(path)!r}")


def _asker(
    model: str, scale: float, config: str | None, revision: str | None, device: str
) -> Callable[[list[str]], ProbabilityFlow]:
    """The model, loaded once: prompts -> the problem that `diffsolve sample` has of them."""
    from diffsolve.problems import Fashion, StableDiffusion

    if model == "fashion":
        return lambda prompts: Fashion(prompts, scale, device=device)
    file = Path(model).expanduser()
    options = {"device": device, "revision": revision}
    loaded = (StableDiffusion.from_single_file(file, config=config, **options) if file.is_file()
              else StableDiffusion.from_pretrained(model, **options))  # fmt: skip
    return lambda prompts: loaded(prompts, "", scale)
