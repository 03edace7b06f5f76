"""Encoding: the flow from data to noise, its peers, the SDE upwards; and slerp."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from models import emoji_model
from parity_cases import BETAS
from scipy.integrate import solve_ivp
from stubs import STOCHASTIC, Watched, gap, gaussian, mixture, rows, slow
from torch import Tensor

import diffsolve as ds
from diffsolve.solvers import Langevin

FORMS = [name for name, form in ds.FORMS.items() if not form.stochastic]


def noisy(problem: Any, batch: int = 8) -> Tensor:
    """Data at sigma_min."""
    return problem.noised(problem.sample(batch), problem.process.sigma_min)


def encoded_exactly(problem: Any, x: Tensor) -> Tensor:
    """The flow from sigma_min to sigma_max in log sigma, to 12 digits."""
    high, low = problem.span

    def rate(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        sigma = math.exp(log_sigma)
        return (problem.eps(torch.from_numpy(flat).reshape(x.shape), sigma) * sigma).flatten().numpy()

    ends = (math.log(low), math.log(high))
    run = solve_ivp(rate, ends, x.flatten().numpy(), "DOP853", rtol=1e-13, atol=1e-13)
    return torch.from_numpy(run.y[:, -1]).reshape(x.shape)


@pytest.mark.parametrize(
    "solver",
    ["euler", "heun", slow("rk4"), slow("dpm_solver_2"), slow("dpm_solver_3"), "dpmpp_2m", "lms(order=2)",
     slow("midpoint(form=v)"), slow("rk4(form=data)")],
)  # fmt: skip
def test_the_encode_alone_has_the_solvers_order(solver: str) -> None:
    problem = mixture()
    x = noisy(problem, 3)
    end = encoded_exactly(problem, x)
    errors = [gap(ds.solve(problem.reversed(), solver, n=n, x=x).x, end) for n in (100, 200)]
    order = ds.get_solver(solver).order_as_started
    assert order - 0.25 < math.log2(errors[0] / errors[1]) < order + 0.6


@pytest.mark.parametrize("form", FORMS)
def test_every_form_encodes_the_same(form: str) -> None:
    problem = gaussian((3,), "vp")
    x = noisy(problem)
    run = ds.solve(problem.reversed(), "rk4", "lambda", 100, x=x, form=form, sigma_max=20.0)
    assert gap(run.x, problem.exact(x, problem.process.sigma_min, 20.0)) < 1e-3
    again = ds.solve(
        problem.reversed(), "rk4", "lambda", 100, x=x, form=form, sigma_max=20.0, execution="tape"
    )
    assert gap(again.x, run.x) < 1e-12
    assert run.nfe == 400


def test_reversed_twice_is_the_problem() -> None:
    problem = mixture()
    back = problem.reversed()
    assert type(back) is type(problem)
    assert (problem.upward, back.upward, back.reversed().upward) == (False, True, False)
    assert back.span == problem.span[::-1] == back.reversed().span[::-1]
    x = noisy(problem)
    assert torch.equal(back.eps(x, 0.3), problem.eps(x, 0.3))
    assert torch.equal(back.sample(2), problem.sample(2)), "what the problem offers is found on its reverse"
    with pytest.raises(ds.ProblemError, match="has no pictures"):
        back.decode(x)


def test_guidance_and_counting_go_through() -> None:
    watched = Watched(mixture())
    run = ds.solve(watched.reversed(), "heun", n=5, x=noisy(mixture()), save="all")
    assert (run.nfe, watched.calls, len(run.trajectory), watched.untouched) == (10, 10, 6, True)
    run.plot()


def test_chosen_steps_encode_to_their_tolerance() -> None:
    problem = mixture()
    x, gaps = noisy(problem), []
    for tolerance in (1e-4, 1e-8):
        options = {"rtol": tolerance, "atol": tolerance, "final": "none"}
        latents = ds.solve(problem.reversed(), "dopri5", x=x, **options)
        assert latents.sigmas[[0, -1]].tolist() == list(problem.reversed().span)
        gaps.append(gap(ds.solve(problem, "dopri5", x=latents.x, **options).x, x))
    assert gaps[0] < 1e-2
    assert gaps[1] < 1e-6


def test_final_is_not_read() -> None:
    problem = mixture()
    runs = [ds.solve(problem.reversed(), "ddim", n=6, x=noisy(problem), final=f) for f in ("denoise", "none", "step")]
    assert all(torch.equal(run.x, runs[0].x) and run.n == 6 for run in runs)
    assert runs[0].sigmas[[0, -1]].tolist() == [problem.process.sigma_min, problem.process.sigma_max]


@pytest.mark.parametrize(
    "schedule",
    [[4.0, 1.0, 0.2], [0.2, 1.0, 4.0], (4.0, 1.0, 0.2, 0.0), torch.tensor([0.0, 0.2, 1.0, 4.0], dtype=torch.float64),
     ds.Grid([4.0, 1.0, 0.2], final="denoise"), ds.Grid([0.2, 1.0, 4.0])],
)  # fmt: skip
def test_explicit_nodes_either_way(schedule: Any) -> None:
    problem = mixture()
    assert ds.solve(problem.reversed(), "ddim", schedule, x=noisy(problem)).sigmas.tolist() == [0.2, 1.0, 4.0]


def test_a_solution_is_encoded_over_its_own_grid() -> None:
    problem = mixture()
    run = ds.solve(problem, "rk4", n=60, batch=3, final="none")
    back = ds.solve(problem.reversed(), "rk4", run.grid, x=run.x)
    assert gap(back.x, problem.prior(3)) < 1e-5


def test_what_an_encode_refuses() -> None:
    back, x = mixture().reversed(), noisy(mixture())
    with pytest.raises(ds.ProblemError, match=r"pass x, the state at sigma = 0.0291"):
        ds.solve(back, "ddim")
    with pytest.raises(ds.SolverError, match=r"'sde' has noise, and this is the flow upwards; .* reverse problem.sde"):
        ds.solve(back, "ddim", x=x, form="sde")
    with pytest.raises(ds.SolverError, match="eta belongs to stochastic solvers"):
        ds.solve(back, "ddim", x=x, eta=0.5)
    with pytest.raises(ds.SolverError, match="ddim solves the ODE, and this problem is the reverse SDE"):
        ds.solve(mixture().sde().reversed(), "ddim", x=x)
    with pytest.raises(ds.SolverError, match="'er_sde' has no way up in noise"):
        ds.solve(mixture().sde().reversed(), "er_sde_3", x=x)
    with pytest.raises(ds.GridError, match="the one node 3"):
        ds.solve(back, "ddim", ds.Grid([3.0], final="denoise"), x=x)
    with pytest.raises(ds.GridError, match="outside the trained range"):
        ds.solve(back, "ddim", [0.1, 1.0, 99.0], x=x)
    with pytest.raises(ds.GridError, match="a schedule is a name"):
        ds.solve(back, "ddim", ["high", "low"], x=x)


@pytest.mark.parametrize("solver", rows(STOCHASTIC))
def test_the_flow_takes_no_noise_on_its_way_up(solver: str) -> None:
    problem = mixture()
    for eta in (None, 0.0):
        with pytest.raises(ds.SolverError, match=r"this is the flow upwards; choose a solver of the ODE|no way up"):
            ds.solve(problem.reversed(), solver, n=4, x=noisy(problem), eta=eta)


def goes_up(name: str) -> bool:
    """Whether a stochastic row solves the SDE upwards: its noise is the form's, and it passes each step once."""
    solver = ds.get_solver(name)
    own = ds.FORMS[solver.form].stochastic and solver.form != "er_sde" and type(solver).plan is ds.Solver.plan
    return own and not isinstance(solver, Langevin)  # its corrector goes by the model, which is not read at eta = 1


