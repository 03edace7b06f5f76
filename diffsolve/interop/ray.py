"""Pictures of the rows of a Ray Dataset: `ds.ray.sample(dataset, "emoji", output="out/")`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import DiffsolveError, OutputError, ProblemError, SolverError, did_you_mean
from ..parallel import Record
from ..validate import at_least, whole

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from ..app.picture import Settings

T = TypeVar("T")
R = TypeVar("R")


def sample(
    dataset: Dataset,
    model: str = "emoji",
    *,
    output: str | Path | None = None,
    concurrency: int = 1,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    batch_size: int = 64,
    rows: int | None = None,
    allow_pickle: bool = False,
    **settings: Any,
) -> Dataset:
    """A Dataset of the same rows, each with its picture; computed when it is read, as Ray Data does.

    dataset: a row is a picture: its `prompt`, and columns called as the settings of `diffsolve sample` (`seed`, `n`,
    `first`, `solver`, `guidance`, ...), null where `settings` hold; other columns pass through. Added are `name`, a
    digest of what was asked; `png` (bytes) or, with `output`, a folder that all nodes see, `file`; `status`, `message`
    and `nfe`.
    concurrency: actors, each with the model, num_cpus threads and num_gpus of a node. batch_size: rows handed to an
    actor at a time; rows: of each network call. What fails is in its row; a block that is run again finds in `output`
    what was drawn, and draws the rest to the same bytes. A model or a folder that can't be used ends the job. Warns
    where the actors take every CPU, as what reads and writes the rows would wait for one.
    Raises SolverError without Ray, ProblemError for settings that can't be and columns that are taken.
    """
    try:
        from ray.data import ActorPoolStrategy, Dataset
    except ImportError as error:
        raise SolverError("ds.ray needs Ray Data, which is not installed: pip install 'diffsolve[ray]'") from error
    from ..app.picture import Settings

    if not isinstance(dataset, Dataset):
        got = type(dataset).__name__
        raise ProblemError(f"dataset is a {got}; expected a Ray Dataset, such as ray.data.read_json(...)")
    known = [field.name for field in fields(Settings)]
    for name in settings:
        if name not in known:
            raise ProblemError(f"unknown setting {name!r}{did_you_mean(name, known)}")
    base = _one(Settings(model=model, **settings))
    folder = None if output is None else str(Path(output).expanduser().absolute())
    for what, count in (("concurrency", concurrency), ("batch_size", batch_size), ("rows", rows)):
        if count is not None:
            whole(count, what, ProblemError)
    options: Record = {"num_cpus": at_least(num_cpus, "num_cpus", ProblemError)}
    options |= {"num_gpus": gpus} if (gpus := at_least(num_gpus, "num_gpus", ProblemError)) else {}
    if (schema := dataset.schema(fetch_if_missing=False)) is not None:
        _free(schema.names, folder)
    _leave_one(concurrency * options["num_cpus"])
    return dataset.map_batches(
        Sampler, fn_constructor_args=(base, folder, rows, allow_pickle, max(1, int(num_cpus))), batch_format="pyarrow",
        batch_size=batch_size, compute=ActorPoolStrategy(size=concurrency), **options,
    )  # fmt: skip


def _leave_one(wanted: float) -> None:
    import ray

    there = ray.cluster_resources().get("CPU", 0.0)
    if 0 < there < wanted + 1:
        warnings.warn(f"concurrency times num_cpus is {wanted:g}, and the cluster has {there:g} CPUs: tasks that read "
                      "or write rows need one too, and would wait; leave one", stacklevel=3)  # fmt: skip


def _one(settings: Settings) -> Settings:
    """The settings, if they are of one picture. Raises ProblemError."""
    if settings.batch != 1:
        raise ProblemError(f"batch is {settings.batch}, and a row is one picture; give a row for each, with `first`")
    return settings


def _added(output: str | Path | None) -> dict[str, str]:
    """The columns that a row gets, and their kinds in Arrow."""
    kinds = {"name": "string", "status": "string", "message": "string", "nfe": "int64"}
    return kinds | ({"png": "binary"} if output is None else {"file": "string"})


def _free(columns: Iterable[str], output: str | Path | None) -> None:
    """Raises ProblemError where a column is there already."""
    if taken := sorted(set(columns) & _added(output).keys()):
        names = ", ".join(map(repr, taken))
        raise ProblemError(f"the dataset has {names} already, which ds.ray.sample adds; dataset.drop_columns({taken}), "
                           "or .rename_columns(...)")  # fmt: skip


def spread(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` over a Ray cluster, or over this machine's cores: each item a task of one core; the answers in order.

    What one raises is raised here, and the tasks that have not ended are cancelled. Raises SolverError without Ray, and
    for a task whose workers die, each time that Ray starts it again.
    """
    try:
        import ray
    except ImportError as error:
        raise SolverError("--ray needs Ray, which is not installed: pip install 'diffsolve[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    task = ray.remote(num_cpus=1)(lambda item: function(item))  # Ray takes no partial
    due = [task.remote(item) for item in items]
    try:
        while due:
            answer: R = ray.get(due[0])
            due.pop(0)
            yield answer
    except ray.exceptions.RayTaskError as error:  # its text is a traceback of the worker's
        raise getattr(error, "cause", None) or error from error
    except ray.exceptions.RayError as error:
        raise SolverError(f"a task of Ray was lost: {str(error).splitlines()[0]}") from error
    finally:
        for one in due:
            ray.cancel(one, force=True)  # what has only just begun does not hear of it otherwise


class Sampler:
    """An actor: the model, and what draws a block of rows."""

    def __init__(
        self, base: Settings, output: str | None, rows: int | None, allow_pickle: bool, threads: int
    ) -> None:
        import torch

        from ..app.many import maker, rows_of

        torch.set_num_threads(threads)
        if base.device is None and torch.cuda.is_available():
            base = replace(base, device="cuda")
        self.base, self.output, self.rows = base, None if output is None else Path(output), rows or rows_of(base)
        self.trouble: DiffsolveError | None = None  # told with the first block: of an actor that can't be made Ray only
        try:  # says that it died
            if self.output is not None:
                self.output.mkdir(parents=True, exist_ok=True)
            self.problem_of, self.made_with = maker(base, allow_pickle)
        except OSError as error:
            self.trouble = OutputError(f"{output} can't be made a folder of pictures ({error.strerror})")
        except DiffsolveError as error:
            self.trouble = error

    def __call__(self, table: pa.Table) -> pa.Table:
        """The rows of a block, with what was drawn. Raises what the actor found amiss, and OutputError."""
        import pyarrow as pa

        if self.trouble is not None:
            raise self.trouble
        _free(table.column_names, self.output)
        told: list[Record] = [{} for _ in range(len(table))]
        for number, what in self._drawn(table.to_pylist(), told):
            told[number].update(what)
        for name, kind in _added(self.output).items():
            table = table.append_column(name, pa.array([row.get(name) for row in told], pa.type_for_alias(kind)))
        return table

    def _drawn(self, rows: list[Record], told: list[Record]) -> Iterator[tuple[int, Record]]:
        """(number of the row, what there is to tell of it), as they end."""
        from ..app.lines import Picture
        from ..app.many import Drawing, data_of, png_of, write
        from ..engine import solve_many

        drawings = []
        for number, row in enumerate(rows):
            try:
                wanted = Picture(number, number, 0, self._asked(row))
            except DiffsolveError as error:
                yield number, {"status": "refused", "message": str(error)}
                continue
            told[number]["name"] = wanted.digest
            file = None if self.output is None else self.output / f"{wanted.digest}.png"
            if file is not None and os.path.exists(file):
                yield number, {"status": "found", "message": "", "file": str(file)}
            else:
                drawings.append(Drawing(wanted))
        for answer in solve_many(self.problem_of, drawings, max_batch=self.rows, rows=self.rows):
            wanted = drawings[answer.index].wanted[0]
            what: Record = {"status": answer.status, "message": answer.message}
            if answer.solution is not None and answer.status in ("end", "max_nfe"):
                images = answer.solution.problem.decode(data_of(answer))  # type: ignore[attr-defined]
                data, result = png_of(answer, self.made_with, images)
                what |= {"nfe": result["nfe"], "png": data}
                if self.output is not None:
                    file = self.output / f"{wanted.digest}.png"
                    write(file, data)
                    what |= {"file": str(file)}
            yield wanted.index, what

    def _asked(self, row: Mapping[str, Any]) -> Settings:
        """The settings of a row. Raises ProblemError."""
        from ..app.lines import WHOLE

        own = {field.name: str(field.type) for field in fields(self.base) if field.name not in WHOLE}
        given = {k: _as_asked(v, own[k]) for k, v in row.items() if k in own and v is not None}
        asked = _one(replace(self.base, **given))
        if not asked.prompt and asked.model != "fashion":
            raise ProblemError(f"the row has no prompt; its columns are {', '.join(row)}")
        return asked


def _as_asked(value: Any, kind: str) -> Any:
    """A whole number in a column of floats, as pandas makes of one with gaps, is one."""
    return int(value) if kind.startswith("int") and isinstance(value, float) and value.is_integer() else value


__all__ = ["Sampler", "sample", "spread"]
