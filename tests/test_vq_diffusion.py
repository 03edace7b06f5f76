"""The embedded model of pictures in a palette, and its training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import diffsolve as ds
from diffsolve.problems import VQDiffusion
from diffsolve.problems.vq import train


@pytest.fixture(scope="module")
def pictures() -> VQDiffusion:
    return VQDiffusion.from_pretrained()


def test_the_embedded_model_draws_in_its_palette(pictures: VQDiffusion) -> None:
    solution = ds.solve(pictures, "vq_diffusion(truncation=0.86)", n=25, batch=8)
    images = solution.images()
    assert [image.size for image in images] == [(16, 16)] * 8
    palette = {tuple(colour) for colour in pictures.palette.tolist()}
    assert {pixel for image in images for pixel in image.get_flattened_data()} <= palette
    corners = solution.x[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).double().mean() > 0.7, "emoji stand on white"
    middle = solution.x[:, 6:10, 6:10]
    assert (middle != 0).double().mean() > 0.7
    assert pictures.decode(pictures.prior(1))[0].getpixel((3, 3)) == (128, 128, 128)


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


def test_a_folder_without_a_model(tmp_path: Any) -> None:
    with pytest.raises(ds.ModelError, match="holds no code model"):
        VQDiffusion.from_pretrained(tmp_path)
