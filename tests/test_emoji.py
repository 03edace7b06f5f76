"""The embedded model's data and its evaluation, on a made-up package of three pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from diffsolve.problems.emoji import data, evaluate, features


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder as `data.fetch` leaves it: a red apple, a blue apple, a flag and one without a picture."""
    pictures = tmp_path / "package" / "img" / "google" / "64"
    pictures.mkdir(parents=True)
    rows = []
    for name, colour, category, has in (("RED APPLE", "red", "Food", True), ("BLUE APPLE", "blue", "Food", True),
                                        ("BLUE FLAG", "blue", "Flags", True), ("NO APPLE", "white", "Food", False)):
        image = name.lower().replace(" ", "_") + ".png"
        Image.new("RGBA", (64, 64), colour).save(pictures / image)
        rows.append({"name": name, "short_name": "apple", "short_names": ["apple"], "category": category,
                     "subcategory": "food-fruit", "image": image, "has_img_google": has})
    (tmp_path / "package" / "emoji.json").write_text(json.dumps(rows))
    return tmp_path


def test_data_leaves_out_flags_and_missing_pictures(package):
    emojis = data.read(data.fetch(package))
    assert [e.name for e in emojis] == ["red apple", "blue apple"]
    assert emojis[0].captions == ("red apple", "apple", "red apple, apple food fruit")
    assert [c for _, c in data.unambiguous(emojis)] == [
        "red apple", "red apple, apple food fruit", "blue apple", "blue apple, apple food fruit"]
    pictures = data.pictures(package / "package", emojis, 32)
    assert pictures.shape == (2, 3, 32, 32)
    assert pictures[0, :, 0, 0].tolist() == [1, -1, -1]


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path):
    (tmp_path / f"{data.PACKAGE}-{data.VERSION}.tgz").write_bytes(b"another")
    with pytest.raises(RuntimeError, match=r"has SHA-256 .* expected fb5fd131"):
        data.fetch(tmp_path)


def test_psnr_of_a_known_error():
    pictures = torch.zeros(4, 3, 8, 8)
    model = SimpleNamespace(pixels=lambda latents: latents + 0.2)  # 0.1 of the range [0, 1]
    figures = evaluate.psnr(model, pictures, pictures)
    assert figures == {"mean_db": pytest.approx(20), "lowest_db": pytest.approx(20), "pictures": 4}


def test_adherence_counts_ranks(monkeypatch):
    emojis = [data.Emoji("", f"e{i}", "", (f"e{i}",)) for i in range(8)]
    latents = torch.arange(8.0).view(8, 1, 1, 1)

    def draw(model, prompts, seed):  # lands on the right picture, but for e7, where it lands on e0
        return SimpleNamespace(x=torch.tensor([int(p[1]) % 7 for p in prompts]).float().view(-1, 1, 1, 1))

    monkeypatch.setattr(evaluate, "draw", draw)
    figures = evaluate.adherence(None, latents, emojis, 8, seed=0)
    assert figures == {"among_nearest_5": 7, "nearest": 7, "of": 8,
                       "missed": [{"caption": "e7", "rank": 8, "nearest": "e0"}]}


@pytest.mark.slow
def test_evaluation_writes_figures_and_sheet(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(evaluate.SETTINGS, "n", 2)
    figures, sheet = tmp_path / "figures.json", tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", [
        "evaluate", "--data", str(package), "--count", "2", "--json", str(figures), "--sheet", str(sheet)])
    evaluate.main()
    written = json.loads(figures.read_text())
    assert written == json.loads(capsys.readouterr().out)
    assert written["settings"] == {"solver": "heun", "schedule": "karras", "n": 2, "guidance": 4.0, "seed": 0}
    assert written["adherence"]["of"] == written["adherence"]["among_nearest_5"] == 2  # there are but two pictures
    with Image.open(sheet) as drawn:
        assert drawn.size == (8 + 8 * (96 + 8), 8 + 6 * (96 + 28 + 8))


def test_augmented_pictures_are_as_much_darker_as_brighter() -> None:
    black = torch.zeros(200, 3, features.SIDE, features.SIDE)
    shift = features.augmented(black, torch.Generator().manual_seed(0)).mean((2, 3))
    assert shift.abs().max() < features.JITTER + 0.02  # the noise is that of 1,024 pixels
    assert shift.min() < -0.9 * features.JITTER
    assert shift.max() > 0.9 * features.JITTER
