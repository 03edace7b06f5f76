"""What `diffsolve batch` does: draws a share of the pictures, each written whole, and keeps the index of them."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from torch import Tensor

from ..engine import Answer, Request, solve_many
from ..errors import OutputError, ProblemError
from ..parallel import BEAT, Board, Ledger, Record, Share
from ..registry import CHOOSERS, get_solver
from ..run import Run
from . import picture
from .draw import begin, opened, rehearse, surroundings
from .files import replace_file
from .lines import WHOLE, Picture, Pictures
from .picture import Settings
from .report import note

if TYPE_CHECKING:
    from PIL.Image import Image

_LEFT = re.compile(r"\.(\d{6,}-\d{6,})-\w+\.png")  # what a killed process leaves of a picture


def rehearsed(pictures: Pictures) -> None:
    """Raise ProblemError, naming the line, for what no solver can be asked, before a model is loaded."""
    pictures.check(rehearse)


class Drawing(Request):
    """The request of a picture, or of several of one line as one batch."""

    def __init__(self, *wanted: Picture) -> None:
        super().__init__(key=wanted)
        self.wanted, self.made = wanted, wanted[0].settings

    def begin(self, shared: Any) -> Run:
        problem, self.made = shared(self.wanted[0].settings)
        return begin(problem, self.made, [each.settings.first for each in self.wanted])


def together(pictures: Iterable[Picture], size: int) -> Iterator[tuple[Picture, ...]]:
    """`size` at a time those of a line whose steps do not depend on their company, and the others alone.

    A step costs Python the same for one sample as for many, and a sample has the same bits in both.
    """
    for _, line in groupby(pictures, key=lambda wanted: wanted.line):
        while some := tuple(islice(line, size)):
            if len(some) == size and _steps_are_given(some[0].settings):
                yield some
            else:
                yield from ((each,) for each in some)


def _steps_are_given(s: Settings) -> bool:
    chosen = (s.rtol, s.atol, s.quality) != (None, None, None) or s.solver in CHOOSERS
    return not chosen and get_solver(s.solver).controller is None


class Gallery:
    """The folder of the pictures, seen by one process of those that fill it."""

    def __init__(self, pictures: Pictures, output: Path, share: Share) -> None:
        self.pictures, self.output, self.share = pictures, output, share
        self.board = Board(output / ".batch" / "ranks", share)
        self.ledger = Ledger(output / "index.jsonl", output / ".batch" / "parts", write)
        self.done = self.drawn = self.failed = self.nfe = 0
        self.mine = [i for i in range(len(pictures)) if share.has(i)]
        self.rows = 1  # that are decoded together
        self._waiting: dict[tuple[int, ...], list[tuple[Answer, int, Tensor]]] = {}

    def file(self, name: str) -> Path:
        return self.output / f"{name}.png"

    def missing(self) -> Iterator[Picture]:
        """The pictures of this share that are not there yet; those that are get into the index.

        Raises OutputError for one that was drawn with other settings.
        """
        there, known = self._there(), self.ledger.read()
        for index in self.mine:
            wanted = self.pictures[index]
            if wanted.name not in there:
                yield wanted
                continue
            record = known.get(wanted.name)
            if record is None or record.get("status") in ("failed", "refused"):  # killed between picture and index
                record = self._of_file(wanted)
                self.ledger.add(record)
            if record["digest"] != wanted.digest:
                raise OutputError(f"{self.file(wanted.name)} is there, drawn with other settings than line "
                                  f"{wanted.line} has now; name another folder with -o, or delete it")  # fmt: skip
            self.done += 1

    def _there(self) -> set[str]:
        """The names of the pictures that are whole; what a killed process left of this share's is put away."""
        found = set()
        for file in self.output.iterdir():
            if left := _LEFT.fullmatch(file.name):
                index = self.pictures.index_of(left[1])
                if index is not None and self.share.has(index):
                    file.unlink(missing_ok=True)
            elif file.suffix == ".png":
                found.add(file.stem)
        return found

    def _of_file(self, wanted: Picture) -> Record:
        _, result, _ = picture.read(self.file(wanted.name))
        return record_of(wanted, result | {"digest": result.get("digest")})

    def keep(self, answer: Answer, made_with: Record) -> Sequence[Picture]:
        """Write what was drawn, and note it; what to draw alone, as one of a batch failed. Raises OutputError."""
        assert isinstance(answer.request, Drawing)
        (wanted, *more), solution = answer.request.wanted, answer.solution
        if solution is None or answer.status not in ("end", "max_nfe"):
            if more:
                return wanted, *more
            self._note_failure(wanted, answer.status, answer.message)
            return ()
        x = data_of(answer)
        for place in range(len(x)):
            waiting = self._waiting.setdefault(tuple(x.shape[1:]), [])
            waiting.append((answer, place, x[place : place + 1]))
            if len(waiting) == self.rows:
                self._write(waiting, made_with)
        return ()

    def _note_failure(self, wanted: Picture, status: str, message: str) -> None:
        self.failed += 1
        note(f"line {wanted.line}, picture {wanted.sample}: {message}", "yellow")
        self.ledger.add(record_of(wanted, {"status": status, "message": message}))

    def write_rest(self, made_with: Record) -> None:
        """Write what waits for more to be decoded with. Raises OutputError."""
        for waiting in self._waiting.values():
            self._write(waiting, made_with)

    def _write(self, waiting: list[tuple[Answer, int, Tensor]], made_with: Record) -> None:
        """Decode them, always in as many rows, so that the bits are the same in any company; write and note each."""
        if not waiting:
            return
        some, rows = list(waiting), [x for *_, x in waiting]
        rows += rows[-1:] * (self.rows - len(rows))
        waiting.clear()
        answer, place, _ = some[0]
        try:
            images = answer.result().problem.decode(torch.cat(rows))  # type: ignore[attr-defined]
        except ProblemError as error:  # of one of them
            for each in some if len(some) > 1 else ():
                self._write([each], made_with)
            if len(some) == 1:
                self._note_failure(answer.request.wanted[place], "failed", f"{error}")  # type: ignore[attr-defined]
            return
        for (answer, place, _), image in zip(some, images, strict=False):
            assert isinstance(answer.request, Drawing)
            wanted = answer.request.wanted[place]
            data, result = png_of(answer, made_with, [image], place)
            write(self.file(wanted.name), data)
            self.done, self.drawn, self.nfe = self.done + 1, self.drawn + 1, self.nfe + result["nfe"]
            self.ledger.add(record_of(wanted, result))

    def say(self, **more: Any) -> None:
        self.board.say(done=self.done, of=len(self.mine), drawn=self.drawn, failed=self.failed, nfe=self.nfe, **more)


