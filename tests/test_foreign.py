"""What no call can be meant by is refused with an error of diffsolve's own, whatever library it would end in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import emoji_model
from stubs import mixture

import diffsolve as ds
from diffsolve import problems
from diffsolve.app import picture

P = problems.Gaussian(torch.zeros(4), 1.0)
META = torch.zeros(2, 4, device="meta")
CODES = problems.CodeTable([0.5, 0.5])


def solve(**options: Any) -> Callable[[], Any]:
    return lambda: ds.solve(**{"problem": P, "n": 3, **options})


def ode(t: float, x: torch.Tensor) -> torch.Tensor:
    return -x


NUMBERLESS = {
    "x": (solve(x=META), "x is on meta"),
    "device": (solve(device="meta"), "device 'meta' can't be used here: its tensors hold no numbers"),
    "a problem's device": (lambda: ds.ProbabilityFlow(lambda x, t: x, shape=(2,), device="meta"), "device 'meta'"),
    "mean": (lambda: problems.Gaussian(META[0]), "mean must be a tensor"),
    "means": (lambda: problems.GaussianMixture(META, 1.0), "means must be a tensor"),
    "x0": (lambda: ds.ODEProblem(ode, (0.0, 1.0), META), "x0 is on meta, without numbers"),
    "x of an ODE": (solve(problem=ds.ODEProblem(ode, (0.0, 1.0), [1.0]), solver="rk4", x=META), "x is on meta"),
    "known": (lambda: problems.Inpaint(P, META[0], torch.ones(4)), "known and mask"),
    "data": (lambda: P.noised(META, 1.0), "x is on meta"),
    "noises": (lambda: ds.slerp(META, META, 0.5), "a is on meta"),
    "schedule": (solve(schedule=META[0]), "a schedule is a name"),
    "sigma_min": (solve(sigma_min=META[0, 0]), "sigma_min and sigma_max must be numbers"),
    "seed": (solve(seed=META[0, 0].long()), "seed must be a whole number"),
    "n": (solve(n=META[0, 0].long()), "n must be a whole number"),
    "batch": (solve(batch=META[0, 0].long()), "batch must be a whole number"),
    "latents": (lambda: problems.from_latents(META, "sd"), "latents is on meta"),
    "codes": (solve(problem=CODES, x=torch.zeros(1, 1, dtype=torch.int64, device="meta")), "x is on meta"),
    "table": (lambda: problems.CodeTable(META[0]), "table is on meta"),
    "pictures": (lambda: emoji_model().encode(torch.zeros(1, 3, 32, 32, device="meta")), "images is on meta"),
    "latents to decode": (lambda: emoji_model().decode(torch.zeros(1, 4, 8, 8, device="meta")), "latents is on meta"),
    "prompt": (lambda: emoji_model()(torch.zeros(1, 4, 128, device="meta")), "prompt is on meta"),
}  # fmt: skip


@pytest.mark.parametrize("case", NUMBERLESS)
def test_a_tensor_without_numbers_is_refused(case: str) -> None:
    call, message = NUMBERLESS[case]
    with pytest.raises(ds.DiffsolveError, match=message):
        call()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("x", "message"), [
    (lambda: torch.zeros(1, 4).to_sparse(), "x is of layout torch.sparse_coo; expected a dense tensor"),
    (lambda: torch.nested.nested_tensor([torch.zeros(4)]), "x is nested; expected a dense tensor"),
    (lambda: torch.zeros(1, 4).to_sparse_csr(), "x is of layout torch.sparse_csr"),
    (lambda: torch.zeros(1, 4, dtype=torch.complex64), "dtype torch.complex64"),
])  # fmt: skip
def test_a_tensor_that_is_not_dense_is_refused(x: Callable[[], torch.Tensor], message: str) -> None:
    with pytest.raises(ds.ProblemError, match=message):
        ds.solve(P, n=3, x=x())
    with pytest.raises(ds.ProblemError, match=message.replace("x is", "x0 is", 1)):
        ds.ODEProblem(ode, (0.0, 1.0), x())


ODD: tuple[Any, ...] = (
    np.array([1, 2]), np.array(3), np.array([]), np.array(2.5), np.array(["a"]), torch.tensor([1.0, 2.0]),
    torch.tensor(2), object(), {}, [], (), "x", b"x", "\ud800", True, float("nan"), float("inf"), -1, 10**400, 1e-300,
    1j, np.float64(2), np.int32(2), np.bool_(True), type, set(), iter(()),
)  # fmt: skip
OPTIONS = (
    "solver", "schedule", "n", "nfe", "x", "seed", "batch", "sigma_min", "sigma_max", "final", "rtol", "atol",
    "controller", "form", "eta", "save", "callback", "dtype", "device", "execution", "gradient",
)  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("problem", [P, ds.ODEProblem(ode, (0.0, 1.0), [1.0]), CODES], ids=["flow", "ode", "codes"])
def test_an_option_of_another_kind_is_read_or_refused(option: str, problem: ds.Problem) -> None:
    for value in ODD:
        if option == "callback" and callable(value):
            continue
        try:
            found = ds.solve(problem, **{"n": 3, option: value})
        except ds.DiffsolveError:
            continue
        assert found.x.isfinite().all(), (option, value)


@pytest.mark.parametrize(("text", "message"), [
    ("lms(order=3, order=2)", "the option 'order' stands twice in"),
    ("lms(order=3, order=3)", "the option 'order' stands twice in"),
    ("lms(order=" + "[" * 5000 + ")", "order must be a whole number"),
    ("lms(order=" + "(" * 9 + "1)", "can't read|must be"), ("lms(\x00=1)", "can't read the option"),
    ("\ud800", "unknown solver"), ("lms(order=\ud800)", "order must be"), ("", "can't read ''"), ("(", "can't read"),
    ("dpm_solver_2(r=1e-300)", "r must be a number from 0.001 to 2, .* got 1e-300"),
    ("dpm_solver_2(r=1e300)", "r must be .* got 1e"), ("dpm_solver_3(r2=500)", "r2 must be .* got 500"),
    ("res_2s(c2='1/0')", "c2 must be a number .* or text such as '2/3', got '1/0'"),
    ("dpmpp_sde(r=0)", "r must be"), ("dpmpp_2s_ancestral(r=[])", "r must be"), ("res_3s(c3=nan)", "c3 must be"),
    ("damped_abm(reach=1e-300)", "reach must be .* at least 0.001"), ("damped_abm(trust=0)", "trust must be"),
    ("dpm_adaptive(pcoeff=500)", "pcoeff must be a number from -4 to 4, got 500"),
    ("dpm_adaptive(icoeff=-1)", "icoeff must be"), ("dpm_adaptive(dcoeff=99)", "dcoeff must be"),
    ("score_sde_ve(corrections=1000000000)", "corrections must be at most 1000"),
    ("score_sde_ve(snr=1e300)", "snr must be a number from 0 to 100"), ("seeds_2(r=1e300)", "r must be"),
    ("restart(times=1000000000)", "times must be"),
    ("gradient_estimation(gamma=nan)", "gamma must be"), ("euler_ancestral(eta=1e-300)", "has no option"),
    ("torchdiffeq:", "has no method"), ("nolib:x", "unknown library 'nolib'"), (":", "unknown library"),
])  # fmt: skip
def test_a_solver_s_text_that_can_not_be_meant(text: str, message: str) -> None:
    with pytest.raises(ds.SolverError, match=message):
        ds.solve(P, text, n=3)


@pytest.mark.parametrize(("schedule", "message"), [
    ("karras(rho=1e-3)", "rho = 0.001 is too small for sigma up to 14.6146; take 1 to 10"),
    ("karras(rho=1e-300)", "rho = 1e-300 is too small"), (ds.Karras(rho=1e-17), "rho = 1e-17 is too small"),
    ("karras(rho=5, rho=7)", "the option 'rho' stands twice"), ("leading(offset=None)", "offset must be"),
    ("leading(offset={})", "offset must be"), ("beta(a=nan)", "a must be"), ("beta(a='x')", "a must be"),
    (b"karras", "a schedule is a name"), (np.array([3 + 1j, 1]), "a schedule is a name"),
    ([10**400, 1], "a schedule is"),
    ({}, "a schedule is a name"), (iter([3, 2]), "a schedule is"), ([[1, 2], [3]], "a schedule is"),
    (torch.tensor([3.0, 1.0], requires_grad=True), r"nodes carries a gradient.*detach it"),
    (ds.Timesteps("ab"), "a schedule is"), (ds.Timesteps(None), "."), (ds.Timesteps([]), "."),  # type: ignore[arg-type]
])  # fmt: skip
def test_a_schedule_that_can_not_be_meant(schedule: Any, message: str) -> None:
    with pytest.raises(ds.DiffsolveError, match=message):
        ds.solve(P, "euler", schedule, n=3)


def test_a_large_whole_number_is_a_number() -> None:
    assert len(ds.solve(P, "euler", f"beta(a={10**6}, b={10**6})", n=2).sigmas) == 3
    assert ds.solve(P, f"dpm_adaptive(rtol={10**3})", n=2).x.isfinite().all()


def test_steps_that_are_passed_again_are_counted() -> None:
    with pytest.raises(ds.GridError, match=r"all their passes counted, is 1.*: a plan of so many steps would take"):
        ds.start(P, "restart(times=1000, t_min=0.03, t_max=14)", n=2000)


@pytest.mark.parametrize("eta", [1e-300, 1e-7, -1, 51, float("nan"), np.array([1.0]), 10**400])
def test_an_eta_out_of_range(eta: Any) -> None:
    with pytest.raises(ds.SolverError, match=r"eta must be a finite number of at least 0"):
        ds.solve(P, "euler_ancestral", n=3, eta=eta)
    assert ds.solve(P, "euler_ancestral", n=3, eta=1e-6).x.isfinite().all()


@pytest.mark.parametrize("prompt", ["\ud800", "an \udfff apple", ["apple", "\ud800"]])
def test_a_prompt_that_is_no_text(prompt: Any) -> None:
    model = emoji_model()
    with pytest.raises(ds.ProblemError, match=r"^prompt is .*, which is no text: a half of a character stands alone"):
        model(prompt)
    with pytest.raises(ds.ProblemError, match=r"^negative_prompt is .*, which is no text"):
        model("a", prompt)
    with pytest.raises(ds.ProblemError, match=r"which is no text"):
        model.embed(prompt)


@pytest.mark.parametrize("guidance", [10**400, 1e300, float("nan"), -1, "7", True, np.array([3])])
def test_a_guidance_that_is_none(guidance: Any) -> None:
    with pytest.raises(ds.ProblemError, match=r"guidance is .*; expected a number of at least 0"):
        emoji_model()("a", guidance=guidance)


def test_nothing_is_offered_where_nothing_is_known() -> None:
    from diffsolve.errors import did_you_mean

    assert did_you_mean("a", []) == ""
    problem = ds.SDEProblem(ode, lambda t, x: x, (0.0, 1.0), [1.0])
    with pytest.raises(ds.SolverError) as caught:
        ds.solve(problem, "euler_maruyama", rtol=1e-3)
    assert "one of: ," not in str(caught.value)
    assert not str(caught.value).rstrip().endswith(("one of:", "one of"))


@pytest.mark.parametrize("seed", [1 << 64, 1 << 70, -(1 << 63) - 1])
def test_a_seed_that_would_be_another_s(seed: int) -> None:
    problem = mixture()
    for made in (lambda: ds.solve(problem, "euler", n=2, seed=seed), lambda: ds.solve(problem, n=2, batch=[seed])):
        with pytest.raises(ds.ProblemError, match=r"2\^64 - 1"):
            made()
    assert not torch.equal(*(ds.solve(problem, n=2, seed=s).x for s in (-1, -(1 << 63))))


@pytest.mark.parametrize("name", ["zero.json", "pipe.json", "loop.json", "large.json"])
def test_a_schedule_s_file_that_has_no_end(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == "zero.json":
        file.symlink_to("/dev/zero")
    elif name == "pipe.json":
        os.mkfifo(file)
    elif name == "loop.json":
        file.symlink_to(file)
    else:
        with file.open("wb") as opened:
            opened.truncate(1 << 40)  # sparse
    with pytest.raises(ds.GridError, match=r"can't be read as a schedule \((it is a device|Too many|it has)"):
        ds.solve(mixture(), "euler", str(file), 3)
    if name == "pipe.json":
        for read in (ds.load_solution, picture.read):
            with pytest.raises(ds.ProblemError, match="a device or a pipe"):
                read(file)


def test_a_solver_that_declares_too_few_evaluations() -> None:
    class Boaster(ds.Solver):
        order = 2

        def step(self, f: Any, y: Any, span: ds.Span, past: Any) -> ds.Step:
            return ds.Step(y + span.h / 2 * (f(y, span.start) + f(y, span.end)))

        def evaluations(self, span: ds.Span, known: int) -> int:
            return 1

    with pytest.raises(ds.SolverError, match="made 11 evaluations where nfe = 6"):
        ds.solve(mixture(), Boaster(), "karras", nfe=6)


def test_small_noise_of_a_few_numbers_is_seen_too() -> None:
    with pytest.raises(ds.ProblemError, match="root mean square"):
        ds.solve(mixture((64,)), "euler", n=2, x=ds.normals(0, range(2), 3, (64,), torch.float64, "cpu"))
