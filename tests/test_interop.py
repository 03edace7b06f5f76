"""Other libraries' methods through `solve`: the same as the library called by hand, and as ours where they are one."""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from typing import Any

import pytest
import torch
from stubs import gap, mixture, slow

import diffsolve as ds
from diffsolve.interop import torchdiffeq as ode
from diffsolve.interop import torchsde as sde

torchdiffeq = pytest.importorskip("torchdiffeq")
needs_torchsde = pytest.mark.skipif(importlib.util.find_spec("torchsde") is None, reason="torchsde is not installed")
FIXED = [method for method, (_, stages) in ode.METHODS.items() if stages]
ADAPTIVE = ["fehlberg2", "adaptive_heun", "bosh3", "dopri5", "dopri8"]
SDES = [*sde.ITO, *sde.STRATONOVICH]
RANGE: dict[str, Any] = {"sigma_max": 8.0, "sigma_min": 0.2, "final": "none"}


def start(problem: Any, rows: int = 3) -> torch.Tensor:
    return problem.prior(rows, sigma=8.0)


def reference(problem: Any, **options: Any) -> torch.Tensor:
    return ds.solve(problem, "dopri5", n=400, x=start(problem), **RANGE, **options).x


# -- torchdiffeq -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", FIXED)
def test_a_fixed_grid_method_is_the_library_called_by_hand(method: str) -> None:
    problem = mixture()
    found = ds.solve(problem, f"torchdiffeq:{method}", n=9, x=start(problem), save="all", **RANGE)
    t = torch.from_numpy(found.sigmas.copy())
    by_hand = torchdiffeq.odeint(lambda s, y: problem.eps(y, float(s)), start(problem), t, method=method)
    for ours, theirs in zip(found.trajectory, by_hand, strict=True):
        assert gap(ours, theirs) < 1e-12
    assert found.nfe == 9 * ds.get_solver(f"torchdiffeq:{method}").stages