@pytest.mark.parametrize("solver", rows(STOCHASTIC))
def test_an_sde_goes_up_where_its_noise_is_the_forms_own(solver: str) -> None:
    problem = gaussian((3,))
    back, x = problem.sde().reversed(), noisy(problem, 500)
    if not goes_up(solver):
        with pytest.raises(ds.SolverError, match=r"in a stochastic form, such as 'sde'|no way up|nothing is read"):
            ds.solve(back, solver, n=4, x=x)
        return
    one, again, other = (ds.solve(back, solver, n=80, x=x, seed=seed).x for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert gap(one, other) > 0.1
    low, high = back.span
    z = (one - x) / math.sqrt(high**2 - low**2)
    assert abs(float(z.mean())) < 0.1, "at eta = 1 it is the forward process: noise is added, and no more"
    assert float(z.std()) == pytest.approx(1, abs=0.06)
    assert gap(ds.solve(back, solver, n=80, x=x[3:4], batch=[3], seed=1).x, one[3:4]) < 1e-12


@pytest.mark.parametrize(
    "solver", ["dpmpp_2m_sde", "euler_ancestral", "sa_solver", "seeds_2", slow("sra3"), "score_sde_vp"]
)
def test_with_less_noise_an_sde_keeps_the_marginals_on_its_way_up(solver: str) -> None:
    problem = gaussian((3,), "vp")
    x = noisy(problem, 4000)
    half = ds.solve(problem.sde(0.5).reversed(), solver, "lambda", 60, x=x, sigma_max=4.0).x
    assert half.mean(0).sub(problem.mean).abs().max() < 0.3
    assert torch.allclose(half.std(0), (problem.variance + 16).sqrt(), rtol=0.05)


STEPS = 20


def in_float64(name: str, problem: Any, **config: Any) -> Any:
    scheduler = getattr(diffusers, name)(**BETAS, **config)
    scheduler.set_timesteps(STEPS)
    scheduler.alphas_cumprod = 1 / (1 + torch.from_numpy(problem.process.table) ** 2)
    return scheduler


def test_ddim_inverse_of_diffusers() -> None:
    """Its t is that of a step's end; the network is given the state at the start, so ours is told the start."""
    problem = mixture()
    scheduler = in_float64("DDIMInverseScheduler", problem, clip_sample=False, set_alpha_to_one=False)
    scheduler.initial_alpha_cumprod = scheduler.alphas_cumprod[0]
    stride, alpha = 1000 // STEPS, problem.process.alpha
    x = noisy(problem)
    theirs = x * alpha(problem.process.sigma_min)
    for t in scheduler.timesteps:
        sigma = problem.process.sigma(float(max(int(t) - stride, 0)))
        theirs = scheduler.step(problem.eps(theirs / alpha(sigma), sigma), t, theirs, return_dict=False)[0]
    nodes = ds.Timesteps([float(t) for t in scheduler.timesteps.flip(0)])
    run = ds.solve(problem.reversed(), "ddim", nodes, x=x)
    assert run.n == STEPS - 1, "its first step, from t = 0 to t = 0, moves nothing"
    assert gap(run.x * alpha(float(run.sigmas[-1])), theirs) < 1e-9
    other = ds.solve(problem.reversed(), "heun", nodes, x=x)
    assert gap(other.x * alpha(float(run.sigmas[-1])), theirs) > 1e-3


@pytest.mark.parametrize(
    ("config", "solver"),
    [({}, "dpmpp_2m"), ({"solver_order": 1}, "ddim"), ({"algorithm_type": "dpmsolver"}, "dpmpp_2m(form=noise)")],
)
@pytest.mark.filterwarnings("ignore:algorithm_type dpmsolver:FutureWarning")
def test_dpm_solver_multistep_inverse_of_diffusers(config: dict[str, Any], solver: str) -> None:
    problem = mixture()
    scheduler = in_float64("DPMSolverMultistepInverseScheduler", problem, **config)
    times = [*map(float, scheduler.timesteps), 999.0]
    sigmas = [problem.process.sigma(t) for t in times]
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    alpha = problem.process.alpha
    x = noisy(problem)
    theirs = x * alpha(sigmas[0])
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        theirs = scheduler.step(problem.eps(theirs / alpha(sigma), sigma), t, theirs, return_dict=False)[0]
    run = ds.solve(problem.reversed(), solver, sigmas, x=x)
    assert gap(run.x * alpha(sigmas[-1]), theirs) < 1e-9


def psnr(a: Any, b: Any) -> float:
    """In dB, of two pictures."""
    return 20 * math.log10(255 / math.sqrt(((np.asarray(a, float) - np.asarray(b, float)) ** 2).mean()))


@pytest.mark.slow
def test_a_picture_comes_back_from_its_noise() -> None:
    problem = emoji_model()("red apple", guidance=1)
    picture = ds.solve(problem, n=20).images()
    latents = problem.encode(picture)
    [shown] = problem.decode(latents)
    quality = []
    for n in (5, 20, 80):
        noise = ds.solve(problem.reversed(), "ddim", "lambda", n, x=latents).x
        back = ds.solve(problem, "ddim", "lambda", n, x=noise, final="none")
        quality.append(psnr(back.images()[0], shown))
    print(quality)
    assert quality == sorted(quality)
    assert quality[-1] > 25


def test_slerp_is_shoemakes_formula_and_keeps_the_norm() -> None:
    a, b = mixture((4, 3)).prior(2, seed=1), mixture((4, 3)).prior(2, seed=2)
    angle = torch.arccos((a * b).sum((1, 2)) / a.norm(dim=(1, 2)) / b.norm(dim=(1, 2)))[:, None, None]
    for t in (0.25, 0.5, 1.5):
        wanted = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()
        torch.testing.assert_close(ds.slerp(a, b, t), wanted, rtol=1e-12, atol=1e-12)
    b = b * (a.norm(dim=(1, 2)) / b.norm(dim=(1, 2)))[:, None, None]
    for t in (0.1, 0.5, 0.9):
        torch.testing.assert_close(ds.slerp(a, b, t).norm(dim=(1, 2)), a.norm(dim=(1, 2)), rtol=1e-12, atol=0.0)
    assert gap((a + b) / 2, a) > 0.5
    assert float(((a + b) / 2).norm()) < 0.8 * float(a.norm()), "a straight line does not keep it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 2.5, -1.0, -2.5, 1 + 1e-9, -1 - 1e-9, 0.0])
def test_slerp_where_the_noises_are_parallel(scale: float, dtype: torch.dtype) -> None:
    for shape in ((6,), (1,), ()):
        a = gaussian(shape).prior(2, seed=3).to(dtype)
        b = a * scale
        assert torch.equal(ds.slerp(a, b, 0.0), a)
        torch.testing.assert_close(ds.slerp(a, b, 1.0), b)
        middle = ds.slerp(a, b, 0.5)
        assert middle.shape == a.shape
        assert middle.isfinite().all()
        if shape == (6,) and scale:
            lengths = (1 + abs(scale)) / 2 * a.norm(dim=1)
            torch.testing.assert_close(middle.norm(dim=1), lengths)


def test_slerp_of_opposite_noises_goes_through_the_axis_farthest_from_them() -> None:
    a = torch.tensor([[2.0, 0.0, 0.0], [3.0, 4.0, 0.0]], dtype=torch.float64)
    wanted = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(ds.slerp(a, -a, 0.5), wanted)


def test_what_slerp_refuses() -> None:
    a = torch.ones(2, 3)
    for b, t, message in (
        (a.double(), 0.5, "one floating dtype, got torch.float32 and torch.float64"),
        (-a, "half", r"t must be a number or a tensor \(B,\), got 'half'"),
        (-a, float("nan"), "t must be finite, got nan"),
    ):
        with pytest.raises(ds.ProblemError, match=message):
            ds.slerp(a, b, t)  # type: ignore[arg-type]


def test_slerp_broadcasts_over_the_batch() -> None:
    a, b = mixture((5,)).prior(1, seed=1), mixture((5,)).prior(1, seed=2)
    t = torch.linspace(0, 1, 4, dtype=torch.float64)
    row = ds.slerp(a, b, t)
    assert row.shape == (4, 5)
    assert torch.equal(row[:1], a)
    assert torch.equal(row[-1:], b)
    torch.testing.assert_close(row[1:2], ds.slerp(a, b, float(t[1])))
    many = mixture((5,)).prior(3)
    torch.testing.assert_close(ds.slerp(a, many, 0.3)[2:], ds.slerp(a, many[2:], 0.3))
    with pytest.raises(ds.ProblemError, match=r"two tensors \(B, \*shape\) of one shape, got \(1, 5\) and \(1, 4\)"):
        ds.slerp(a, b[:, 1:], 0.5)
    with pytest.raises(ds.ProblemError, match="slerp of 3 and 1 noises at 4 places"):
        ds.slerp(many, a, t)


@pytest.mark.slow
def test_the_interpolation_example(tmp_path: Path) -> None:
    code = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "interpolate.py"))
    row = code["main"](["--count", "3", "-n", "4", "--out", str(tmp_path / "row.png")])
    assert row.size == (96, 32)
    ends = [tmp_path / "first.png", tmp_path / "last.png"]
    row.crop((0, 0, 32, 32)).save(ends[0])
    row.crop((64, 0, 96, 32)).save(ends[1])
    again = code["main"]([*map(str, ends), "--count", "2", "-n", "20", "--out", str(tmp_path / "again.png")])
    for place, end in zip((0, 32), (0, 64), strict=True):
        assert psnr(again.crop((place, 0, place + 32, 32)), row.crop((end, 0, end + 32, 32))) > 18
