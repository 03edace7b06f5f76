"""Pictures of the rows of a Ray Dataset: `ds.ray.sample(dataset, "emoji", output="out/")`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import DiffsolveError, ProblemError, SolverError, did_you_mean
from ..parallel import Record

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
    what was drawn, and draws the rest to the same bytes.
    Raises SolverError without Ray, ProblemError for settings that can't be.
    """
    try:
        from ray.data import Dataset
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
    base = Settings(model=model, **settings)
    folder = None if output is None else str(Path(output).expanduser().absolute())
    options: Record = {"num_gpus": num_gpus} if num_gpus else {}
    return dataset.map_batches(
        Sampler, fn_constructor_args=(base, folder, rows, allow_pickle, max(1, int(num_cpus))), batch_format="pyarrow",
        batch_size=batch_size, concurrency=concurrency, num_cpus=num_cpus, **options,
    )  # fmt: skip


def spread(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` over a Ray cluster, or over this machine's cores: each item a task of one core; the answers in order.

    What one raises is raised here, and the tasks that have not ended are cancelled. Raises SolverError without Ray.
    """
    try:
        import ray
    except ImportError as error:
        raise SolverError("--ray needs Ray, which is not installed: pip install 'diffsolve[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    task = ray.remote(num_cpus=1)(function)
    due = [task.remote(item) for item in items]
    try:
        while due:
            answer: R = ray.get(due[0])
            due.pop(0)
            yield answer
    finally:
        for one in due:
            ray.cancel(one)


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
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
        self.problem_of, self.made_with = maker(base, allow_pickle)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The rows of a block, with what was drawn."""
        import pyarrow as pa

        told: list[Record] = [{} for _ in range(len(table))]
        for number, what in self._drawn(table.to_pylist(), told):
            told[number].update(what)
        kinds = {"name": pa.string(), "status": pa.string(), "message": pa.string(), "nfe": pa.int64()}
        kinds |= {"png": pa.binary()} if self.output is None else {"file": pa.string()}
        for name, kind in kinds.items():
            table = table.append_column(name, pa.array([row.get(name) for row in told], kind))
        return table

    def _drawn(self, rows: list[Record], told: list[Record]) -> Iterator[tuple[int, Record]]:
        """(number of the row, what there is to tell of it), as they end."""
        from ..app.lines import Picture
        from ..app.many import Drawing, png_of, write
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
            wanted = drawings[answer.index].picture
            what: Record = {"status": answer.status, "message": answer.message}
            if answer.solution is not None and answer.status in ("end", "max_nfe"):
                data, result = png_of(answer, self.made_with)
                what |= {"nfe": result["nfe"], "png": data}
                if self.output is not None:
                    file = self.output / f"{wanted.digest}.png"
                    write(file, data)
                    what |= {"file": str(file)}
            yield wanted.index, what

    def _asked(self, row: Mapping[str, Any]) -> Settings:
        """The settings of a row. Raises ProblemError."""
        from ..app.lines import WHOLE

        own = {field.name for field in fields(self.base)} - {*WHOLE, "batch"}
        if row.get("batch") not in (None, 1):
            raise ProblemError(f"batch is {row['batch']!r}, and a row is one picture; give a row for each, with first")
        asked = replace(self.base, batch=1, **{k: v for k, v in row.items() if k in own and v is not None})
        if not asked.prompt and asked.model != "fashion":
            raise ProblemError("the row has no prompt")
        return asked


__all__ = ["Sampler", "sample", "spread"]
