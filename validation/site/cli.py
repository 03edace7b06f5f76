"""`diffsolve validate ...`: found by the command line through the entry point group `diffsolve.commands`.

Every command prints its report, writes JSON and HTML where asked, and exits with 1 where a claim fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from .chosen import auto, reach

if TYPE_CHECKING:
    from ..report import Report, Saved
    from .suite import Task

app = typer.Typer(help="Order and error analysis of any solver, a plugin's too.", no_args_is_help=True)
app.command()(auto)
app.command()(reach)
Solvers = Annotated[list[str] | None, typer.Argument(help="Names, with options if need be; all by default.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="The folder that keeps the reports; a rerun goes on from it.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer problems, budgets and samples: minutes, not hours.")]
Eta = Annotated[float, typer.Option(help="Of the reverse SDE: the share of its noise.")]
OnRay = Annotated[bool, typer.Option("--ray", help="Spread over a Ray cluster, or this machine's cores.")]
FOLDER = Path("out/validation")


def _finish(
    tasks: list[Task], out: Path, quick: bool = False, then: Callable[[list[Saved]], None] = lambda done: None
) -> None:
    """Run the tasks with progress, print each report, write the page, and exit with 1 where one of them fails.

    then: handed all the reports before that exit.
    """
    from rich.console import Console

    from . import suite

    console = Console(highlight=False)

    def show(task: Task, saved: Saved) -> None:
        colour = {True: "green", False: "red", None: "yellow"}[saved.passed]
        count[0] += 1
        line = f"{task.kind} {task.title}: [{colour}]{saved.verdict}[/] ({saved.seconds:.1f} s)"
        console.print(f"[{count[0]}/{len(tasks)}] {line}")
        if len(tasks) <= 4 or saved.passed is False:
            console.print(saved.text, markup=False, soft_wrap=True)

    count, done = [0], []
    try:
        done = suite.run(out, tasks, show, quick)
    except KeyboardInterrupt:
        kept = f"{count[0]} of {len(tasks)} reports are kept in {out}"
        console.print(f"interrupted: {kept}; the same command goes on", style="yellow")
        raise typer.Exit(130) from None
    suite.write_page(done, out / "index.html")
    then(done)
    differ = suite.disagreements(done)
    for name, what in differ:
        console.print(f"disagreement: {name}, {what}", style="red", markup=False, soft_wrap=True)
    failed = [saved for saved in done if saved.passed is False]
    console.print(f"{len(done) - len(failed)} of {len(done)} hold, {len(differ)} disagreements: {out / 'index.html'}")
    if failed or differ:
        raise typer.Exit(1)


def _counts(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers above 0, comma-separated; BadParameter for what is none."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"expected whole numbers above 0, such as 10,20, got {text!r}", param_hint=option)
    return numbers


def _each(
    solvers: list[str] | None, kind: str, make: Callable[[str], Report], out: Path, quick: bool = False,
    claim: str = "form",
) -> None:  # fmt: skip
    """claim: what a row must have to be among all of them."""
    from diffsolve import get_solver

    from ..rows import flow_rows
    from .suite import Task, slug

    rows = [row.name for row in flow_rows() if getattr(row, claim) is not None]
    names = [get_solver(name).name for name in solvers] if solvers else rows
    _finish([Task(f"{kind}-{slug(name)}", kind, name, partial(make, name), name) for name in names], out, quick)


@app.command()
def order(
    solvers: Solvers = None,
    start: Annotated[str, typer.Option(help="as_started, or exact: with the past it would have had.")] = "as_started",
    grid: Annotated[str, typer.Option(help="uneven, uniform or jagged.")] = "uneven",
    quick: Quick = False,
    out: Out = FOLDER,
) -> None:
    """Measure the order on problems that can expose a wrong method."""
    from ..orders.order import Start, validate_order
    from ..problems import GRIDS

    for value, option, known in ((start, "--start", get_args(Start)), (grid, "--grid", GRIDS)):
        if value not in known:
            raise typer.BadParameter(f"expected one of {', '.join(known)}, got {value!r}", param_hint=option)

    def make(name: str) -> Report:
        return validate_order(name, start=start, grid=grid, quick=quick)  # type: ignore[arg-type]

    _each(solvers, "order", make, out / f"{start}-{grid}", quick)


@app.command()
def conditions(solvers: Solvers = None, out: Out = FOLDER) -> None:
    """Prove the order: rooted trees, stiff conditions, exactness on polynomials, or the step's own series."""
    from ..orders.conditions import validate_conditions

    _each(solvers, "conditions", validate_conditions, out)