@pytest.mark.parametrize("form", ["sigma", "noise", "data"])
@pytest.mark.parametrize(("theirs", "ours"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun2", "heun")])
def test_a_method_that_we_have_is_ours(theirs: str, ours: str, form: str) -> None:
    problem = mixture()
    options: Any = {**RANGE, "n": 7, "x": start(problem), "form": form, "final": "denoise"}
    a, b = (ds.solve(problem, solver, **options) for solver in (f"torchdiffeq:{theirs}", ours))
    assert gap(a.x, b.x) < 1e-12
    assert a.nfe == b.nfe


def test_their_rk4_is_kuttas_three_eighths_rule() -> None:
    from diffsolve.solvers import RungeKutta, tableaux

    problem = mixture()
    ours = RungeKutta(tableaux.RK4_38)
    a, b, c = (ds.solve(problem, s, n=7, x=start(problem), **RANGE).x for s in ("torchdiffeq:rk4", ours, "rk4"))
    assert gap(a, b) < 1e-12
    assert gap(a, c) > 1e-9


@pytest.mark.parametrize(
    ("method", "form"),
    [slow("fehlberg2", "v"), slow("adaptive_heun", "sigma"), slow("bosh3", "data"), slow("dopri5", "sigma"),
     ("dopri8", "v")],
)  # fmt: skip
def test_an_adaptive_method_keeps_its_tolerance(method: str, form: str) -> None:
    problem = mixture()
    errors, costs = [], []
    for rtol in (1e-4, 1e-6):
        solver = f"torchdiffeq:{method}(rtol={rtol}, atol={rtol / 100})"
        found = ds.solve(problem, solver, n=4, x=start(problem), form=form, save="all", **RANGE)
        assert len(found.trajectory) == 5
        errors.append(gap(found.x, reference(problem)) / rtol)
        costs.append(found.nfe)
    assert max(errors) < (300 if method == "fehlberg2" else 30)
    assert costs[1] > costs[0]


def test_the_nfe_is_what_the_network_was_asked() -> None:
    problem = mixture()
    seen: list[float] = []
    watched = ds.FunctionDenoiser(lambda y, sigma: seen.append(sigma) or problem.denoise(y, sigma))
    flow = problem.replace(denoiser=watched)
    found = ds.solve(flow, "torchdiffeq:dopri5(rtol=1e-5)", n=3, x=start(problem), sigma_max=8.0, sigma_min=0.2)
    assert found.nfe == len(seen) > 20
    assert min(seen) > 0.2 * (1 - 1e-12)
    assert max(seen) < 8 * (1 + 1e-12)


@pytest.mark.slow
def test_explicit_adams_does_not_explode() -> None:
    problem = mixture()
    runs = [ds.solve(problem, "torchdiffeq:explicit_adams", n=n, x=start(problem), **RANGE) for n in (40, 160)]
    errors = [gap(run.x, reference(problem)) for run in runs]
    assert errors[1] < errors[0] / 4 < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("linear", [0.0, -2.0])
def test_generic_problems_and_dtypes(linear: float, dtype: torch.dtype) -> None:
    problem = ds.SemilinearODE(linear, lambda t, x: torch.cos(x) * t, (0.5, 2.0), torch.ones(3, dtype=dtype))
    for method in ("rk4", "dopri5", "explicit_adams"):
        a, b = (ds.solve(problem, solver, n=40) for solver in (f"torchdiffeq:{method}", "rk4"))
        assert a.x.dtype == dtype
        assert gap(a.x, b.x) < 1e-4


@pytest.mark.parametrize("method", [slow(m) if m == "adaptive_heun" else m for m in ADAPTIVE])
def test_an_adaptive_method_takes_the_tolerances_of_a_solve(method: str) -> None:
    problem, name = mixture(), f"torchdiffeq:{method}"
    options: Any = {"n": 4, "x": start(problem), "form": "data", **RANGE}
    given = ds.solve(problem, f"{name}(rtol=1e-4, atol=1e-4)", **options)
    for tolerances in ({"rtol": 1e-4, "atol": 1e-4}, {"rtol": 1e-4}, {"atol": 1e-4}):
        found = ds.solve(problem, name, **tolerances, **options)
        assert torch.equal(found.x, given.x)
        assert found.nfe == given.nfe
    decay = ds.ODEProblem(lambda t, x: -x, (0.0, 1.0), torch.ones(2, dtype=torch.float64))
    times = [0.0, 0.2, 1.0]
    for problem in (decay, ds.ODEProblem(decay.f, (1.0, 0.0), decay.x0)):
        asked = ds.solve(problem, name, times if problem is decay else times[::-1], rtol=1e-6)
        assert asked.t.tolist() == (times if problem is decay else times[::-1])
        for t, x in zip(asked.t, asked.trajectory, strict=True):
            assert gap(x, problem.x0 * math.exp(asked.t[0] - t)) < (1e-3 if method == "fehlberg2" else 1e-4)


@pytest.mark.parametrize("method", [*FIXED, "explicit_adams"])
def test_a_method_without_an_estimate_refuses_tolerances(method: str) -> None:
    message = r"takes the grid's steps .* take one of: torchdiffeq:fehlberg2.*torchdiffeq:dopri8"
    with pytest.raises(ds.SolverError, match=message):
        ds.solve(mixture(), f"torchdiffeq:{method}", rtol=1e-4)
    with pytest.raises(ds.SolverError, match=message):
        ds.get_solver(f"torchdiffeq:{method}(rtol=1e-4)")
    with pytest.raises(ds.SolverError, match="a rule of its own for its steps; leave controller out"):
        ds.solve(mixture(), "torchdiffeq:dopri5", controller=ds.PIDController())


# -- torchsde ----------------------------------------------------------------------------------------------------------


@needs_torchsde
@pytest.mark.parametrize(("theirs", "ours"), [("euler", "euler_maruyama"), ("milstein", "milstein")])
@pytest.mark.parametrize("kind", ["diffusion", "falling", "multiplicative"])
def test_an_sde_method_that_we_have_is_ours(theirs: str, ours: str, kind: str) -> None:
    problem: Any = mixture().sde(0.7)
    options: Any = {"n": 9, "x": start(problem), "form": "sde_sigma" if kind == "falling" else None, **RANGE}
    if kind == "multiplicative":
        x0 = torch.ones(4, 2, dtype=torch.float64)
        problem, options = ds.SDEProblem(lambda t, x: -x, lambda t, x: x.sin() + t, (0.0, 1.0), x0), {"n": 9}
    own = ds.get_solver(ours).with_changes(areas=True)  # on a path that has areas, as theirs is
    a, b = (ds.solve(problem, solver, seed=3, **options) for solver in (f"torchsde:{theirs}", own))
    assert gap(a.x, b.x) < 1e-11
    assert a.nfe == b.nfe == 9


@needs_torchsde
@pytest.mark.parametrize("method", [m if m == "euler" else slow(m) for m in SDES])
def test_an_sde_method_follows_our_path(method: str) -> None:
    problem = mixture()
    fine = ds.solve(problem, "sra3", n=512, x=start(problem), **RANGE).x
    runs = [ds.solve(problem.sde(), f"torchsde:{method}", n=n, x=start(problem), **RANGE) for n in (16, 128)]
    coarse, close = (gap(run.x, fine) for run in runs)
    assert close < coarse / 3
    assert runs[0].nfe == 16 * ds.get_solver(f"torchsde:{method}").stages
    alone = ds.solve(problem, f"torchsde:{method}", n=16, x=start(problem)[1:2], batch=[1], **RANGE)
    assert gap(alone.x, runs[0].x[1:2]) < 1e-12


def turning(noise: Any, additive: bool = False, rows: int = 50) -> ds.SDEProblem:
    """A linear SDE in the plane with a known solution, of the noise that is asked for."""
    turn = torch.tensor([[0.3, 0.4], [-0.4, 0.3]], dtype=torch.float64)
    x0 = torch.tensor([1.0, 0.5], dtype=torch.float64).repeat(rows, 1)
    gs: dict[Any, Any] = {"diagonal": lambda t, x: 0.5 * x, "scalar": lambda t, x: x @ turn.T,
                          "general": lambda t, x: x[..., None] * turn}  # fmt: skip
    if additive:
        gs = {"diagonal": lambda t: 0.5, "scalar": lambda t: turn[0], "general": lambda t: turn}
    return ds.SDEProblem(lambda t, x: -0.5 * x, gs[noise], (0.0, 1.0), x0, noise=noise)


@cache
def finely(noise: str, additive: bool) -> torch.Tensor:
    solver = "sra3" if additive else "milstein" if noise != "general" else "euler_maruyama"
    return ds.solve(turning(noise, additive), solver, n=256).x


@needs_torchsde
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("noise", ["diagonal", "scalar", "general"])
@pytest.mark.parametrize("method", [m if m in ("euler", "heun") else slow(m) for m in SDES])
def test_every_kind_of_noise_is_ours_or_refused(method: str, noise: str, additive: bool) -> None:
    problem = turning(noise, additive)
    refused = not additive and (
        method in ("euler_heun", "heun", "midpoint") or (noise == "general" and method != "euler")
        or (noise == "scalar" and method == "milstein")
    )  # fmt: skip
    if refused:
        with pytest.raises(ds.SolverError, match=r"Stratonovich's|no general noise|the Jacobian's transpose"):
            ds.solve(problem, f"torchsde:{method}", n=4)
        return
    fine = finely(noise, additive)
    coarse, close = (gap(ds.solve(problem, f"torchsde:{method}", n=n).x, fine) for n in (8, 64))
    assert close < coarse / (1.8 if method == "euler" and not additive else 3)
    theirs = {"euler": "euler_maruyama", "milstein": "milstein"}.get(method)
    if theirs:
        assert gap(*(ds.solve(problem, name, n=8).x for name in (theirs, f"torchsde:{method}"))) < 1e-11


@needs_torchsde
@pytest.mark.parametrize(
    ("method", "noise"),
    [slow("milstein", "diagonal"), slow("srk", "diagonal"), slow("srk", "scalar"), slow("euler", "additive")],
)
def test_steps_of_their_own_choice_follow_our_path(method: str, noise: str) -> None:
    problem = turning("diagonal" if noise == "additive" else noise, noise == "additive", 10)
    fine = ds.solve(problem, "sra3" if noise == "additive" else "milstein", n=512).x
    runs = [ds.solve(problem, f"torchsde:{method}", n=2, rtol=rtol, save="all") for rtol in (3e-2, 3e-3)]
    errors = [gap(run.x, fine) for run in runs]
    assert errors[1] < min(errors[0] / 2, 3e-2)
    assert runs[1].nfe > runs[0].nfe
    named = ds.solve(problem, f"torchsde:{method}(rtol=0.03, atol=0.03)", n=2)
    assert torch.equal(named.x, runs[0].x)
    times = [0.0, 0.25, 1.0]
    assert ds.solve(problem, f"torchsde:{method}", times, rtol=3e-2).t.tolist() == times


@needs_torchsde
def test_what_their_own_steps_can_not_do() -> None:
    with pytest.raises(ds.SolverError, match=r"euler does not converge .* leave rtol and atol out"):
        ds.solve(turning("diagonal"), "torchsde:euler", rtol=1e-2)
    with pytest.raises(ds.SolverError, match="leave controller out"):
        ds.solve(turning("diagonal"), "torchsde:srk", controller=ds.PIDController())
    mixed = ds.SDEProblem(lambda t, x: -x, lambda t, x: x.flip(-1), (0.0, 1.0), torch.ones(3, 2), noise="diagonal")
    for method in ("milstein", "srk"):
        with pytest.raises(ds.SolverError, match="reads other components"):
            ds.solve(mixed, f"torchsde:{method}", n=4)


# -- names -------------------------------------------------------------------------------------------------------------


def test_libraries_are_found_by_name_and_not_listed() -> None:
    assert not [row.name for row in ds.list_solvers() if ":" in row.name]
    row = ds.find_solver("torchdiffeq:dopri5")
    assert (row.name, row.order, row.stochastic) == ("torchdiffeq:dopri5", 5, False)
    assert ds.find_solver("torchsde:srk").strong == 1.5
    assert ds.solve(mixture(), "torchdiffeq:rk4", nfe=30).nfe <= 30


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ("torchdiffeq:dopry5", "torchdiffeq has no method 'dopry5'; did you mean 'dopri5'"),
        ("torchdifeq:rk4", "unknown library 'torchdifeq'; did you mean 'torchdiffeq'"),
        ("torchsde:srkk", r"torchsde has no method 'srkk' .* did you mean 'srk'"),
        ("torchdiffeq:dopri5(rtoll=1)", "torchdiffeq's dopri5 failed: .*rtoll"),
        ("torchdiffeq:dopri5(max_num_steps=1)", "torchdiffeq's dopri5 failed: max_num_steps exceeded"),
        ("torchsde:euler(dt=1)", "torchsde:euler has no option 'dt'"),
    ],
)
def test_unknown_names_and_options(solver: str, message: str) -> None:
    with pytest.raises(ds.SolverError, match=message):
        ds.solve(mixture(), solver, n=4)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffsolve.registry.find_spec", lambda name: None)
    with pytest.raises(ds.SolverError, match="torchdiffeq is not installed; pip install torchdiffeq"):
        ds.get_solver("torchdiffeq:rk4")


def test_what_a_library_can_not_be_asked() -> None:
    with pytest.raises(ds.SolverError, match="rtol must be a finite number above 0, got -1"):
        ds.get_solver("torchdiffeq:dopri5(rtol=-1)")
    with pytest.raises(ds.SolverError, match="can't be told before it is run; pass n"):
        ds.solve(mixture(), "torchdiffeq:dopri5", nfe=30)
    with pytest.raises(ds.SolverError, match="eager"):
        ds.solve(mixture(), "torchdiffeq:rk4", n=4, execution="tape")
    problem = ds.SDEProblem(lambda t, x: -x, lambda t, x: x, (0.0, 1.0), torch.ones(2, 1))
    with pytest.raises(ds.SolverError, match="heun solves Stratonovich's equation"):
        ds.solve(problem, "torchsde:heun", n=4)
    with pytest.raises(ds.SolverError, match="solves the ODE"):
        ds.solve(mixture().sde(), "torchdiffeq:rk4", n=4)
