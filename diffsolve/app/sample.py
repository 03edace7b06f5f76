"""The command `diffsolve sample`: its options, and those of an earlier picture."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import OutputError
from . import picture
from .picture import Settings
from .report import note, reported

# An option that is changed with --like takes these back to their defaults: they belonged to its old value.
GOES_WITH = {
    "n": ("nfe", "quality"),
    "nfe": ("quality",),
    "model": ("config", "revision", "process", "prediction", "guidance", "guidance_min", "guidance_max",
              "height", "width"),
    "solver": ("eta", "rtol", "atol"),
}


Model = Annotated[
    str, typer.Option(help="emoji or fashion (embedded), a diffusers folder, a hub id, or one .safetensors file.")
]
Config = Annotated[
    str | None,
    typer.Option(help="For a single file: a diffusers folder or hub id with its configs.", show_default="SD 1.5's"),
]
Revision = Annotated[
    str | None, typer.Option(help="Of the hub id: a branch, tag or commit.", show_default="its newest")
]
SolverName = Annotated[
    str, typer.Option(help='A name of `diffsolve solvers`, "lms(order=3)", or auto: a table\'s choice.')
]
Calls = Annotated[
    int | None,
    typer.Option(help="At most so many network calls, instead of -n; with steps chosen by error, where to stop."),
]
Quality = Annotated[
    str | None, typer.Option(help="draft, good, exact or a relative error: as many steps as it takes, instead of -n.")
]
Process = Annotated[
    str | None, typer.Option(help="The network's: sd, vp, edm, flow, ...", show_default="what its config says")
]
Prediction = Annotated[
    str | None, typer.Option(help="The network's: eps, v, x0, flow, ...", show_default="what its config says")
]


def sample(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What to draw.", show_default=False)] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG to write; an older one is replaced.")] = Path(
        "out.png"
    ),
    like: Annotated[
        Path | None,
        typer.Option(help="Repeat this picture: its settings hold, but for the options that are given."),
    ] = None,
    solver: SolverName = Settings.solver,
    schedule: Annotated[
        str, typer.Option(help='A name of `diffsolve schedules`, or "karras(rho=5)".')
    ] = Settings.schedule,
    n: Annotated[int, typer.Option("-n", "--steps", help="Steps.")] = Settings.n,
    nfe: Calls = None,
    quality: Quality = None,
    seed: Annotated[int, typer.Option(help="Of the noise; picture i of a seed is the same in every batch.")] = 0,
    batch: Annotated[int, typer.Option(help="How many pictures, set in a near-square.")] = 1,
    first: Annotated[int, typer.Option(help="The number of the first of them, of all that the seed has.")] = 0,
    negative: Annotated[str, typer.Option(help="What to stay away from.")] = "",
    guidance: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance; 1 is none.", show_default="emoji 4, fashion 2, else 7.5"),
    ] = None,
    guidance_min: Annotated[float | None, typer.Option(help="Below this sigma none.", show_default="0")] = None,
    guidance_max: Annotated[float | None, typer.Option(help="Above this one none.", show_default="no end")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.", show_default="the model's")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.", show_default="the model's")] = None,
    model: Model = Settings.model,
    config: Config = None,
    revision: Revision = None,
    process: Process = None,
    prediction: Prediction = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Open weights that are pickles.")] = False,
    dtype: Annotated[str, typer.Option(help="Of the network: float32, float16, bfloat16, float64.")] = Settings.dtype,
    device: Annotated[str | None, typer.Option(show_default="cuda where there is one, else cpu")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of a stochastic solver.", show_default="1")] = None,
    rtol: Annotated[float | None, typer.Option(help="Choose steps by relative error.", show_default="off")] = None,
    atol: Annotated[float | None, typer.Option(help="Likewise, absolute.", show_default="rtol, or its own")] = None,
    sigma_min: Annotated[float | None, typer.Option(help="Where it ends.", show_default="the model's")] = None,
    sigma_max: Annotated[float | None, typer.Option(help="Where it starts.", show_default="the model's")] = None,
    final: Annotated[
        str, typer.Option(help="After sigma_min: denoise (one Euler step to 0), step (the solver's own), none.")
    ] = Settings.final,
    scale: Annotated[int, typer.Option(min=1, help="Enlarge each pixel so many times.")] = 1,
    compile: Annotated[bool, typer.Option("--compile", help="The network, for many pictures.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="The layout of its weights.")] = False,
) -> None:
    """Draw pictures of a prompt, and write them with their settings to a PNG."""
    if prompt is None and like is None:
        raise typer.BadParameter("say what to draw, or name a picture to repeat with --like", param_hint="PROMPT")
    with reported():
        picture.check_output(output)
        settings, made_with = _asked(context, like, output)
        from .draw import draw  # torch comes with it

        draw(settings, output, made_with, allow_pickle)


def _asked(context: typer.Context, like: Path | None, output: Path) -> tuple[Settings, dict[str, Any]]:
    """The settings that the options and the earlier picture come to, and what that one was made with."""
    names = {field.name for field in fields(Settings)}
    asked = {name: value for name, value in context.params.items() if name in names and value is not None}
    if like is None:
        return Settings(**asked), {}
    if os.path.exists(output) and os.path.exists(like) and os.path.samefile(like, output):
        raise OutputError(f"{output} is the picture to repeat; name another with -o")
    earlier, result, made_with = picture.read(like)
    settings = _changed(earlier, {name: value for name, value in asked.items() if _is_given(context, name)}, like)
    if result.get("reason") not in ("end", "max_nfe"):
        note(f"{like} was {result.get('reason')} after {result.get('steps')} steps; this run goes to the end")
    return settings, made_with


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _changed(earlier: Settings, given: dict[str, Any], like: Path) -> Settings:
    """The earlier settings with the given ones in place, saying which those are."""
    given = {name: value for name, value in given.items() if getattr(earlier, name) != value}
    for name in list(given):
        given |= {other: getattr(Settings, other) for other in GOES_WITH.get(name, ()) if other not in given}
    changed = replace(earlier, **given)
    was = {name: getattr(earlier, name) for name in given if getattr(earlier, name) != getattr(changed, name)}
    changes = [f"{name} {_shown(given[name])} (was {_shown(value)})" for name, value in was.items()]
    note(f"like {like}{', but for ' if changes else ''}{', '.join(changes)}")
    return changed


def _shown(value: object) -> str:
    return "by default" if value is None else repr(value)
