"""Networks in half precision under states in float32 or float64, and devices that have no float64."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model
from stubs import rows
from test_execution import TRACED, problem
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import diffsolve as ds
from diffsolve.problems import Fashion, StableDiffusion, noise

NETWORKS = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
STATES = (torch.float32, torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dtype", NETWORKS)
@pytest.mark.parametrize("kind", ["prompt", "label"])
def test_a_network_of_any_precision_under_a_state_of_its_own(
    folder: Path, kind: str, dtype: torch.dtype, state: torch.dtype
) -> None:
    """The state's dtype is what was asked for, the network's what it was loaded in, and the error what that costs."""
    def made(dtype: torch.dtype) -> Any:
        if kind == "label":
            return Fashion(["bag", "coat"], 2.0, dtype=dtype)
        return StableDiffusion.from_pretrained(folder, dtype=dtype)(["a", "b"], guidance=2.0)

    exact, coarse = made(torch.float64), made(dtype)
    network = coarse.network if kind == "label" else coarse.model.unet
    assert {p.dtype for p in network.parameters()} == {dtype}
    assert coarse.dtype == torch.float32
    given: Any = {"n": 4, "x": exact.prior(2, 0)}
    whole = ds.solve(exact, "dpmpp_2m", **given).x
    for execution in ("eager", "fused"):
        found = ds.solve(coarse, "dpmpp_2m", **given | {"x": given["x"].to(state)}, dtype=state, execution=execution).x
        assert found.dtype == state
        off = float((found.double() - whole).norm() / whole.norm())
        assert off < NETWORKS[dtype]
        assert off > NETWORKS[dtype] / 1e4, "it was computed in that precision"


class WithoutDouble(TorchDispatchMode):
    """A device that has no float64, as MPS has none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, Tensor) and value.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{func}: this device has no float64")
        return made


@pytest.fixture(params=["compiled", "torch"])
def draws(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of noise: as on the host, and as on a device that has neither compiled draws nor complex128."""
    noise._points(torch.device("cpu"), torch.float32)  # made on the host, once for a process
    if request.param == "torch":
        monkeypatch.setattr(noise, "able", lambda x: False)
        monkeypatch.setattr(noise, "_WIDE", ())


def steps_of(of: ds.Problem, name: str, **given: Any) -> Iterable[Any]:
    with WithoutDouble():
        yield from ds.start(of, name, **given)


@pytest.mark.usefixtures("draws")
@pytest.mark.parametrize("name", rows(TRACED))
def test_a_float32_solve_makes_no_float64(name: str) -> None:
    x = problem().prior(1, 0)
    for execution in ("eager", "fused"):
        for visit in steps_of(problem(), name, n=4, x=x, execution=execution):
            assert visit.x.dtype == torch.float32


@pytest.mark.usefixtures("draws")
@pytest.mark.parametrize(("name", "given"), [("dpm_solver_3", {"rtol": 0.1}), ("score_sde_ve", {"n": 3}),
                                             ("dpm_adaptive", {})])  # fmt: skip
def test_nor_does_one_whose_steps_are_chosen_or_corrected(name: str, given: dict[str, float]) -> None:
    assert all(visit.x.dtype == torch.float32 for visit in steps_of(problem(), name, x=problem().prior(2, 0), **given))


def test_the_stand_in_refuses_float64() -> None:
    with WithoutDouble(), pytest.raises(TypeError, match="no float64"):
        torch.ones(2, dtype=torch.float64) * 2
