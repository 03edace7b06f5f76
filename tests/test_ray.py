"""`ds.ray.sample`: the rows of a Ray Dataset with their pictures, on a real local Ray where it is installed."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from errno import ENOSPC
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from models import tiny_model
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve import DiffsolveError, ProblemError, SolverError
from diffsolve.app import cli, many
from diffsolve.app.files import replace_file
from diffsolve.errors import OutputError
from diffsolve.interop.ray import spread
from diffsolve.validate import whole
from diffsolve.validation.claims.report import validate_claims
from diffsolve.validation.cost.spread import spread_work_precision

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray warns of itself
there = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not there, reason="ray is not installed: pip install 'diffsolve[ray]'")
ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "red apple", "seed": 3, "n": 2, "solver": None},
    {"id": "b", "prompt": "cat", "seed": 4, "n": 3, "solver": "heun"},
    {"id": "c", "prompt": "sun", "seed": 4, "n": 2, "solver": "huen"},
    {"id": "d", "prompt": "moon", "seed": 4, "n": 2, "solver": None},
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(SolverError, match=r"pip install 'diffsolve.ray.'"):
        ds.ray.sample([])


class Lost(ds.Solver):
    """Euler's steps, of which the second is NaN."""

    order = 1

    def step(self, f: ds.Field, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
        return ds.Step(y + f(y, span.start) * (math.nan if span.index == 1 else span.h))


def arrow(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)
    return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])


def sampler(model: Path, output: Path | None = None, rows: int | None = None) -> Any:
    from diffsolve.app.picture import Settings
    from diffsolve.interop.ray import Sampler

    return Sampler(Settings(model=str(model), guidance=2.0), None if output is None else str(output), rows, False, 1)


@needs_ray
def test_a_block_is_the_same_twice_and_computes_nothing_twice(tiny: Path, tmp_path: Path) -> None:
    table, plain = arrow(ROWS), sampler(tiny)
    first, again = plain(table).to_pylist(), plain(table.slice(1)).to_pylist()
    assert [row["status"] for row in first] == ["end", "end", "refused", "end"]
    assert "did you mean 'heun'" in first[2]["message"]
    assert (first[1:], [row["nfe"] for row in first]) == (again, [2, 5, None, 2])
    assert first[0]["png"].startswith(b"\x89PNG")
    kept = sampler(tiny, tmp_path)
    files = kept(table).to_pylist()
    assert [Path(row["file"]).read_bytes() if row["file"] else None for row in files] == [row["png"] for row in first]
    assert [row["status"] for row in kept(table).to_pylist()] == ["found", "found", "refused", "found"]


@needs_ray
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"promt": "sun", "n": 2}], "no prompt; its columns are promt, n"),
        ([{"prompt": "sun", "batch": 3}], "batch is 3, and a row is one picture"),
        ([{"prompt": "sun", "n": 2.5}], "n is 2.5, expected int"),
        ([{"prompt": "sun", "n": 3, "solver": "lost"}], "NaN"),
    ],
)
def test_what_is_wrong_with_a_row_is_in_it_and_the_others_go_on(
    tiny: Path, rows: list[dict[str, Any]], message: str
) -> None:
    """A column of floats, which pandas makes of one of whole numbers with gaps, is one of whole numbers."""
    ds.register_solver("lost", order=1, form="sigma", source="none")(Lost)
    bad, good = sampler(tiny, rows=1)(arrow([*rows, {"prompt": "cat", "n": 2.0, "seed": None}])).to_pylist()
    assert bad["status"] in ("refused", "failed")
    assert message in bad["message"]
    assert (bad["png"], good["status"], good["nfe"]) == (None, "end", 2)


@needs_ray
def test_a_full_folder_ends_the_job_with_words_and_what_is_there_stays(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, task: Callable[[Path], object]) -> None:
        if list(tmp_path.glob("*.png")):
            raise OSError(ENOSPC, "No space left on device")
        replace_file(file, task)

    monkeypatch.setattr(many, "replace_file", full)
    with pytest.raises(OutputError, match=r"No space left on device.*make room"):
        sampler(tiny, tmp_path)(arrow(ROWS))
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    found = sampler(tiny, tmp_path)(arrow(ROWS)).to_pylist()
    assert sorted(row["status"] for row in found) == ["end", "end", "found", "refused"]


@needs_ray
@pytest.mark.parametrize("what", ["model", "output", "column"])
def test_what_no_row_can_be_drawn_with_ends_the_job_with_words(tiny: Path, tmp_path: Path, what: str) -> None:
    file, rows = tmp_path / "file", [{"prompt": "sun", "status": 3} if what == "column" else {"prompt": "sun"}]
    file.touch()
    model, output = (tmp_path / "no" if what == "model" else tiny), file if what == "output" else None
    words = {"model": "no such folder", "output": "can't be made a folder", "column": "has 'status' already"}
    with pytest.raises(DiffsolveError, match=words[what]):
        sampler(model, output)(arrow(rows))


