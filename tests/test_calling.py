"""How a loaded network is called: in halves where a batch does not fit, compiled, one side where that is enough."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model
from torch import Tensor
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve.app import cli, picture
from diffsolve.engine import solve_many
from diffsolve.problems import Fashion, StableDiffusion
from diffsolve.problems.calling import Calling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


LACKING = {
    "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    "host": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"),
}


def small(network: Any, most: int, error: Exception, patch: pytest.MonkeyPatch) -> list[int]:
    """Let the network raise above so many rows; how many it was called with."""
    seen, forward = list[int](), type(network).forward

    def limited(x: Tensor, *more: Any, **named: Any) -> Any:
        seen.append(len(x))
        if len(x) > most:
            raise error
        return forward(network, x, *more, **named)

    patch.setattr(network, "forward", limited)
    return seen


@pytest.mark.parametrize("kind", LACKING)
@pytest.mark.parametrize("execution", ["eager", "fused"])
def test_what_does_not_fit_is_halved_and_says_so(
    folder: Path, kind: str, execution: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = StableDiffusion.from_pretrained(folder)
    given: Any = {"n": 3, "batch": 6, "execution": execution}
    whole = ds.solve(model(["a", "b"], guidance=3.0), "dpmpp_2m", **given)
    assert "network" not in whole.stats
    seen = small(model.unet, 4, LACKING[kind], monkeypatch)
    with pytest.warns(UserWarning, match="did not fit") as told:
        halved = ds.solve(model(["a", "b"], guidance=3.0), "dpmpp_2m", **given)
    assert [str(w.message) for w in told] == [
        f"a network call of {k} samples did not fit into memory; now {k // 2} at a time" for k in (12, 6)
    ], "12 rows are tried, 6, and 3 from there on"
    assert seen == [12, 6] + [3] * 4 * halved.nfe
    assert halved.stats["network"] == {"rows": 3}
    assert halved.nfe == whole.nfe
    assert float((halved.x - whole.x).abs().max()) < 1e-4 * float(whole.x.abs().max())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds.solve(model("a", guidance=3.0), "dpmpp_2m", **given)


def test_one_row_that_does_not_fit_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StableDiffusion.from_pretrained(folder)
    small(model.unet, 0, LACKING["device"], monkeypatch)
    lost = pytest.raises(ds.ProblemError, match="take a smaller height or width")
    with pytest.warns(UserWarning, match="did not fit"), lost:
        ds.solve(model("a"), n=2, batch=2)


def test_many_solves_and_labels_are_halved_too(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Fashion(["bag", "coat"], guidance=2.0)
    whole = ds.solve(problem, "euler", n=2, batch=2)
    seen = small(problem.network, 2, LACKING["host"], monkeypatch)
    with pytest.warns(UserWarning, match="a network call of 4 samples .* now 2 at a time"):
        halved = ds.solve(problem, "euler", n=2, batch=2)
    assert max(seen[1:]) == 2
    assert halved.stats["network"] == {"rows": 2}
    assert float((halved.x - whole.x).abs().max()) < 1e-3
    monkeypatch.undo()


class Other(torch.nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        if len(x) == 7:
            raise ValueError("seven")
        return (torch.tanh(x) + t.view(-1, 1, 1, 1),)


def test_without_a_compiler_the_network_is_called_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda module, **_: none)
    calling, module, x, t = Calling(compile=True), Other(), torch.randn(2, 3, 4, 4), torch.ones(2)
    with pytest.warns(UserWarning, match="can't be: .*No working C.. compiler found; the network is called"):
        found = calling(module, x, t)
    assert torch.equal(found, module(x, t)[0])
    assert "No working C++ compiler" in calling.told()["compiled"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calling(module, x, t)


def test_a_fault_of_the_network_is_not_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    calling = Calling(compile=True)
    with pytest.raises(ValueError, match="seven"):
        calling(Other(), torch.randn(7, 3, 4, 4), torch.ones(7))
    assert calling.told() == {"compiled": True}


@pytest.mark.slow
def test_compiled_it_is_the_same(folder: Path) -> None:
    plain, model = StableDiffusion.from_pretrained(folder), StableDiffusion.from_pretrained(folder, compile=True)
    model.calling._made = model.unet, torch.compile(model.unet, dynamic=False, backend="aot_eager")
    whole, compiled = (ds.solve(m("a", guidance=3.0), "dpmpp_2m", n=3) for m in (plain, model))
    assert compiled.stats["network"] == {"compiled": True}
    assert float((compiled.x - whole.x).abs().max()) < 1e-4


def test_channels_last(folder: Path) -> None:
    plain, model = StableDiffusion.from_pretrained(folder), StableDiffusion.from_pretrained(folder, channels_last=True)
    assert model.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    whole, other = (ds.solve(m("a", guidance=3.0), "dpmpp_2m", n=3, batch=2) for m in (plain, model))
    assert other.x.is_contiguous()
    assert float((other.x - whole.x).abs().max()) < 1e-4


@pytest.mark.parametrize("execution", ["eager", "fused"])
@pytest.mark.parametrize("kind", ["prompt", "label"])
def test_outside_the_interval_one_side_is_evaluated(
    folder: Path, kind: str, execution: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as with both sides and no guidance there, and half the samples."""
    model = StableDiffusion.from_pretrained(folder)

    def made(**given: Any) -> Any:
        return model("a", guidance=3.0, **given) if kind == "prompt" else Fashion("bag", 2.0, **given)

    low, high = 0.5, 5.0
    some = made(interval=(low, high))
    seen = small(model.unet if kind == "prompt" else some.network, 99, ValueError(), monkeypatch)
    found = ds.solve(some, "dpmpp_2m", n=8, batch=2, execution=execution)
    levels = found.sigmas[:-1]
    sides = [2 if low <= sigma <= high else 1 for sigma in levels]
    assert 1 < sum(side == 2 for side in sides) < len(sides)
    assert seen == [2 * side for side in sides]
    assert (found.nfe, found.stats["samples"]) == (len(levels), sum(sides))
    inside = some.denoiser.denoiser
    pairs = ds.NetworkDenoiser(lambda x, t: inside.network(x, t), some.process, inside.prediction)
    both = some.replace(denoiser=ds.Guided(pairs, some.denoiser.scale, (low, high)))
    with_both = ds.solve(both, "dpmpp_2m", n=8, batch=2, execution=execution)
    assert with_both.stats["samples"] == 2 * with_both.nfe
    assert float((found.x - with_both.x).abs().max()) < 1e-4 * float(with_both.x.abs().max())
    everywhere = ds.solve(made(), "dpmpp_2m", n=8, batch=2, execution=execution)
    assert everywhere.stats["samples"] == 2 * everywhere.nfe
    assert not torch.allclose(everywhere.x, found.x)


