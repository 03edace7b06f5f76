"""A run between its steps: iterated, saved and gone on with to the bit, turned inside out, and watched."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
import torch
from stubs import gaussian, mixture, numbers
from torch import Tensor

import diffsolve as ds
from diffsolve.run import Run

ADAPTIVE = ["heun", "dopri5", "dpm_solver_3", "dpm_adaptive", "dpm_adaptive(eta=0.5)"]


def finish(run: Run) -> ds.Solution:
    for _ in run:
        pass
    return run.solution


def after(steps: int, *args: Any, **options: Any) -> Run:
    run = ds.start(*args, **options)
    for _ in range(steps):
        assert run.step() is not None
    return run


def answered(run: Run, answer: Any) -> int:
    """Answer every call; how many there were."""
    calls, count = run.calls(), 0
    try:
        call = next(calls)
        while True:
            count += 1
            assert call.t.shape == call.y.shape[:1]
            call = calls.send(answer(call))
    except StopIteration:
        return count


def inside_out(run: Run, problem: ds.ProbabilityFlow) -> int:
    """Every call answered by the problem's own denoiser."""
    return answered(run, lambda call: problem.denoiser(call.y, call.sigma))


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_a_saved_and_resumed_adaptive_run_is_the_unbroken_one(solver: str) -> None:
    problem = mixture()
    options = {} if "adaptive" in solver else {"rtol": 1e-3}
    whole = ds.solve(problem, solver, batch=2, seed=3, **options)
    saved = pickle.loads(pickle.dumps(after(5, problem, solver, batch=2, seed=3, **options).state))
    resumed = finish(ds.start(problem, solver, state=saved, **options))
    assert torch.equal(resumed.x, whole.x)
    assert resumed.nfe == whole.nfe
    assert resumed.stats == whole.stats
    assert resumed.grid.nodes.tolist() == whole.grid.nodes.tolist()


def test_a_state_is_plain_data() -> None:
    file = io.BytesIO()
    torch.save(after(3, mixture(), "dpmpp_2m", n=6).state, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = finish(ds.start(mixture(), "dpmpp_2m", n=6, state=saved))
    assert torch.equal(resumed.x, ds.solve(mixture(), "dpmpp_2m", n=6).x)


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"solver": "lms"}, "solver"), ({"n": 7}, "nodes"), ({"final": "none"}, "nodes"), ({"form": "v"}, "solver")],
)
def test_a_state_of_another_run_is_refused(changed: dict[str, Any], what: str) -> None:
    saved = after(3, mixture(), "dpmpp_2m", n=6).state
    with pytest.raises(ds.SolverError, match=f"saved state is of a run with {what}"):
        ds.start(mixture(), **({"solver": "dpmpp_2m", "n": 6} | changed), state=saved)


def test_a_run_of_another_library_is_not_to_be_saved_or_turned() -> None:
    pytest.importorskip("torchdiffeq")
    run = after(1, mixture(), "torchdiffeq:rk4", n=4)
    with pytest.raises(ds.SolverError, match="can't be saved"):
        _ = run.state
    with pytest.raises(ds.SolverError, match="can't be turned inside out"):
        next(run.calls())


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_an_adaptive_run_inside_out(solver: str) -> None:
    problem = mixture()
    options = {} if "adaptive" in solver else {"rtol": 1e-3}
    whole = ds.solve(problem, solver, batch=2, seed=3, **options)
    run = ds.start(problem, solver, batch=2, seed=3, **options)
    assert inside_out(run, problem) == whole.nfe
    assert torch.equal(run.solution.x, whole.x)
    assert run.solution.stats == whole.stats


def raw(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x * (1 + 1e-3 * t.reshape(-1, 1)))


