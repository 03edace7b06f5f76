"""What would not go into memory is refused before it is tried, and says how much it would take."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import emoji_model
from stubs import mixture

import diffsolve as ds
from diffsolve import validate

GAUSSIAN = ds.problems.Gaussian(torch.zeros(4), 1.0)
PICTURES = ds.problems.Gaussian(torch.zeros(4, 64, 64), 1.0)
ODE = ds.ODEProblem(lambda t, x: -x, (0.0, 1.0), [1.0])
SDE = ds.SDEProblem(lambda t, x: -x, lambda t, x: x, (0.0, 1.0), [1.0])
CODES = ds.problems.CodeTable([0.5, 0.5])


def solve(problem: ds.Problem, **options: Any) -> Callable[[], Any]:
    return lambda: ds.solve(problem, **options)


def draw(**options: Any) -> Callable[[], Any]:
    return lambda: emoji_model()("a", **options)


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    **{f"n = 1e{e}": (solve(GAUSSIAN, n=10**e), rf"n is {10**e}: .* would take .* GB; the most is 1000000")
       for e in (7, 9, 12, 30)},
    "n = 1e400": (solve(GAUSSIAN, n=10**400), r"n is 10+\.\.\. \(401 characters\): .* would take .* GB; the most is 1"),
    "n of an ODE": (solve(ODE, n=10**9), "n is 1000000000: .* would take 600 GB"),
    "n of an SDE": (solve(SDE, n=10**9), "n is 1000000000: .* would take 600 GB"),
    "n where steps are chosen": (solve(GAUSSIAN, solver="dopri5", rtol=0.1, n=10**9), "would take 600 GB"),
    "nodes": (solve(GAUSSIAN, schedule=np.linspace(14, 0.1, 10**7)), "is 9999999: .* would take 6 GB"),
    **{f"nfe = 1e{e}": (solve(GAUSSIAN, nfe=10**e), rf"nfe is {10**e}: .* would take .* GB") for e in (7, 9, 30)},
    **{f"batch = 1e{e}": (solve(GAUSSIAN, batch=10**e), "a batch of 1.* would take .* GB of memory, and there are 64")
       for e in (12, 30)},
    "batch of pictures": (solve(PICTURES, batch=10**6), r"of shape \(4, 64, 64\) would take 524 GB"),
    "batch of names": (solve(GAUSSIAN, batch=range(10**12)), "batch of 1000000000000 would take"),
    "batch of very many names": (solve(GAUSSIAN, batch=range(10**30)), "would take"),
    "batch of codes": (solve(CODES, batch=10**12), "would take"),
    "prior": (lambda: GAUSSIAN.prior(10**12), "would take"),
    "prior of codes": (lambda: CODES.prior(10**12), "would take"),
    "shape": (solve(ds.ProbabilityFlow(lambda x, t: x, shape=(10**6, 10**6))), r"of shape \(1000000, 1000000\) would"),
    "trajectory": (
        solve(mixture(), x=torch.ones(10000, 2, dtype=torch.float64), save="all", schedule=np.geomspace(9, 0.1, 10**6)),
        r"save='all' keeps 1000001 states of shape \(10000, 2\), which would take 160 GB",
    ),
    "height": (draw(height=8 * 10**9, width=8), "the 8000000000 x 8 pixels of a picture would take 768 GB"),
    "width": (draw(width=8 * 10**30), "pixels of a picture would take"),
    "both": (draw(width=10**6, height=10**6), "1000000 x 1000000 pixels of a picture would take 1.2e\\+04 GB"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_go_into_memory_is_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "available", lambda *_: 64e9)  # whatever machine runs this
    call, message = CASES[case]
    with pytest.raises(ds.DiffsolveError, match=message):
        call()


def test_the_memory_of_this_machine_is_known() -> None:
    assert 1e8 < validate.available() < 1e14
    assert validate.available("cpu") == validate.available(torch.device("cpu"))


def test_a_batch_that_goes_in_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "available", lambda *_: 1e6)
    assert ds.solve(GAUSSIAN, n=1, batch=3000).x.shape == (3000, 4)
    with pytest.raises(ds.ProblemError, match=r"batch of 4000 samples of shape \(4,\) would take 0\.00131 GB"):
        ds.solve(GAUSSIAN, n=1, batch=4000)


@pytest.mark.parametrize("size", [True, 2.5, float("nan"), float("inf"), "64", [64], -64, 0, 61, 10**400 + 1])
def test_a_height_that_is_none(size: Any) -> None:
    with pytest.raises(ds.ProblemError, match=rf"height is {re.escape(repr(size))}; expected a multiple of 4 pixels"):
        emoji_model()("a", height=size)


@pytest.mark.parametrize("shape", [(-1, 2), (0,), (2.5,), "ab", b"ab", 3, None, (True,)])
def test_a_shape_that_is_none(shape: Any) -> None:
    with pytest.raises(ds.ProblemError, match="shape"):
        ds.ProbabilityFlow(lambda x, t: x, shape=shape)


@pytest.mark.parametrize("error", [MemoryError("41 GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
                                   torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")])  # fmt: skip
def test_what_a_unet_lacks_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    model = emoji_model()

    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(model.unet, "forward", full)
    says = r"UNet2DConditionModel on \(1, 4, 8, 8\): there is not enough memory .*; take a smaller"
    with pytest.raises(ds.ProblemError, match=says):
        ds.solve(model("a", guidance=1), n=1)
    error.args = ("something else",)
    if type(error) is RuntimeError:
        with pytest.raises(RuntimeError, match="something else"):
            ds.solve(model("a", guidance=1), n=1)
