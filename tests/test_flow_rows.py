"""Rows for flow models: what their papers write, and the log-probabilities of their steps."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from peers_comfyui import problem as guided
from stubs import gap, mixture
from torch import Tensor

import diffsolve as ds
from diffsolve.interop.rl import log_probs, transitions

TIMES = [0.95, 0.8, 0.6, 0.4, 0.2, 0.05]
SIGMAS = [t / (1 - t) for t in TIMES]
FLOW: dict[str, Any] = {"final": "none", "batch": 3, "seed": 4, "save": "all"}


def flow() -> Any:
    return mixture().replace(process=ds.RectifiedFlow())


def paths(solver: str, **options: Any) -> tuple[ds.Solution, list[Tensor]]:
    """A solve over TIMES, and its states as x_t."""
    found = ds.solve(flow(), solver, SIGMAS, x=flow().prior(3, 1, SIGMAS[0]), **{**FLOW, **options})
    return found, [y * (1 - t) for y, t in zip(found.trajectory or [], TIMES, strict=True)]


def velocity(x: Tensor, t: float) -> Tensor:
    denoised = flow().denoise(x / (1 - t), t / (1 - t))
    return (x - (1 - t) * denoised) / t - denoised


def grpo(x: Tensor, t: float, dt: float, a: float) -> tuple[Tensor, float]:
    """Flow-GRPO, eq. 9: x + [v + s^2/(2t) (x + (1 - t) v)] dt, s = a sqrt(t/(1 - t)), dt below 0; s sqrt(-dt)."""
    v, s = velocity(x, t), a * math.sqrt(t / (1 - t))
    return x + (v + s * s / (2 * t) * (x + (1 - t) * v)) * dt, s * math.sqrt(-dt)


def dance(x: Tensor, t: float, dt: float, a: float) -> tuple[Tensor, float]:
    """DanceGRPO: the same with s = epsilon all the way."""
    v = velocity(x, t)
    return x + (v + a * a / (2 * t) * (x + (1 - t) * v)) * dt, a * math.sqrt(-dt)


def cps(x: Tensor, t: float, dt: float, a: float) -> tuple[Tensor, float]:
    """(1 - t') x_0 + t' cos(a pi/2) x_1, and t' sin(a pi/2) of noise, of the estimated ends x_0 and x_1."""
    v, to = velocity(x, t), t + dt
    return (1 - to) * (x - t * v) + to * math.cos(a * math.pi / 2) * (x + (1 - t) * v), to * math.sin(a * math.pi / 2)


ROWS = [("flow_grpo", grpo, 0.7, 0.245), ("dance_grpo", dance, 0.3, 0.09), ("flow_cps", cps, 0.6, 0.6)]


@pytest.mark.parametrize(("row", "formula", "level", "eta"), ROWS, ids=[row[0] for row in ROWS])
def test_a_step_is_the_papers(row: str, formula: Any, level: float, eta: float) -> None:
    found, states = paths(row, eta=eta)
    told = list(transitions(found))
    for (reached, middle, deviation), (t, to), (x, after) in zip(told, pairwise(TIMES), pairwise(states), strict=True):
        mean, std = formula(x, t, to - t, level)
        assert gap(reached, after) < 1e-12
        assert gap(middle, mean) < 1e-9
        assert torch.as_tensor(deviation).mean().item() == pytest.approx(std, rel=1e-9)
        z = (after - mean) / std
        assert 1e-3 < z.abs().max() < 5


@pytest.mark.parametrize(("row", "formula", "level", "eta"), ROWS, ids=[row[0] for row in ROWS])
def test_log_probs_are_those_of_normals(row: str, formula: Any, level: float, eta: float) -> None:
    found, states = paths(row, eta=eta)
    rows = []
    for (t, to), (x, after) in zip(pairwise(TIMES), pairwise(states), strict=True):
        mean, std = formula(x, t, to - t, level)
        rows.append(torch.distributions.Normal(mean, std).log_prob(after).flatten(1).sum(1))
    assert found.log_probs.shape == (5, 3)
    assert gap(found.log_probs, torch.stack(rows)) < 1e-9
    assert gap(log_probs(found, mean=True) * 2, found.log_probs) < 1e-12
    assert not found.log_probs.requires_grad


@pytest.mark.parametrize(
    "solver",
    ["ddpm", "ddim_eta", "dpmpp_2m_sde", "sa_solver", "euler_maruyama", "er_sde_3", "lcm", "res_multistep_ancestral"],
)
def test_every_row_of_one_evaluation_tells_them(solver: str) -> None:
    """The draws, told back from the states: their own normals, which the run was given."""
    found = ds.solve(mixture(), solver, n=6, batch=3, seed=2, save="all")
    assert found.log_probs.shape == (5, 3)
    for reached, middle, deviation in transitions(found):
        assert ((reached - middle) / deviation).abs().max() < 5
    z = torch.stack([((reached - middle) / deviation) for reached, middle, deviation in transitions(found)])
    assert 0.5 < z.std() < 1.6


def test_gradients_of_a_policy() -> None:
    """d log p/d weight against finite differences; the ratio of a model to itself is 1."""

    def problem(weight: Tensor) -> ds.ProbabilityFlow:
        def network(x: Tensor, t: Tensor) -> Tensor:
            return torch.sin(weight * x) + t[:, None]

        return ds.ProbabilityFlow(network, "flow", "flow", shape=(2,), dtype=torch.float64)

    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    old = ds.solve(problem(weight.detach()), "flow_grpo", "linspace", 6, batch=4, eta=0.245, save="all")
    now = log_probs(old, problem(weight))
    assert torch.equal((now - old.log_probs).exp(), torch.ones(5, 4, dtype=torch.float64))
    (slope,) = torch.autograd.grad(now.sum(), weight)
    ends = [log_probs(old, problem(weight.detach() + d)).sum() for d in (1e-6, -1e-6)]
    assert slope.item() == pytest.approx((ends[0] - ends[1]).item() / 2e-6, rel=1e-6)


def test_restart_tells_its_way_up() -> None:
    from diffsolve.solvers import Adams, Restart

    again = Restart(Adams(1).with_changes(form="sigma"), [(0.08, 2.5)], times=1)
    nodes = [10.0, 2.0, 1.0, 0.2, 0.1, 0.05]
    found = ds.solve(mixture(), again, nodes, x=mixture().prior(2, sigma=10.0), final="none", save="all")
    assert log_probs(found, solver=again).shape == (1, 2)


@pytest.mark.parametrize(
    ("solve", "said"),
    [(lambda: ds.solve(mixture(), "ddpm", n=4), "save='all'"),
     (lambda: ds.solve(mixture(), "euler", n=4, save="all"), "added no noise"),
     (lambda: ds.solve(mixture(), "dpmpp_sde", n=4, save="all"), "in the middle of its noise"),
     (lambda: ds.solve(mixture(), "edm_stochastic(solver=euler)", n=4, save="all"), "in the middle of its noise")],
)  # fmt: skip
def test_what_has_no_log_probs(solve: Any, said: str) -> None:
    with pytest.raises(ds.SolverError, match=said):
        _ = solve().log_probs


def test_cps_keeps_its_share_of_noise() -> None:
    with pytest.raises(ds.SolverError, match="at most 1"):
        ds.solve(flow(), "flow_cps", SIGMAS, eta=1.5, final="none")
    assert gap(paths("flow_cps", eta=0.0)[0].x, paths("flow_euler")[0].x) < 1e-12


# Rectified-CFG++


@pytest.mark.parametrize(("place", "decay", "strength"), [(0.5, 0.0, None), (1.0, 0.0, 3.0), (0.5, 1.5, 2.0)])
def test_rectified_cfg_pp(place: float, decay: float, strength: float | None) -> None:
    """v_c + strength (1 - t)^decay (v_c' - v_u'), the latter at x + place dt v_c."""
    of, scale, free = guided().replace(process=ds.RectifiedFlow()), 1.5, guided().unguided

    def sides(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        g, u, _ = guided().denoiser(x / (1 - t), t / (1 - t))
        return tuple((x - (1 - t) * d) / t - d for d in (u + (g - u) / scale, u))  # type: ignore[return-value]

    x = (start := of.prior(3, 1, SIGMAS[0])) * (1 - TIMES[0])
    for t, to in pairwise(TIMES):
        conditional, _ = sides(x, t)
        a, b = sides(x + place * (to - t) * conditional, t + place * (to - t))
        by = (scale - 1 if strength is None else strength) * (1 - t) ** decay
        x = x + (to - t) * (conditional + by * (a - b))
    row = f"rectified_cfg_pp(guidance=1.5, strength={strength}, decay={decay}, place={place})"
    found = ds.solve(of, row, SIGMAS, x=start, final="none")
    assert gap(found.x * (1 - TIMES[-1]), x) < 1e-9
    assert found.nfe == 10
    taped = ds.solve(of, row, SIGMAS, x=start, final="none", execution="tape").x
    assert gap(taped, found.x) < 1e-12
    assert free is not None


@pytest.mark.slow
def test_rectified_cfg_pp_follows_the_guided_flow_where_steps_are_short() -> None:
    of = guided().replace(process=ds.RectifiedFlow())
    x = of.prior(2, 1, 9.0)
    options: dict[str, Any] = {"x": x, "sigma_max": 9.0, "sigma_min": 0.1, "final": "none"}
    exact = ds.solve(of, "dopri5", "lambda", 200, **options).x
    errors = [gap(ds.solve(of, "rectified_cfg_pp(guidance=1.5)", "lambda", n, **options).x, exact) for n in (80, 160)]
    assert 1.7 < errors[0] / errors[1] < 2.3
    with pytest.raises(ds.SolverError, match="needs guidance="):
        ds.solve(of, "rectified_cfg_pp", "lambda", 4, **options)
    plain = of.unguided
    assert gap(ds.solve(plain, "rectified_cfg_pp", n=5, x=x).x, ds.solve(plain, "flow_euler", n=5, x=x).x) < 1e-12