def pair(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return raw(x, t), 0.5 * raw(x, t)


@pytest.mark.parametrize("guided", [False, True])
def test_a_call_has_the_inputs_of_the_network_and_takes_what_it_returns(guided: bool) -> None:
    network = pair if guided else raw
    denoiser: Any = ds.NetworkDenoiser(network, "sd", "v")
    problem = ds.ProbabilityFlow(shape=(2,), denoiser=ds.Guided(denoiser, 3.0) if guided else denoiser)
    whole = ds.solve(problem, "heun", n=5, batch=3)
    run = ds.start(problem, "heun", n=5, batch=3)
    assert answered(run, lambda call: network(call.x, call.t)) == whole.nfe
    assert torch.equal(run.solution.x, whole.x)


def test_an_answer_of_another_shape_is_refused_and_nothing_is_lost() -> None:
    problem = ds.ProbabilityFlow(raw, shape=(2,))
    run = ds.start(problem, "euler", n=5, batch=3)
    calls = run.calls()
    call = calls.send(raw(*_inputs(next(calls))))
    with pytest.raises(ds.ProblemError, match=r"shape \(1, 2\), expected \(3, 2\)") as caught:
        calls.send(raw(*_inputs(call))[:1])
    assert caught.value.solution is run.solution
    assert run.solution.steps == 1


def _inputs(call: Any) -> tuple[Tensor, Tensor]:
    return call.x, call.t


def test_an_ode_inside_out() -> None:
    problem = ds.ODEProblem(lambda t, x: -x * t, (0.0, 1.0), torch.ones(3, dtype=torch.float64))
    run = ds.start(problem, "rk4", n=4)
    assert answered(run, lambda call: -call.x * call.t[0]) == 16
    assert torch.equal(run.solution.x, ds.solve(problem, "rk4", n=4).x)


def test_a_run_left_in_the_middle_of_a_step_stands_at_its_last_whole_one() -> None:
    problem = mixture()
    run = ds.start(problem, "rk4", n=4)
    calls = run.calls()
    call = next(calls)
    for _ in range(6):  # of the eight that two steps take
        call = calls.send(problem.denoiser(call.y, call.sigma))
    assert run.solution.steps == 1
    finish(run)
    assert torch.equal(run.solution.x, ds.solve(problem, "rk4", n=4).x)


def test_visits() -> None:
    problem = mixture()
    run = ds.start(problem, "heun", n=5, batch=2)
    visits = list(run)
    assert [v.index for v in visits] == list(range(5))
    assert [v.node for v in visits] == run.solution.sigmas[1:].tolist() == [v.sigma for v in visits]
    assert [v.nfe for v in visits] == [2, 4, 6, 8, 9]
    assert {v.count for v in visits} == {5}
    assert [v.share for v in visits] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert run.step() is None, "nothing follows the end"
    assert [v.error is None for v in visits] == [True] * 5
    previews = [v.denoised for v in visits]
    assert previews[-1] is visits[-1].x
    assert not torch.equal(previews[0], previews[1]), "a preview is that of its own step, whenever it is read"
    assert all(v.error is not None for v in ds.start(problem, "heun", rtol=1e-2) if v.node)


def test_where_a_solver_went_back_up_the_nodes_are_passed_again() -> None:
    solution = ds.solve(mixture(), "restart", n=8, save="all")
    nodes = solution.sigmas.tolist()
    assert len(solution.visited) == len(solution.trajectory) > len(nodes)
    assert set(solution.visited.tolist()) == set(nodes)
    assert sum(b > a for a, b in zip(solution.visited, solution.visited[1:], strict=False)) == 2, "twice back up"


def test_stats_say_how_it_was_run() -> None:
    small = {"execution": "eager", "why": "a sample of 2 numbers is below 1024, from where on a plan pays"}
    assert ds.solve(mixture(), "euler", n=3).stats == small
    assert ds.solve(mixture(), "euler", n=3, execution="tape").stats == {"execution": "tape", "why": "asked for"}


@pytest.mark.parametrize("solver", ["dpmpp_2m", "lms", "unipc"])
def test_a_tape_is_gone_on_with_too(solver: str) -> None:
    problem, options = mixture(), {"n": 7, "execution": "tape"}
    whole = ds.solve(problem, solver, **options)
    saved = after(3, problem, solver, **options).state
    assert (finish(ds.start(problem, solver, state=saved, **options)).x - whole.x).abs().max() < 1e-12


def test_a_form_is_an_option_and_shows_in_the_name() -> None:
    problem = mixture()
    asked, named = ds.solve(problem, "heun", n=4, form="v"), ds.solve(problem, "heun(form=v)", n=4)
    assert torch.equal(asked.x, named.x)
    assert asked.solver == named.solver == "heun(form=v)"
    assert ds.solve(problem, "lms(order=3)", n=4, form="v").solver == "lms(order=3, form=v)"
    assert ds.solve(problem, "heun", n=4, form="sigma").solver == "heun"


def test_solving_twice_by_name_is_not_disturbed_by_a_solver_that_was_changed() -> None:
    problem = mixture()
    before = ds.solve(problem, "lms", n=5).x
    ds.get_solver("lms").form = "v"
    assert torch.equal(ds.solve(problem, "lms", n=5).x, before)


def test_what_is_passed_in_is_copied() -> None:
    problem, x = gaussian((2,)), numbers(3, 2)
    given = x.clone()
    solution = ds.solve(problem, "euler", n=3, x=given, save="all")
    assert solution.trajectory[0].data_ptr() != given.data_ptr()
    given.zero_()
    assert torch.equal(solution.trajectory[0], x)
