"""`diffsolve batch`: the same pictures whoever draws them and however often it was killed."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import batch_process
import pytest
from models import tiny_model
from PIL import Image, ImageChops
from stubs import slow
from typer.testing import CliRunner, Result

import diffsolve as ds
from diffsolve.app import cli, draw, many, picture
from diffsolve.app.lines import read_lines
from diffsolve.app.picture import Settings
from diffsolve.errors import OutputError, ProblemError
from diffsolve.parallel import Board, Ledger, Share

LINES = [
    {"prompt": "red apple", "seed": 3},
    {"prompt": "a cat", "n": 3, "solver": "heun", "batch": 2},
    {"prompt": "sun", "guidance": 1, "seed": 5, "first": 2},
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def file_of(folder: Path, *lines: object) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return file


def batch(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["batch", *map(str, arguments)])


def pictures(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("0*.png")}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()]


def test_pictures_an_index_and_going_on(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, file = tmp_path / "out", file_of(tmp_path, *LINES[:2], "", LINES[2])
    result = batch(file, "-o", out, "--model", tiny, "-n", 2, "--json")
    told = json.loads(result.stdout)
    assert (told["pictures"], told["drawn"], told["failed"], told["missing"]) == (4, 4, 0, 0), result.output
    found = records(out)
    assert [r["name"] for r in found] == ["000001-000000", "000002-000000", "000002-000001", "000004-000000"]
    assert [(r["line"], r["sample"], r["seed"], r["prompt"], r["solver"]) for r in found] == [
        (1, 0, 3, "red apple", "guarded_abm"), (2, 0, 0, "a cat", "heun"), (2, 1, 0, "a cat", "heun"),
        (4, 2, 5, "sun", "guarded_abm")]  # fmt: skip
    assert pictures(out).keys() == {r["file"] for r in found}
    settings, result_, _ = picture.read(out / "000004-000000.png")
    assert (settings.first, settings.guidance, result_["digest"]) == (2, 1, found[3]["digest"])

    whole = pictures(out)
    (out / "000002-000001.png").unlink()
    (out / "index.jsonl").unlink()  # it is made again of the pictures
    (out / ".000002-000000-x7.png").write_bytes(b"half")
    monkeypatch.setattr(draw, "begin", only(draw.begin, 1))
    monkeypatch.setattr(many, "begin", only(many.begin, 1))
    told = json.loads(batch(file, "-o", out, "--model", tiny, "-n", 2, "--json").stdout)
    assert (told["pictures"], told["drawn"], told["missing"]) == (4, 1, 0)
    assert (pictures(out), records(out)) == (whole, found)

    def not_loaded(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(draw, "load", not_loaded)
    assert json.loads(batch(file, "-o", out, "--model", tiny, "-n", 2, "--json").stdout)["drawn"] == 0
    refused = batch(file, "-o", out, "--model", tiny, "-n", 3)
    assert refused.exit_code == 1
    assert "000001-000000.png is there, drawn with other settings than line 1" in refused.output


def only(begin: Any, most: int) -> Any:
    """`begin` that draws at most so many pictures, rehearsals aside."""
    drawn = []

    def counted(problem: Any, settings: Settings, samples: Any = ()) -> Any:
        if getattr(problem, "codec", None) is not None:
            drawn.extend(samples or [settings.first])
            assert len(drawn) <= most
        return begin(problem, settings, samples)

    return counted


def test_each_is_the_picture_that_sample_draws(tiny: Path, tmp_path: Path) -> None:
    asked = ("red apple", "--count", 3, "--model", tiny, "-n", 3, "--seed", 7)
    assert batch(*asked, "-o", tmp_path / "out").exit_code == 0
    again = tmp_path / "again.png"
    like = ["sample", "--like", str(tmp_path / "out" / "000001-000002.png"), "-o", str(again)]
    assert CliRunner().invoke(cli.app, like).exit_code == 0
    difference = ImageChops.difference(Image.open(again), Image.open(tmp_path / "out" / "000001-000002.png"))
    assert max(high for _, high in difference.getextrema()) <= 1


@pytest.mark.parametrize(
    "options", [("--max-batch", 1), slow(("--max-batch", 7)), slow(("--shard", "1/2")), ("--shard", "2/3")]
)
def test_the_same_bytes_whatever_the_batch_and_the_share(tiny: Path, tmp_path: Path, options: tuple[Any, ...]) -> None:
    file, common = file_of(tmp_path, *LINES), ("--model", tiny, "-n", 2, "--count", 2)
    assert batch(file, "-o", tmp_path / "one", *common).exit_code == 0
    assert batch(file, "-o", tmp_path / "two", *common, *options).exit_code == 0
    one, two = pictures(tmp_path / "one"), pictures(tmp_path / "two")
    assert len(one) == 6
    if "--shard" in options:
        shard, of = map(int, options[1].split("/"))
        assert list(two)
        assert sorted(two) == sorted(one)[shard::of]
        assert [r["name"] for r in records(tmp_path / "two")] == [name[:-4] for name in sorted(two)]
    assert {name: one[name] for name in two} == two


class Picky(ds.Solver):
    """Euler's steps, which lose every sample whose first number is above 0."""

    order, traceable = 1, False

    def step(self, f: ds.Field, y: Any, span: ds.Span, past: ds.Past) -> ds.Step:
        end = y + f(y, span.start) * span.h
        end[y.flatten(1)[:, 0] > 0] = math.nan
        return ds.Step(end)


