"""Rows whose scale of guidance is one of their own: a message outside of it, and pictures that are drawn within."""

from __future__ import annotations

import warnings

import pytest
import torch
from stubs import mixture

import diffsolve as ds
from diffsolve.app import draw
from diffsolve.app.picture import Settings
from diffsolve.validation.site import gallery

CFG_PP = [row.name for row in ds.list_solvers() if row.name.endswith("_cfg_pp") and row.name != "rectified_cfg_pp"]


def guided(scale: float) -> ds.ProbabilityFlow:
    inside = ds.NetworkDenoiser(lambda x, t: (0.9 * x, 0.8 * x), "sd", "eps")
    return ds.ProbabilityFlow(denoiser=ds.Guided(inside, scale), process="sd", shape=(2,), dtype=torch.float64)


def test_they_are_what_is_meant() -> None:
    assert len(CFG_PP) == 7
    assert {row.name for row in ds.list_solvers() if row.solver.guidance_range} == set(CFG_PP)


@pytest.mark.parametrize("name", CFG_PP)
def test_a_message_outside_of_their_range_and_none_within(name: str) -> None:
    least, usual, most = ds.get_solver(name).guidance_range
    for scale in (least, usual, most):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ds.solve(guided(scale), name, n=3)
    for scale in (most + 2, -1.0):
        said = f"{name} is made for guidance from 0 to 2, and this problem's is {scale:g}"
        with pytest.warns(UserWarning, match=said):
            ds.solve(guided(scale), name, n=3)


def test_other_rows_and_problems_without_guidance_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds.solve(guided(7.5), "dpmpp_2m", n=3)
        ds.solve(mixture((2,)), "euler_cfg_pp", n=3)


def test_what_the_gallery_draws_at() -> None:
    drawn = gallery.continuous()
    assert "rectified_cfg_pp(guidance=4)" in drawn, "it is told the scale of the problem"
    assert set(CFG_PP) < set(drawn)
    assert gallery.scale_of("heun") == gallery.GUIDANCE == 4
    assert {gallery.scale_of(name) for name in CFG_PP} == {0.6}
    made: list[float] = []

    def problem(scale: float) -> ds.ProbabilityFlow:
        made.append(scale)
        raise RuntimeError("enough")

    with pytest.warns(UserWarning, match="enough"):
        list(gallery.shots(problem, ["heun", "euler_cfg_pp"], [3]))
    assert made == [4.0, 0.6]


@pytest.mark.parametrize(
    ("solver", "given", "scale"),
    [("heun", None, 4.0), ("euler_cfg_pp", None, 0.6), ("auto", None, 4.0), ("euler_cfg_pp", 1.5, 1.5)],
)
def test_what_the_command_line_draws_at(
    solver: str, given: float | None, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model(*said: object, **more: object) -> object:
        asked.append(said)
        raise RuntimeError("enough")

    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(draw, "load", lambda *_: model)
    settings = Settings(prompt="red apple", solver=solver, guidance=given)
    with pytest.raises(RuntimeError, match="enough"):
        draw.opened(settings, False)(settings)
    assert asked[0][2] == scale
