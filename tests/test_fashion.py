"""Fashion-MNIST as a problem: labels, guidance, both processes, pictures; the data, and the training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from models import SMALL_FASHION, fashion_of, small_fashion
from PIL import Image
from typer.testing import CliRunner, Result

import diffsolve as ds
from diffsolve.app import cli, draw
from diffsolve.engine import solve_many
from diffsolve.problems import Fashion
from diffsolve.problems.fashion import data, features, train
from diffsolve.problems.fashion.network import FashionUNet
from diffsolve.testing import check_problem


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_fashion(tmp_path_factory.mktemp("fashion"))


def test_labels_by_name_and_number(small: Path) -> None:
    assert Fashion("Ankle  boot", model=small).labels == Fashion(9, model=small).labels == [9]
    assert Fashion(["T-shirt", "ankle_boot", 3], model=small).labels == [0, 9, 3]
    assert Fashion(model=small).labels == [10]
    assert [Fashion(name, model=small).labels for name in Fashion.CLASSES] == [[i] for i in range(10)]


@pytest.mark.parametrize(("options", "said"), [
    ({"label": "ankel boot"}, "did you mean 'ankle boot'.*sneaker"), ({"label": 10}, "label must be .* 0 to 9, got 10"),
    ({"label": []}, "empty list"), ({"label": True}, "label"), ({"label": 1.5}, "label"),
    ({"label": 1, "guidance": -1}, "guidance must be .* got -1"), ({"guidance": 2.0}, "no label to be guided to"),
    ({"label": 1, "guidance": math.nan}, "guidance"), ({"label": 1, "process": "vp"}, "'edm', 'flow' or a Process"),
    ({"label": 1, "dtype": torch.int8}, "expected torch.float32, torch.float64"),
])  # fmt: skip
def test_what_can_not_be_asked_is_refused(small: Path, options: dict, said: str) -> None:
    with pytest.raises(ds.ProblemError, match=said):
        Fashion(model=small, **options)


def test_rows_are_drawn_by_their_labels_whatever_their_company(small: Path) -> None:
    y = 2 * torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    together = Fashion([3, 7], 2.0, model=small).denoise(y, 2.0)
    for i, label in enumerate((3, 7, 3, 7)):
        alone = Fashion(label, 2.0, model=small).denoise(y[i : i + 1], 2.0)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    assert (together[:1] - Fashion(7, 2.0, model=small).denoise(y[:1], 2.0)).abs().max() > 1e-3
    assert ds.solve(Fashion([3, 7], model=small), "euler", n=1).x.shape == (2, 1, 32, 32)
    with pytest.raises(ds.ProblemError, match="the batch is 3, but there are 2 labels"):
        Fashion([3, 7], model=small).denoise(y[:3], 2.0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_goes_from_no_label_to_the_label_and_beyond(small: Path, scale: float) -> None:
    y = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    free, told = (Fashion(label, model=small).denoiser(y, 0.7) for label in (None, 4))
    found = Fashion(4, scale, model=small).denoiser(y, 0.7)
    expected = free.denoised + scale * (told.denoised - free.denoised)
    torch.testing.assert_close(found.denoised, expected, rtol=1e-4, atol=1e-4)
    if scale != 1:
        assert found.unconditional is not None
        torch.testing.assert_close(found.unconditional, free.denoised, rtol=1e-4, atol=1e-4)


def test_preconditioning_is_that_of_edm(small: Path) -> None:
    """D = c_skip y + c_out F(c_in y; log(sigma)/4), written out (Karras et al. 2022, table 1)."""
    problem = Fashion(2, model=small, dtype=torch.float64)
    y = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for sigma in (0.01, 0.7, 30.0):
        total = math.hypot(sigma, 0.6636)
        c_noise = torch.full((3,), math.log(sigma) / 4, dtype=torch.float64)
        raw = problem.network(y / total, c_noise, torch.full((3,), 2))
        expected = (0.6636 / total) ** 2 * y + sigma * 0.6636 / total * raw
        torch.testing.assert_close(problem.denoise(y, sigma), expected, rtol=1e-12, atol=1e-12)


def test_the_flow_matched_form_is_the_same_flow(small: Path) -> None:
    """x_t = y/(1 + sigma) at t = sigma/(1 + sigma): one denoiser, other coordinates, the same ends."""
    edm, flow = (Fashion(5, 2.0, model=small, process=p) for p in ("edm", "flow"))
    assert flow.span == pytest.approx(edm.span)
    assert edm.span == pytest.approx((80.0, 0.002))
    assert flow.process.alpha(3.0) == 0.25
    assert flow.process.t(3.0) == 0.75
    y = 3 * torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(edm.denoise(y, 3.0), flow.denoise(y, 3.0))
    nodes = [40.0, 10.0, 3.0, 1.0, 0.3]
    ours, theirs = (ds.solve(p, "euler", nodes, batch=2, seed=4).x for p in (edm, flow))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(ds.solve(flow, "heun(form=flow)", "linspace", n=4, batch=2).x).all()


def test_a_solve_repeats_and_carries_gradients(small: Path) -> None:
    problem = Fashion([1, 8], 2.0, model=small)
    first = ds.solve(problem, "dpmpp_2m", n=4, batch=4, seed=7)
    assert first.x.shape == (4, 1, 32, 32)
    assert torch.equal(first.x, ds.solve(Fashion([1, 8], 2.0, model=small), "dpmpp_2m", n=4, batch=4, seed=7).x)
    assert not torch.equal(first.x, ds.solve(problem, "dpmpp_2m", n=4, batch=4, seed=8).x)
    y = problem.prior(2, sigma=1.0).requires_grad_()
    problem.denoise(y, 1.0).square().sum().backward()
    assert y.grad is not None
    assert y.grad.abs().max() > 0
    assert all(weights.grad is None for weights in problem.network.parameters())
    assert ds.get_problem("fashion") is Fashion


def test_requests_of_other_labels_share_their_calls(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = FashionUNet.forward

    def counted(self: FashionUNet, x: torch.Tensor, c_noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return forward(self, x, c_noise, labels)

    monkeypatch.setattr(FashionUNet, "forward", counted)
    asked = [{"label": label, "guidance": scale, "n": n, "seed": label, "solver": "dpmpp_2m", "model": small}
             for label, scale, n in ((1, 2.0, 3), (7, 3.0, 5), (4, 2.0, 4))]  # fmt: skip
    answers = list(solve_many(Fashion, asked, max_batch=3, rows=0, order="arrival"))
    assert max(sizes) == 6, "three requests, two sides each"
    for request, answer in zip(asked, answers, strict=True):
        alone = Fashion(request["label"], request["guidance"], model=small)
        expected = ds.solve(alone, "dpmpp_2m", n=request["n"], seed=request["seed"]).x
        torch.testing.assert_close(answer.solution.x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("process", ["edm", "flow"])
def test_the_kit_for_plugins_passes(small: Path, process: str) -> None:
    check_problem(Fashion(3, 2.0, process=process, model=small))


def test_pictures_there_and_back(small: Path) -> None:
    problem = Fashion(0, model=small)
    x = torch.randint(256, (3, 1, 32, 32), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    images = problem.decode(x)
    assert [(image.size, image.mode) for image in images] == [((32, 32), "L")] * 3
    torch.testing.assert_close(problem.encode(images), x)
    inner = problem.encode([image.crop((2, 2, 30, 30)) for image in images])
    assert torch.equal(inner[:, :, 2:-2, 2:-2], problem.encode(images)[:, :, 2:-2, 2:-2])
    assert (inner[:, :, :2] == -1).all()
    for wrong in (x[:, 0], torch.full((1, 1, 32, 32), math.nan)):
        with pytest.raises(ds.ProblemError, match="states"):
            problem.decode(wrong)
    with pytest.raises(ds.ProblemError, match="32 x 32 or 28 x 28"):
        problem.encode(images[0].resize((64, 64)))


@pytest.mark.parametrize(("key", "value"), [
    ("widths", None), ("widths", []), ("widths", [50]), ("widths", ["a"]), ("widths", [10**9]), ("patch", 0),
    ("patch", 3), ("patch", None), ("sigma_data", -1), ("sigma_data", None), ("widths", [96]), ("widths", [48] * 5),
])  # fmt: skip
def test_a_damaged_folder_is_refused(small: Path, tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "model.safetensors").symlink_to(small / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**SMALL_FASHION, key: value}))
    with pytest.raises(ds.ModelError, match=r"config.json|model.safetensors"):
        Fashion(1, model=tmp_path)


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ds.ModelError, match=r"holds no Fashion-MNIST network; expected config.json"):
        Fashion(1, model=tmp_path)


def test_other_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"train-images-idx3-ubyte.gz is missing: apt-get install dataset-fashion"):
        data.read("train", tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"other bytes")
    with pytest.raises(RuntimeError, match=r"has SHA-256 .*expected cc1d090a.*not the data of the model card"):
        data.read("test", tmp_path)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r = np.random.default_rng(0)
    pixels, classes = r.integers(256, size=(20, 28, 28), dtype=np.uint8), np.arange(20) % 10
    monkeypatch.setattr(data, "read", lambda part, folder: (pixels, classes))

    def run(name: str) -> torch.Tensor:
        options = ["--steps", "3", "--batch", "4", "--save", "1", "--widths", "48", "48"]
        train.main(["--work", str(tmp_path / name), *options])
        state = torch.load(tmp_path / name / "unet.pt", weights_only=True)
        return torch.cat([value.flatten() for part in ("modules", "average") for value in state[part]["net"].values()])

    whole = run("whole")
    losses, edm_loss = [], train.edm_loss

    def stopped(*given: object) -> torch.Tensor:
        losses.append(edm_loss(*given))
        if len(losses) == 3:
            raise KeyboardInterrupt
        return losses[-1]

    monkeypatch.setattr(train, "edm_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("halves")
    assert torch.equal(run("halves"), whole)
    assert len(losses) == 4  # the third step again, and no other
    assert Fashion(1, model=tmp_path / "halves" / "model").denoise(torch.zeros(1, 1, 32, 32), 1.0).shape[0] == 1


def test_the_loss_is_that_of_the_denoiser(small: Path) -> None:
    """E |D - x|^2 (sigma^2 + s^2)/(sigma s)^2 of the same draws (Karras et al. 2022, eq. 8 and table 1)."""
    problem = Fashion(None, model=small)
    x, drop = torch.rand(6, 1, 32, 32), torch.full((6,), 10)
    draws = torch.Generator().manual_seed(5)
    loss = train.edm_loss(problem.network, x, drop, problem.sigma_data, draws.manual_seed(5))
    noises: list[torch.Tensor] = []
    randn = torch.randn

    def spied(*given: object, **options: object) -> torch.Tensor:
        noises.append(randn(*given, **options))
        return noises[-1]

    levels: list[torch.Tensor] = []

    class Watched:
        def __call__(self, scaled: torch.Tensor, c_noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            levels.append((4 * c_noise).exp())
            return problem.network(scaled, c_noise, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", spied)
        again = train.edm_loss(Watched(), x, drop, problem.sigma_data, draws.manual_seed(5))
    assert again == loss
    sigma = levels[0].view(-1, 1, 1, 1)
    denoised = problem.denoiser(x + sigma * noises[1], levels[0]).denoised
    weight = (sigma**2 + problem.sigma_data**2) / (sigma * problem.sigma_data) ** 2
    assert float((weight * (denoised - x).square()).mean()) == pytest.approx(float(loss), rel=1e-3)


def test_noise_levels_reach_both_ends_of_the_grid() -> None:
    seen: list[torch.Tensor] = []

    class Net:
        def __call__(self, x: torch.Tensor, c_noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            seen.extend((c_noise, labels))
            return x

    x = torch.zeros(20000, 1, 1, 1)
    train.edm_loss(Net(), x, torch.ones(20000, dtype=torch.int64), 0.5, torch.Generator().manual_seed(0))
    logs = 4 * seen[0]
    assert logs.median() == pytest.approx(-1.2, abs=0.1)
    assert (logs > math.log(40)).double().mean() == pytest.approx(0.1 * math.log(2) / math.log(40000), rel=0.4)
    assert (seen[1] == 10).double().mean() == pytest.approx(0.1, abs=0.01)


@pytest.fixture(scope="module")
def drawn() -> tuple[Fashion, ds.Solution]:
    """A picture of each class, twice, of the network that ships."""
    problem = Fashion(list(range(10)), 2.0)
    return problem, ds.solve(problem, "dpmpp_2m", n=8, batch=20, seed=1)


def test_the_network_that_ships_draws_each_class_as_a_classifier_knows_it(drawn: tuple[Fashion, ds.Solution]) -> None:
    problem, solution = drawn
    found = features.load_features().classify(solution.x).argmax(1)
    assert float((found == torch.arange(20) % 10).double().mean()) >= 0.8
    assert solution.x.std() == pytest.approx(problem.sigma_data, rel=0.25)
    assert (solution.x[:, :, :2] < -0.9).double().mean() > 0.95, "pictures stand on black"
    assert sum(weights.numel() for weights in problem.network.parameters()) < 3e6
    size = sum(file.stat().st_size for file in (train.MODEL / "model.safetensors", features.FILE))
    assert size < 6e6


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 3.0])
def test_the_network_that_ships_denoises(drawn: tuple[Fashion, ds.Solution], sigma: float) -> None:
    """Its own pictures come back nearer than from the best linear guess, the data's mean and deviation known."""
    x = drawn[1].x.clamp(-1, 1)
    y = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    told, free = (Fashion(labels).denoise(y, sigma) for labels in (list(range(10)), None))
    mean, variance = x.mean(), x.var()
    linear = mean + variance / (variance + sigma**2) * (y - mean)
    errors = [float((guess - x).square().mean()) for guess in (told, free, linear)]
    assert errors[0] < 0.5 * errors[2]
    assert errors[1] < 0.6 * errors[2]
    assert sigma < 1 or errors[0] < errors[1], "a label helps where the picture is hidden"


