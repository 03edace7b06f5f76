"""What strangers hand in at each door: functions that can't be called so, odd tensors, answers that mean nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stubs import mixture
from torch import nn

import diffsolve as ds

P = mixture()
Y = P.prior(2)
SHAPE = (2,)


def ode(f: Any = lambda t, x: -x, span: Any = (0.0, 1.0)) -> ds.ODEProblem:
    return ds.ODEProblem(f, span, torch.ones(2, dtype=torch.float64))


def sde(g: Any) -> ds.SDEProblem:
    return ds.SDEProblem(lambda t, x: -x, g, (0.0, 1.0), torch.ones(3, 2))


FUNCTIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "right-hand side": (ode, r"f must be a function f\(t, x\)"),
    "diffusion": (sde, "g must "),
    "network": (lambda f: ds.ProbabilityFlow(f, shape=SHAPE), r"network must be a function \(x, t\) -> raw"),
    "k-diffusion's": (lambda f: ds.ProbabilityFlow.from_denoiser(f, 0.01, 9, SHAPE), "network must be a function"),
    "denoiser": (lambda f: ds.ProbabilityFlow(denoiser=f, shape=SHAPE), r"denoiser must be .*\(y, sigma\) -> Output"),
    "event": (lambda f: ds.solve(ode(), "rk4", n=2, events=f), r"event 0 must be a function \(t, x\)"),
}
WRONG: dict[str, Any] = {
    "no function": "heun", "too few": lambda: 1.0, "too many": lambda a, b, c: a, "by name": lambda *, t, x: x,
    "a module of one input": nn.Linear(2, 2),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("door", FUNCTIONS)
def test_a_function_that_cant_be_called_so_is_refused_where_it_is_handed_in(door: str, wrong: str) -> None:
    take, message = FUNCTIONS[door]
    with pytest.raises(ds.ProblemError, match=message):
        take(WRONG[wrong])


@pytest.mark.parametrize("f", [lambda t, x, k=1.0: -k * x, lambda *both: -both[1], torch.maximum], ids=["k", "*", "C"])
def test_functions_that_can_be_called_so_are_taken(f: Any) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x

    ode(f)
    ds.solve(ds.ProbabilityFlow(Net(), shape=SHAPE), "ddim", n=2)


ODD: dict[str, Any] = {
    "numpy": Y.numpy(), "a list": Y.tolist(), "None": None, "whole numbers": Y.int(), "bool": Y > 0,
    "complex": Y.to(torch.complex128), "sparse": Y.to_sparse(), "one sample": Y[0], "a dimension more": Y[None],
    "a number": torch.tensor(1.0), "meta": Y.to("meta"),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("door", ["denoise", "noised"])
def test_what_is_no_state(door: str, odd: str) -> None:
    with pytest.raises(ds.ProblemError, match=r"(y|clean data x) (must be|is) "):
        getattr(P, door)(ODD[odd], 1.0)


@pytest.mark.parametrize("answer", [torch.ones(2), torch.tensor(1.0), 1, "stop", [], {}], ids=repr)
def test_a_callback_that_hands_something_back_does_not_end_the_run(answer: Any) -> None:
    with pytest.raises(ds.SolverError, match=r"callback returned .*; True ends the run, None or False goes on"):
        ds.solve(P, "ddim", n=3, callback=lambda visit: answer)


@pytest.mark.parametrize("answer", [True, torch.tensor(True), Y.numpy().max() > 0], ids=["bool", "torch", "numpy"])
def test_a_callback_ends_the_run(answer: Any) -> None:
    assert ds.solve(P, "ddim", n=3, callback=lambda visit: answer).steps == 1


@pytest.mark.parametrize(
    ("take", "message"),
    [
        (lambda: ode(span=("0", "1")), "span must be two different finite times"),
        (lambda: ode(span="01"), "span must be two different finite times"),
        (lambda: ds.ODEProblem(lambda t, x: x, (1e300, 2e300), [1.0]), r"longer than torch\.float32, the state's"),
        (lambda: ode(span=(-1e308, 1e308)), r"longer than torch\.float64, the state's, holds; change t's unit"),
        (lambda: ds.solve(P, n=2, sigma_max=True), "sigma_min and sigma_max must be numbers, got None and True"),
        (lambda: ds.ProbabilityFlow(lambda x, t: x, shape=SHAPE, upward="False"), "upward must be True or False"),
        (lambda: ds.solve(ds.ProbabilityFlow(lambda x, t: (x,), shape=SHAPE), n=2), "a tuple of 1, expected a tensor"),
        (lambda: ds.solve(ode(), "rk4", n=2, events=lambda t, x: x[0] * 1j), "complex128 .*; expected real numbers"),
        (lambda: ds.ODEProblem(lambda t, x: x, (0, 1), torch.quantize_per_tensor(Y.float(), 1, 0, torch.qint8)),
         "x0 is quantized"),
    ],
    ids=str.split("texts text far farther yes flag tuple event quantized"),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_values_that_only_look_right(take: Callable[[], Any], message: str) -> None:
    with pytest.raises(ds.DiffsolveError, match=message):
        take()


@pytest.mark.parametrize("near", [1e-77, 1e-16, 1e-12])
@pytest.mark.parametrize("solver", ["abm(order=4)", "lms", "unipc", "guarded_abm", "deis", "cab"])
def test_nodes_too_near_for_the_weights_of_a_multistep_method(solver: str, near: float) -> None:
    with pytest.raises(ds.SolverError, match=r"two nodes of the grid are .* apart, too near for a multistep method"):
        ds.solve(ode(), solver, [0.0, near, 0.25, 0.5, 0.75, 1.0])
    for reads in ("heun", "dpmpp_2m"):
        assert ds.solve(ode(), reads, [0.0, near, 0.25, 0.5, 0.75, 1.0]).x.isfinite().all()


@pytest.mark.parametrize("execution", ["eager", "tape", "fused"])
@pytest.mark.parametrize("form", ["sigma", "v", "flow", "time"])
@pytest.mark.parametrize("problem", [P, ds.ProbabilityFlow(lambda x, t: x, "edm", "edm", shape=SHAPE)], ids=["M", "N"])
def test_a_stage_below_no_noise_is_refused_by_every_player(problem: Any, form: str, execution: Any) -> None:
    with pytest.raises(ds.SolverError, match=r"asks for the network at (sigma|t) = -\d.* a stage of it lies beyond"):
        ds.solve(problem, f"dpm_solver_2(r=1.5, form={form})", n=2, execution=execution)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["-m", "diffsolve", "--version"], "diffsolve "),
        (["-m", "diffsolve.app.cli", "--version"], "diffsolve "),
        (["-O", "-c", "from diffsolve.testing import check_schedule; check_schedule('karras')"], "python -O"),
    ],
    ids=str.split("package module assertions"),
)
def test_other_ways_to_run_python(command: list[str], says: str) -> None:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert says in done.stdout + done.stderr