@pytest.mark.parametrize("solver", ["guarded_abm", slow("euler_ancestral"), slow("score_sde_ve"), "picky"])
def test_pictures_of_one_line_go_as_one_batch_to_the_same_bytes(tiny: Path, tmp_path: Path, solver: str) -> None:
    """Four and one of five, and what fails of the four, alone."""
    ds.register_solver("picky", order=1, form="sigma", source="this test")(Picky)
    common = ("sun", "--count", 5, "--seed", 2, "--model", tiny, "-n", 5, "--solver", solver)
    one = batch(*common, "-o", tmp_path / "one", "--max-batch", 1)
    two = batch(*common, "-o", tmp_path / "two")
    assert one.exit_code == two.exit_code == (solver == "picky"), two.output
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    assert records(tmp_path / "two") == records(tmp_path / "one")
    states = {record["status"] for record in records(tmp_path / "two")}
    assert states == ({"end", "failed"} if solver == "picky" else {"end"})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"', ["line 2", "no JSON", '{"prompt": "a"']),
        ("[1]", ["line 2", "[1]", "an object"]),
        ("{}", ["line 2", "no prompt"]),
        ('{"prompt": "a", "prompt": "b"}', ["line 2", "'prompt' stands twice"]),
        ('{"prompt": "a", "sed": 4}', ["line 2", "'sed'", "(4)", "did you mean 'seed'"]),
        ('{"prompt": "a", "n": "12"}', ["line 2", "n is '12'", "int"]),
        ('{"prompt": "a", "n": 0}', ["line 2", "n must be", "0"]),
        ('{"prompt": "a", "eta": NaN}', ["line 2", "NaN"]),
        ('{"prompt": "a", "solver": "huen"}', ["line 2", "huen", "did you mean 'heun'"]),
        ('{"prompt": "a", "schedule": "karas"}', ["line 2", "karas", "karras"]),
        ('{"prompt": "a", "solver": "heun", "eta": 1}', ["line 2", "eta"]),
        ('{"prompt": "a", "model": "emoji"}', ["line 2", "model ('emoji') holds for all lines", "--model"]),
        ('{"prompt": "\\ud800"}', ["line 2", "no text"]),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", ["line 2", "no JSON"]),
        ("[" * 100000, ["line 2"]),
    ],
)
def test_a_bad_line_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: list[str]
) -> None:
    def not_loaded(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(draw, "load", not_loaded)
    result = batch(file_of(tmp_path, {"prompt": "a"}, line), "-o", tmp_path / "out")
    assert result.exit_code == 1, result.exception
    assert [word for word in words if word not in result.output] == [], result.output
    assert len(result.output) < 500
    assert not list((tmp_path / "out").glob("0*.png"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing.jsonl",), ["nothing.jsonl can't be read (No such file"]),
        (("a", "--count", 0), ["count is 0"]), (("a", "--shard", "4/4"), ["'4/4'", "counted from 0"]),
        (("/dev/zero",), ["/dev/zero can't be read (it has more than"]),
        (("a", "--shard", "x"), ["'x'", "i/n"]), (("a", "--solver", "huen"), ["did you mean 'heun'"]),
    ],
)  # fmt: skip
def test_bad_options(tmp_path: Path, arguments: tuple[Any, ...], words: list[str]) -> None:
    result = batch(*arguments, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert [word for word in words if word not in result.output] == [], result.output


def test_files_that_are_no_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}')
    with pytest.raises(ProblemError, match="line 2 is no UTF-8"):
        read_lines(str(file), Settings(), None)
    file.write_text("\n\n")
    with pytest.raises(ProblemError, match="no line that asks"):
        read_lines(str(file), Settings(), None)
    result = batch("a", "-o", file)
    assert result.exit_code == 1
    assert "can't be made a folder" in result.output


def test_what_a_model_cannot_draw_is_in_the_index_and_the_rest_is_drawn(tiny: Path, tmp_path: Path) -> None:
    file = file_of(tmp_path, {"prompt": "a", "height": 17}, {"prompt": "b"})
    result = batch(file, "-o", tmp_path / "out", "--model", tiny, "-n", 1, "--json")
    assert result.exit_code == 1
    bad, good = records(tmp_path / "out")
    assert (bad["status"], good["status"], "file" in bad) == ("refused", "end", False)
    assert "height is 17" in bad["message"]
    assert "line 1" in result.output


def test_a_full_disk_stops_with_words_and_loses_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, arguments = [], ("apple", "--count", 6, "-o", tmp_path / "out", "--model", tiny, "-n", 1)

    def full(path: Path, write: Any, real: Any = many.replace_file) -> None:
        if len(written) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, write)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(many, "replace_file", full)
        result = batch(*arguments)
    assert result.exit_code == 1
    assert "can't be written (No space left on device); what was drawn before is whole" in result.output
    before = pictures(tmp_path / "out")
    assert len(before) == 3
    assert json.loads(batch(*arguments, "--json").stdout)["drawn"] == 3
    after = pictures(tmp_path / "out")
    assert len(after) == len(records(tmp_path / "out")) == 6
    assert {name: after[name] for name in before} == before


