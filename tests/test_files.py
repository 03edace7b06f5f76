"""What is written: whole or not at all; what is read back: checked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

import diffsolve as ds
from diffsolve.app import picture
from diffsolve.app.files import replace_file

MADE: dict[str, Any] = {"diffsolve": "0"}
RESULT: dict[str, Any] = {"steps": 1, "schedule": "karras", "reason": "end"}


def write(path: Path, **settings: Any) -> None:
    picture.write(path, Image.new("RGB", (64, 64)), picture.Settings(**settings), RESULT, MADE)


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_older_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "a.png"
    write(path, prompt="older")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(ds.OutputError, match=r"a\.png can't be written \(No space left on device\); the picture is in"):
        write(path, prompt="newer")
    assert path.read_bytes() == before
    assert left_in(tmp_path) == ["a.png"]


def test_a_disk_that_fills_in_the_middle_leaves_the_older_picture(tmp_path: Path) -> None:
    """The same without a mock: the process may write no file of more than 300 bytes, not even a temporary one."""
    path = tmp_path / "a.png"
    write(path, prompt="older")
    before = path.read_bytes()
    code = """
        import resource, signal, sys
        from pathlib import Path
        from PIL import Image
        import diffsolve as ds
        from diffsolve.app import picture
        import diffsolve.registry
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sheet, settings = Image.effect_noise((64, 64), 50).convert("RGB"), picture.Settings(prompt="newer")
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        try:
            picture.write(Path(sys.argv[1]), sheet, settings, {"steps": 1, "schedule": "karras"}, {"diffsolve": "0"})
        except ds.OutputError as error:
            print(error)
    """
    assert hasattr(signal, "SIGXFSZ")
    found = subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(code), path], capture_output=True, text=True, check=True
    )
    assert "a.png can't be written (File too large), nor can a temporary folder" in found.stdout
    assert path.read_bytes() == before
    assert left_in(tmp_path) == ["a.png"]


def test_the_mode_and_the_link_of_an_older_file_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.png", tmp_path / "link.png"
    write(real)
    assert real.stat().st_mode & 0o777 == 0o666 & ~umask()
    real.chmod(0o604)
    link.symlink_to(real)
    write(link, prompt="newer")
    assert link.is_symlink()
    assert picture.read(real)[0].prompt == "newer"
    assert real.stat().st_mode & 0o777 == 0o604


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_pipe_is_written_to_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    replace_file(pipe, lambda target: target.write_bytes(b"through"))
    assert os.read(reader, 99) == b"through"
    os.close(reader)
    assert left_in(tmp_path) == ["pipe"]


def png(path: Path, settings: object, result: object = RESULT, made_with: object = MADE) -> Path:
    info = PngInfo()
    text = json.dumps({"settings": settings, "result": result, "made_with": made_with})
    info.add_text("diffsolve", text if isinstance(settings, dict) else str(settings))
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(("settings", "message"), [
    ({"scale": 0}, r"its setting scale must be a whole number from 1 to 1000, got 0"),
    ({"scale": -3}, r"scale must be .* got -3"),
    ({"scale": 10**6}, r"scale must be .* got 1000000"),
    ({"scale": True}, r"scale is True, expected int"),
    ({"n": 0}, r"n must be"), ({"n": 10**30}, r"n must be"), ({"n": 2.5}, r"n is 2\.5, expected int"),
    ({"nfe": -1}, r"nfe must be"), ({"batch": 0}, r"batch must be"), ({"batch": 10**9}, r"batch must be"),
    ({"height": 0}, r"height must be"), ({"width": -8}, r"width must be"), ({"seed": 10**40}, r"seed must be"),
    ({"guidance": float("nan")}, r"guidance must be a finite number of at least 0, got nan"),
    ({"guidance": -1}, r"guidance must be"), ({"eta": float("inf")}, r"eta must be"), ({"rtol": -1.0}, r"rtol must be"),
    ({"sigma_max": 0.0}, r"sigma_max must be a finite number above 0"), ({"final": "stop"}, r"final must be one of"),
    ({"dtype": "float3"}, r"dtype must be one of .*did you mean 'float32'"),
    ({"prompt": 3}, r"prompt is 3, expected str"),
    ({"prompt": "\ud800"}, r"prompt is '\\ud800', which is no text"),
    ({"model": "a\udfff"}, r"model is 'a\\udfff', which is no text"),
    ("[" * 100_000, r"settings can't be read \(RecursionError"),
    ("[]", r"settings can't be read"), ('{"settings": [[]]}', r"settings can't be read"),
])  # fmt: skip
def test_settings_of_a_picture_are_checked(tmp_path: Path, settings: Any, message: str) -> None:
    path = png(tmp_path / "a.png", settings)
    with pytest.raises(ds.ProblemError, match=rf"a\.png: .*{message}"):
        picture.read(path)


def test_what_a_picture_tells_besides_is_cleaned(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", {}, {"reason": "\ud800", "steps": 3, "nfe": [1]}, {"torch": {}, "device": "cpu"})
    assert picture.read(path) == (picture.Settings(), {"steps": 3}, {"device": "cpu"})


def test_a_picture_too_large_to_open_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ds.ProblemError, match=r"can't be read as a picture"):
        picture.read(path)


def test_a_sheet_too_large_to_hold_is_refused() -> None:
    assert picture.sheet_of(5, 512, 512) == (3, 2)
    with pytest.raises(ds.OutputError, match=r"262144000000 pixels and take 786\.4 GB; take a smaller --scale"):
        picture.sheet_of(1, 512, 512, 1000)


# ---- solutions


@pytest.fixture(scope="module")
def solution() -> ds.Solution:
    problem = ds.problems.Gaussian(torch.zeros(3), torch.ones(3))
    return ds.solve(problem, solver="heun", n=4, batch=2, seed=3, save="all")


def test_a_solution_comes_back_whole(solution: ds.Solution, tmp_path: Path) -> None:
    path = solution.save(tmp_path / "a.safetensors")
    again = ds.load_solution(path)
    assert torch.equal(again.x, solution.x)
    assert all(map(torch.equal, again.trajectory or [], solution.trajectory or []))
    assert len(again.trajectory or []) == len(solution.trajectory or []) > 0
    for name in ("nfe", "solver", "schedule", "steps", "seed", "reason", "seconds", "nodes", "n"):
        assert getattr(again, name) == getattr(solution, name)
    assert again.sigmas.tolist() == solution.sigmas.tolist()
    assert again.visited.tolist() == solution.visited.tolist()
    assert again.grid.final == solution.grid.final
    assert again.stats["execution"] == solution.stats["execution"]
    assert repr(again) == repr(solution)
    with pytest.raises(ds.ProblemError, match=r"loaded without its problem.*load_solution\(path, problem\)"):
        again.images()


def test_a_solution_without_a_trajectory_and_of_chosen_steps(tmp_path: Path) -> None:
    problem = ds.problems.Gaussian(torch.zeros(3), torch.ones(3))
    whole = ds.solve(problem, solver="dpm_adaptive", rtol=0.1, atol=0.1)
    again = ds.load_solution(whole.save(tmp_path / "a.safetensors"), problem)
    assert (again.trajectory, again.problem) == (None, problem)
    assert again.stats["accepted"] == whole.stats["accepted"]


def test_what_is_no_solution_is_refused(solution: ds.Solution, tmp_path: Path) -> None:
    with pytest.raises(ds.OutputError, match=r"doesn't end in \.safetensors; pass 'a\.safetensors'"):
        solution.save(tmp_path / "a.pt")
    with pytest.raises(ds.OutputError, match=r"can't be written"):
        solution.save(tmp_path / "none" / "a.safetensors")
    for name in (None, 3, b"a.safetensors", "", tmp_path, "a\x00.safetensors", "a" * 5000 + ".safetensors"):
        with pytest.raises(ds.OutputError):
            solution.save(name)  # type: ignore[arg-type]
    path = solution.save(tmp_path / "a.safetensors")
    tensors = load_file(path)
    other = tmp_path / "other.safetensors"
    good = {"version": 1, "grid": {"name": "x", "final": "none"}, "stats": {}, "nfe": 1, "solver": "a", "schedule": "b",
            "steps": 1, "seed": 0, "reason": "end", "seconds": 0.1}  # fmt: skip
    for told in ({}, {"diffsolve_solution": "{"}, {"diffsolve_solution": "3"},
                 {"diffsolve_solution": json.dumps({**good, "version": 2})},
                 {"diffsolve_solution": json.dumps({**good, "nfe": "many"})},
                 {"diffsolve_solution": json.dumps({**good, "grid": 3})},
                 {"diffsolve_solution": json.dumps({**good, "stats": 3})}):
        save_file(tensors, other, told)
        with pytest.raises(ds.ProblemError, match=r"other\.safetensors can't be read as a solution"):
            ds.load_solution(other)
    for path in (tmp_path / "gone.safetensors", tmp_path):
        with pytest.raises(ds.ProblemError, match=r"can't be read as a solution"):
            ds.load_solution(path)
    other.write_bytes(b"none")
    with pytest.raises(ds.ProblemError, match=r"can't be read as a solution"):
        ds.load_solution(other)


def test_a_failed_save_leaves_the_older_one(
    solution: ds.Solution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = solution.save(tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ds.OutputError, match=r"No space left"):
        solution.save(path)
    assert path.read_bytes() == before
    assert left_in(tmp_path) == ["a.safetensors"]
