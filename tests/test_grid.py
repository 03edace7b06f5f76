"""Where the steps go: the published numbers, parity with the peers' own grids, and what every grid keeps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules
from scipy.integrate import quad
from scipy.stats import beta
from stubs import PROCESSES, SCHEDULES

import diffsolve as ds
from diffsolve.process import as_process

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
COUNTS = [*range(1, 61), 100, 333, 999, 1000, 1500]
VARIANTS: dict[str, ds.Process] = {
    **ds.PROCESSES,
    "vp cosine": ds.ContinuousVP("cosine"),
    "vp scaled": ds.ContinuousVP("scaled_linear", 0.85, 12.0),
    "flow shifted": ds.RectifiedFlow(shift=3.0, scale=1000.0),
    "ve narrow": ds.VE(0.1, 50.0),
    "betas": ds.VP(betas=tuple(np.linspace(1e-3, 0.3, 50))),
}


def grid(schedule: Any, n: int, process: str = "sd", **options: Any) -> ds.Grid:
    rule = ds.get_schedule(schedule)[0] if isinstance(schedule, str) else schedule
    return ds.make_grid(rule, n, as_process(process), **options)


def nodes(schedule: Any, n: int, process: str = "sd", **options: Any) -> np.ndarray:
    return grid(schedule, n, process, **options).nodes


def times(schedule: Any, n: int) -> np.ndarray:
    return ds.VP().t(nodes(schedule, n))


# -- the printed numbers ----------------------------------------------------------------------------------------------

PRINTED_TIMES = """999.0000, 927.6429, 856.2857, 784.9286, 713.5714, 642.2143, 570.8571,
    499.5000, 428.1429, 356.7857, 285.4286, 214.0714, 142.7143,  71.3571, 0.0000"""
PRINTED_SIGMAS = """14.6146,  9.6826,  6.6780,  4.7746,  3.5221,  2.6666,  2.0606,  1.6156,
    1.2768,  1.0097,  0.7913,  0.6056,  0.4397,  0.2780,  0.0292,  0.0000"""


def test_fifteen_linspace_steps_of_stable_diffusion_to_every_printed_digit() -> None:
    made = grid("linspace", 15)
    assert [f"{t:.4f}" for t in ds.VP().t(made.nodes)] == PRINTED_TIMES.replace(",", "").split()
    assert [f"{s:.4f}" for s in made.sigmas] == PRINTED_SIGMAS.replace(",", "").split()


# -- every schedule, every process -------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_strictly_decreasing_inside_the_range_from_its_top(schedule: str, process: str) -> None:
    p = as_process(process)
    for n, final in itertools.product(COUNTS, ("denoise", "none")):
        made = grid(schedule, n, process, final=final)
        assert len(made) == n
        assert len(made.sigmas) == n + 1
        assert (np.diff(made.sigmas) < 0).all(), n
        assert p.sigma_min <= made.nodes[-1]
        assert made.nodes[0] <= p.sigma_max
        if schedule != "leading":
            assert made.nodes[0] == pytest.approx(p.sigma_max, rel=1e-12), n
    assert made.nodes[-1] < p.sigma_min * 2 or schedule in ("trailing", "shift")


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_part_of_the_range(schedule: str, process: str) -> None:
    p = as_process(process)
    low, high = (p.sigma_min ** (1 - a) * p.sigma_max**a for a in (0.3, 0.7))
    for n in (1, 2, 3, 10, 40):
        made = nodes(schedule, n, process, sigma_min=low, sigma_max=high)
        assert made[-1] >= low * (1 - 1e-12)
        assert made[0] <= high * (1 + 1e-12)
        assert schedule == "leading" or made[0] == pytest.approx(high, rel=1e-12)


# -- parity with diffusers ---------------------------------------------------------------------------------------------


def theirs(n: int, **config: Any) -> diffusers.EulerDiscreteScheduler:
    scheduler = diffusers.EulerDiscreteScheduler(**SD, **config)
    scheduler.set_timesteps(n)
    return scheduler


@pytest.mark.parametrize(
    ("schedule", "config"),
    [
        ("karras", {"use_karras_sigmas": True}),
        ("exponential", {"use_exponential_sigmas": True}),
        ("lambda", {"use_exponential_sigmas": True}),
        ("linspace", {"timestep_spacing": "linspace"}),
        ("leading", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("leading(offset=0)", {"timestep_spacing": "leading", "steps_offset": 0}),
        ("trailing", {"timestep_spacing": "trailing"}),
    ],
)
@pytest.mark.parametrize("n", [2, 3, 7, 10, 15, 20, 25, 30, 50, 77, 100])
def test_sigmas_of_diffusers(schedule: str, config: dict[str, Any], n: int) -> None:
    expected = theirs(n, **config).sigmas.double().numpy()
    ours = grid(schedule, n).sigmas
    if schedule == "trailing":
        # diffusers rounds 1000 - i 1000/n to a whole timestep. Ours does not, so the rounding is repeated here; and its
        # np.arange makes one node too many where 1000/n accumulates upwards, which is left out.
        t = np.round(times("trailing", n) + 1) - 1
        ours, expected = np.append(ds.VP().sigma(t), 0.0), np.append(expected[:n], 0.0)
    assert np.abs(ours - expected).max() <= 1e-6 * ours[0]
    assert np.abs(ours[:-1] / expected[:-1] - 1).max() < 1e-5, "the tables of diffusers are float32"


def test_the_first_of_one_step_is_the_noisiest() -> None:
    assert theirs(1, timestep_spacing="linspace").timesteps.tolist() == [0.0]  # there, one step starts at the data
    assert nodes("linspace", 1).tolist() == [ds.VP().sigma_max]


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_the_tables_are_those_of_training(name: str) -> None:
    theirs = diffusers.DDPMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="squaredcos_cap_v2" if name == "cosine" else name
    ).alphas_cumprod.double()
    expected = ((1 - theirs) / theirs).sqrt().numpy()
    assert ds.VP(name, 1e-4, 0.02).table == pytest.approx(expected, rel=1e-5)
    if name != "cosine":  # theirs forms the cosine's betas one by one in python
        assert ds.VP(name, 1e-4, 0.02).table == pytest.approx(expected, rel=1e-15)


def test_explicit_timesteps_of_diffusers() -> None:
    t = AysSchedules["StableDiffusionTimesteps"]
    scheduler = diffusers.EulerDiscreteScheduler(**SD)
    scheduler.set_timesteps(timesteps=t)
    ours = grid(ds.Timesteps(t), 99)
    assert ours.sigmas == pytest.approx(scheduler.sigmas.double().numpy(), rel=1e-6)
    assert ours.nodes.tolist() == ds.VP().table[t].tolist()


# -- the formulas of k-diffusion and ComfyUI, written out --------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 10, 27, 50, 999])
def test_polyexponential_of_k_diffusion(n: int) -> None:
    low, high = ds.VP().sigma_min, ds.VP().sigma_max
    for rho in (0.7, 1.0, 2.0):
        ramp = np.linspace(1, 0, n) ** rho
        expected = np.exp(ramp * (math.log(high) - math.log(low)) + math.log(low))
        assert nodes(f"polyexponential(rho={rho})", n) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 30, 333, 1000])
def test_simple_of_comfyui(n: int) -> None:
    table, every = ds.VP().table, 1000 / n
    assert nodes("simple", n).tolist() == [table[-(1 + int(x * every))] for x in range(n)]


@pytest.mark.parametrize("n", [1, 2, 5, 10, 20, 50, 100])
def test_leading_is_ddim_uniform_of_comfyui(n: int) -> None:
    table = ds.VP().table
    x, made = 1, []
    while x < len(table):
        made.append(table[x])
        x += max(len(table) // n, 1)
    assert nodes("leading", n).tolist() == made[::-1]


@pytest.mark.parametrize("n", [1, 2, 5, 20, 27, 37, 111])
def test_sgm_uniform_of_comfyui(n: int) -> None:
    t = np.linspace(999, 0, n + 1)[:-1]
    assert times("sgm_uniform", n) == pytest.approx(t, rel=1e-12)
    if 999 % n == 0:  # elsewhere ComfyUI interpolates log sigma between timesteps, where diffusers and we take sigma
        assert nodes("sgm_uniform", n) == pytest.approx(ds.VP().table[np.round(t).astype(int)], rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 10, 20, 30])
def test_beta_of_comfyui(n: int) -> None:
    quantiles = 1 - np.linspace(0, 1, n, endpoint=False)
    rounded = np.rint(beta.ppf(quantiles, 0.6, 0.6) * 999)  # ComfyUI rounds to a timestep, and drops what repeats
    assert np.rint(times("beta", n)).tolist() == rounded.tolist()
    other = beta.ppf(quantiles, 1.0, 0.5) * 999
    assert times("beta(a=1.0, b=0.5)", n) == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 10, 33])
def test_the_rest_by_definition(n: int) -> None:
    p = ds.VP()
    assert np.diff(np.sqrt(times("quadratic", n))) == pytest.approx(-math.sqrt(999) / (n - 1))
    angles = math.atan(p.sigma_min) - math.atan(p.sigma_max)
    assert np.diff(np.arctan(nodes("cosine", n))) == pytest.approx(angles / (n - 1))
    assert np.diff(np.log(nodes("lambda", n))) == pytest.approx(math.log(p.sigma_min / p.sigma_max) / (n - 1))
    for rho in (3.0, 7.0):
        ends = p.sigma_min ** (1 / rho) - p.sigma_max ** (1 / rho)
        assert np.diff(nodes(f"karras(rho={rho})", n) ** (1 / rho)) == pytest.approx(ends / (n - 1))


MODELS = {"sd15": "StableDiffusionSigmas", "sdxl": "StableDiffusionXLSigmas", "svd": "StableDiffusionVideoSigmas"}


@pytest.mark.parametrize("model", MODELS)
def test_ten_steps_of_ays_are_the_published_ones(model: str) -> None:
    published = AysSchedules[MODELS[model]]
    process: Any = ds.EDM(0.002, 700.0) if model == "svd" else "sd"
    made = grid(f"ays(model={model})", 10, process).sigmas
    assert len(made) == len(published) == 11
    assert [round(s, 3) for s in made.tolist()] == published
    assert made[1:-1] == pytest.approx(published[1:-1], rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 9, 20, 25, 40])
def test_other_counts_of_ays_are_log_linear(n: int) -> None:
    p = ds.VP()
    table = np.array([p.sigma_max, *AysSchedules["StableDiffusionSigmas"][1:-1], p.sigma_min])
    # ComfyUI's loglinear_interp to n + 1 values, the last of which it sets to 0
    log_linear = np.exp(np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, 11), np.log(table)))
    assert nodes("ays", n) == pytest.approx(log_linear[:-1], rel=1e-9)
    assert nodes("ays", n, final="none") == pytest.approx(log_linear, rel=1e-9)


# -- explicit grids, and parts of grids --------------------------------------------------------------------------------


def test_explicit_sigmas_of_any_kind() -> None:
    values = [10.0, 5.0, 1.0, 0.25]
    for kind in (list, tuple, np.array, torch.tensor):
        made = grid(kind(values), 77)
        assert made.nodes.tolist() == values
        assert (len(made), made.final, made.name) == (4, "denoise", "explicit")
        assert made.sigmas.tolist() == [*values, 0.0]
        assert grid(kind([*values, 0.0]), 77, final="none").sigmas.tolist() == [*values, 0.0]
        assert grid(kind(values), 77, final="none").sigmas.tolist() == values
    printed = [14.614646911621094, 0.029167532920837402]  # float32: an ulp above the top, and below the bottom
    assert grid(printed, 1).nodes.tolist() == printed


def test_a_grid_is_a_value() -> None:
    source = np.array([3.0, 2.0, 1.0])
    made = ds.Grid(source)
    source[0] = 99.0
    assert made.nodes[0] == 3.0
    with pytest.raises(ValueError, match="read-only"):
        made.nodes[0] = 1.0


@pytest.mark.parametrize("final", ["denoise", "step", "none"])
def test_every_slice_of_a_grid(final: Any) -> None:
    whole = grid("karras", 6, final=final)
    for start, stop in itertools.combinations(range(8), 2):
        if stop - start < 2 or start > 5:
            continue
        part = whole[start:stop]
        assert part.sigmas.tolist() == whole.sigmas[start:stop].tolist()
        assert len(part) == min(stop, 7) - start - 1
        assert part.final == (final if stop >= 7 else "none")
    assert whole[:-1].sigmas.tolist() == whole.sigmas[:-1].tolist()
    assert whole[-3:].sigmas.tolist() == whole.sigmas[-3:].tolist()
    for strength in np.linspace(0.01, 1, 40):
        part = whole.strength(float(strength))
        assert part.sigmas.tolist() == whole.sigmas[-1 - max(1, round(6 * strength)) :].tolist()


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_time_and_noise_level_invert_each_other(name: str) -> None:
    p = VARIANTS[name]
    t = np.linspace(p.t_min, p.t_max, 401)
    sigma = p.sigma(t)
    assert (np.diff(sigma) > 0).all()
    assert np.abs(p.t(sigma) - t).max() < 1e-13 * p.t_max
    levels = np.geomspace(p.sigma_min, p.sigma_max, 401)
    assert p.sigma(np.clip(p.t(levels), p.t_min, p.t_max)) == pytest.approx(levels, rel=2e-12)
    assert (p.sigma(p.t_min), p.sigma(p.t_max)) == (p.sigma_min, p.sigma_max)


@pytest.mark.parametrize("name", VARIANTS)
def test_numbers_give_numbers_and_arrays_arrays(name: str) -> None:
    p = VARIANTS[name]
    for function, at in ((p.sigma, p.t_max / 2), (p.t, p.sigma_max / 2), (p.alpha, p.sigma_max / 2), (p.c_noise, 1.0)):
        one, many = function(at), function(np.full((2, 3), at))
        assert type(one) is float
        assert many.shape == (2, 3)
        assert many.dtype == np.float64
        assert (many == one).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_rates_are_derivatives(name: str) -> None:
    p = VARIANTS[name]
    discrete = isinstance(p, ds.VP)
    for share in (0.02, 0.2, 0.5, 0.8, 0.98):
        t = p.t_min + share * (p.t_max - p.t_min)
        t, h = (math.floor(t) + 0.5, 0.25) if discrete else (t, 1e-6 * min(t, p.t_max - t))
        assert p.sigma_rate(t) == pytest.approx((p.sigma(t + h) - p.sigma(t - h)) / (2 * h), rel=1e-6)
        sigma = p.sigma(t)
        h = 1e-5 * sigma
        slope = (math.log(p.alpha(sigma + h)) - math.log(p.alpha(sigma - h))) / (2 * h)
        assert p.log_alpha_rate(sigma) == pytest.approx(slope, rel=1e-5, abs=1e-9 / sigma)


def test_the_factors_are_those_of_the_literature() -> None:
    sigma = np.geomspace(1e-2, 1e2, 9)
    for name in ("sd", "vp"):
        alpha = ds.PROCESSES[name].alpha(sigma)
        assert alpha**2 + (alpha * sigma) ** 2 == pytest.approx(1)  # variance preserving
    t = ds.PROCESSES["flow"].t(sigma)
    assert ds.PROCESSES["flow"].alpha(sigma) == pytest.approx(1 - t)  # x_t = (1 - t) x_0 + t eps
    beta_min, beta_max = 0.1, 20.0  # Song et al. 2021, eq. 33
    t = np.linspace(1e-3, 1, 9)
    alpha = np.exp(-(t**2) * (beta_max - beta_min) / 4 - t * beta_min / 2)
    assert ds.PROCESSES["vp"].alpha(ds.PROCESSES["vp"].sigma(t)) == pytest.approx(alpha, rel=1e-10)
    scaled = VARIANTS["vp scaled"]  # beta is the square of what is linear in t; alpha = exp(-int beta / 2)
    for end in (0.01, 0.5, 1.0):
        total = quad(lambda u: (math.sqrt(0.85) + u * (math.sqrt(12) - math.sqrt(0.85))) ** 2, 0, end)[0]
        assert scaled.alpha(scaled.sigma(end)) == pytest.approx(math.exp(-total / 2), rel=1e-12)
    cosine = VARIANTS["vp cosine"]  # Nichol & Dhariwal 2021, eq. 17
    t = np.linspace(1e-3, 0.99, 9)
    alpha = np.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    assert cosine.alpha(cosine.sigma(t)) == pytest.approx(alpha, rel=1e-12)
    assert ds.PROCESSES["ve"].sigma(0.5) == pytest.approx(math.sqrt(0.02 * 100))


@pytest.mark.parametrize("ends", [{}, {"sigma_min": 0.1, "sigma_max": 10.0}])
def test_a_name_is_no_schedule_of_a_grid_yet(ends: dict[str, float]) -> None:
    with pytest.raises(ds.GridError, match=r"make_grid takes a Schedule: get_schedule\('karras'\)\[0\]"):
        ds.make_grid("karras", 5, ds.VP(), **ends)  # type: ignore[arg-type]
    assert len(ds.make_grid(ds.get_schedule("karras")[0], 5, ds.VP(), **ends)) == 5  # type: ignore[arg-type]