def test_shares_are_those_of_the_launcher() -> None:
    assert Share.of(None, {}) == Share()
    assert Share.of("1/3", {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}) == Share(2, 4, 2, 1, 3)
    assert Share.of(None, {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}) == Share(1, 2)
    with pytest.raises(ProblemError, match="RANK is '4' and WORLD_SIZE '4'"):
        Share.of(None, {"RANK": "4", "WORLD_SIZE": "4"})
    for shards, world in ((1, 1), (2, 3), (5, 1)):
        shares = [Share(r, world, 0, s, shards) for s in range(shards) for r in range(world)]
        assert [sum(share.has(i) for share in shares) for i in range(40)] == [1] * 40
        assert all(share.of_launch(i) for share in shares for i in range(40) if share.has(i))


def test_a_ledger_of_many_and_a_broken_one(tmp_path: Path) -> None:
    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data)

    ledgers = [Ledger(tmp_path / "index.jsonl", tmp_path, write) for _ in range(2)]
    for i in range(10):
        ledgers[i % 2].add({"name": f"{i}", "status": "failed" if i == 3 else "end"}, most=2)
    for ledger in ledgers:
        ledger.flush()
    ledgers[0].add({"name": "3", "status": "end"}, most=1)
    found = ledgers[1].merge()
    assert list(found.values()) == [{"name": f"{i}", "status": "end"} for i in range(10)] or len(found) == 10
    assert found["3"]["status"] == "end"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".jsonl"] == ["index.jsonl"]
    (tmp_path / "index.jsonl").write_text('{"name": "1"}\n{"na')
    with pytest.raises(OutputError, match="line 2 is no record"):
        ledgers[0].read()


def test_a_rank_that_is_silent_elsewhere_is_dead(tmp_path: Path) -> None:
    first, second = Board(tmp_path, Share(0, 2)), Board(tmp_path, Share(1, 2))
    second.told["host"] = "elsewhere"
    second.say(done=2, of=5)
    assert first.dead() == {}
    first.began -= 30
    assert first.dead() == {}
    told = first.read()
    told[1]["time"] -= 100
    assert first.dead(told) == {1: f"rank 1 (process {os.getpid()} on elsewhere) died after 2 of its 5 pictures"}
    second.say(ended=True)
    assert first.wait() == {}
    lonely = Board(tmp_path / "nothing", Share(0, 2))
    lonely.began -= 100
    assert lonely.dead() == {1: "rank 1 was never heard of"}


