"""k-diffusion's contract: its signature, options and callback for every row, and its own functions' results."""

from __future__ import annotations

import inspect
import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from peers import TOLERANCE, Given
from peers_k_diffusion import CHURN, K_DIFFUSION, Sampler, stored
from stubs import ONE_OF_EACH, gap, mixture
from torch import Tensor

import diffsolve as ds
from diffsolve.interop import k_diffusion as kd

SIGMAS = torch.tensor([9.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.08, 0.0], dtype=torch.float64)
STORED: dict[str, Sampler] = {case.run.key: case.run for case in K_DIFFUSION}  # type: ignore[attr-defined, misc]


def model(problem: Any) -> Any:
    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (len(x),)
        assert sigma.dtype == x.dtype
        return problem.denoise(x, float(sigma[0]))

    return denoised


def begin(sigmas: Tensor = SIGMAS, rows: int = 3) -> Tensor:
    return mixture().prior(rows, seed=2, sigma=float(sigmas[0]))


def run(name: str, sigmas: Tensor = SIGMAS, x: Tensor | None = None, **options: Any) -> Tensor:
    return kd.sampler(name)(model(mixture()), begin(sigmas) if x is None else x, sigmas, disable=True, **options)


@pytest.mark.parametrize("key", STORED)
def test_the_results_are_k_diffusions_own(key: str) -> None:
    case, problem = STORED[key], Given("mixture")
    grid, given = case.grid(problem), dict(case.given)
    y = problem.unit * grid.sigmas[0]

    def noise(start: Tensor, end: Tensor) -> Tensor:
        step = int(np.abs(grid.sigmas - float(start)).argmin())
        return problem.draws[step, int(abs(grid.sigmas[step + 1] - float(end)) > 1e-9)]

    if case.name.endswith(("ancestral", "sde", "fast")) or "s_churn" in given:
        given["noise_sampler"] = noise
    sample, where = getattr(kd, case.name), [torch.from_numpy(grid.sigmas.copy())]
    if case.name == "sample_dpm_fast":
        where = [float(grid.sigmas[-1]), float(grid.sigmas[0])]
    if case.name == "sample_dpm_adaptive":
        where = list(problem.span[::-1])
    assert gap(sample(model(problem), y, *where, disable=True, **given), stored()[f"mixture {key}"]) < TOLERANCE


OTHERWISE = {"euler_ancestral", "dpmpp_sde", "lms", "dpm_fast", "guarded_abm"}  # what these names mean there


@pytest.mark.parametrize("row", ONE_OF_EACH)
def test_a_row_is_a_function_there(row: str) -> None:
    problem = mixture()
    x, seen = begin(), list[dict[str, Any]]()
    found = kd.sampler(row)(model(problem), x, SIGMAS, callback=seen.append, disable=True, seed=5)
    ours = ds.solve(kd.KDiffusionProblem(model(problem), 0.08, 9.0, dtype=torch.float64), row, SIGMAS, x=x, seed=5).x
    assert torch.equal(found, ours) or row in OTHERWISE
    assert torch.equal(x, begin())
    assert [set(told) for told in seen] == [{"x", "i", "sigma", "sigma_hat", "denoised"}] * len(seen)
    assert list(dict.fromkeys(told["i"] for told in seen)) == list(range(7)) or row == "dpm_fast"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("part", ["x", "denoised"])
def test_a_callback_that_changes_what_it_is_shown_is_refused(part: str, dtype: torch.dtype) -> None:
    with pytest.raises(ds.SolverError, match=r"callback changed x or denoised in place, .* copy it first"):
        run("heun", x=begin().to(dtype), callback=lambda seen: seen[part].zero_())


def test_the_callback_sees_each_step_before_it_is_taken() -> None:
    seen = list[dict[str, Any]]()
    end = run("heun", SIGMAS[:-1], callback=seen.append)
    x, denoised, states = begin(), model(mixture()), list[Tensor]()
    for sigma, to in pairwise(SIGMAS[:-1]):
        states.append(x)
        slope = (x - denoised(x, sigma.expand(3))) / sigma
        ahead = x + slope * (to - sigma)
        x = x + (slope + (ahead - denoised(ahead, to.expand(3))) / to) / 2 * (to - sigma)
    assert gap(end, x) < 1e-12
    for i, (told, state) in enumerate(zip(seen, states, strict=True)):
        assert told["i"] == i
        assert told["sigma"] == told["sigma_hat"] == SIGMAS[i]
        assert gap(told["x"], state) < 1e-12
        assert gap(told["denoised"], denoised(state, SIGMAS[i].expand(3))) < 1e-12


