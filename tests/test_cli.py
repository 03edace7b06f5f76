"""The command line, on a random model of a few thousand weights."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model
from PIL import Image, ImageChops
from stubs import slow
from typer.testing import CliRunner, Result

import diffsolve as ds
from diffsolve.app import cli, draw, picture


def diffsolve(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env=environment)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def sample(tiny: Path, tmp_path: Path) -> Any:
    """Runs `diffsolve sample`; -> (result, path of the picture)."""

    def run(*arguments: object, to: str = "a.png", prompt: str = "red apple") -> tuple[Result, Path]:
        own = () if "--like" in arguments else (prompt, "--model", tiny, "-n", 3, "--device", "cpu")
        return diffsolve("sample", *own, *arguments, "-o", tmp_path / to), tmp_path / to

    return run


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model must not be looked for."""

    def fail(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(draw, "load", fail)


def assert_refused(result: Result, *words: str) -> None:
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert [word for word in words if word not in lines[0]] == []
    assert "Traceback" not in result.output


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def told(path: Path) -> dict[str, Any]:
    return json.loads(opened(path).info["diffsolve"])


def test_a_picture_carries_its_settings(sample: Any, tiny: Path) -> None:
    result, path = sample(
        "--solver", "heun", "--batch", 3, "--seed", 7, "--negative", "blur", "--guidance", 2, "--scale", 2
    )
    assert result.exit_code == 0, result.output
    assert f"{path}: 3 pictures of 8x8, heun on karras, 3 steps, 5 NFE" in result.stdout
    image = opened(path)
    assert image.size == (32, 32)
    data = told(path)
    expected = {"prompt": "red apple", "negative": "blur", "model": str(tiny), "solver": "heun", "schedule": "karras",
                "n": 3, "seed": 7, "batch": 3, "guidance": 2.0, "height": 8, "width": 8, "dtype": "float32",
                "device": "cpu", "final": "denoise"}  # fmt: skip
    assert {k: data["settings"][k] for k in expected} == expected
    assert {k: data["result"][k] for k in ("steps", "nfe", "reason")} == {"steps": 3, "nfe": 5, "reason": "end"}
    assert data["made_with"]["diffsolve"] == ds.__version__
    assert data["made_with"]["torch"] == torch.__version__
    assert image.info["parameters"] == (
        "red apple\nNegative prompt: blur\nSteps: 3, Sampler: Heun, Schedule type: Karras, CFG scale: 2.0, Seed: 7, "
        f"Size: 8x8, Model: {tiny}, Version: diffsolve {ds.__version__}"
    )


def test_like_repeats_to_the_last_bit(sample: Any) -> None:
    # everything that has a default is set to something else
    _, first = sample(
        "--solver", "euler_ancestral(form=sde)", "--schedule", "karras(rho=5)", "--seed", 3, "--batch", 2, "--eta", 0.5,
        "--sigma-min", 0.1, "--sigma-max", 9, "--final", "none", "--height", 16, "--scale", 3, "--guidance", 3,
        "--negative", "Füße", "--dtype", "bfloat16",
    )  # fmt: skip
    result, second = sample("--like", first, to="b.png")
    assert result.exit_code == 0, result.output
    assert f"like {first}\n" in result.stderr
    assert first.read_bytes() == second.read_bytes()


def test_like_with_other_options(sample: Any) -> None:
    _, first = sample("--nfe", 5, "--guidance", 3)
    result, second = sample("--like", first, "--solver", "euler", "-n", 2, "--guidance", 3, to="b.png")
    for words in ("solver 'euler' (was 'guarded_abm')", "n 2 (was 3)", "nfe by default (was 5)"):
        assert words in result.stderr
    assert "guidance" not in result.stderr
    assert told(second)["result"] | {"steps": 2, "solver": "euler"} == told(second)["result"]
    assert told(second)["settings"]["prompt"] == "red apple"
    assert_refused(sample("--like", first)[0], str(first), "-o")


def test_like_says_what_may_change_the_bits(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = sample()
    now = told(first)["made_with"] | {"weights": "other"}
    monkeypatch.setattr(draw, "surroundings", lambda networks, device: now)
    assert "(now other): the picture may differ" in sample("--like", first, to="b.png")[0].stderr


def test_like_of_what_is_no_such_picture(tmp_path: Path, sample: Any, no_model: None) -> None:
    plain, text = tmp_path / "plain.png", tmp_path / "text.png"
    Image.new("RGB", (2, 2)).save(plain)
    text.write_text("no picture")
    assert_refused(sample("--like", plain, to="b.png")[0], str(plain), "no diffsolve settings")
    assert_refused(sample("--like", text, to="b.png")[0], str(text), "not an image file")
    assert_refused(sample("--like", tmp_path / "none.png", to="b.png")[0], "No such file")
    for broken in ("{", "[]", '{"settings": {"n": "many"}, "result": {}, "made_with": {}}', '{"settings": {}}'):
        info = picture_info(broken)
        Image.new("RGB", (2, 2)).save(plain, pnginfo=info)
        assert_refused(sample("--like", plain, to="b.png")[0], str(plain))


def picture_info(text: str) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("diffsolve", text)
    return info


def test_outputs_that_cannot_be_written(tmp_path: Path, no_model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for output, words in (
        (tmp_path / "none" / "a.png", ("no folder", "create it")),
        (tmp_path / "file" / "a.png", ("no folder",)),
        (tmp_path, ("is a folder", "out.png")),
        (".", ("is a folder",)),
        (tmp_path / "a.jpg", (".png", "-o a.png")),
        (tmp_path / "a", (".png",)),
        (tmp_path / ("a" * 300 + ".png"), ("too long",)),
    ):
        assert_refused(diffsolve("sample", "x", "-o", output), str(output), *words)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert_refused(diffsolve("sample", "x", "-o", tmp_path / "a.png"), "a.png", "Permission denied", "-o")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_at_the_end_loses_nothing(tmp_path: Path) -> None:
    made_with, result = {"diffsolve": "0"}, {"steps": 1, "schedule": "karras"}
    with pytest.raises(ds.OutputError) as caught:
        picture.write(tmp_path / "gone" / "a.png", Image.new("RGB", (2, 2)), picture.Settings(), result, made_with)
    spare = Path(str(caught.value).rsplit(" ", 1)[1])
    assert picture.read(spare)[0] == picture.Settings()
    spare.unlink()
    spare.parent.rmdir()


def test_names_are_checked_before_the_model_is_loaded(no_model: None, sample: Any) -> None:
    assert_refused(sample("--solver", "huen")[0], "'huen'", "'heun'")
    assert_refused(sample("--solver", "lms(order=0)")[0], "order")
    assert_refused(sample("--schedule", "kerras")[0], "'kerras'", "'karras'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--solver", "heun", "--eta", 0.5), ("eta = 0.5 was given", "heun")),
        (("--solver", "lms", "--rtol", 0.1), ("no estimate of its error",)),
        (("--solver", "euler_ancestral", "--eta", -1), ("eta must be",)),
        (("--dtype", "float3"), ("dtype must be one of", "'float32'")),
        (("--final", "stop"), ("final must be one of", "'stop'")),
        (("-n", 0), ("n must be", "got 0")),
        (("--batch", 10**9), ("batch must be",)),
        (("--guidance", "nan"), ("guidance must be", "nan")),
        (("--sigma-max", 0), ("sigma_max must be",)),
        (("--height", -8), ("height must be",)),
        (("--device", "tpu"), ("'tpu'",)),
        (("--revision", "v2"), ("revision is 'v2'", "--revision")),
    ],
    ids=str,
)
def test_options_are_checked_before_the_model_is_loaded(
    options: tuple[object, ...], words: tuple[str, ...], sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffsolve.problems import checkpoints

    monkeypatch.setattr(checkpoints, "blank_components", lambda *_: pytest.fail("a model was loaded"))
    assert_refused(sample(*options)[0], *words)


def test_models_that_cannot_be_used(tmp_path: Path, sample: Any, tiny: Path) -> None:
    assert_refused(sample("--model", tmp_path / "none")[0], "no such folder", "hub id")
    assert_refused(sample("--model", tmp_path / "none.safetensors")[0], "no such file")
    (tmp_path / "old.ckpt").touch()
    assert_refused(sample("--model", tmp_path / "old.ckpt")[0], "is a pickle, refused")
    assert_refused(sample("--config", tiny)[0], "--config")
    assert_refused(sample("--device", "tpu")[0], "'tpu'")
    assert_refused(sample("--dtype", "float3")[0], "'float3'")
    assert_refused(sample("--height", 7)[0], "height is 7")
    assert_refused(sample("-n", 0)[0], "got 0")
    assert_refused(sample("--final", "stop")[0], "'stop'")


def test_one_file(tmp_path: Path, sample: Any, tiny: Path) -> None:
    from diffsolve.problems.single_file import to_single_file

    _, folder = sample("--guidance", 3)
    file = to_single_file(tiny, tmp_path / "tiny.safetensors")
    result, one = sample("--model", file, "--config", tiny, "--guidance", 3, to="b.png")
    assert result.exit_code == 0, result.output
    assert opened(one).tobytes() == opened(folder).tobytes()
    assert sample("--like", one, to="c.png")[1].read_bytes() == one.read_bytes()


def broken_at(monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException | None) -> None:
    """The network raises `error`, or returns NaN, from its `call`-th call on."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    forward, calls = UNet2DConditionModel.forward, []

    def fail(self: Any, x: torch.Tensor, *rest: Any, **options: Any) -> Any:
        calls.append(x)
        if len(calls) < call:
            return forward(self, x, *rest, **options)
        if error is not None:
            raise error
        return (x * float("nan"),)

    monkeypatch.setattr(UNet2DConditionModel, "forward", fail)


@pytest.mark.slow
def test_steps_chosen_by_their_error(sample: Any) -> None:
    result, path = sample("--solver", "dpm_adaptive", "--rtol", 0.1, "--atol", 0.02)
    assert result.exit_code == 0, result.output
    settings, made = told(path)["settings"], told(path)["result"]
    assert (settings["solver"], settings["rtol"], settings["atol"]) == ("dpm_adaptive", 0.1, 0.02)
    assert f"dpm_adaptive on adaptive, {made['steps']} steps, {made['nfe']} NFE" in result.stdout
    assert "Sampler: DPM adaptive, Schedule type: adaptive" in opened(path).info["parameters"]
    assert sample("--like", path, to="b.png")[1].read_bytes() == path.read_bytes()
    finer = told(sample("--like", path, "--rtol", 0.03, "--atol", 0.01, to="c.png")[1])["result"]
    assert finer["nfe"] > made["nfe"]
    result, other = sample("--like", path, "--solver", "lms", "-n", 3, to="d.png")
    assert told(other)["settings"]["rtol"] is None, "a tolerance goes with its solver"
    assert_refused(sample("--solver", "lms", "--rtol", 0.1)[0], "no estimate of its error", "dpm_adaptive")


def test_a_spent_budget_gives_the_newest_estimate(sample: Any) -> None:
    result, path = sample("--solver", "dpm_adaptive", "--nfe", 6)
    assert result.exit_code == 0, result.output
    assert re.search(r"6 NFE were spent at sigma [\d.]+; the picture is the newest denoised estimate", result.stderr)
    assert (told(path)["result"]["reason"], told(path)["result"]["nfe"]) == ("max_nfe", 6)
    assert sample("--like", path, to="b.png")[1].read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("solver", "steps"), [slow("dpm_adaptive", r"\d+ steps, \d+ NFE"), ("heun", r"3/3 steps, 5 NFE")]
)
def test_the_bar(solver: str, steps: str, sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", sample("--solver", solver)[0].stderr)
    assert re.search(steps, shown)


def test_an_interrupt_keeps_the_newest_estimate(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_at(monkeypatch, 3, KeyboardInterrupt())
    result, path = sample("-n", 4)
    assert result.exit_code == 130
    assert "interrupted in step 3 of 4" in result.stderr
    assert told(path)["result"] | {"reason": "interrupted", "steps": 2} == told(path)["result"]
    monkeypatch.undo()
    result, whole = sample("--like", path, to="b.png")
    assert f"{path} was interrupted after 2 steps" in result.stderr
    assert told(whole)["result"]["reason"] == "end"


@pytest.mark.slow
def test_an_interrupt_in_a_step_that_goes_back_up_counts_the_steps_there_are(
    sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = told(sample("--solver", "restart", "-n", 12)[1])["result"]
    assert whole["steps"] > whole["n"]
    broken_at(monkeypatch, whole["nfe"], KeyboardInterrupt())
    result, path = sample("--solver", "restart", "-n", 12, to="b.png")
    assert result.exit_code == 130
    assert f"interrupted in step {whole['steps']} of {whole['steps']}" in result.stderr
    assert told(path)["result"]["steps"] == whole["steps"] - 1


def test_an_interrupt_before_the_first_step(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_at(monkeypatch, 1, KeyboardInterrupt())
    result, path = sample()
    assert result.exit_code == 130
    assert "nothing was written" in result.stderr
    assert not path.exists()


def test_what_goes_wrong_on_the_way(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_at(monkeypatch, 2, None)
    result, path = sample()
    assert_refused(result, "step 2 of 3", "NaN")
    assert not path.exists()
    broken_at(monkeypatch, 1, ZeroDivisionError("a bug"))
    assert isinstance(sample()[0].exception, ZeroDivisionError)  # a bug keeps its traceback


@pytest.mark.filterwarnings("default")
def test_a_long_prompt_warns(sample: Any) -> None:
    result, _ = sample(prompt="abcdefghijklmnopqrstuvwxyz")
    assert result.exit_code == 0
    assert re.search(r"^warning: the prompt has 28 tokens.*'opqrstuvwxyz'", result.stderr, flags=re.MULTILINE)


def test_grid_is_pixel_exact() -> None:
    images = [Image.new("RGB", (3, 2), (i, 0, 0)) for i in range(5)]
    sheet = picture.grid(images, 2)
    assert sheet.size == (18, 8)
    assert [sheet.getpixel((6 * (i % 3) + 1, 4 * (i // 3) + 3)) for i in range(5)] == [(i, 0, 0) for i in range(5)]
    assert sheet.getpixel((17, 7)) == (255, 255, 255)


def test_process_and_prediction_override_what_the_config_says(sample: Any) -> None:
    plain, as_given, other = (sample(*options, to=f"{i}.png")[1].read_bytes() for i, options in enumerate(
        ((), ("--process", "sd", "--prediction", "eps"), ("--prediction", "v"))))
    assert picture_of(plain) == picture_of(as_given) != picture_of(other)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--process", "flw", ("flw", "flow")), ("--prediction", "epss", ("epss", "eps"))],
)
def test_an_unknown_nature_is_refused_before_the_model_is_loaded(
    sample: Any, no_model: None, option: str, value: str, words: tuple[str, ...]
) -> None:
    assert_refused(sample(option, value)[0], *words)


def test_a_later_picture_of_a_seed_is_that_of_the_sheet(sample: Any) -> None:
    sheet = Image.open(sample("--batch", 4, to="sheet.png")[1])
    single = Image.open(sample("--first", 3, to="single.png")[1])
    corner = sheet.crop((single.width, single.height, 2 * single.width, 2 * single.height))
    assert max(high for _, high in ImageChops.difference(corner, single).getextrema()) <= 1


def picture_of(data: bytes) -> bytes:
    return Image.open(BytesIO(data)).tobytes()
