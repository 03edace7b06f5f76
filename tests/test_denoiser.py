"""A network call is a value: halves, levels for each sample, and guidance in one place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import emoji_model
from stubs import gap, gaussian, mixture, numbers
from torch import Tensor

import diffsolve as ds

PROBLEMS: dict[str, Any] = {
    "gaussian": lambda: gaussian((3,)),
    "mixture": lambda: mixture((3,)),
    "guided": lambda: ds.problems.GaussianMixture(numbers(3, 3), 0.4, labels=[0, 1, 1]).guided(1, 3.0),
    "points": lambda: ds.problems.EmpiricalImages(numbers(5, 3), dtype=torch.float64),
    "overridden": lambda: Plain(shape=(3,), dtype=torch.float64),
    **{
        f"network {prediction} {process}": lambda prediction=prediction, process=process: ds.ProbabilityFlow(
            network, process, prediction, shape=(3,), dtype=torch.float64
        )
        for prediction in ds.PREDICTIONS
        for process in ("sd", "vp", "edm", "flow", "ve")
    },
}


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x + 1e-3 * t.reshape(-1, 1))


class Plain(ds.ProbabilityFlow):
    def denoise(self, y: Tensor, sigma: float) -> Tensor:
        assert isinstance(sigma, float)
        return y / (1 + sigma)


@pytest.mark.parametrize("kind", [lambda x: torch.tensor(x, dtype=torch.float64), np.array], ids=["tensor", "array"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_level_for_each_sample_is_each_sample_by_itself(name: str, kind: Any) -> None:
    denoiser, y, levels = PROBLEMS[name]().denoiser, numbers(4, 3), [0.05, 0.3, 1.0, 4.0]
    together = denoiser(y, kind(levels)).denoised
    alone = torch.cat([denoiser(y[i : i + 1], level).denoised for i, level in enumerate(levels)])
    assert together.dtype == torch.float64
    assert gap(together, alone) < 1e-12


@pytest.mark.parametrize("sigma", [0.7, torch.tensor([0.7, 2.0])], ids=["one", "many"])
@pytest.mark.parametrize("prediction", list(ds.PREDICTIONS))
def test_a_call_is_its_halves_around_the_network(prediction: str, sigma: Any) -> None:
    denoiser, y = ds.NetworkDenoiser(network, "sd", prediction), numbers(2, 3)
    x, t = denoiser.inputs(y, sigma)
    assert t.shape == (2,)
    assert torch.equal(denoiser.output(y, network(x, t), sigma).denoised, denoiser(y, sigma).denoised)


def test_levels_that_do_not_fit_are_refused() -> None:
    for problem in (gaussian((3,)), Plain(shape=(3,), dtype=torch.float64)):
        with pytest.raises(ds.ProblemError, match="sigma has 3 levels, the batch 2 samples"):
            problem.denoiser(numbers(2, 3), torch.ones(3))
    with pytest.raises(ds.ProblemError, match=r"sigma is one number, or one for each sample"):
        gaussian((3,)).denoiser(numbers(2, 3), torch.ones(2, 1))


def pair(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return network(x, t), 0.3 * network(x, t)


def sides(y: Tensor, sigma: Any) -> ds.Output:
    return ds.Output(y * 0.5, y * 0.2)


def test_guidance_is_the_formula() -> None:
    y = numbers(2, 3)
    out = ds.Guided(sides, 4.0)(y, 1.0)
    assert gap(out.denoised, y * (0.2 + 4 * 0.3)) < 1e-15
    assert torch.equal(out.unconditional, y * 0.2)
    raw = ds.NetworkDenoiser(pair, "sd", "eps")
    both = raw(y, 1.0)
    guided = ds.Guided(raw, 4.0)(y, 1.0)
    assert gap(guided.denoised, both.unconditional + 4 * (both.denoised - both.unconditional)) < 1e-14
    assert gap(guided.unconditional, both.unconditional) < 1e-15


def test_outside_its_interval_there_is_no_guidance() -> None:
    y = numbers(3, 3)
    guided = ds.Guided(sides, 4.0, interval=(0.5, 2.0))
    assert gap(guided(y, 3.0).denoised, y * 0.5) < 1e-15
    assert gap(guided(y, 1.0).denoised, y * 1.4) < 1e-15
    each = guided(y, torch.tensor([3.0, 1.0, 0.1])).denoised
    assert gap(each, y * torch.tensor([[0.5], [1.4], [0.5]], dtype=torch.float64)) < 1e-7


def test_rescaling_takes_the_deviation_back_to_the_conditional_one() -> None:
    y = numbers(2, 8)
    plain, full, half = (ds.Guided(sides, 4.0, rescale=share)(y, 1.0).denoised for share in (0.0, 1.0, 0.5))
    assert torch.allclose(full.std(1), (y * 0.5).std(1))
    assert gap(half, (plain + full) / 2) < 1e-14


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ds.Guided(sides, float("nan")), "guidance scale must be a finite number, got nan"),
        (lambda: ds.Guided(sides, 2.0, rescale=2.0), "a share from 0 to 1, got 2.0"),
        (lambda: ds.Guided(sides, 2.0, interval=(2.0, 1.0)), r"0 <= low < high, got \(2.0, 1.0\)"),
        (lambda: ds.Guided(lambda y, s: ds.Output(y), 2.0)(numbers(1, 2), 1.0), "tells no unconditional estimate"),
        (lambda: ds.Guided(ds.NetworkDenoiser(network), 2.0)(numbers(1, 2), 1.0), "got one answer"),
        (lambda: ds.Guided(sides, 2.0).inputs(numbers(1, 2), 1.0), "no network call to hand out"),
        (
            lambda: ds.Guided(ds.NetworkDenoiser(lambda x, t: (x[:1], x)), 2.0)(numbers(2, 2), 1.0),
            r"different shapes, \(1, 2\) and \(2, 2\)",
        ),
        (
            lambda: ds.solve(ds.ProbabilityFlow(shape=(2,), denoiser=lambda y, s: y), n=2),
            "returned Tensor, expected an Output",
        ),
        (lambda: ds.ProbabilityFlow(shape=(2,)), "neither a network nor a denoiser"),
        (lambda: ds.ProbabilityFlow(shape=(2,), denoiser=3), "denoiser must be a function"),
    ],
)
def test_what_can_not_be_says_why(make: Any, message: str) -> None:
    with pytest.raises(ds.ProblemError, match=message):
        make()


def test_the_embedded_model_tells_both_sides_in_one_call() -> None:
    problem = emoji_model()("red apple", guidance=4)
    y = problem.prior(2)
    out = problem.denoiser(y, 3.0)
    free, with_prompt = (emoji_model()(text, guidance=1).denoise(y, 3.0) for text in ("", "red apple"))
    assert gap(out.unconditional, free) < 1e-4
    assert gap(out.denoised, free + 4 * (with_prompt - free)) < 1e-4
    assert isinstance(problem.denoiser, ds.Guided)
    assert problem.denoiser.scale == 4.0


def test_a_denoise_that_is_overridden_counts_whatever_it_is_made_of() -> None:
    class Half(ds.problems.Gaussian):
        def denoise(self, y: Tensor, sigma: float) -> Tensor:
            return 0.5 * super().denoise(y, sigma)

    problem, y = Half([1.0, -1.0]), numbers(2, 2)
    assert torch.equal(problem.denoiser(y, 2.0).denoised, 0.5 * ds.problems.Gaussian([1.0, -1.0]).denoise(y, 2.0))
    assert not torch.equal(ds.solve(problem, n=3).x, ds.solve(ds.problems.Gaussian([1.0, -1.0]), n=3).x)
    assert torch.equal(ds.solve(problem.sde(0.0), "ddpm", n=3).x, ds.solve(problem, "ddpm", n=3, eta=0.0).x)


def test_the_denoiser_of_points_is_their_mean_under_the_posterior() -> None:
    points, y, sigma = numbers(5, 3), numbers(4, 3, stream=-8) * 2, 0.7
    weights = (-(y[:, None] - points).square().sum(-1) / (2 * sigma**2)).softmax(1)
    problem = ds.problems.EmpiricalImages(points, dtype=torch.float64)
    assert torch.allclose(problem.denoise(y, sigma), weights @ points, rtol=1e-12)