def test_churn_is_told_by_sigma_hat() -> None:
    seen = list[dict[str, Any]]()
    run("dpmpp_2s", callback=seen.append, seed=1, **CHURN)
    raised = [float(told["sigma_hat"] / told["sigma"]) for told in seen]
    assert raised == pytest.approx([1 + (0.05 <= sigma <= 10) * (sigma > 0.1) * 2**0.5 - (0.05 <= sigma <= 10)
                                    * (sigma > 0.1) for sigma in SIGMAS[:-1].tolist()])  # fmt: skip


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "rk4", "res_2s"])
def test_a_partial_run_is_the_part_of_a_whole(name: str) -> None:
    whole, states = run(name), [begin()]
    for part in (SIGMAS[:3], SIGMAS[2:6], SIGMAS[5:]):
        states.append(run(name, part, states[-1]))
    assert gap(states[-1], whole) < 1e-12
    again = run(name, SIGMAS[:3].flip(0), states[1])
    assert gap(again, states[0]) < 0.3 * gap(states[1], states[0])  # upwards, within the method's error


def test_lists_of_sigmas_as_they_come() -> None:
    repeated = torch.cat([SIGMAS[:2], SIGMAS[1:]])
    seen = list[dict[str, Any]]()
    assert torch.equal(run("dpmpp_2m", repeated, callback=seen.append), run("dpmpp_2m"))
    assert [told["i"] for told in seen] == [0, 2, 3, 4, 5, 6, 7]
    assert torch.equal(run("heun", SIGMAS[:1]), begin())
    assert torch.equal(run("heun", SIGMAS[:0], begin()), begin())
    assert gap(run("euler", torch.tensor([9.0, 0.0])), mixture().denoise(begin(), 9.0)) < 1e-12
    assert run("euler", SIGMAS.float(), begin().float()).dtype == torch.float32
    for wrong in (SIGMAS[None], -SIGMAS, SIGMAS / 0, torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0, 1.5])):
        with pytest.raises(ds.GridError):
            run("euler", wrong, begin())
    with pytest.raises(ds.ProblemError, match="x must be a tensor of floats"):
        run("euler", x=torch.ones(3, 2, dtype=torch.long))


def test_the_noise_is_the_samplers_own() -> None:
    asked = list[tuple[float, float]]()

    def noise(start: Tensor, end: Tensor) -> Tensor:
        asked.append((float(start), float(end)))
        return torch.ones(3, 2, dtype=torch.float64)

    once, twice = (run("euler_ancestral", noise_sampler=noise, s_noise=s) for s in (1.0, 2.0))
    assert torch.allclose(torch.tensor(asked), torch.tensor([*pairwise(SIGMAS[:-1].tolist())] * 2))
    none = run("euler_ancestral", s_noise=0.0)
    assert gap(once, twice) > 1e-3
    assert torch.equal(none, run("euler_ancestral", s_noise=0.0, seed=4))
    assert torch.equal(run("euler_ancestral", eta=0.0), run("euler"))
    asked.clear()
    run("exp_heun_2_x0_sde", noise_sampler=noise)
    assert len(set(asked)) == len(asked)  # of one interval once
    with pytest.raises(ds.SolverError, match=r"noise_sampler gave \(1,\)"):
        run("ddpm", noise_sampler=lambda *_: torch.ones(1))
    with pytest.raises(ds.SolverError, match="two normals"):
        run("sra1", noise_sampler=noise)


