"""What `diffsolve sample` does: load the model, solve with a progress bar, and write the picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import typer

from .. import Guided, NetworkDenoiser, ProbabilityFlow
from ..engine.quality import reach
from ..errors import GridError, Interrupted, ModelError
from ..grid import Final
from ..integrate import finish, start
from ..prediction import as_prediction
from ..process import as_process
from ..registry import CHOOSERS, choose, get_problem, get_schedule, get_solver
from ..run import Run
from ..solution import Callbacks, Solution, Visit
from ..solver import Solver
from . import lean, picture
from .picture import Settings
from .report import note

ONE_FILE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def draw(settings: Settings, output: Path, made_with: Mapping[str, Any], allow_pickle: bool) -> None:
    """Draw what is asked for. made_with: the surroundings of the picture that is repeated, if one is."""
    rehearse(settings)
    problem, networks, settings = opened(settings, allow_pickle)(settings)
    height, width = settings.height or 0, settings.width or 0
    picture.sheet_of(settings.batch, width, height, settings.scale)
    now = surroundings(networks, problem.device)
    differ = [f"{k} {made_with[k]} (now {now[k]})" for k in now if k in made_with and made_with[k] != now[k]]
    if differ:
        note(f"made with {', '.join(differ)}: the picture may differ", "yellow")
    run, solution, x = _drawn(problem, settings)
    images = problem.decode(x)
    result = {"steps": solution.steps, "n": solution.n, "nfe": solution.nfe, "solver": solution.solver,
              "schedule": solution.schedule, "reason": solution.reason}  # fmt: skip
    picture.write(output, picture.grid(images, settings.scale), settings, result, now)
    many = "1 picture" if len(images) == 1 else f"{len(images)} pictures"
    typer.echo(
        f"{output}: {many} of {settings.width}x{settings.height}, {solution.solver} on {solution.schedule}, "
        f"{solution.steps} steps, {solution.nfe} NFE, {solution.seconds:.1f} s"
    )
    _say_how_it_ended(run, settings)


Made = tuple[Any, list[torch.nn.Module], Settings]
"""A problem, its networks, and the settings with what the model decided filled in."""


def opened(settings: Settings, allow_pickle: bool) -> Callable[[Settings], Made]:
    """The model, loaded: what makes problems of settings that name the same one. Raises ModelError."""
    model = None if settings.model == "fashion" else load(settings, allow_pickle)

    def make(asked: Settings) -> Made:
        if asked.guidance is None:
            usual = {"emoji": 4.0, "fashion": 2.0 if asked.prompt else 1.0}.get(asked.model, 7.5)
            own = None if asked.solver in CHOOSERS else get_solver(asked.solver).guidance_range
            asked = replace(asked, guidance=own[1] if own and usual != 1 else usual)
        if model is None:
            problem, networks = _labelled(asked)
            height, width = problem.shape[-2:]
        else:
            given = asked.prompt, asked.negative, asked.guidance, asked.height, asked.width
            problem = model(*given, interval=asked.interval)
            networks, height, width = [model.unet, model.vae, model.text_encoder], problem.height, problem.width
        return problem, networks, replace(asked, height=height, width=width, device=str(problem.device))

    return make


def rehearse(settings: Settings) -> None:
    """Begin the same solve of a flow of one number, so that what no solver can be asked is found before the model is
    fetched."""
    if settings.solver not in CHOOSERS:
        get_solver(settings.solver)
    get_schedule(settings.schedule)
    if settings.process is not None:
        as_process(settings.process)
    if settings.prediction is not None:
        as_prediction(settings.prediction)
    inside = NetworkDenoiser(lambda x, t: (x, x))
    stand_in = ProbabilityFlow(denoiser=Guided(inside, 2.0), process=inside.process, shape=(1,))
    with suppress(GridError):  # the schedule may be for the model's process
        asked_of = replace(settings, batch=1, first=0, sigma_min=None, sigma_max=None)
        if settings.quality is None:
            begin(stand_in, asked_of)
        else:  # the grids of the first pair, and no more
            with suppress(StopIteration):
                reach(settings.quality, partial(_run, stand_in, asked_of), _stop, settings.nfe)


def load(settings: Settings, allow_pickle: bool) -> Any:
    """The text-to-image model. Raises ModelError where it can't be used."""
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    path = Path(settings.model).expanduser()
    one_file = path.suffix.lower() in ONE_FILE or path.is_file()
    if settings.revision is not None and (path.is_dir() or (one_file and settings.config is None)):
        raise ModelError(f"revision is {settings.revision!r}, but {settings.model} has none; leave --revision out")
    if settings.config is not None and not one_file:
        raise ModelError(f"config is {settings.config!r}, but {settings.model} is no single file; leave --config out")
    options = {"dtype": settings.dtype, "device": device, "allow_pickle": allow_pickle, "revision": settings.revision,
               "process": settings.process, "prediction": settings.prediction, "compile": settings.compile,
               "channels_last": settings.channels_last}  # fmt: skip
    kind = get_problem("stable_diffusion")
    note(f"loading {settings.model} ...")
    with lean.parts():
        if one_file:
            return kind.from_single_file(path, config=settings.config, **options)
        return kind.from_pretrained(settings.model, **options)


