"""Bad input: one of diffsolve's own errors, which names what was given, what was expected and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stubs import BAD, Watched, gap, mixture

import diffsolve as ds
from diffsolve import problems
from diffsolve.prediction import as_prediction
from diffsolve.problems.noise import normals
from diffsolve.process import as_process

P = mixture()
X = P.prior(2)
NET = ds.ProbabilityFlow(lambda x, t: x, shape=(2,))
ODE = ds.ODEProblem(lambda t, u: -u, (0.0, 1.0), [1.0])
CLASSES = problems.GaussianMixture([[0.0], [1.0]], [1.0, 1.0], labels=[0, 1])


class Halves(ds.Solver):
    def step(self, f: Any, y: Any, span: ds.Span, past: Any) -> ds.Step:
        return ds.Step(y * 0.5)


def solve(*args: Any, problem: Any = P, **options: Any) -> Callable[[], Any]:
    return lambda: ds.solve(problem, *args, **options)


def along(nodes: Any, **options: Any) -> Callable[[], Any]:
    return lambda: ds.solve(P, schedule=nodes, **options)


def ode(f: Any = lambda t, u: u, span: Any = (0.0, 1.0), x0: Any = (1.0,)) -> Callable[[], Any]:
    return lambda: ds.ODEProblem(f, span, x0)


def mix(*args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: problems.GaussianMixture(*args, **options)


WHOLE = "whole number of at least 1, got "
RANGE = r"outside the trained range \[0\.0291675, 14\.6146\]; pass sigma_min and sigma_max inside it"
FLAT = "a flat list of two or more nodes .* got shape "

CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # names
    "solver": (solve("huen"), ds.SolverError, "unknown solver 'huen'; did you mean 'heun'"),
    "solver, nothing near": (solve("qqqq"), ds.SolverError, "'qqqq'; choose one of: .*euler, .*rk4"),
    "solver that is no name": (solve(3), ds.SolverError, "a solver is a name or a diffsolve.Solver, got int"),
    "solver class": (solve(Halves), ds.SolverError, r"pass a solver object, Halves\(\), not the class"),
    "schedule": (along("karas"), ds.GridError, "unknown schedule 'karas'; did you mean 'karras'"),
    "schedule class": (along(ds.Karras), ds.GridError, "a name, a Schedule, a Grid or a list of sigmas, got .*Karras"),
    "problem": (lambda: ds.get_problem("gausian"), ds.ProblemError, "'gausian'; did you mean 'gaussian'"),
    "form": (solve(form="dta"), ds.SolverError, "unknown form 'dta'; did you mean 'data'"),
    "form in a name": (solve("heun(form=dta)"), ds.SolverError, "unknown form 'dta' for heun; did you mean 'data'"),
    "process": (lambda: as_process("sdd"), ds.ProblemError, "unknown process 'sdd'; did you mean 'sd'"),
    "process, no name": (lambda: as_process([1]), ds.ProblemError, r"unknown process \[1\]; choose one of: cosine"),
    "prediction": (lambda: as_prediction("epss"), ds.ProblemError, "prediction 'epss'; did you mean 'eps'"),
    "betas that are no name": (lambda: ds.VP(np.ones(2)).sigma_max, ds.ProblemError, "is a name, got ndarray"),
    "betas": (lambda: ds.VP("linaer").sigma_max, ds.ProblemError, "beta schedule 'linaer'; did you mean 'linear'"),
    "ays table": (along("ays(model=sd3)"), ds.GridError, "no Align-Your-Steps table for 'sd3'"),
    # options in a name
    "option's value": (solve("lms(order=0)"), ds.SolverError, "order must be a whole number from 1 to 12, got 0"),
    "fractional option": (solve("lms(order=2.5)"), ds.SolverError, "from 1 to 12, got 2.5"),
    "option's name": (solve("lms(ordr=3)"), ds.SolverError, "lms has no option 'ordr'; did you mean 'order'"),
    "option, none": (solve("heun(order=3)"), ds.SolverError, "heun has no option 'order'; choose one of: form"),
    "bare option": (solve("lms(3)"), ds.SolverError, r"can't read the option '3' in 'lms\(3\)'; expected key=value"),
    "open bracket": (solve("lms("), ds.SolverError, r"can't read 'lms\('; .* such as 'lms\(order=3\)'"),
    "yes or no": (solve("unipc(corrector=no)"), ds.SolverError, "corrector=True or corrector=False, got 'no'"),
    "an order": (
        lambda: ds.register_solver("odd", order="2", source=""),  # type: ignore[arg-type]
        ds.SolverError, "the order of odd must be a whole number of at least 1, got '2'",
    ),
    **{f"state = {s!r}": (lambda s=s: ds.start(P, "ddim", n=3, state=s), ds.SolverError,
                          f"state must be what Run.state handed out, got {re.escape(repr(s))}")
       for s in ("x", 3, {}, {"node": 1.0})},
    "n beside quality": (solve(quality="draft", n=7), ds.SolverError, "n is 7 beside quality='draft'"),
    "seed of normals": (lambda: normals("a", (0,), 1, (2,), torch.float32, "cpu"), ds.ProblemError,
                        "seed must be a whole number, got 'a'"),
    **{f"VP {given}": (lambda given=given: ds.VP(*given), ds.ProblemError, words) for given, words in (
        (("x",), "unknown beta schedule 'x'"), ((3,), "a beta schedule is a name, got int"),
        (("linear", 0.001, 0.02, 3, (0.1, 2.0)), "the betas give sigma = nan at t = 1"))},
    "callback": (solve(callback=3), ds.SolverError, "callback must be a function of a Visit, got 3"),
    "noised, level": (lambda: P.noised(X, BAD), ds.ProblemError, "sigma must be .* at least 0, got nan"),
    "noised, shape": (lambda: P.noised(X[:, :1], 1.0), ds.ProblemError, r"shape \(B, 2\), got .* \(2, 1\)"),
    "zero option": (solve("dpm_solver_2(r=0)"), ds.SolverError, r"dpm_solver_2 can't be built with \{'r': 0\}"),
    "schedule option": (along("karras(ro=7)"), ds.GridError, "'karras' has no option 'ro'; did you mean 'rho'"),
    "rho": (along("karras(rho=0)"), ds.GridError, "rho must be a finite number above 0, got 0"),
    # counts
    **{
        f"n = {n!r}": (solve(n=n), ds.GridError, f"number of steps n must be a {WHOLE}{re.escape(repr(n))}$")
        for n in (0, -3, 2.5, True, "20", None, BAD)
    },
    **{f"nfe = {n!r}": (solve(nfe=n), ds.GridError, f"nfe must be a {WHOLE}{n!r}") for n in (0, -1, 2.5, True)},
    "nfe too small": (
        solve("rk4", nfe=3, final="none"), ds.SolverError, "rk4.* needs at least 4 evaluations, .* nfe = 3; raise it",
    ),
    **{f"batch = {n!r}": (solve(batch=n), ds.ProblemError, f"batch must be a {WHOLE}{n!r}") for n in (0, 1.5, "4")},
    "batch empty": (solve(batch=[]), ds.ProblemError, "batch names 0 samples; it must name .* at least one"),
    "batch, bad sample": (solve(batch=[0, 1.5]), ds.ProblemError, "named by batch must be a whole number, got 1.5"),
    "batch beside x": (solve(x=X, batch=3), ds.ProblemError, "batch is 3, but x has 2 samples; leave batch out"),
    "batch names beside x": (solve(x=X, batch=[1, 2, 3]), ds.ProblemError, "3 samples; .* one for each row of x"),
    "finer than float64": (solve(rtol=1e-16), ds.SolverError, r"in float64 is no better than 9e-16; raise them$"),
    "seed": (solve(seed=1.5), ds.ProblemError, "seed must be a whole number, got 1.5"),
    "seed tensor": (solve(seed=torch.tensor(1.5)), ds.ProblemError, "seed must be a whole number, got tensor"),
    # explicit nodes
    "rising": (along([1.0, 2.0, 3.0]), ds.GridError, "sigmas rise from 1 to 3; .* from high noise to low. Reverse"),
    "repeated": (along([3.0, 2.0, 2.0]), ds.GridError, "node 2 repeats: 2 -> 2; .* Sort them and drop the repeated"),
    "turning": (along([3.0, 1.0, 2.0, 0.5]), ds.GridError, "node 2 turns back: 1 -> 2; .* Sort them"),
    "nan": (along([3.0, BAD, 1.0]), ds.GridError, "node 1 of the grid is nan; every node must be a finite number"),
    "infinite": (along([np.inf, 1.0]), ds.GridError, "node 0 of the grid is inf"),
    "negative": (along([3.0, -1.0]), ds.GridError, "sigma = -1: a noise level is above 0, and only the last may be 0"),
    "zero inside": (along([3.0, 0.0, 0.0]), ds.GridError, "sigma = 0: a noise level is above 0"),
    "empty": (along([]), ds.GridError, FLAT + r"\(0,\)"),
    "only zero": (along([0.0]), ds.GridError, FLAT + r"\(0,\)"),
    "one, with nowhere to go": (along([3.0], final="none"), ds.GridError, FLAT + r"\(1,\)"),
    "flat": (along([[3.0, 2.0]]), ds.GridError, FLAT + r"\(1, 2\)"),
    "words": (along(["a"]), ds.GridError, r"a list of sigmas, got \['a'\]"),
    "digits": (along(["10", "5"]), ds.GridError, r"a list of sigmas, got \['10', '5'\]"),
    "truths": (along([True, False]), ds.GridError, r"a list of sigmas, got \[True, False\]"),
    "above the range": (along([100.0, 1.0]), ds.GridError, "sigma = 100 is " + RANGE),
    "below the range": (along([10.0, 0.001]), ds.GridError, "sigma = 0.001 is " + RANGE),
    "sigma_max": (along("linspace", sigma_max=100.0), ds.GridError, "sigma = 100 is " + RANGE),
    "sigma_min": (along("trailing", sigma_min=0.001), ds.GridError, "sigma = 0.001 is " + RANGE),
    "a grid outside": (along(ds.Grid([99.0, 1.0])), ds.GridError, "sigma = 99 is " + RANGE),
    "crossed ends": (solve(sigma_min=5, sigma_max=1), ds.GridError, "0 < sigma_min < sigma_max, got .* = 5, .* = 1"),
    "nan end": (solve(sigma_min=BAD), ds.GridError, "expected 0 < sigma_min < sigma_max, got sigma_min = nan"),
    "end that is no number": (solve(sigma_min="a"), ds.GridError, "must be numbers, got 'a' and None"),
    "ends of explicit nodes": (along([3.0, 1.0], sigma_max=2.0), ds.GridError, "bound a named schedule; .* cut those"),
    "timestep": (along(ds.Timesteps([1000, 1])), ds.GridError, r"timestep 1000 is outside \[0, 999\]"),
    "rising timesteps": (along(ds.Timesteps([1, 500])), ds.GridError, "sigmas rise .* Reverse the list"),
    "strength": (lambda: ds.Grid([3, 2, 1]).strength(0), ds.GridError, "above 0 and at most 1, got 0"),
    "grid's index": (lambda: ds.Grid([3, 2, 1])[1], ds.GridError, r"a slice of step 1, such as grid\[5:\], got 1"),
    "grid's final": (lambda: ds.Grid([3, 1], final="x"), ds.GridError, "one of 'denoise', 'none', 'step', got 'x'"),
    "ode's schedule": (along("uniform"), ds.GridError, "'uniform' places an ODE's times; a diffusion takes 'karras'"),
    # the state
    "x's shape": (solve(x=torch.zeros(2, 3)), ds.ProblemError, r"x has shape \(2, 3\), expected \(B, 2\)"),
    "x without batch": (solve(x=torch.tensor(1.0)), ds.ProblemError, r"x has shape \(\), expected \(B, 2\)"),
    "x empty": (solve(x=X[:0]), ds.ProblemError, r"x has shape \(0, 2\), expected \(B, 2\)"),
    "x whole": (solve(x=X.int()), ds.ProblemError, r"x has dtype torch.int32; .* pass x.float\(\)"),
    "x half": (solve(x=X.half()), ds.ProblemError, r"x has dtype torch.float16; .* pass x.float\(\)"),
    "x elsewhere": (solve(x=X.to("meta")), ds.ProblemError, r"x is on meta, the problem on cpu; pass x.to\('cpu'\)"),
    "x a list": (solve(x=[[1.0, 2.0]]), ds.ProblemError, r"x must be a tensor of shape \(B, 2\), got list"),
    "x nan": (solve(x=X * BAD), ds.NonFiniteError, "starting state x has 4 NaN and 0 infinite values of 4. Look"),
    "state's dtype": (solve(dtype=torch.float16), ds.ProblemError, "float32 or float64, got torch.float16"),
    "device": (solve(device="nowhere"), ds.ProblemError, "device 'nowhere' can't be used here: Expected one of cpu"),
    # settings
    "eta negative": (solve("euler_ancestral", eta=-1), ds.SolverError, "finite number of at least 0, got -1"),
    "eta nan": (solve("euler_ancestral", eta=BAD), ds.SolverError, "finite number of at least 0, got nan"),
    "eta of an ODE solver": (solve("heun", eta=1.0), ds.SolverError, "eta = 1.0 was given, but heun solves the ODE"),
    "noise left out": (solve("heun", form="sde"), ds.SolverError, "heun.* adds no noise, .* take a stochastic"),
    "final": (solve(final="denois"), ds.SolverError, "final must be one of 'denoise', 'none', 'step', got 'denois'"),
    "save": (solve(save="al"), ds.SolverError, "save must be one of 'final', 'all', got 'al'"),
    "execution": (solve(execution="tap"), ds.SolverError, "'auto', 'eager', 'tape', 'fused', 'graph', got 'tap'"),
    # problems
    "a model": (solve(problem=lambda prompt: 0), ds.ProblemError, "got function; call the model with a prompt first"),
    "a problem's name": (solve(problem="gaussian"), ds.ProblemError, "must be a diffsolve Problem, got str"),
    "no network": (
        lambda: ds.ProbabilityFlow(shape=(2,)), ds.ProblemError, "ProbabilityFlow has neither a network nor a denoiser",
    ),
    "network": (lambda: ds.ProbabilityFlow(3, shape=(2,)), ds.ProblemError, "must be a function .* got int"),
    "shape": (lambda: ds.ProbabilityFlow(lambda x, t: x, shape=4), ds.ProblemError, r"such as \(4, 64, 64\), got 4"),
    "label": (lambda: CLASSES.guided(3), ds.ProblemError, r"no component labelled 3; it has \[0, 1\]"),
    "no labels": (lambda: P.guided(0), ds.ProblemError, "no component labelled 0; none were given"),
    "guidance": (lambda: CLASSES.guided(0, BAD), ds.ProblemError, "guidance must be a finite number, got nan"),
    "labels": (mix([[0.0], [1.0]], 1.0, labels=[0]), ds.ProblemError, "each of the 2 components, got 1"),
    "labels whole": (mix([[0.0], [1.0]], 1.0, labels=[0, 1.5]), ds.ProblemError, r"whole numbers, got \[0, 1.5\]"),
    "means": (mix([0.0, 1.0], [1.0]), ds.ProblemError, r"means must be \(K, d\) or .* got shape \(2,\)"),
    "stds": (mix([[0.0], [1.0]], [1.0]), ds.ProblemError, r"with K = 2, at least 0; got \[1.0\]"),
    "stds' shape": (mix([[0.0], [1.0]], [[1.0, 1], [1, 1]]), ds.ProblemError, r"\(K, \*shape\), the means' \(2, 1\)"),
    "weights": (mix([[0.0], [1.0]], 1.0, [0, 1]), ds.ProblemError, r"weights must be 2 positive numbers, got \[0, 1\]"),
    "mean": (lambda: problems.Gaussian("abc"), ds.ProblemError, "mean must be a tensor or nested numbers, got 'abc'"),
    "mean nan": (lambda: problems.Gaussian([BAD]), ds.ProblemError, r"mean must be finite numbers, got \[nan\]"),
    "std": (lambda: problems.Gaussian([0.0], -1), ds.ProblemError, "std must be at least 0, got -1"),
    "std's shape": (lambda: problems.Gaussian([0.0], [1, 1]), ds.ProblemError, r"shape \(2,\), the mean \(1,\)"),
    "images": (lambda: problems.EmpiricalImages([1, 2]), ds.ProblemError, r"a tensor \(N, c, h, w\) or PIL images"),
    "no pictures": (lambda: ds.solve(P, n=1).images(), ds.ProblemError, "has no pictures; read Solution.x"),
    # ordinary equations
    "noise in an ODE": (solve("euler_ancestral", problem=ODE), ds.SolverError, "adds noise, and an ODE has none"),
    "sigmas in an ODE": (solve("heun", "karras", problem=ODE), ds.GridError, "'uniform' or explicit times, got Karras"),
    "ends of an ODE": (solve(sigma_min=0.1, problem=ODE), ds.GridError, "no sigma_min and .* its ends are its span"),
    "form of an ODE": (solve(form="data", problem=ODE), ds.SolverError, "'data' was given, .* leave it out"),
    "eta of an ODE": (solve("heun", eta=1.0, problem=ODE), ds.SolverError, "an ODE has no noise; leave eta out"),
    "late start": (solve("heun", [0.2, 1], problem=ODE), ds.GridError, "start at 0.2, but x0 is the state at 0; pass"),
    "zero of an ODE": (
        solve("heun", ds.Grid([1.0, 0.5], final="denoise"), x=[1.0], problem=ODE), ds.SolverError, "pass final='none'",
    ),
    "n of an ODE": (solve(n=0, problem=ODE), ds.GridError, WHOLE + "0"),
    "x of an ODE": (solve(x=X.int(), problem=ODE), ds.ProblemError, "x has dtype torch.int32; .* convert it"),
    "x0": (ode(x0="abc"), ds.ProblemError, "x0 must be a tensor or nested numbers, got 'abc'"),
    "x0 complex": (ode(x0=[1j]), ds.ProblemError, "x0 has dtype torch.complex64; a state is float32 or float64"),
    "span": (ode(span=(0, 0)), ds.ProblemError, r"two different finite times \(t0, t1\), got \(0, 0\)"),
    "span, one": (ode(span=5), ds.ProblemError, r"two different finite times \(t0, t1\), got 5"),
    "f": (ode(f=3), ds.ProblemError, r"f must be a function f\(t, x\), got int"),
    "linear": (lambda: ds.SemilinearODE("a", max, (0, 1), [1.0]), ds.ProblemError, "linear must be .* number, got 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named(case: str) -> None:
    call, kind, message = CASES[case]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert isinstance(caught.value, ds.DiffsolveError)


@pytest.mark.parametrize(
    "options",
    [
        {"n": 0}, {"solver": "rk4", "nfe": 1, "final": "none"}, {"schedule": [3.0, 2.0, 2.0]}, {"sigma_max": 99.0},
        {"x": X[:, :1]}, {"x": X * BAD}, {"batch": 0}, {"seed": 0.5}, {"save": "al"}, {"final": "zero"}, {"eta": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_the_refusal_comes_before_the_first_call_of_the_model(options: dict[str, Any]) -> None:
    watched = Watched(P)
    with pytest.raises(ds.DiffsolveError):
        ds.solve(watched, **options)
    assert watched.calls == 0


# -- in the middle of a solve: what f and the network return and raise -------------------------------------------------

AT = r"the denoiser at sigma = 1\.25 "
RETURNS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "shape": (lambda d: d[:, :1], ds.ProblemError, AT + r"returned shape \(2, 1\), expected \(2, 2\)"),
    "dtype": (lambda d: d.float(), ds.ProblemError, AT + "returned dtype torch.float32, expected torch.float64"),
    "device": (lambda d: d.to("meta"), ds.ProblemError, AT + "returned device meta, expected cpu"),
    "nothing": (lambda d: None, ds.ProblemError, AT + r"returned NoneType, expected a tensor of shape \(2, 2\)"),
    "nan": (lambda d: d * BAD, ds.NonFiniteError, "the state has 4 NaN and 0 infinite values of 4. Look at the model"),
    "inf": (lambda d: d / 0, ds.NonFiniteError, "the state has 0 NaN and 4 infinite values of 4. Look at the model"),
}
NODES = [9.0, 5.0, 1.25, 0.5]
FULL = ds.solve(P, "euler", NODES, x=X, save="all")


def check_lost_nothing(error: Any, nfe: int) -> None:
    solution = error.solution
    assert (solution.reason, solution.steps, solution.nfe) == ("failed", 2, nfe)
    assert len(solution.trajectory) == 3
    for a, b in zip(solution.trajectory, FULL.trajectory, strict=False):
        assert gap(a, b) < 1e-12
    assert solution.x is solution.trajectory[-1]
    resumed = ds.solve(P, "euler", solution.grid[2:], x=solution.x)
    assert gap(resumed.x, FULL.x) < 1e-12


@pytest.mark.parametrize("execution", ["eager", "tape"])
@pytest.mark.parametrize("case", RETURNS)
def test_what_a_network_may_not_return(case: str, execution: Any) -> None:
    wrong, kind, message = RETURNS[case]
    with pytest.raises(kind, match=r"^step 3 of 4 \(1\.25 -> 0\.5\): .*" + message) as caught:
        ds.solve(Watched(P, {3: wrong}), "euler", NODES, x=X, save="all", execution=execution)
    check_lost_nothing(caught.value, 3)


@pytest.mark.parametrize("execution", ["eager", "tape"])
def test_an_error_of_the_networks_own_keeps_its_class_and_loses_nothing(execution: Any) -> None:
    def fails(_: Any) -> None:
        raise MemoryError("41 GiB")

    with pytest.raises(MemoryError, match="41 GiB") as caught:
        ds.solve(Watched(P, {3: fails}), "euler", NODES, x=X, save="all", execution=execution)
    assert caught.value.__notes__ == ["diffsolve: in step 3 of 4 (1.25 -> 0.5)"]
    check_lost_nothing(caught.value, 3)


def test_a_real_network_is_named_with_its_noise_level() -> None:
    half = ds.ProbabilityFlow(lambda x, t: x.half(), shape=(2,))
    with pytest.raises(ds.ProblemError, match=r"the network at sigma = 14\.6146 returned dtype torch.float16"):
        ds.solve(half, n=3)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda t, u: 1.0, r"the right-hand side at t = 0 returned float, expected a tensor of shape \(1,\)"),
        (lambda t, u: u.repeat(2), r"at t = 0 returned shape \(2,\), expected \(1,\)"),
        (lambda t, u: u.double(), "at t = 0 returned dtype torch.float64, expected torch.float32"),
    ],
)
def test_what_the_right_hand_side_of_an_ode_may_not_return(returned: Any, message: str) -> None:
    with pytest.raises(ds.ProblemError, match=message):
        ds.solve(ds.ODEProblem(returned, (0.0, 1.0), torch.ones(1)), "heun", n=3)


def test_a_blow_up_names_the_step_and_keeps_what_was_finite() -> None:
    problem = ds.ODEProblem(lambda t, u: u * u * 1e30, (0.0, 1.0), torch.ones(1))
    with pytest.raises(ds.NonFiniteError, match=r"step 2 of 4 \(0\.25 -> 0\.5\): the state has") as caught:
        ds.solve(problem, "euler", n=4, save="all")
    assert caught.value.solution.x.isfinite().all()
    assert len(caught.value.solution.trajectory) == 2


@pytest.mark.parametrize(
    "options",
    [{"n": 10**5000}, {"nfe": 10**5000}, {"batch": 10**5000}, {"rtol": 10**5000}, {"sigma_max": 10**5000},
     {"sigma_min": -(10**5000)}, {"schedule": [10**5000, 1]}, {"eta": 10**5000, "solver": "euler_ancestral"}],
    ids=str.split("n nfe batch rtol sigma_max sigma_min schedule eta"),
)  # fmt: skip
def test_numbers_of_more_digits_than_python_writes(options: dict[str, Any]) -> None:
    with pytest.raises(ds.DiffsolveError) as refused:
        ds.solve(ds.problems.Gaussian([0.0]), **options)
    assert len(str(refused.value)) < 400