@pytest.mark.slow
def test_four_processes_draw_what_one_does_and_the_dead_is_named(tiny: Path, tmp_path: Path) -> None:
    file = file_of(tmp_path, *LINES)
    common = ("batch", file, "--model", tiny, "-n", 2, "--count", 3)
    assert batch(*common[1:], "-o", tmp_path / "one").exit_code == 0
    ranks = [batch_process.begin(*common, "-o", tmp_path / "four", "--json", log=tmp_path / f"log{r}", rank=r, world=4,
                                 port=4) for r in range(4)]  # fmt: skip
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0] * 4, (tmp_path / "log0").read_text()
    assert pictures(tmp_path / "four") == pictures(tmp_path / "one")
    assert records(tmp_path / "four") == records(tmp_path / "one")
    told = json.loads((tmp_path / "log0").read_text().splitlines()[-1])
    assert (told["pictures"], told["drawn"], told["ranks"], told["dead"]) == (8, 8, 4, [])

    slow = ("batch", "apple", "--count", 400, "--model", tiny, "-n", 20, "-o", tmp_path / "dead")
    first, second = (batch_process.begin(*slow, log=tmp_path / f"dead{r}", rank=r, world=2, port=5, grace=0.5)
                     for r in range(2))  # fmt: skip
    wait_for(lambda: len(pictures(tmp_path / "dead")) > 2)
    os.kill(second.pid or 0, signal.SIGKILL)
    second.join()
    wait_for(lambda: "died" in (tmp_path / "dead0").read_text())
    os.kill(first.pid or 0, signal.SIGTERM)
    first.join(60)
    said = (tmp_path / "dead0").read_text()
    assert f"rank 1 (process {second.pid} on " in said
    assert "rank 0 was stopped with" in said
    assert first.exitcode == 130


@pytest.mark.slow
def test_killed_at_random_moments_it_draws_no_picture_twice(tiny: Path, tmp_path: Path) -> None:
    common = ("batch", "apple", "--count", 24, "--model", tiny, "-n", 8)
    assert batch(*common[1:], "-o", tmp_path / "whole").exit_code == 0
    whole, moments, seen = pictures(tmp_path / "whole"), random.Random(7), {}
    out = tmp_path / "out"
    for attempt in range(40):
        limit = 1000 if attempt == 1 else 0  # as a full disk: no picture goes in, and none is lost
        process = batch_process.begin(*common, "-o", out, log=tmp_path / "log", file_size=limit)
        wait_for(lambda: bool(limit) or len(pictures(out)) > len(seen) or not process.is_alive())  # noqa: B023
        process.join(60 if attempt == 11 or limit else moments.uniform(0, 0.5))
        process.kill()
        process.join()
        if limit:
            assert "File too large" in (tmp_path / "log").read_text()
        now = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in out.glob("0*.png")}
        assert {name: now.get(name) for name in seen} == seen, "a picture that was finished was drawn again"
        seen = now
        if process.exitcode == 0:
            break
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert pictures(out) == whole
    assert [r["name"] for r in records(out)] == [name[:-4] for name in sorted(whole)]
    assert not [f.name for f in out.iterdir() if f.name.startswith(".") and f.name != ".batch"]


def wait_for(what: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.slow
def test_torchrun_draws_what_one_process_does(tmp_path: Path) -> None:
    """A real launch with the embedded model: the pictures of one process, and each drawn once."""
    tools = Path(sys.executable).parent
    common = ["batch", "red apple", "--count", "6", "-n", "2", "--device", "cpu"]
    assert batch(*common[1:], "-o", tmp_path / "one").exit_code == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run(
        [*launch, str(tools / "diffsolve"), *common, "-o", str(tmp_path / "two"), "--json"], capture_output=True,
        text=True, check=False, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert (told["pictures"], told["drawn"], told["ranks"], told["missing"], told["dead"]) == (6, 6, 2, 0, [])
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    assert records(tmp_path / "two") == records(tmp_path / "one")