@pytest.fixture
def sample(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `diffsolve sample --model fashion` on the small network."""
    monkeypatch.setattr(draw, "get_problem", lambda name: fashion_of(small) if name == "fashion" else None)

    def run(*arguments: object) -> Result:
        given = "sample", *arguments, "--device", "cpu", "-o", tmp_path / "a.png"
        return CliRunner().invoke(cli.app, [str(part) for part in given])

    return run


def test_the_command_line_draws_a_class(sample: Callable[..., Result], tmp_path: Path) -> None:
    first = sample("ankle boot, bag", "--model", "fashion", "-n", 3, "--batch", 4)
    assert first.exit_code == 0, first.output
    assert "4 pictures of 32x32" in first.output
    picture = Image.open(tmp_path / "a.png")
    assert picture.size == (64, 64)
    settings = json.loads(picture.info["diffsolve"])["settings"]
    assert (settings["guidance"], settings["height"], settings["model"]) == (2.0, 32, "fashion")
    pixels = picture.tobytes()
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    again = sample("--like", tmp_path / "b.png")
    assert again.exit_code == 0, again.output
    assert Image.open(tmp_path / "a.png").tobytes() == pixels


@pytest.mark.parametrize(("options", "said"), [
    (("--negative", "bag"), "negative is 'bag', but fashion has none"),
    (("--width", 64), "width is 64; fashion draws 32"),
    (("--revision", "main"), "revision is 'main'"),
])  # fmt: skip
def test_what_the_command_line_can_not_ask_of_classes(sample: Callable[..., Result], options: tuple, said: str) -> None:
    refused = sample("bag", "--model", "fashion", *options)
    assert refused.exit_code == 1
    assert said in refused.output
    assert "did you mean 'bag'" in sample("bagg", "--model", "fashion").output