def test_where_a_seed_comes_from() -> None:
    def seeded(x: Tensor, sigma: Tensor, seed: int = 0) -> Tensor:
        return mixture().denoise(x, float(sigma[0]))

    def drawn(extra_args: Any = None, **options: Any) -> Tensor:
        return kd.sampler("dpmpp_2m_sde")(seeded, begin(), SIGMAS, extra_args, disable=True, **options)

    assert torch.equal(drawn({"seed": 3}), drawn(seed=3))
    torch.manual_seed(0)
    first, second = drawn(), drawn()
    torch.manual_seed(0)
    assert torch.equal(drawn(), first)
    assert gap(first, second) > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "spelt"),
    [("lms", {"order": 2, "final": "denoise"}, "lms(order=2)"), ("deis", {"max_order": 2}, "deis(order=2)"),
     ("gradient_estimation", {"ge_gamma": 1.8}, "gradient_estimation(gamma=1.8)"),
     ("lms(order=3, form=v)", {"final": "denoise"}, "lms(order=3, form=v)"), ("DPM++ 2M", {}, "dpmpp_2m"),
     ("sample_dpm_2", {}, "dpm2"), ("heun", {"form": "flow"}, "heun(form=flow)")],
)  # fmt: skip
def test_options_and_names(name: str, options: dict[str, Any], spelt: str) -> None:
    assert gap(run(name, **options), ds.solve(mixture(), spelt, SIGMAS, x=begin()).x) < 1e-12
    assert gap(kd.sampler(name, **options)(model(mixture()), begin(), SIGMAS), run(name, **options)) < 1e-12


def test_solvers_and_adaptive_runs() -> None:
    seen = list[dict[str, Any]]()
    assert torch.equal(run(ds.get_solver("heun")), run("heun"))  # type: ignore[arg-type]
    found = run("dopri5", rtol=1e-6, atol=1e-6, callback=seen.append)
    assert gap(found, run("dopri5", torch.tensor([*np.geomspace(9.0, 0.08, 60), 0.0]))) < 1e-4
    numbers = [told["i"] for told in seen]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == seen[-1]["steps"]  # the step to 0 is one more
    assert {"x", "sigma", "sigma_hat", "denoised", "error", "h", "n_accept", "n_reject", "nfe"} < set(seen[0])
    assert gap(run("dpm_adaptive", SIGMAS), run("dpm_adaptive", SIGMAS[[0, -2]])) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [({"ordr": 2}, "has no option 'ordr'; did you mean 'order'"), ({"eta": 0.5}, "solves the ODE"),
     ({"s_churn": -1.0}, "s_churn must be"), ({"s_noise": float("nan")}, "s_noise must be"),
     ({"final": "none"}, "final must be one of")],
)  # fmt: skip
def test_what_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ds.DiffsolveError, match=said):
        run("lms", **options)


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="did you mean 'heun"):
        kd.sample_huen  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'heun'"):
        kd.heun  # noqa: B018
    with pytest.raises(ds.SolverError, match="unknown solver 'huen'"):
        kd.sampler("huen")
    with pytest.raises(ds.SolverError, match="a Solver is made already"):
        kd.sampler(ds.get_solver("lms"))(model(mixture()), begin(), SIGMAS, order=2)
    assert "sample_heun" in dir(kd)


def test_a_function_is_one_and_has_the_signature() -> None:
    assert kd.sample_heun is kd.sample_heun
    assert pickle.loads(pickle.dumps(kd.sample_rk4)) is kd.sample_rk4
    assert kd.sample_dpm_2.__name__ == "sample_dpm_2"
    parameters = list(inspect.signature(kd.sample_heun).parameters)
    assert parameters == ["model", "x", "sigmas", "extra_args", "callback", "disable", "options"]


