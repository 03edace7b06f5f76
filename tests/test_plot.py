"""Solution.plot(): which panels a solution gets, also where it stopped on the way."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image

import diffsolve as ds
from diffsolve.problems import Gaussian


class Pictured(Gaussian):
    def decode(self, x: torch.Tensor) -> list[Image.Image]:
        return [Image.new("RGB", (2, 2)) for _ in x]


def panels(solution: ds.Solution) -> list[Any]:
    figure = solution.plot()
    figure.savefig(BytesIO())
    return figure.axes


def test_steps_alone() -> None:
    (steps,) = panels(ds.solve(Gaussian([0.0]), "euler", n=5, final="none"))
    assert steps.get_yscale() == "log"
    bars = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in steps.patches]
    sigmas = ds.solve(Gaussian([0.0]), "euler", n=5, final="none").sigmas
    np.testing.assert_allclose(bars, np.stack([sigmas[1:], sigmas[:-1]], 1))
    low, high = steps.get_ylim()
    assert low < sigmas[-1] < sigmas[0] < high


def test_size_of_the_state() -> None:
    solution = ds.solve(Gaussian([0.0, 1.0]), "heun", n=5, save="all")
    steps, size = panels(solution)
    assert len(steps.patches) == 5
    np.testing.assert_allclose(size.lines[0].get_ydata()[0], solution.trajectory[0].square().mean().sqrt())


def test_strip_of_pictures() -> None:
    assert len(panels(ds.solve(Pictured([0.0]), "euler", n=20, save="all"))) == 1 + 8
    drawn = panels(ds.solve(Pictured([0.0]), "euler", n=1, save="all"))[1:]
    assert [axes.get_title() for axes in drawn] == ["14.6", "0"]
    stopped = ds.solve(Pictured([0.0]), "euler", n=20, save="all", callback=lambda p: p.index == 1)
    assert len([axes for axes in panels(stopped) if axes.images]) == 3


def test_a_restart_passes_nodes_again() -> None:
    solution = ds.solve(Gaussian([0.0, 1.0]), "restart", n=12, save="all")
    visits = len(solution.visited)
    assert visits == len(solution.trajectory) > len(solution.sigmas)
    steps, size = panels(solution)
    bars = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in steps.patches]
    assert len(bars) == visits - 1
    ends = np.sort(np.stack([solution.visited[1:], solution.visited[:-1]], 1))[:-1]  # the last goes to 0
    np.testing.assert_allclose(bars[:-1], ends)
    ups = np.flatnonzero(np.diff(solution.visited) > 0)
    assert ups.size
    colours = [bar.get_facecolor() for bar in steps.patches[:-1]]
    assert {colours[i] for i in ups}.isdisjoint(colours[i] for i in range(visits - 2) if i not in ups)
    assert steps.get_legend().get_texts()[0].get_text() == "back up, with new noise"
    assert len(size.lines[0].get_xdata()) == visits
    drawn = panels(ds.solve(Pictured([0.0]), "restart", n=12, save="all"))[1:]
    assert [drawn[0].get_title(), drawn[-1].get_title()] == ["14.6", "0"]
    assert len(drawn) == 8


def test_before_the_first_step() -> None:
    steps, size = panels(ds.start(Gaussian([0.0]), "euler", n=5, save="all").solution)
    assert len(steps.patches) == 0
    assert len(size.lines[0].get_xdata()) == 1


def test_steps_on_the_way_up() -> None:
    (steps,) = panels(ds.solve(Gaussian([0.0]).reversed(), "euler", n=5, x=torch.zeros(1, 1, dtype=torch.float64)))
    assert len(steps.patches) == 5
    assert steps.get_legend() is None


def test_ode() -> None:
    def plotted(size: int) -> list[Any]:
        problem = ds.ODEProblem(lambda t, x: -x, (0.0, 1.0), torch.ones(size))
        return panels(ds.solve(problem, "rk4", n=3, save="all"))

    steps, components = plotted(2)
    assert steps.get_yscale() == "linear"
    assert len(components.lines) == 2
    assert len(plotted(100)[1].lines) == 1