def test_the_interval_of_many_solves(folder: Path) -> None:
    model = StableDiffusion.from_pretrained(folder)
    asked: Any = [{"prompt": p, "guidance": 3.0, "interval": (0.5, 5.0), "n": n, "solver": "dpmpp_2m"}
                  for p, n in (("a", 5), ("b", 7))]  # fmt: skip
    for request, answer in zip(asked, solve_many(model, asked, order="arrival"), strict=True):
        own = {k: request[k] for k in ("prompt", "guidance", "interval")}
        alone = ds.solve(model(**own), request["solver"], n=request["n"])
        found = answer.result()
        assert found.stats["samples"] == alone.stats["samples"] < 2 * found.nfe
        assert float((found.x - alone.x).abs().max()) < 1e-4 * float(alone.x.abs().max())


def test_an_interval_that_can_not_be(folder: Path) -> None:
    with pytest.raises(ds.ProblemError, match="interval is"):
        StableDiffusion.from_pretrained(folder)("a", guidance=3.0, interval=(2.0, 1.0))


def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    asked = ["sample", "a", "-o", f"{tmp_path}/a.png", "--model", f"{folder}", "-n", "3", "--guidance-max", "2"]
    told = CliRunner().invoke(cli.app, [*asked, "--channels-last"])
    assert told.exit_code == 0, told.output
    settings, *_ = picture.read(tmp_path / "a.png")
    assert (settings.interval, settings.channels_last, settings.compile) == ((0.0, 2.0), True, False)
    told = CliRunner().invoke(cli.app, [*asked, "--guidance-min", "3"])
    assert told.exit_code == 1
    assert "got (3.0, 2.0)" in told.output.replace("\n", " ")
