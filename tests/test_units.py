"""The units at the door: what a network is told, what a list of numbers means, what deviation a state has."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler

import diffsolve as ds
from diffsolve.process import as_process

torch.set_num_threads(1)
F64 = torch.float64
README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
NUMBER = r"-?\d[\d.]*"
TABLE = [
    [cell.strip() for cell in row.strip("|").split("|")]
    for row in re.search(r"\| process \| sigma .*?\n\n", README, re.DOTALL)[0].strip().splitlines()[2:]
]


def process_of(cell: str) -> ds.Process:
    name = re.search(r'`"(\w+)"`', cell)
    return as_process(name[1]) if name else eval(re.search("`(.*)`", cell)[1], {"ds": ds})


def ends(cell: str) -> list[float]:
    return [float(end) for end in re.findall(rf"({NUMBER}) to ({NUMBER})", cell)[0]]


@pytest.mark.parametrize("row", range(len(TABLE)))
def test_the_table_of_what_a_network_is_told(row: int) -> None:
    name, sigmas, told, times, given = TABLE[row]
    same = name.startswith("the same")
    process = process_of(TABLE[row - 1 if same else row][0])
    for call in re.findall(r"or `(ds\..*?)`", name):
        assert eval(call, {"ds": ds}) == process
    assert [process.sigma_min, process.sigma_max] == pytest.approx(ends(sigmas), rel=4e-3)
    heard: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        heard.extend([x[0, 0], t[0]])
        return x

    prediction = "edm" if same else "eps"
    denoiser = ds.NetworkDenoiser(network, process, prediction)
    for sigma, t in zip((process.sigma_min, process.sigma_max), ends(told), strict=True):
        denoiser(torch.ones(1, 1, dtype=F64), sigma)
        x, found = (float(number) for number in heard[-2:])
        assert found == pytest.approx(t, rel=4e-3, abs=1e-12)
        if not given.startswith("the same"):
            law = given.removeprefix("x_t = ").replace("^", "**")
            assert x == pytest.approx(eval(law, {"y": 1.0, "sigma": sigma, "sqrt": np.sqrt}), rel=1e-6)
    low, high = ends(times)
    grid = ds.make_grid(ds.Timesteps([high, (low + high) / 2, low]), 3, process)
    assert grid.sigmas[0] == pytest.approx(process.sigma_max)
    assert grid.sigmas[1] == pytest.approx(process.sigma((low + high) / 2))


def test_every_named_process_is_in_the_table() -> None:
    named = {re.search(r'"(\w+)"', name)[1] for name, *_ in TABLE if '"' in name}
    assert named >= ds.PROCESSES.keys()


def test_times_of_a_flow_from_1_to_0() -> None:
    process = ds.RectifiedFlow()
    grid = ds.make_grid(ds.Timesteps([1.0, 0.75, 0.5, 0.25, 0]), 4, process)
    np.testing.assert_allclose(grid.sigmas, [process.sigma_max, 3, 1, 1 / 3, 0])
    assert grid.final == "denoise"
    times = np.array([1.0, 0.5])
    ds.make_grid(ds.Timesteps(times), 4, process)
    assert times.tolist() == [1.0, 0.5], "the caller's own list"
    gaussian = ds.problems.Gaussian(torch.full((2,), 2.0), 0.5, process="flow")
    x = ds.solve(gaussian, "heun", ds.Timesteps(np.linspace(1, 0, 101)), batch=20000).x
    assert (x.mean().item(), x.std().item()) == pytest.approx((2, 0.5), abs=0.01)


@pytest.mark.parametrize("times", [[1.5, 0.5], [0.5, -0.1], [0.5, 1e-4], [1000.0, 500.0], [0.5, float("nan")]])
def test_times_outside_of_a_flow_are_refused(times: list[float]) -> None:
    with pytest.raises(ds.GridError, match=r"outside \[0.001, 0.9999\].*its network is told 1 to 999\.9"):
        ds.make_grid(ds.Timesteps(times), 4, ds.RectifiedFlow(scale=1000))


AMBIGUOUS: list[tuple[Any, list[float]]] = [
    ("flow", [1.0, 0.75, 0.5, 0.25, 0]), ("flow", [0.9, 0.1]), ("flow", [0.8]), ("flow", [0.2, 0.7]),
    ("ve", [1.0, 0.5, 0.1]), ("vp", [0.99, 0.5]), (ds.RectifiedFlow(scale=1000), [1.0, 0.5]),
    (ds.RectifiedFlow(scale=1000), [1000, 750.5, 500]), (ds.RectifiedFlow(3.0, scale=1000), [967, 750, 500, 0]),
    ("cosine", [999, 500, 100, 0]), (ds.VP(zero_snr=True), [981, 961]), ("sd", [999, 500, 0]),
    ("flow", [999, 500, 1]), (ds.RectifiedFlow(3.0), [1000, 750, 500, 250, 0]), ("ve", [1000, 500]),
]  # fmt: skip


@pytest.mark.parametrize(("process", "listed"), AMBIGUOUS, ids=str)
def test_a_list_that_may_be_times_is_refused_with_both_readings(process: Any, listed: list[float]) -> None:
    forward = as_process(process)
    both = r"may be times, .* or noise levels .*pass ds\.Timesteps.*, ds\.Grid\(\["
    with pytest.raises(ds.GridError, match=both) as caught:
        ds.make_grid(listed, 4, forward)
    if listed[0] < listed[-1]:
        return
    readings = re.findall(r"ds\.(?:Timesteps|Grid)\(\[.*?\](?:, final='\w+')?\)", str(caught.value))
    made = [eval(text.replace(", ...", ""), {"ds": ds}) for text in readings]
    for reading in made:
        if forward.sigma_max > 1000 or max(listed) <= 1 or isinstance(reading, ds.Timesteps):
            assert len(ds.make_grid(reading, 4, forward).nodes) in (len(listed), len(listed) - 1, 3)
    problem = ds.ProbabilityFlow(lambda x, t: x, forward, shape=(2,))
    with pytest.raises(ds.GridError, match="may be times"):
        ds.solve(problem.reversed(), "euler", [node for node in listed if node], x=torch.ones(1, 2))


@pytest.mark.parametrize(("process", "listed"), [
    ("flow", [9000.0, 3.0, 0.2]), ("sd", [10, 5, 1]), ("sd", [1, 0.5]), ("edm", [1.0, 0.5]), ("edm", [80, 40, 1]),
    ("cosine", [800.5, 3.0]), ("ve", [1.5, 0.5]), (ds.RectifiedFlow(scale=1000), [300.0, 2.0]),
])  # fmt: skip
def test_a_list_that_is_no_times_is_of_noise_levels(process: Any, listed: list[float]) -> None:
    assert ds.make_grid(listed, 4, as_process(process)).nodes.tolist() == listed


# ---- a denoiser of k-diffusion's kind


MIXTURE = ds.problems.GaussianMixture(
    [[1.0, -2.0], [-1.5, 0.5]], [0.3, 0.6], process=ds.EDM(0.01, 60.0), dtype=F64
)


def denoiser(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    assert sigma.shape == (len(y),)
    return MIXTURE.denoise(y, float(sigma[0]))


@cache
def flow_and_end() -> tuple[torch.Tensor, torch.Tensor]:
    x = MIXTURE.prior(32, seed=1)
    return x, ds.solve(MIXTURE, "dopri8", "lambda", 400, x=x, final="none").x


def test_a_denoiser_has_a_door_of_its_own() -> None:
    flow = ds.ProbabilityFlow.from_denoiser(denoiser, 0.01, 60.0, (2,), dtype=F64)
    assert (flow.process.sigma_min, flow.process.sigma_max) == (0.01, 60.0)
    x, end = flow_and_end()
    coarse, fine = (
        (ds.solve(flow, "heun", n=n, x=x, final="none").x - end).norm() / end.norm() for n in (200, 400)
    )
    assert coarse < 1e-3
    assert 3.5 < coarse / fine < 4.5, "an error of Heun's order, and nothing else"
    other = ds.ProbabilityFlow(denoiser, ds.VE(0.01, 60.0), "x0", shape=(2,), dtype=F64)  # it is told t there
    assert (ds.solve(other, "heun", n=200, x=x, final="none").x - end).norm() / end.norm() > 0.1


@pytest.mark.parametrize(("arguments", "message"), [
    ((denoiser, 0, 60.0, (2,)), "sigma_min must be a finite number above 0, got 0"),
    ((denoiser, 0.1, "60", (2,)), "sigma_max must be a finite number above 0, got '60'"),
    ((denoiser, 60.0, 0.01, (2,)), "expected t_min < t_max, got 60 and 0.01"),
    ((None, 0.01, 60.0, (2,)), "network"),
    ((3, 0.01, 60.0, (2,)), "must be a function"),
    ((denoiser, 0.01, 60.0, 2), "shape is one sample's shape"),
])  # fmt: skip
def test_what_is_no_denoiser_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ds.ProblemError, match=message):
        ds.ProbabilityFlow.from_denoiser(*arguments)


@pytest.mark.parametrize(("made", "message"), [
    (lambda: ds.EDM(80, 0.002), "EDM: expected t_min < t_max, got 80 and 0.002"),
    (lambda: ds.EDM(-1.0), "EDM: t_min must be a finite number above 0, got -1.0"),
    (lambda: ds.VE(1.0, 1.0), "VE: expected low < high, got 1 and 1"),
    (lambda: ds.VE(high=float("inf")), "VE: high must be a finite number above 0, got inf"),
    (lambda: ds.RectifiedFlow(shift=0), "shift must be a finite number above 0, got 0"),
    (lambda: ds.RectifiedFlow(scale=float("nan")), "scale must be a finite number above 0, got nan"),
    (lambda: ds.RectifiedFlow(t_max=1.0), "expected t_min < t_max <= 1, got 0.001 and 1"),
    (lambda: ds.ContinuousVP(t_min=0.0), "t_min must be a finite number above 0, got 0"),
    (lambda: ds.ContinuousVP(t_max=2.0), "expected t_min < t_max <= 1, got 0.001 and 2"),
    (lambda: ds.ContinuousVP(beta_max=-3.0), "beta_max must be .* got -3"),
    (lambda: ds.VP(steps=0).sigma_max, "steps"), (lambda: ds.VP(steps=10**12).sigma_max, "steps"),
    (lambda: ds.VP(beta_start="a").sigma_max, "beta_start"), (lambda: ds.VP(beta_end=-0.1).sigma_max, "beta_end"),
    (lambda: ds.VP(snr_shift=float("nan")).sigma_max, "snr_shift"),
])  # fmt: skip
def test_what_can_be_no_process_is_refused(made: Any, message: str) -> None:
    with pytest.raises(ds.ProblemError, match=message):
        made()


# ---- latents of diffusers


GAUSSIAN = ds.problems.Gaussian(torch.zeros(4, 8, 8), 0.7)


def test_x_of_another_deviation_is_refused_with_the_recipe() -> None:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    recipe = r"at sigma = 14\.6146 .* as x \* 14\.6146.*ds\.problems\.from_latents\(x, problem\.process, sigma\)"
    for wrong in (noise, noise * 5, torch.zeros_like(noise)):
        with pytest.raises(ds.ProblemError, match=recipe):
            ds.solve(GAUSSIAN, "heun", n=3, x=wrong)
    sigma = GAUSSIAN.process.sigma_max
    right = ds.problems.from_latents(noise, GAUSSIAN.process)
    torch.testing.assert_close(right, noise * sigma)
    ds.solve(GAUSSIAN, "heun", n=3, x=right)
    ds.solve(GAUSSIAN, "heun", n=3, x=noise * sigma * 0.7)
    ds.solve(GAUSSIAN, "heun", [0.9, 0.1], x=noise)
    ds.solve(GAUSSIAN.reversed(), "heun", n=3, x=noise * 0)
    torch.func.grad(lambda x: ds.solve(GAUSSIAN, "heun", n=1, x=x).x.sum())(noise)


def test_a_saved_run_goes_on_below_the_noise_that_it_started_with() -> None:
    run = ds.start(GAUSSIAN, "heun", "karras", 9, seed=3)
    for visit in run:
        if visit.index == 7:
            break
    whole, half = ds.solve(GAUSSIAN, "heun", "karras", 9, seed=3), ds.start(GAUSSIAN, "heun", n=9, state=run.state)
    assert [visit.index for visit in half] == [8]
    assert torch.equal(half.solution.x, whole.x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "kind", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler]
)
def test_latents_of_a_diffusers_loop_go_on_here(kind: Any) -> None:
    """Ten steps there, then ours to the end: the same as the flow's exact end, to the error of the steps."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "trailing"}
    scheduler = kind(**betas, **({"clip_sample": False, "set_alpha_to_one": False} if kind is DDIMScheduler else {}))
    scheduler.set_timesteps(100)
    network = ds.NetworkDenoiser(lambda x, t: x)  # for its units alone
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=F64)
    latents, process = noise * scheduler.init_noise_sigma, GAUSSIAN.process
    steps = scheduler.timesteps[:51]  # of Heun's two calls a step, an odd number ends one
    for t in steps:
        given = scheduler.scale_model_input(latents, t)
        sigma = process.sigma(float(t))
        y = given / process.alpha(sigma)
        eps = (y - GAUSSIAN.denoise(y.float(), sigma)) / sigma
        latents = scheduler.step(eps, t, latents).prev_sample
    sigma = process.sigma(float(scheduler.timesteps[51]))
    assert network.scaling(sigma).c_noise == pytest.approx(float(scheduler.timesteps[51]))
    init = float(scheduler.init_noise_sigma)
    x = ds.problems.from_latents(latents, process, sigma, init_noise_sigma=init)
    start = ds.problems.from_latents(noise * init, process, init_noise_sigma=init)
    exact = GAUSSIAN.exact(start, process.sigma_max, sigma)
    assert (x - exact).norm() / exact.norm() < 0.05
    if init == 1:
        assert (latents - exact).norm() / exact.norm() > 0.1, "as they are they would be wrong"


@pytest.mark.parametrize(("latents", "options", "message"), [
    ([1.0], {}, "latents are a tensor of floats .* got list"),
    (torch.ones(3), {}, r"got torch.float32 \(3,\)"),
    (torch.ones(1, 3, dtype=torch.int64), {}, "got torch.int64"),
    (torch.ones(1, 3), {"sigma": -1.0}, "sigma must be"),
    (torch.ones(1, 3), {"init_noise_sigma": float("nan")}, "init_noise_sigma must be"),
])  # fmt: skip
def test_what_are_no_latents_is_refused(latents: Any, options: Any, message: str) -> None:
    with pytest.raises(ds.ProblemError, match=message):
        ds.problems.from_latents(latents, "sd", **options)
    assert ds.problems.from_latents(torch.ones(1, 3).half(), "sd").dtype == torch.float32
