"""One prompt through every row of the catalogue, at a few step counts, on one sheet to look at."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffsolve import ProbabilityFlow, get_solver, solve
from diffsolve.problems import StableDiffusion

from ..rows import flow_rows
from ..runs import failure

if TYPE_CHECKING:
    from PIL.Image import Image

STEPS = (5, 10, 20, 50)
SIDE, GAP, LABEL, HEAD = 64, 4, 190, 22  # pixels: of a picture, between pictures, for a row's name, for the heading
BLOCKS = 4  # columns of rows
GUIDANCE = 4.0
TOLD = {"rectified_cfg_pp": f"rectified_cfg_pp(guidance={GUIDANCE:g})"}  # rows that are to be told the scale


@dataclass(frozen=True)
class Shot:
    """One picture, the network calls that it took, and whose it is."""

    solver: str
    n: int
    nfe: int
    image: Image


def continuous() -> list[str]:
    """The rows that solve a diffusion."""
    return [TOLD.get(row.name, row.name) for row in flow_rows()]


def scale_of(name: str) -> float:
    """The guidance that a row is drawn at: that which it is made for where it has a range of its own."""
    own = get_solver(name).guidance_range
    return GUIDANCE if own is None else own[1]


def shots(
    problem: ProbabilityFlow | Callable[[float], ProbabilityFlow],
    solvers: Sequence[str],
    steps: Sequence[int] = STEPS,
    *,
    schedule: object = None,
    seed: int = 0,
) -> Iterator[Shot]:
    """The pictures, one at a time: an interrupted run keeps those made. The start is the same for all of them.

    problem: or what makes one of a scale of guidance, which `scale_of` says. A solver that fails is warned of and left
    out.
    """
    for name in solvers:
        try:
            at = problem if isinstance(problem, ProbabilityFlow) else problem(scale_of(name))
            for n in steps:
                solution = solve(at, name, schedule, n, seed=seed)
                yield Shot(name, n, solution.nfe, solution.images()[0])
        except Exception as error:
            warnings.warn(failure(name, "pictures", error), stacklevel=2)


def sheet(made: Sequence[Shot], steps: Sequence[int] = STEPS, blocks: int = BLOCKS) -> Image:
    """The sheet: a row for each solver, a column for each step count, in `blocks` columns of rows."""
    from PIL import Image, ImageDraw, ImageFont

    names = list(dict.fromkeys(shot.solver for shot in made))
    per_block = -(-len(names) // blocks)
    wide, high = LABEL + len(steps) * (SIDE + GAP) + 3 * GAP, SIDE + GAP
    page = Image.new("RGB", (wide * -(-len(names) // per_block), HEAD + per_block * high), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for shot in made:
        block, row = divmod(names.index(shot.solver), per_block)
        left, top = block * wide, HEAD + row * high
        x = left + LABEL + list(steps).index(shot.n) * (SIDE + GAP)
        if row == 0:
            draw.text((x + SIDE // 3, 3), str(shot.n), "black", font)
        if shot.n == steps[0]:
            draw.text((left + GAP, top + SIDE // 2 - 14), shot.solver, "black", font)
            if (scale := scale_of(shot.solver)) != GUIDANCE:
                draw.text((left + GAP, top + SIDE // 2 + 18), f"guidance {scale:g}", "gray", font)
        if shot.n == steps[-1]:
            draw.text((left + GAP, top + SIDE // 2 + 2), f"{shot.nfe} NFE at {shot.n}", "gray", font)
        page.paste(shot.image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, top))
    return page


def draw_all(
    prompt: str, solvers: Sequence[str], steps: Sequence[int], seed: int, watch: Callable[[int], object] = bool
) -> tuple[Image, int, bool]:
    """(sheet, pictures, whole) of the embedded model; an interrupt ends it early, with the pictures made by then."""
    model = StableDiffusion.from_pretrained("emoji")
    made, whole = list[Shot](), True
    try:
        for shot in shots(lambda scale: model(prompt, guidance=scale), solvers, steps, seed=seed):
            made.append(shot)
            watch(len(made))
    except KeyboardInterrupt:
        if not made:
            raise
        whole = False
    return sheet(made, steps), len(made), whole
