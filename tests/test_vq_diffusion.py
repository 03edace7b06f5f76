"""The embedded model of pictures in a palette, and its training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import diffsolve as ds
from diffsolve.problems import VQDiffusion
from diffsolve.problems.vq import train
from diffsolve.problems.vq_diffusion import EMBEDDED


@pytest.fixture(scope="module")
def pictures() -> VQDiffusion:
    return VQDiffusion.from_pretrained()


def test_the_embedded_model_draws_in_its_palette(pictures: VQDiffusion) -> None:
    solution = ds.solve(pictures, "vq_diffusion(truncation=0.86)", n=25, batch=8)
    images = solution.images()
    assert [image.size for image in images] == [(16, 16)] * 8
    palette = {tuple(colour) for colour in pictures.palette.tolist()}
    assert {pixel for image in images for pixel in map(tuple, np.asarray(image).reshape(-1, 3).tolist())} <= palette
    corners = solution.x[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).double().mean() > 0.7, "emoji stand on white"
    middle = solution.x[:, 6:10, 6:10]
    assert (middle != 0).double().mean() > 0.7
    assert pictures.decode(pictures.prior(1))[0].getpixel((3, 3)) == (128, 128, 128)


@pytest.mark.slow
def test_the_embedded_model_fills_in_what_is_masked(pictures: VQDiffusion) -> None:
    x = ds.solve(pictures, "vq_diffusion(truncation=0.86)", n=50, batch=8, seed=1).x
    noisy = pictures.noised(x, 40)
    field = pictures.field(ds.get_solver("vq_diffusion"), noisy, range(8), 0, None)
    guess = field(noisy, 40.0).argmax(1)
    hidden = noisy == pictures.mask
    most = x.flatten().bincount().max() / x.numel()
    assert float((guess == x)[hidden].double().mean()) > 0.5 + float(most) / 2


@pytest.mark.slow
def test_training_finds_the_palette_and_learns() -> None:
    red, blue = (np.array(colour, np.float32).reshape(3, 1, 1) for colour in ([1, -1, -1], [-1, -1, 1]))
    pictures = np.ones((8, 3, 8, 8), np.float32)
    pictures[:4, :, 2:6], pictures[4:, :, 2:6] = red, blue
    palette, codes = train.palette_and_codes(pictures, 3)
    assert sorted(palette.tolist()) == [[0, 0, 255], [255, 0, 0], [255, 255, 255]]
    assert np.array_equal(palette[codes].numpy().transpose(0, 3, 1, 2), (pictures + 1) * 127.5)
    _, losses = train.train(codes, {"classes": 3, "side": 8, "width": 16, "depth": 1, "heads": 2}, 200)
    assert losses[1] < 0.5 * losses[0] < math.log(3) / 2


HOSTILE = (None, "x", -1, 0, 1.5, 10**9, 10**30, math.nan, math.inf, [], [1], {}, True)


@pytest.mark.parametrize("key", ["classes", "side", "patch", "width", "depth", "heads"])
def test_any_number_of_a_config_works_or_is_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(EMBEDDED / "model.safetensors")
    plain = json.loads((EMBEDDED / "config.json").read_text())
    for value in (*HOSTILE, plain[key]):
        (tmp_path / "config.json").write_text(json.dumps({**plain, key: value}))
        try:
            model = VQDiffusion.from_pretrained(tmp_path)
        except ds.ModelError as error:
            assert "config.json" in str(error) or "weights" in str(error) or "shape" in str(error)  # noqa: PT017
            continue
        assert value in (plain[key], *((1, True) if key == "heads" else ()))
        assert ds.solve(model, "vq_diffusion", n=1).x.shape == (1, 16, 16)


@pytest.mark.parametrize("text", ["[]", "3", "[" * 100_000, "\x00", ""])
def test_a_config_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(EMBEDDED / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ds.ModelError, match=r"config\.json"):
        VQDiffusion.from_pretrained(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: {k: v for k, v in w.items() if k != "palette"}, "lacks the palette"),
    (lambda w: {**w, "more": torch.zeros(1)}, "1 weights have no place in the CodeTransformer, first more"),
    (lambda w: {**w, "places": w["places"] * math.nan}, "places holds NaN or infinity"),
    (lambda w: {k: v[:1] for k, v in w.items()}, "has the shape"),
    (lambda w: {k: v.to(torch.uint8) for k, v in w.items()}, "a quantised weight"),
    (lambda w: {**w, "palette": w["palette"].float()}, "palette is .* expected"),
])  # fmt: skip
def test_weights_that_are_none_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(EMBEDDED / "config.json")
    save_file(change(load_file(EMBEDDED / "model.safetensors")), tmp_path / "model.safetensors")
    with pytest.raises(ds.ModelError, match=message):
        VQDiffusion.from_pretrained(tmp_path)


def test_features_of_another_file_are_refused(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "none.safetensors", EMBEDDED / "model.safetensors", 3):
        for read in (ds.problems.load_features, ds.problems.training_names):
            with pytest.raises(ds.ModelError):
                read(file)  # type: ignore[arg-type]


def test_a_folder_without_a_model(tmp_path: Any) -> None:
    with pytest.raises(ds.ModelError, match="holds no code model"):
        VQDiffusion.from_pretrained(tmp_path)
