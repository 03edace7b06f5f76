"""Sample quality on Fashion-MNIST: the features that ship, distances to real pictures, the tables of the page."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from models import fashion_of, small_fashion

import diffsolve as ds
from diffsolve.problems import Fashion
from diffsolve.problems.fashion import features, train
from diffsolve.validation import sample_quality
from diffsolve.validation.samples import quality_run, quality_table
from diffsolve.validation.samples.quality_table import Section, quality_tables, to_markdown


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_fashion(tmp_path_factory.mktemp("fashion"))


def test_the_features_that_ship_are_of_real_pictures() -> None:
    known = features.known_features()
    assert known.test.shape == known.held.shape == (2000, 64)
    torch.testing.assert_close(known.test.double().mean(0), known.mean, atol=0.1, rtol=0.1)
    torch.testing.assert_close(known.covariance, known.covariance.T)
    assert torch.linalg.eigvalsh(known.covariance).min() > 0
    assert features.FILE.stat().st_size < 900_000
    net = features.load_features()
    assert net.classify(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    with pytest.raises(ds.ProblemError, match=r"expected \(B, 1, 32, 32\)"):
        net(torch.zeros(2, 3, 32, 32))


def test_features_of_a_new_training_are_those_of_its_weights(tmp_path: Path) -> None:
    pictures = torch.rand(60, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    net = features.train(pictures, torch.arange(60) % 10, steps=2, batch=4, lr=1e-3, seed=0)
    file = tmp_path / "f.safetensors"
    features.write(net, pictures[:40], pictures[40:], {"steps": 2}, file)
    known, again = features.known_features(file), features.load_features(file)(pictures)
    torch.testing.assert_close(again[:40], known.test, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(again[40:], known.held, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(again[:40].double().mean(0), known.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cov(again[:40].double().T), known.covariance, rtol=1e-3, atol=1e-6)
    (tmp_path / "other.safetensors").symlink_to(train.MODEL.parent.parent / "emoji" / "features.safetensors")
    with pytest.raises(ds.ModelError, match="no features of Fashion-MNIST"):
        features.known_features(tmp_path / "other.safetensors")


@pytest.fixture
def few_resamples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rough intervals, and nothing of it in the user's cache."""
    monkeypatch.setenv("DIFFSOLVE_CACHE", str(tmp_path))
    for name in ("frechet_distance", "sliced_wasserstein"):
        monkeypatch.setattr(quality_run, name, functools.partial(getattr(quality_run, name), resamples=8))


@pytest.mark.usefixtures("few_resamples")
def test_quality_is_measured_against_real_pictures(small: Path) -> None:
    problem = Fashion([0, 1, 2, 3], 2.0, model=small)
    report = sample_quality(["euler"], "karras", (4,), problem, 12, batch=6, reference=("euler", 6))
    assert report.passed
    assert (report.guidance, report.problem) == (2.0, "fashion")
    assert report.measures[:3] == ["frechet_data", "precision", "recall"]
    cell, floor = report.cells[0].measures, report.floors
    assert floor["frechet_data"].value < 0.5 * cell["frechet_data"].value
    assert floor["precision"].value > 0.7 > 0.1 > cell["precision"].value
    with pytest.raises(ds.ProblemError, match="count is 10, but there are 4 labels"):
        sample_quality(["euler"], "karras", (4,), problem, 10)
    other = sample_quality(["euler"], "karras", (4,), Fashion([0, 1, 2, 3], 1.0, model=small), 12, batch=6,
                           reference=("euler", 6))  # fmt: skip
    assert other.cells[0].measures["frechet_data"] != cell["frechet_data"]  # other content, another key


@pytest.mark.slow
@pytest.mark.usefixtures("few_resamples")
def test_the_tables_of_the_page(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_table, "Fashion", fashion_of(small))
    monkeypatch.setattr(quality_table, "REFERENCE", ("euler", 4))
    rows = (("euler", "karras"), ("euler", "linspace"), ("heun", "karras"))
    sections = Section("a", "A", rows, budgets=(2, 5)), Section("b", "B", rows[:1])
    monkeypatch.setattr(quality_table, "SECTIONS", sections)
    seen: list[int] = []
    made = quality_tables(["a"], 10, done=lambda so_far: seen.append(len(so_far)))
    assert seen == [1]
    assert [(solver, schedule, [c.budget for c in cells]) for solver, schedule, cells in made[0].rows] == [
        ("euler", "karras", [2, 5]), ("heun", "karras", [2, 5]), ("euler", "linspace", [2, 5])]  # fmt: skip
    page = to_markdown(made)
    assert "| solver | schedule | 2 | 5 |" in page
    lines = [line for line in page.splitlines() if line.startswith("| `heun` | karras | too dear |")]
    assert len(lines) == 2
    best = [line for line in page.splitlines() if line.startswith("| `euler` |")]
    assert any("**" in line for line in best)
    other = quality_tables(["b"], 10, solvers=["heun"], budgets=[6])[0]
    assert [(solver, schedule, len(cells)) for solver, schedule, cells in other.rows] == [("heun", "karras", 1)]
    with pytest.raises(ds.ProblemError, match="unknown section 'aa'"):
        quality_tables(["aa"])


@pytest.mark.parametrize("section", quality_table.SECTIONS, ids=lambda section: section.key)
def test_every_row_of_the_page_is_a_solver_on_a_schedule(section: Section, small: Path) -> None:
    problem = Fashion(1, section.guidance, process=section.process, model=small)
    for solver, schedule in section.rows:
        ds.start(problem, solver, schedule, nfe=max(section.budgets))