def _labelled(settings: Settings) -> tuple[Any, list[torch.nn.Module]]:
    """The problem of the embedded model of classes, its labels in the prompt's place, parted by commas; its network."""
    for name, usual in (("negative", ""), ("config", None), ("revision", None), ("prediction", None),
                        ("compile", False), ("channels_last", False)):
        if getattr(settings, name) != usual:
            option = name.replace("_", "-")
            raise ModelError(f"{name} is {getattr(settings, name)!r}, but fashion has none; leave --{option} out")
    labels = [label.strip() for label in settings.prompt.split(",")] if settings.prompt else None
    problem = get_problem("fashion")(labels, settings.guidance, process=settings.process or "edm",
                                     dtype=getattr(torch, settings.dtype), interval=settings.interval,
                                     device=settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for name, side in zip(("height", "width"), problem.shape[-2:], strict=True):
        if getattr(settings, name) not in (None, side):
            raise ModelError(f"{name} is {getattr(settings, name)}; fashion draws {side} pixels, leave --{name} out")
    return problem, [problem.network]


def surroundings(networks: Sequence[torch.nn.Module], device: torch.device) -> dict[str, Any]:
    """What decides the last bits besides the settings: versions, device, threads, and a digest of the weights."""
    digest = hashlib.sha256(str(next(networks[0].parameters()).dtype).encode())
    for part in networks:
        for weights in part.parameters():
            digest.update(weights.flatten()[:8].double().cpu().numpy().tobytes())
    return {
        "diffsolve": version("diffsolve"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "weights": digest.hexdigest()[:12],
    }


def begin(problem: Any, settings: Settings, samples: Sequence[int] = ()) -> Run:
    """The run of the pictures that are asked for; with a quality, after those that find its number of calls.

    samples: which of them, where they don't follow each other.
    """
    if settings.quality is None:
        return _run(problem, settings, settings.nfe, samples)
    found = reach(settings.quality, partial(_run, problem, settings), finish, settings.nfe)
    return _run(problem, settings, found.stats["calls"])


def _run(problem: Any, settings: Settings, nfe: int | None, samples: Sequence[int] = ()) -> Run:
    auto = settings.solver in CHOOSERS and settings.schedule == Settings.schedule  # which is no choice of the user's
    pair: tuple[str | Solver | None, object] = settings.solver, None if auto else settings.schedule
    if settings.quality is not None:
        pair = choose(problem, *pair, settings.n, None, False)[:2]
    return start(
        problem, *pair, settings.n, nfe=nfe, seed=settings.seed,
        batch=samples or range(settings.first, settings.first + settings.batch), sigma_min=settings.sigma_min,
        sigma_max=settings.sigma_max, final=cast(Final, settings.final), rtol=settings.rtol, atol=settings.atol,
        eta=settings.eta,
    )  # fmt: skip


def _finish(run: Run) -> tuple[Solution, torch.Tensor]:
    """Take the steps, behind a bar; the solution, and the data to show: the newest estimate where it ended early.

    The state is still noisy there. Raises Interrupted where there is no estimate yet.
    """
    with _bar() as advance:
        run.watchers.append(Callbacks(advance))
        try:
            for _ in run:
                pass
        except Interrupted:
            if run.denoised is None:
                raise
    estimate = None if run.solution.reason == "end" else run.denoised
    return run.solution, run.solution.x if estimate is None else estimate


def _drawn(problem: Any, settings: Settings) -> tuple[Run, Solution, torch.Tensor]:
    """(run, solution, the data to show), with a bar for each run that it takes."""
    if settings.quality is None:
        run = begin(problem, settings)
        return run, *_finish(run)
    runs: list[tuple[Run, Solution, torch.Tensor]] = []

    def ended(run: Run) -> Solution:
        runs.append((run, *_finish(run)))
        return run.solution

    solution = reach(settings.quality, partial(_run, problem, settings), ended, settings.nfe)
    return next(made for made in reversed(runs) if made[1] is solution)


def _stop(run: Run) -> Solution:
    raise StopIteration


def _say_how_it_ended(run: Run, settings: Settings) -> None:
    """Say why the picture is an estimate, where it is; typer.Exit where it was interrupted."""
    solution = run.solution
    if settings.quality is not None:
        note(solution.status, "yellow" if solution.stats["estimate"] > 3 * solution.stats["asked"] else None)
    elif solution.reason == "max_nfe":
        note(f"{settings.nfe} NFE were spent at sigma {solution.visited[-1]:.3g}; the picture is the newest denoised "
             "estimate. Raise --nfe, or --rtol and --atol", "yellow")  # fmt: skip
    if solution.reason == "interrupted":
        step = f"{solution.steps + 1}" if run.count is None else f"{min(solution.steps + 1, run.count)} of {run.count}"
        note(f"interrupted in step {step}; the picture is the newest denoised estimate", "yellow")
        raise typer.Exit(130)


@contextmanager
def _bar() -> Iterator[Callable[[Visit], None]]:
    """A progress bar with steps and NFE on the error stream, where that is a terminal; yields what advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.fields[steps]} steps, {task.fields[nfe]} NFE"), TimeRemainingColumn())
    console = Console(stderr=True)

    def advance(visit: Visit) -> None:
        steps = str(visit.index + 1) if visit.count is None else f"{visit.index + 1}/{visit.count}"
        bar.update(task, completed=visit.share, steps=steps, nfe=visit.nfe)

    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0, steps="0", nfe=0)
        yield advance
