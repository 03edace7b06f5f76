"""Draws of a path: within a pass and by themselves, in compiled code and in torch, W and its areas."""

from __future__ import annotations

import copy
import ctypes
import gc
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import diffsolve as ds
from diffsolve.execution.native import native
from diffsolve.problems.noise import BrownianPath, SpaceTimePath


@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_is_the_same_in_one_pass(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Over a walk, over many cells, inside of one, at a place again, and to the bit whatever was asked before."""
    ends = [-2.7, -2.6, -1.3, 0.4, 0.41, 0.417, 3.0]
    spans = [*pairwise(ends), (-2.7, 3.0), (0.41, 0.417), (-2.6, 0.4)]
    options: Any = {"dtype": dtype}
    for kind, names in ((BrownianPath, ("draw",)), (SpaceTimePath, ("wiener", "area"))):
        given: Any = (lambda s: math.exp(2 * s), -2.7, 3.0) if kind is BrownianPath else (-2.7, 3.0)
        one, other = (kind(3, range(4), shape, *given, **options) for _ in range(2))
        other._compiled = False
        tolerance = 1e-4 if dtype == torch.float32 else 1e-11
        for start, end in spans:
            for name in names:
                made, expected = (getattr(path, name)(start, end) for path in (one, other))
                assert made.shape == (4, *shape)
                assert float((made - expected).abs().max()) < tolerance * (20 if name == "area" else 1)
                fresh = getattr(kind(3, range(4), shape, *given, **options), name)(start, end)
                assert torch.equal(made, fresh)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "er_sde_3", "ddpm", "repaint"])
def test_a_draw_within_a_pass_is_the_draw(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if native().library is None:
        pytest.skip(native().reason)
    problem = ds.problems.Gaussian(torch.zeros(4, 8, 8), 1.0, "sd", dtype=torch.float32)
    asked, draw = [], BrownianPath.draw
    monkeypatch.setattr(BrownianPath, "draw", lambda self, *span: asked.append(span) or draw(self, *span))
    ends = []
    for apart in (False, True):
        run = ds.start(problem, name, "karras", 12, batch=3, seed=4, execution="fused")
        if apart:
            run.field.normal = run.field.normal  # somebody watches it
        run.rest()
        ends.append((run.solution.x, len(asked)))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] < ends[1][1], "within the pass nobody is asked for a tensor"


def test_a_draw_that_did_not_come_to_pass_leaves_nothing() -> None:
    one, other = (BrownianPath(3, range(2), (4, 8), lambda s: math.exp(2 * s), -2.7, 3.0) for _ in range(2))
    one.draw(-2.7, -1.3)
    one.job(-1.3, 0.4)  # by a pass that was interrupted
    assert torch.equal(one.draw(0.4, 1.0), other.draw(0.4, 1.0))
    assert torch.equal(one.draw(-1.3, 0.4), other.draw(-1.3, 0.4))


def test_a_copy_of_a_path_goes_on_by_itself() -> None:
    one = BrownianPath(3, range(2), (4, 8), lambda s: math.exp(2 * s), -2.7, 3.0)
    one.draw(-2.7, -1.3)
    other = copy.deepcopy(one)
    expected = one.draw(-1.3, 0.4)
    del one
    gc.collect()
    assert torch.equal(other.draw(-1.3, 0.4), expected)
    assert other._drawing is not None
    assert other._drawing._address == ctypes.addressof(other._drawing._job)


@pytest.mark.parametrize(
    ("low", "high", "clock"),
    [(0.0, 4.0, float), (4.0, 0.0, float), (-2.7, 3.6, lambda s: -math.exp(-s))],
    ids=("upwards", "downwards", "curved"),
)
def test_increments_and_areas_add_up_at_any_places(low: float, high: float, clock: Any) -> None:
    """As a step that is taken again in two halves needs it, whatever was asked before."""
    b = SpaceTimePath(0, range(4), (3,), low, high, clock, dtype=torch.float64)

    def of(start: float, end: float) -> tuple[Tensor, Tensor, float]:
        h = abs(clock(end) - clock(start))
        z, z2 = b.wiener(start, end), b.area(start, end)
        return math.sqrt(h) * z, h**1.5 * (z / 2 + z2 / math.sqrt(12)), h

    nodes = [low + (high - low) * share for share in (0.0, 0.1234567, 0.12345, 0.3, 0.3003, 0.77, 1.0)]
    for s, m, e in ((0, 3, 6), (1, 3, 5), (2, 1, 3), (3, 4, 5), (4, 5, 6)):
        (w, area, _), (w2, area2, h2) = of(nodes[s], nodes[m]), of(nodes[m], nodes[e])
        whole = of(nodes[s], nodes[e])
        scale = whole[2] ** 0.5
        assert torch.allclose(w + w2, whole[0], rtol=0, atol=1e-11 * scale)
        assert torch.allclose(area + area2 + h2 * w, whole[1], rtol=0, atol=1e-11 * scale**3)


def test_w_and_its_area_are_the_same_together_and_apart() -> None:
    together, ends = SpaceTimePath(0, range(2), (4, 8), -2.7, 3.6), [-2.7, -1.3, 0.4, 0.41, 0.6, 3.0]
    for start, end in pairwise(ends):
        apart = SpaceTimePath(0, range(2), (4, 8), -2.7, 3.6)
        assert torch.equal(together.wiener(start, end), apart.wiener(start, end))
        if start != 0.4:  # a step that leaves its area out
            alone = SpaceTimePath(0, range(2), (4, 8), -2.7, 3.6).area(start, end)
            assert torch.equal(together.area(start, end), alone)