@app.command()
def strong(solvers: Solvers = None, eta: Eta = 1.0, quick: Quick = False, out: Out = FOLDER) -> None:
    """Measure the strong order of stochastic solvers: the error along one Brownian path that every grid refines."""
    from ..orders.strong_weak import validate_strong

    _each(solvers, "strong", partial(validate_strong, eta=eta, quick=quick), out / f"eta-{eta:g}", quick, "strong")


@app.command()
def weak(solvers: Solvers = None, eta: Eta = 1.0, quick: Quick = False, out: Out = FOLDER) -> None:
    """Measure the weak order of stochastic solvers: the error of the first two moments."""
    from ..orders.strong_weak import validate_weak

    _each(solvers, "weak", partial(validate_weak, eta=eta, quick=quick), out / f"eta-{eta:g}", quick, "weak")


@app.command()
def stability(solvers: Solvers = None, out: Out = FOLDER) -> None:
    """Stability functions and regions, zero-stability, root loci, real and imaginary intervals."""
    from ..stability.stability import validate_stability

    _each(solvers, "stability", validate_stability, out)


@app.command("work-precision")
def work_precision_command(
    solvers: Solvers = None,
    tags: Annotated[str, typer.Option(help="Only rows with all of these: multistep,data.")] = "",
    schedules: Annotated[str, typer.Option(help="Comma-separated.")] = "karras,karras(rho=12),exponential",
    budgets: Annotated[str, typer.Option(help="Numbers of network calls, comma-separated.")] = "5,6,8,10,15,20,30,50",
    peers: Annotated[
        str, typer.Option(help="Run beside ours where they are installed.")
    ] = "diffusers,k_diffusion,torchdiffeq,azula",
    seeds: Annotated[str, typer.Option(help="Of the problems and their starts, comma-separated.")] = "0",
    dims: Annotated[list[str] | None, typer.Option(help="Of gauss and the mixtures, 16,2,64; repeat for more.")] = None,
    starts: Annotated[int, typer.Option(help="Start points of each problem.")] = 256,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables there too.")] = None,
    ray: OnRay = False,
    out: Out = FOLDER,
) -> None:
    """Error against network calls: our best and the peers' best in each cell, and the default of solve().

    Without names or tags it runs every deterministic row, and the options that make a row another method, against
    every method of the peers: some four minutes a seed.
    """
    from ..cost import error_for_cost
    from ..cost.spread import spread_work_precision
    from . import stamp
    from .suite import Task, mapping

    rows = solvers or (None if tags else error_for_cost.field())
    costs = _counts(budgets, "--budgets")

    def make(seed: int, shape: str) -> Report:
        problems, others = (seed, starts, _counts(shape, "--dims")), tuple(p for p in peers.split(",") if p)
        names = schedules.split(",")
        return spread_work_precision(rows, names, costs, problems, others, tags=tags, spread=mapping(ray))

    tasks = []
    for shape in dims or ["16,2,64"]:
        for seed in seeds.split(","):
            key = "-".join(filter(None, [*(solvers or []), tags, schedules, budgets, peers, shape, seed, str(starts)]))
            name = f"work-precision-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
            title = f"seed {seed}, dimensions {shape}"
            tasks.append(Task(name, "work-precision", title, partial(make, int(seed), shape)))

    def publish(done: list[Saved]) -> None:
        if markdown is not None:
            text = error_for_cost.markdown(done, stamp.this_command())
            stamp.write("benchmarks/results/error_for_cost.md", markdown, text)

    _finish(tasks, out, then=publish)


@app.command()
def error(
    solver: Annotated[str, typer.Argument(help="A name, with options if need be.")],
    schedule: Annotated[str, typer.Option(help="A name of `diffsolve schedules`.")] = "karras",
    n: Annotated[int, typer.Option("-n", "--steps", help="Steps.")] = 20,
    problem: Annotated[str, typer.Option(help="gauss, gmm2, gmm64, or the last two with -cfg.")] = "gmm2",
    out: Out = FOLDER,
) -> None:
    """Where a run's error comes from, step by step, and the grid that would even it out."""
    from ..cost.budget import error_budget
    from .suite import Task, slug

    make = partial(error_budget, solver, problem, schedule, n)
    key, title = slug(f"error-{solver}-{problem}-{schedule}-{n}"), f"{solver}, {n} steps on {schedule}, {problem}"
    _finish([Task(key, "error", title, make, solver)], out)