def data_of(answer: Answer) -> Tensor:
    """What there is to show of a drawing: the newest estimate where it ended early."""
    x = answer.result().x
    return x if answer.status == "end" or answer.denoised is None else answer.denoised


def png_of(answer: Answer, made_with: Record, images: list[Image], place: int = 0) -> tuple[bytes, Record]:
    """The PNG of a picture of a drawing that came to its end, and what there is to tell of it."""
    drawing, solution = answer.request, answer.result()
    assert isinstance(drawing, Drawing)
    wanted = drawing.wanted[place]
    result: Record = {
        "steps": solution.steps, "n": solution.n, "nfe": solution.nfe, "solver": solution.solver,
        "schedule": solution.schedule, "reason": answer.status, "digest": wanted.digest,
    }  # fmt: skip
    sheet, made = picture.grid(images, drawing.made.scale), replace(drawing.made, first=wanted.settings.first)
    return picture.encoded(sheet, made, result, made_with), result


def rows_of(base: Settings) -> int:
    """Rows of a network call where nobody says it: on a CPU more of them gain little."""
    return 4 if base.device in (None, "cpu") else 16


def maker(base: Settings, allow_pickle: bool) -> tuple[Callable[[Settings], Any], Record]:
    """What makes (problem, filled settings) of a picture's settings, the model loaded; and its surroundings, known from
    the first problem on."""
    same = lru_cache(maxsize=64)(opened(base, allow_pickle))
    made_with: Record = {}

    def problem_of(asked: Settings) -> Any:
        kinds = "prompt", "negative", "guidance", "guidance_min", "guidance_max", "height", "width"
        own = {name: getattr(asked, name) for name in kinds}
        alike = replace(Settings(), **own, **{name: getattr(base, name) for name in WHOLE})
        problem, networks, made = same(alike)
        if not made_with:
            made_with.update(surroundings(networks, problem.device))
        filled = {k: getattr(made, k) for k in ("guidance", "height", "width", "device")}
        return problem, replace(asked, **filled)

    return problem_of, made_with


def record_of(wanted: Picture, result: Record) -> Record:
    """A line of the index."""
    s = wanted.settings
    told = "nfe", "steps", "solver", "schedule", "message", "digest"
    status = result.get("status") or result.get("reason")
    file = {} if "message" in result else {"file": f"{wanted.name}.png"}
    return {"name": wanted.name, **file, "line": wanted.line, "sample": s.first, "seed": s.seed, "prompt": s.prompt,
            "digest": wanted.digest, "status": status, **{k: result[k] for k in told if k in result}}  # fmt: skip


def write(path: Path, data: bytes) -> None:
    """The file, whole or not at all. Raises OutputError."""
    try:
        replace_file(path, lambda beside: beside.write_bytes(data))
    except OSError as error:
        raise OutputError(f"{path} can't be written ({error.strerror}); what was drawn before is whole: make room, and "
                          "the same command goes on") from error  # fmt: skip


