"""`ds.ray.sample`: the rows of a Ray Dataset with their pictures, on a real local Ray where it is installed."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from models import tiny_model
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve import ProblemError, SolverError
from diffsolve.app import cli
from diffsolve.interop.ray import spread
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


@needs_ray
def test_a_block_is_the_same_twice_and_computes_nothing_twice(tiny: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    from diffsolve.app.picture import Settings
    from diffsolve.interop.ray import Sampler

    table, base = pa.Table.from_pylist(ROWS), Settings(model=str(tiny), guidance=2.0)
    plain = Sampler(base, None, None, False, 1)
    first, again = plain(table).to_pylist(), plain(table.slice(1)).to_pylist()
    assert [row["status"] for row in first] == ["end", "end", "refused", "end"]
    assert "did you mean 'heun'" in first[2]["message"]
    assert (first[1:], [row["nfe"] for row in first]) == (again, [2, 5, None, 2])
    assert first[0]["png"].startswith(b"\x89PNG")
    kept = Sampler(base, str(tmp_path), None, False, 1)
    files = kept(table).to_pylist()
    assert [Path(row["file"]).read_bytes() if row["file"] else None for row in files] == [row["png"] for row in first]
    assert [row["status"] for row in kept(table).to_pylist()] == ["found", "found", "refused", "found"]


class StandIn:
    """What `spread` uses of Ray: tasks that run where they are waited for, on copies of what they are given."""

    def __init__(self) -> None:
        self.cancelled, self.started, self.ended = list[Any](), 0, 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: Any) -> None:
        self.started += 1

    def remote(self, **options: Any) -> Any:
        assert options == {"num_cpus": 1}
        return lambda function: SimpleNamespace(remote=lambda item: pickle.dumps((function, item)))

    def get(self, task: bytes) -> Any:
        function, item = pickle.loads(task)
        self.ended += 1
        return pickle.loads(pickle.dumps(function(item)))

    def cancel(self, task: Any) -> None:
        self.cancelled.append(task)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setitem(sys.modules, "ray", made)  # type: ignore[arg-type]
    return made


def inverse(x: float) -> float:
    return 1 / x


def test_spread_is_map_and_cancels_what_is_left(stand_in: StandIn) -> None:
    assert list(spread(inverse, [1.0, 2.0, 4.0])) == [1.0, 0.5, 0.25]
    assert (stand_in.started, stand_in.cancelled) == (1, [])
    with pytest.raises(ZeroDivisionError):
        list(spread(inverse, [1.0, 0.0, 4.0, 5.0]))
    assert len(stand_in.cancelled) == 3


@pytest.mark.slow
def test_claims_and_work_precision_go_over_ray_to_the_same_reports(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each claim on each problem, and each row, is a task; the reports are those of one process."""
    keys = ["karras"]
    said = [f"{f}" for f in validate_claims(keys, quick=True).findings]
    assert [f"{f}" for f in validate_claims(keys, quick=True, spread=spread).findings] == said
    assert stand_in.ended == len(said) > 1
    given: Any = (["euler", "dpmpp_2m"], ["karras"], (5, 8), (0, 8, (4, 2, 4)))
    cells = [(c.key, c.nfe, c.median) for c in spread_work_precision(*given).cells]
    before = stand_in.ended
    found = spread_work_precision(*given, spread=spread).cells
    assert [(c.key, c.nfe, c.median) for c in found] == cells
    assert stand_in.ended == before + 2
    asked = ["validate", "work-precision", "euler", "--budgets", "5", "--schedules", "karras", "--starts", "8",
             "--dims", "4,2,4", "--peers", "", "--ray", "-o", str(tmp_path)]  # fmt: skip
    CliRunner().invoke(cli.app, asked)
    assert stand_in.ended == before + 3


def test_validate_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused = CliRunner().invoke(cli.app, ["validate", "claims", "--quick", "--ray"])
    assert refused.exit_code == 1
    assert "pip install" in f"{refused.output}{refused.exception}"


@needs_ray
@pytest.mark.slow
def test_spread_on_a_local_ray(local_ray: Any) -> None:
    assert list(spread(inverse, [1.0, 2.0, 4.0])) == [1.0, 0.5, 0.25]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Any]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield ray
    ray.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(("settings", "message"), [({"sed": 3}, "did you mean 'seed'"), ({"n": 0}, "n must be")])
def test_settings_are_checked_before_anything_runs(local_ray: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        ds.ray.sample(local_ray.data.from_items(ROWS), **settings)
    with pytest.raises(ProblemError, match="expected a Ray Dataset"):
        ds.ray.sample([{"prompt": "a"}])  # type: ignore[arg-type]


@needs_ray
@pytest.mark.slow
def test_a_dataset_on_a_local_ray(tiny: Path, tmp_path: Path, local_ray: Any) -> None:
    rows = local_ray.data.from_items(ROWS, override_num_blocks=2)
    done = ds.ray.sample(rows, str(tiny), output=tmp_path / "out", guidance=2.0, num_cpus=1).take_all()
    found = {row["id"]: row for row in done}
    assert {k: row["status"] for k, row in found.items()} == {"a": "end", "b": "end", "c": "refused", "d": "end"}
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    assert len(files) == 3
    alone = {row["id"]: row["png"] for row in ds.ray.sample(rows, str(tiny), guidance=2.0, batch_size=1).take_all()}
    assert {k: files[f"{found[k]['name']}.png"] for k in "abd"} == {k: alone[k] for k in "abd"}