@app.command()
def quality(
    solvers: Annotated[list[str] | None, typer.Argument(help="euler, heun, lms and dpmpp_2m by default.")] = None,
    schedule: Annotated[str, typer.Option(help="A name of `diffsolve schedules`.")] = "karras",
    budgets: Annotated[str, typer.Option(help="Numbers of network calls, comma-separated.")] = "5,10,20,50",
    count: Annotated[int, typer.Option(help="Samples a cell.")] = 2000,
    model: Annotated[str, typer.Option(help="emoji, fashion, or a model of 32-pixel emoji.")] = "emoji",
    guidance: Annotated[float | None, typer.Option(show_default="4 of a text-to-image model, 1 of fashion")] = None,
    out: Out = FOLDER,
) -> None:
    """Frechet and sliced Wasserstein distances of samples of an embedded model, with confidence intervals; of fashion
    to real pictures that it has not seen, with precision and recall."""
    from ..samples.quality import sample_quality
    from .suite import QUALITY, Task, slug

    def make() -> Report:
        asked = tuple(int(b) for b in budgets.split(","))
        return sample_quality(solvers or QUALITY, schedule, asked, model, count, guidance=guidance)

    other = [] if model == "emoji" and guidance is None else [model, str(guidance)]
    key = slug("-".join(["quality", *(solvers or []), schedule, budgets, str(count), *other]))[:120]
    _finish([Task(key, "quality", "the embedded model" if model == "emoji" else model, make)], out)


@app.command()
def fashion(
    only: Annotated[list[str] | None, typer.Argument(help="Some tables only: unguided, flow, guided, ...")] = None,
    count: Annotated[int, typer.Option(help="Samples a cell, a multiple of 10.")] = 1000,
    solvers: Annotated[
        list[str] | None, typer.Option("--solver", help="In place of the tables' own.", show_default=False)
    ] = None,
    budgets: Annotated[str, typer.Option(help="Numbers of calls, comma-separated.", show_default="the tables'")] = "",
    seed: Annotated[int, typer.Option(help="Of the noise, the same for all.")] = 0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The Markdown file to write.")] = None,
) -> None:
    """Frechet distance to real pictures by solver, calls, schedule, guidance and churn: the tables of a page.

    What is drawn is kept, so that the same command goes on; the page is written anew after each table.
    """
    from ..samples.quality_table import Made, quality_tables, to_markdown
    from . import stamp

    def write(made: list[Made]) -> None:
        if output is not None:
            stamp.write("docs/fashion_quality.md", output, to_markdown(made))

    columns = tuple(_counts(budgets, "--budgets")) if budgets else ()
    made = quality_tables(only or (), count, solvers=solvers or (), budgets=columns, seed=seed, done=write)
    typer.echo(to_markdown(made) if output is None else f"{output}")


@app.command()
def claims(
    keys: Annotated[list[str] | None, typer.Argument(help="Some claims only, by their keys.")] = None,
    quick: Quick = False,
    markdown: Annotated[Path | None, typer.Option(help="Write the page there too, its picture beside it.")] = None,
    ray: OnRay = False,
) -> None:
    """What people say of samplers, tested on mixtures and on the embedded model: a verdict for each claim."""
    from rich.console import Console

    from ..claims.report import validate_claims
    from . import stamp
    from .suite import mapping

    console = Console()
    with console.status("") as status:
        report = validate_claims(keys, quick=quick, watch=status.update, spread=mapping(ray))
    console.print(report)
    if markdown is not None:
        stamp.write("docs/claims.md", markdown, report.to_markdown())
        report.plot().savefig(markdown.with_name("claims.png"), dpi=80)
        typer.echo(f"{markdown}, {markdown.with_name('claims.png')}")
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def coverage(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The Markdown file to write.")] = None,
) -> None:
    """Every sampler that is known by a name, the row that it is here, and its measured order."""
    from rich.progress import track

    from . import coverage, stamp

    cells = {spec: coverage.measure(spec) for spec in track(coverage.specs(), "measuring", disable=output is None)}
    text = coverage.page(cells.__getitem__)
    if output is None:
        typer.echo(text)
    else:
        stamp.write("docs/coverage.md", output, text)
        typer.echo(f"{output}: {len(cells)} solvers")