def draw_many(
    pictures: Pictures, output: Path, share: Share, allow_pickle: bool, max_batch: int | None, rows: int | None
) -> Record:
    """Draw this process's share, and of the first one of a launch say what came of all. Raises OutputError."""
    gallery, began = Gallery(pictures, output, share), time.monotonic()
    gallery.say()
    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(gallery, stop), daemon=True)
    watch.start()
    try:
        todo = [wanted.index for wanted in gallery.missing()]
        if todo:
            _draw(gallery, todo, allow_pickle, max_batch, rows)
        gallery.ledger.flush()
    except (KeyboardInterrupt, OutputError) as stopped:
        with suppress(OutputError):
            gallery.ledger.flush()
        if isinstance(stopped, OutputError):
            raise
        _name_the_dead(gallery.board)
        note(f"{share.name} was stopped with {gallery.done} of its {len(gallery.mine)} pictures done; the same command "
             "goes on", "yellow")  # fmt: skip
        raise typer.Exit(130) from stopped
    finally:
        stop.set()
        watch.join()
        gallery.say(ended=True)
    dead = gallery.board.wait() if share.rank == 0 else {}
    _name_the_dead(gallery.board, dead)
    return _summary(gallery, dead, time.monotonic() - began)


def _draw(gallery: Gallery, todo: list[int], allow_pickle: bool, max_batch: int | None, rows: int | None) -> None:
    base = gallery.pictures.base
    if base.device is None and torch.cuda.is_available():
        base = replace(base, device=f"cuda:{gallery.share.local % torch.cuda.device_count()}")
    problem_of, made_with = maker(base, allow_pickle)
    width = rows or rows_of(base)
    most = max_batch or width
    gallery.rows = width
    size = width if base.device in (None, "cpu") and width <= most else 1  # a device may sum otherwise in a batch
    groups: Iterable[tuple[Picture, ...]] = together((gallery.pictures[index] for index in todo), size)
    with torch.no_grad():
        try:
            while groups:
                alone = list[tuple[Picture]]()
                drawings = (Drawing(*group) for group in groups)
                for answer in solve_many(problem_of, drawings, max_batch=most, rows=width):
                    alone += [(each,) for each in gallery.keep(answer, made_with)]
                groups = alone
        except KeyboardInterrupt:
            gallery.write_rest(made_with)
            raise
        gallery.write_rest(made_with)


def _watch(gallery: Gallery, stop: threading.Event) -> None:
    """Say how far this process is, and of the first how far all are, until it has ended."""
    named: dict[int, str] = {}
    with _progress(gallery) as show:
        while not stop.wait(BEAT):
            gallery.say()
            if gallery.share.rank == 0:
                told = gallery.board.read()
                show(sum(int(of.get("done", 0)) for of in told.values()))
                for rank, words in gallery.board.dead(told).items():
                    if rank not in named:
                        named[rank] = words
                        _name_the_dead(gallery.board, {rank: words})


class _progress:  # noqa: N801
    """A bar of all processes' pictures where the error stream is a terminal, else a line now and then."""

    def __init__(self, gallery: Gallery) -> None:
        self.total = sum(gallery.share.of_launch(i) for i in range(len(gallery.pictures)))
        self.world, self.began, self.last, self.first = gallery.share.world, time.monotonic(), 0.0, -1
        self.visible = gallery.share.rank == 0

    def __enter__(self) -> Callable[[int], None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        console = Console(stderr=True)
        on = console.is_terminal and self.visible
        self.bar = Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, disable=not on)
        self.bar.start()
        self.task = self.bar.add_task("", total=self.total)
        return self.show

    def show(self, done: int) -> None:
        """So many pictures are there."""
        self.bar.update(self.task, completed=done)
        now = time.monotonic()
        self.first = done if self.first < 0 else self.first
        if self.bar.disable and now - self.last > 30:
            rate = (done - self.first) / max(now - self.began, 1e-9)
            left = f", {(self.total - done) / rate / 60:.1f} minutes left" if rate else ""
            ranks = f" by {self.world} processes" if self.world > 1 else ""
            note(f"{done} of {self.total} pictures{ranks}{left}")
            self.last = now

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _name_the_dead(board: Board, dead: dict[int, str] | None = None) -> None:
    for words in (board.dead() if dead is None else dead).values():
        note(f"warning: {words}; start the same command again for the rest", "yellow")


def _summary(gallery: Gallery, dead: dict[int, str], seconds: float) -> Record:
    """What came of the launch, or of a process that is not its first."""
    if gallery.share.rank:
        return {"missing": len(gallery.mine) - gallery.done, "failed": gallery.failed}
    found = gallery.ledger.merge()
    launch = [i for i in range(len(gallery.pictures)) if gallery.share.of_launch(i)]
    states = [found.get(gallery.pictures[i].name, {}).get("status") for i in launch]
    told = gallery.board.read().values()
    failed = sum(state in ("failed", "refused") for state in states)
    return {
        "output": str(gallery.output), "pictures": len(launch), "drawn": sum(int(of.get("drawn", 0)) for of in told),
        "failed": failed, "missing": failed + sum(state is None for state in states), "ranks": gallery.share.world,
        "dead": sorted(dead), "nfe": sum(int(of.get("nfe", 0)) for of in told), "seconds": round(seconds, 3),
        "index": str(gallery.ledger.index),
    }  # fmt: skip
