"""Every process with every kind of network: an exact denoiser, dressed as a network, must come out as itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from stubs import ONE_OF_EACH_KIND, PROCESSES, gap, gaussian
from torch import Tensor

import diffsolve as ds
from diffsolve.process import as_process

# What each kind of network is trained to return, by its own definition: of the clean data D, the noise eps, the data's
# and the noise's factors in x_t = alpha x_0 + s eps. Written without the (c_skip, c_out) that the kernel undoes it by.
DEFINITIONS: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "eps": lambda data, eps, alpha, s: eps,
    "x0": lambda data, eps, alpha, s: data,
    "v": lambda data, eps, alpha, s: alpha * eps - s * data,
    "flow": lambda data, eps, alpha, s: eps - data,
}
VARIANCE_PRESERVING = {"sd", "ddpm", "cosine", "vp"}
PAIRS = [
    (process, prediction)
    for process in PROCESSES
    for prediction in (*DEFINITIONS, "edm")
    if prediction != "v" or process in VARIANCE_PRESERVING
]


def network(process: str, prediction: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact denoiser of a Gaussian as a network of that kind: it knows x and t, and nothing else."""
    exact, p = gaussian((3,), process), as_process(process)

    def edm(x: Tensor, t: Tensor) -> Tensor:  # Karras et al. 2022, eq. 7 solved for F, sigma_data = 1/2
        sigma = math.exp(4 * float(t[0]))
        total = math.sqrt(sigma**2 + 0.25)
        y = x * total
        return (exact.denoise(y, sigma) - y * 0.25 / total**2) * total / (sigma * 0.5)

    def other(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == x.shape[:1]
        told = float(t[0])
        sigma = told / (1 - told) if process == "flow" else p.sigma(told)
        alpha = {"ve": 1.0, "edm": 1.0, "flow": 1 / (1 + sigma)}.get(process, 1 / math.hypot(1, sigma))
        y = x / alpha
        data = exact.denoise(y, sigma)
        return DEFINITIONS[prediction](data, (y - data) / sigma, alpha, alpha * sigma)

    return edm if prediction == "edm" else other


def flow(process: str, prediction: str) -> ds.ProbabilityFlow:
    return ds.ProbabilityFlow(network(process, prediction), process, prediction, shape=(3,), dtype=torch.float64)


@pytest.mark.parametrize(("process", "prediction"), PAIRS)
def test_the_denoiser_comes_out_exactly(process: str, prediction: str) -> None:
    problem, exact, p = flow(process, prediction), gaussian((3,), process), as_process(process)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        sigma = p.sigma_min ** (1 - share) * p.sigma_max**share
        y = exact.sample(2) + exact.prior(2, sigma=sigma)
        # y - sigma eps cancels where sigma is large: rounding of y is all that a network of noise can promise of D
        scale = float(y.norm() / exact.denoise(y, sigma).norm())
        assert gap(problem.denoise(y, sigma), exact.denoise(y, sigma)) < 1e-12 * max(scale, 1.0), sigma
        assert gap(problem.eps(y, sigma), exact.eps(y, sigma)) < 1e-12 * max(1 / sigma, 1.0), sigma


@pytest.mark.parametrize(("process", "prediction"), PAIRS)
def test_and_so_does_a_solve(process: str, prediction: str) -> None:
    exact = gaussian((3,), process)
    x = exact.prior(2, sigma=min(exact.process.sigma_max, 80.0))
    options = {"x": x, "sigma_max": min(exact.process.sigma_max, 80.0)}
    for solver in ("heun", "dpmpp_2m"):
        ours = ds.solve(flow(process, prediction), solver, n=6, **options)
        assert gap(ours.x, ds.solve(exact, solver, n=6, **options).x) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(("process", "prediction"), PAIRS)
@pytest.mark.parametrize("solver", ONE_OF_EACH_KIND)
def test_and_so_does_every_solve(process: str, prediction: str, solver: str) -> None:
    exact = gaussian((3,), process)
    high = min(exact.process.sigma_max, 80.0)
    for schedule in ("karras", "linspace"):
        for final in ("denoise", "step", "none"):
            options = {"x": exact.prior(2, sigma=high), "sigma_max": high, "final": final}
            ours = ds.solve(flow(process, prediction), solver, schedule, 5, **options)
            assert gap(ours.x, ds.solve(exact, solver, schedule, 5, **options).x) < 1e-9


def test_the_network_is_told_the_training_time_and_given_the_training_scale() -> None:
    told: dict[str, tuple[float, Tensor]] = {}
    for process in PROCESSES:

        def watch(x: Tensor, t: Tensor, process: str = process) -> Tensor:
            told[process] = (float(t[0]), x)
            return x

        problem = ds.ProbabilityFlow(watch, process, shape=(1,), dtype=torch.float64)
        problem.denoise(torch.ones(2, 1, dtype=torch.float64), 1.0)
    half = 1 / math.sqrt(2)
    assert {name: float(x[0, 0]) for name, (_, x) in told.items()} == pytest.approx(
        {"sd": half, "ddpm": half, "cosine": half, "vp": half, "ve": 1.0, "edm": 1.0, "flow": 0.5}, rel=1e-12
    )
    table = ds.VP().table
    left = int(told["sd"][0])
    assert table[left] <= 1.0 <= table[left + 1]
    assert told["edm"][0] == 1.0
    assert told["flow"][0] == 0.5
    raw: list[float] = []
    listener = ds.ProbabilityFlow(lambda x, t: raw.append(float(t[0])) or x, "edm", "edm", shape=(1,))
    listener.denoise(torch.ones(1, 1), 5.0)
    assert raw == pytest.approx([math.log(5.0) / 4])


def test_a_shifted_flow_tells_its_network_the_shifted_time() -> None:
    for shift in (1.0, 3.0):
        process = ds.RectifiedFlow(shift=shift, scale=1000.0)
        t = 0.25
        moved = shift * t / (1 + (shift - 1) * t)  # Esser et al. 2024, eq. 23
        assert process.c_noise(process.sigma(t)) == pytest.approx(1000 * moved, rel=1e-14)
        assert process.alpha(process.sigma(t)) == pytest.approx(1 - moved, rel=1e-14)


def test_the_published_rows() -> None:
    """The rows at one noise level (Karras et al. 2022, table 1; Salimans & Ho 2022, appendix D)."""
    sigma, vp = 2.0, ds.VP()
    alpha = 1 / math.sqrt(5)
    rows = {name: row.scaling(sigma, vp) for name, row in ds.PREDICTIONS.items()}
    assert {name: (k.c_skip, k.c_out, k.c_in) for name, k in rows.items()} == {
        "eps": pytest.approx((1.0, -2.0, alpha)),
        "v": pytest.approx((0.2, -2 * alpha, alpha)),
        "x0": pytest.approx((0.0, 1.0, alpha)),
        "flow": pytest.approx((1 / 3, -2 / 3, alpha)),
        "edm": pytest.approx((0.25 / 4.25, 1 / math.sqrt(4.25), 1 / math.sqrt(4.25))),
    }
