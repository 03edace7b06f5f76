"""The command line: `diffsolve sample`, `solvers`, `schedules`, `problems`. torch is imported inside the commands."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import picture
from .errors import DiffsolveError, Interrupted, ModelError, OutputError, SolverError, did_you_mean
from .picture import Settings

if TYPE_CHECKING:
    from .integrate import Progress

app = typer.Typer(
    help="Diffusion samplers as numerical integrators.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)
ONE_FILE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
# An option that is changed with --like takes these back to their defaults: they belonged to its old value.
GOES_WITH = {"n": ("nfe",), "model": ("config", "guidance", "height", "width"), "solver": ("eta", "rtol", "atol")}


def main() -> None:
    """The entry point of the `diffsolve` command."""
    try:
        with _reported():  # what a plugin's command does not report itself
            app()
    except typer.Exit as stop:
        raise SystemExit(stop.exit_code) from None


def _note(text: str, colour: str | None = None) -> None:
    typer.secho(" ".join(text.split()), fg=colour, err=True)


@contextmanager
def _reported() -> Iterator[None]:
    """What diffsolve raises and warns of, as lines for a reader; anything else is a bug and keeps its traceback."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _note(f"warning: {message}", "yellow")

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except DiffsolveError as error:
            _note(f"error: {error}", "red")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            _note("interrupted; nothing was written", "yellow")
            raise typer.Exit(130) from error


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"diffsolve {version('diffsolve')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
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
    solver: Annotated[str, typer.Option(help='A name of `diffsolve solvers`, or "lms(order=3)".')] = Settings.solver,
    schedule: Annotated[
        str, typer.Option(help='A name of `diffsolve schedules`, or "karras(rho=5)".')
    ] = Settings.schedule,
    n: Annotated[int, typer.Option("-n", "--steps", help="Steps.")] = Settings.n,
    nfe: Annotated[
        int | None,
        typer.Option(help="At most so many network calls, instead of -n; with steps chosen by error, where to stop."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise; picture i of a seed is the same in every batch.")] = 0,
    batch: Annotated[int, typer.Option(help="How many pictures, set in a near-square.")] = 1,
    negative: Annotated[str, typer.Option(help="What to stay away from.")] = "",
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 is none.", show_default="4 with emoji, else 7.5")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.", show_default="the model's")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.", show_default="the model's")] = None,
    model: Annotated[
        str, typer.Option(help="emoji (embedded), a diffusers folder, a hub id, or one .safetensors file.")
    ] = Settings.model,
    config: Annotated[
        str | None,
        typer.Option(help="For a single file: a diffusers folder or hub id with its configs.", show_default="SD 1.5's"),
    ] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Open weights that are pickles.")] = False,
    dtype: Annotated[str, typer.Option(help="Of the network: float32, float16, bfloat16, float64.")] = Settings.dtype,
    device: Annotated[str | None, typer.Option(show_default="cuda where there is one, else cpu")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of a stochastic solver.", show_default="1")] = None,
    rtol: Annotated[
        float | None, typer.Option(help="Choose the steps by their error, relative to the picture.", show_default="off")
    ] = None,
    atol: Annotated[
        float | None, typer.Option(help="Likewise, absolute.", show_default="rtol, or the solver's")
    ] = None,
    sigma_min: Annotated[float | None, typer.Option(help="Where it ends.", show_default="the model's")] = None,
    sigma_max: Annotated[float | None, typer.Option(help="Where it starts.", show_default="the model's")] = None,
    final: Annotated[
        str, typer.Option(help="After sigma_min: denoise (one Euler step to 0), step (the solver's own), none.")
    ] = Settings.final,
    scale: Annotated[int, typer.Option(min=1, help="Enlarge each pixel so many times.")] = 1,
) -> None:
    """Draw pictures of a prompt, and write them with their settings to a PNG."""
    names = {field.name for field in fields(Settings)}
    asked = {name: value for name, value in context.params.items() if name in names and value is not None}
    explicit = {name for name in asked if _is_explicit(context, name)}
    if prompt is None and like is None:
        raise typer.BadParameter("say what to draw, or name a picture to repeat with --like", param_hint="PROMPT")
    with _reported():
        picture.check_output(output)
        made_with: dict[str, Any] = {}
        settings = Settings(**asked)
        if like is not None:
            if os.path.exists(output) and os.path.exists(like) and os.path.samefile(like, output):
                raise OutputError(f"{output} is the picture to repeat; name another with -o")
            earlier, result, made_with = picture.read(like)
            settings = _changed(earlier, {name: asked[name] for name in explicit}, like)
            if result.get("reason") not in ("end", "max_nfe"):
                _note(f"{like} was {result.get('reason')} after {result.get('steps')} steps; this run goes to the end")
        _sample(settings, output, made_with, allow_pickle)


def _is_explicit(context: typer.Context, name: str) -> bool:
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
    _note(f"like {like}{', but for ' if changes else ''}{', '.join(changes)}")
    return changed


def _shown(value: Any) -> str:
    return "by default" if value is None else repr(value)


def _sample(settings: Settings, output: Path, made_with: Mapping[str, Any], allow_pickle: bool) -> None:
    from .integrate import solve
    from .registry import get_schedule, get_solver

    get_solver(settings.solver), get_schedule(settings.schedule)  # a wrong name is found before the model is fetched
    model = _load(settings, allow_pickle)
    guidance = settings.guidance
    if guidance is None:
        guidance = 4.0 if settings.model == "emoji" else 7.5
    problem = model(settings.prompt, settings.negative, guidance, settings.height, settings.width)
    settings = replace(
        settings, guidance=guidance, height=problem.height, width=problem.width, device=str(model.device)
    )
    now = _surroundings(model)
    differ = [f"{k} {made_with[k]} (now {now[k]})" for k in now if k in made_with and made_with[k] != now[k]]
    if differ:
        _note(f"made with {', '.join(differ)}: the picture may differ", "yellow")
    newest: Progress | None = None
    with _bar() as advance:

        def watch(progress: Progress) -> None:
            nonlocal newest
            newest = progress
            advance(progress)

        try:
            solution = solve(
                problem, settings.solver, settings.schedule, settings.n, nfe=settings.nfe, seed=settings.seed,
                batch=settings.batch, sigma_min=settings.sigma_min, sigma_max=settings.sigma_max,
                final=settings.final, rtol=settings.rtol, atol=settings.atol,  # type: ignore[arg-type]
                eta=settings.eta, callback=watch,
            )  # fmt: skip
            x = solution.x
            if solution.reason == "max_nfe" and newest is not None and newest.denoised is not None:
                x = newest.denoised  # the state is still noisy
        except Interrupted as stop:
            estimate = newest.field.denoised() if newest is not None else None
            if estimate is None:
                raise
            solution, x = stop.solution, estimate
    images = problem.decode(x)
    result = {"steps": solution.steps, "n": solution.n, "nfe": solution.nfe, "solver": solution.solver,
              "schedule": solution.schedule, "reason": solution.reason}  # fmt: skip
    picture.write(output, picture.grid(images, settings.scale), settings, result, now)
    many = "1 picture" if len(images) == 1 else f"{len(images)} pictures"
    typer.echo(
        f"{output}: {many} of {settings.width}x{settings.height}, {solution.solver} on {solution.schedule}, "
        f"{solution.steps} steps, {solution.nfe} NFE, {solution.seconds:.1f} s"
    )
    if solution.reason == "max_nfe":
        _note(f"{settings.nfe} NFE were spent at sigma {solution.sigmas[-1]:.3g}; the picture is the newest denoised "
              "estimate. Raise --nfe, or --rtol and --atol", "yellow")  # fmt: skip
    if solution.reason == "interrupted":
        adaptive = newest is None or newest.count is None
        step = f"step {solution.steps + 1}" + ("" if adaptive else f" of {solution.n}")
        _note(f"interrupted in {step}; the picture is the newest denoised estimate", "yellow")
        raise typer.Exit(130)


def _load(settings: Settings, allow_pickle: bool) -> Any:
    import torch

    from .registry import get_problem

    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    path = Path(settings.model).expanduser()
    one_file = path.suffix.lower() in ONE_FILE or path.is_file()
    if settings.config is not None and not one_file:
        raise ModelError(f"config is {settings.config!r}, but {settings.model} is no single file; leave --config out")
    options = {"dtype": settings.dtype, "device": device, "allow_pickle": allow_pickle}
    kind = get_problem("stable_diffusion")
    _note(f"loading {settings.model} ...")
    if one_file:
        return kind.from_single_file(path, config=settings.config, **options)
    return kind.from_pretrained(settings.model, **options)


def _surroundings(model: Any) -> dict[str, Any]:
    """What decides the last bits besides the settings: versions, device, threads, and a digest of the weights."""
    import hashlib
    from importlib.metadata import version

    import torch

    digest = hashlib.sha256(str(model.dtype).encode())
    for part in (model.unet, model.vae, model.text_encoder):
        for weights in part.parameters():
            digest.update(weights.flatten()[:8].double().cpu().numpy().tobytes())
    device = model.device
    return {
        "diffsolve": version("diffsolve"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "weights": digest.hexdigest()[:12],
    }


@contextmanager
def _bar() -> Iterator[Any]:
    """A progress bar with steps and NFE on the error stream, where that is a terminal; yields what advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Columns

    columns = (BarColumn(), TextColumn("{task.fields[steps]} steps, {task.fields[nfe]} NFE"), TimeRemainingColumn())
    console = Console(stderr=True)

    def advance(p: Progress) -> None:
        steps = str(p.index + 1) if p.count is None else f"{p.index + 1}/{p.count}"
        bar.update(task, completed=p.share, steps=steps, nfe=p.nfe)

    with Columns(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0, steps="0", nfe=0)
        yield advance


@app.command()
def solvers(
    tags: Annotated[str, typer.Option(help="Only those with all of these tags or forms: multistep,data.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the solvers: order, cost, form, source, and their names elsewhere."""
    with _reported():
        from .registry import list_solvers

        entries = list_solvers(tags)
        if not entries:
            known = {tag for e in list_solvers() for tag in (*e.tags, e.form)}
            unknown = [t for t in (t.strip() for t in tags.split(",")) if t not in known]
            raise SolverError(
                f"no solver has the tags {tags!r}{did_you_mean(unknown[0], known) if unknown else '; ask for fewer'}"
            )
        if as_json:
            _print_json([{k: v for k, v in vars(e).items() if k != "factory"} for e in entries])
            return
        rows = []
        for e in entries:
            order = str(e.order) if e.order == e.started else f"{e.started}/{e.order}"
            facts = [e.name, order, str(e.stages), e.form, "yes" if e.stochastic else ""]
            rows.append((facts, e.aliases, e.source))
        _print_table(["name", "order", "NFE", "form", "noise"], rows)
        _note("order: as started/with an exact start, where they differ; NFE: calls a step; noise: solves the SDE")
        _note("other libraries' methods go by their names there: torchdiffeq:dopri5, torchsde:srk")


@app.command()
def schedules(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List the schedules: where they put the steps, and their names elsewhere."""
    with _reported():
        from .registry import list_schedules

        entries = list_schedules()
        if as_json:
            _print_json([{k: v for k, v in vars(e).items() if k != "factory"} for e in entries])
        else:
            _print_table(["name"], [([e.name], e.aliases, e.source) for e in entries])


@app.command()
def problems() -> None:
    """List the problems that are installed."""
    with _reported():
        from .registry import get_problem, list_problems

        for name in list_problems():
            typer.echo(f"{name}: {(get_problem(name).__doc__ or '').splitlines()[0]}")


def _print_json(rows: Sequence[Any]) -> None:
    import json

    typer.echo(json.dumps(rows, indent=2, default=list))


def _print_table(columns: Sequence[str], rows: Sequence[tuple[list[str], Mapping[str, str], str]]) -> None:
    """Rows of (cells, names elsewhere, source): a line each where that fits or is piped, else in a narrow layout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)  # a pipe has no edge: nothing is folded
    found = {peer for _, aliases, _ in rows for peer in aliases}
    peers = [peer for peer in ("k-diffusion", "diffusers", "A1111") if peer in found]
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


for _point in entry_points(group="diffsolve.commands"):
    app.add_typer(_point.load(), name=_point.name)