def test_a_model_in_half_precision_and_guidance() -> None:
    def half(x: Tensor, sigma: Tensor, cond: str) -> Tensor:
        assert (x.dtype, sigma.dtype, cond) == (torch.bfloat16, torch.bfloat16, "cat")
        return mixture().denoise(x.double(), float(sigma[0])).to(x)

    seen = list[dict[str, Any]]()
    found = kd.sample_heun(half, begin().bfloat16(), SIGMAS, {"cond": "cat"}, seen.append, True)
    assert found.dtype == seen[0]["x"].dtype == seen[0]["denoised"].dtype == torch.bfloat16
    assert gap(found, run("heun")) < 0.05

    def both(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        found = model(mixture())(x, sigma)
        return found, found * 0.9

    assert gap(kd.sample_euler_cfg_pp(both, begin(), SIGMAS), run("euler")) > 1e-2
    assert gap(run("euler_cfg_pp"), run("euler")) < 1e-12


def test_a_graph_where_it_is_asked_for() -> None:
    x = begin().requires_grad_()
    assert not run("heun", x=x).requires_grad
    found = run("heun", x=x, gradient="backprop")
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert slope.abs().sum() > 0


def test_a_problem() -> None:
    problem = mixture()
    of = kd.KDiffusionProblem(model(problem), 0.05, 10.0, (2,), dtype=torch.float64)
    start = of.prior(2, seed=1)
    plain = ds.solve(problem, "dpmpp_2m", "karras", 9, x=start, sigma_min=0.05, sigma_max=10.0).x
    assert gap(ds.solve(of, "dpmpp_2m", "karras", 9, x=start).x, plain) < 1e-12
    back = ds.solve(of.reversed(), "rk4", n=60, x=ds.solve(of, "rk4", n=60, x=start, final="none").x).x
    assert gap(back, start) < 1e-3

    class Trained:
        sigma_min, sigma_max = torch.tensor(0.05), torch.tensor(10.0)

        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            return model(problem)(x, sigma)

    found = ds.solve(kd.KDiffusionProblem(Trained(), dtype=torch.float64), "dpmpp_2m", "karras", 9, x=start).x
    assert gap(found, plain) < 1e-6  # its ends are float32
    with pytest.raises(ds.ProblemError, match="pass both"):
        kd.KDiffusionProblem(model(problem))
    with pytest.raises(ds.ProblemError, match="knows no shape"):
        ds.solve(kd.KDiffusionProblem(Trained()), "heun")
    with pytest.raises(ds.ProblemError, match="must be a function"):
        kd.KDiffusionProblem(3, 0.05, 10.0)  # type: ignore[arg-type]


def test_sigmas() -> None:
    found = kd.get_sigmas_karras(5, 0.1, 10.0, dtype=torch.float64)
    assert found.tolist() == pytest.approx([*((10 ** (1 / 7) + i / 4 * (0.1 ** (1 / 7) - 10 ** (1 / 7))) ** 7
                                              for i in range(5)), 0.0])  # fmt: skip
    assert kd.get_sigmas_karras(5, 0.1, 10.0, rho=3).dtype == torch.get_default_dtype()
    assert kd.get_sigmas_karras(5, 0.1, 10.0, rho=3)[2] != found[2]


@pytest.mark.parametrize("name", ["heun", "dpm_fast", "dpm_adaptive", "euler_ancestral"])
def test_sigmas_that_leave_no_way_to_go_are_refused(name: str) -> None:
    with pytest.raises(ds.GridError, match="sigmas begin at 0"):
        run(name, sigmas=SIGMAS.flip(0))
    if name.startswith("dpm"):
        with pytest.raises(ds.GridError, match=f"sample_{name} stops at the last level above 0, and sigmas have 10"):
            run(name, sigmas=torch.tensor([10.0, 0.0]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": None}, "model must be a function, got NoneType"),
        ({"callback": 5}, "callback must be a function, got int"),
        ({"noise_sampler": 5}, "noise_sampler must be a function, got int"),
        ({"extra_args": "seed"}, "extra_args must be a mapping"),
        ({"sigmas": "karras"}, "sigmas must be a tensor of noise levels, got 'karras'"),
    ],
    ids=str.split("model callback noise_sampler extra_args sigmas"),
)
def test_what_a_sampler_is_not_given(given: dict[str, object], message: str) -> None:
    usual = {"model": lambda x, sigma: x, "x": torch.ones(1, 2), "sigmas": torch.tensor([10.0, 1.0, 0.0])}
    with pytest.raises(ds.DiffsolveError, match=message):
        kd.sampler("euler_ancestral")(**usual | given)


@pytest.mark.parametrize(
    ("name", "message"),
    [("heun(orderr=3)", "no option 'orderr'"), ("lms(order=99)", "order"), ("heun(s_churn=-1)", "s_churn")],
)
def test_options_in_a_name_are_refused_when_the_function_is_made(name: str, message: str) -> None:
    with pytest.raises(ds.SolverError, match=message):
        kd.sampler(name)