@needs_ray
@pytest.mark.slow
def test_claims_and_work_precision_go_over_ray_to_the_same_reports(
    local_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each claim on each problem, and each row, is a task; the reports are those of one process."""
    tasks = []

    def counted(function: Any, items: Iterable[Any]) -> Iterator[Any]:
        tasks.append(list(items))
        return spread(function, tasks[-1])

    keys = ["karras"]
    said = [f"{f}" for f in validate_claims(keys, quick=True).findings]
    assert [f"{f}" for f in validate_claims(keys, quick=True, spread=counted).findings] == said
    assert len(tasks[0]) == len(said) > 1
    given: Any = (["euler", "dpmpp_2m"], ["karras"], (5, 8), (0, 8, (4, 2, 4)))
    cells = [(c.key, c.nfe, c.median) for c in spread_work_precision(*given).cells]
    found = spread_work_precision(*given, spread=counted).cells
    assert [(c.key, c.nfe, c.median) for c in found] == cells
    monkeypatch.setattr(ds.ray, "spread", counted)
    asked = ["validate", "work-precision", "euler", "--budgets", "5", "--schedules", "karras", "--starts", "8",
             "--dims", "4,2,4", "--peers", "", "--ray", "-o", str(tmp_path)]  # fmt: skip
    CliRunner().invoke(cli.app, asked)
    assert [len(each) for each in tasks[1:]] == [2, 1]


def test_validate_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused = CliRunner().invoke(cli.app, ["validate", "claims", "--quick", "--ray"])
    assert refused.exit_code == 1
    assert "pip install" in f"{refused.output}{refused.exception}"


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Any]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield ray
    ray.shutdown()


@needs_ray
@pytest.mark.slow
def test_spread_is_map_raises_what_a_task_does_and_cancels_the_others(local_ray: Any) -> None:
    def inverse(x: float) -> float:
        time.sleep(60 if x > 4 else 0)
        return 1 / x

    assert list(spread(partial(pow, 2), [1, 2, 3])) == [2, 4, 8]
    with pytest.raises(ZeroDivisionError, match=r"^float division by zero$"):
        list(spread(inverse, [1.0, 0.0, 5.0, 6.0, 7.0]))
    with pytest.raises(SolverError, match=r"^n must be a whole number of at least 1, got 0$"):
        list(spread(partial(whole, what="n"), [2, 0]))
    began = time.monotonic()
    with pytest.raises(SolverError, match="lost"):
        list(spread(os._exit, [1]))
    assert time.monotonic() - began < 300


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sed": 3}, "did you mean 'seed'"), ({"n": 0}, "n must be"), ({"batch": 3}, "batch is 3"),
        ({"rows": 0}, "rows must be"), ({"batch_size": 0}, "batch_size must be"), ({"num_gpus": -1}, "num_gpus must"),
        ({"concurrency": 1.5}, "concurrency must be"), ({"num_cpus": "all"}, "num_cpus must be"),
    ],
)  # fmt: skip
def test_settings_are_checked_before_anything_runs(local_ray: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        ds.ray.sample(local_ray.data.from_items(ROWS), **settings)
    with pytest.warns(UserWarning, match="concurrency times num_cpus is 2, and the cluster has 2 CPUs"):
        ds.ray.sample(local_ray.data.from_items(ROWS), concurrency=2)
    with pytest.raises(ProblemError, match="expected a Ray Dataset"):
        ds.ray.sample([{"prompt": "a"}])  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match=r"has 'name', 'png' already.*drop_columns"):
        ds.ray.sample(local_ray.data.from_items([{"prompt": "a", "name": "mine", "png": b""}]).materialize())


@needs_ray
@pytest.mark.slow
def test_a_dataset_on_a_local_ray_where_an_actor_is_killed(tiny: Path, tmp_path: Path, local_ray: Any) -> None:
    """The pictures are those of one process; what was drawn before the kill is not drawn again."""
    rows, first = [*ROWS[:3], {**ROWS[3], "n": 150}], dict[str, int]()
    out = tmp_path / "out"

    def kill() -> None:
        while not first:
            time.sleep(0.01)
            first.update({path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*.png")})
        for process in psutil.Process().children(recursive=True):
            if "MapBatches(Sampler)" in " ".join(process.cmdline()):
                process.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    dataset = local_ray.data.from_items(rows, override_num_blocks=4)
    done = ds.ray.sample(dataset, str(tiny), output=out, guidance=2.0, batch_size=1).take_all()
    killer.join()
    found = {row["id"]: row for row in done}
    assert {k: row["status"] for k, row in found.items() if k in "cd"} == {"c": "refused", "d": "end"}
    assert {found[k]["status"] for k in "ab"} <= {"end", "found"}
    assert {name: (out / name).stat().st_mtime_ns for name in first} == first
    files = {path.name: path.read_bytes() for path in out.glob("[!.]*.png")}
    assert (len(first) < 3, len(files)) == (True, 3)
    alone = {row["id"]: row["png"] for row in sampler(tiny)(arrow(rows)).to_pylist()}
    assert {k: files[f"{found[k]['name']}.png"] for k in "abd"} == {k: alone[k] for k in "abd"}