@app.command()
def pictures(
    prompt: Annotated[str, typer.Argument(help="What to draw with the embedded model.")] = "red apple",
    solvers: Annotated[str, typer.Option(help="Comma-separated names.", show_default="every row")] = "",
    steps: Annotated[str, typer.Option(help="Step counts, comma-separated.")] = "5,10,20,50",
    seed: Annotated[int, typer.Option(help="Of the start, the same for all.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG to write.")] = Path("out/pictures.png"),
) -> None:
    """One prompt through every row of the catalogue at several step counts, on one sheet."""
    from rich.progress import Progress

    from . import gallery

    names = solvers.split(",") if solvers else gallery.continuous()
    counts = list(_counts(steps, "--steps"))
    with Progress() as bar:
        task = bar.add_task("drawing", total=len(names) * len(counts))
        sheet, made, whole = gallery.draw_all(prompt, names, counts, seed, lambda k: bar.update(task, completed=k))
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output)
    typer.echo(f"{output}: {made} pictures of {prompt!r}{'' if whole else ', interrupted'}")
    if not whole:
        raise typer.Exit(130)


@app.command()
def likelihood(
    solver: Annotated[str, typer.Argument(help="Of the ODE; a name, with options if need be.")] = "rk4",
    model: Annotated[str, typer.Option(help="emoji, a folder or a hub id; a mixture by default.")] = "",
    prompt: Annotated[str, typer.Option(help="Of the model's own pictures, whose latents are the data.")] = "red apple",
    n: Annotated[int, typer.Option("-n", "--steps", help="Steps of the ODE.")] = 40,
    samples: Annotated[int, typer.Option(help="How many.")] = 64,
    probes: Annotated[int, typer.Option(help="Random vectors a sample; the mixture's trace is exact.")] = 4,
    variance: Annotated[str, typer.Option(help="Of the bound: fixed_small or fixed_large.")] = "fixed_large",
    out: Out = FOLDER,
) -> None:
    """The exact log-likelihood of data by the ODE, and DDPM's variational bound with its rate-distortion curve."""
    from ..samples.bound import variational_bound
    from ..samples.likelihood import data_of, log_likelihood
    from .suite import Task, slug

    problem, x = data_of(model, prompt, samples)
    flow = partial(
        log_likelihood, problem, problem.noised(x, problem.span[1]), solver, n=n,
        probes=probes if model else "exact", prior="normal" if model else "exact",
    )  # fmt: skip
    bound = partial(variational_bound, problem, x, variance)  # type: ignore[arg-type]
    title, key = model or "a mixture", slug(f"{model or 'mixture'}-{prompt if model else ''}-{samples}")
    _finish([
        Task(f"likelihood-{slug(solver)}-{n}-{probes}-{key}", "likelihood", f"{title}, {solver}", flow),
        Task(f"bound-{variance}-{key}", "likelihood", f"{title}, variational bound", bound),
    ], out)  # fmt: skip


@app.command("all")
def everything(
    quick: Quick = False,
    only: Annotated[str, typer.Option(help="Some of conditions,order,strong,weak,stability,work-precision,...")] = "",
    out: Out = FOLDER,
) -> None:
    """Every validation of every row of the catalogue, into one page; resumable."""
    from diffsolve.errors import did_you_mean

    from . import suite

    kinds = tuple(only.split(",")) if only else suite.KINDS
    for kind in kinds:
        if kind not in suite.KINDS:
            raise typer.BadParameter(f"unknown kind {kind!r}{did_you_mean(kind, suite.KINDS)}", param_hint="--only")
    _finish(list(suite.tasks(kinds, quick)), out / ("quick" if quick else "full"), quick)


@app.command()
def stamps() -> None:
    """Whether the generated pages of this checkout are of its code: lists those that are older, or don't say."""
    from .stamp import stale

    wrong = stale()
    for page, what in wrong:
        typer.secho(f"{page}: {what}", fg="red")
    typer.echo(f"{len(wrong) or 'no'} stale pages")
    if wrong:
        raise typer.Exit(1)
