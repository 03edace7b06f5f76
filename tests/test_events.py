"""Events of an ODE: found to the last digits, backwards too, in every row of a batch on its own, with gradients."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stubs import slow
from torch import Tensor

import diffsolve as ds

F64 = torch.float64
def exact(problem: ds.ODEProblem, t: float) -> Tensor:
    found: Tensor = problem.exact(problem.x0, problem.span[0], t)
    return found


def worst(problem: ds.ODEProblem, solution: ds.Solution) -> float:
    pairs = zip(solution.t, solution.trajectory, strict=True)
    return max(float((x - exact(problem, float(t))).abs().max()) for t, x in pairs)


def swing(rows: int = 4, end: float = 5.0) -> ds.ODEProblem:
    """sin(w t), w from 0.5 to 2, and its slope, by row."""
    w = torch.linspace(0.5, 2, rows, dtype=F64)
    x0 = torch.stack([torch.zeros_like(w), w], -1)
    return ds.ODEProblem(lambda t, x: torch.stack([x[:, 1], -(w**2) * x[:, 0]], -1), (0.0, end), x0)


def marked(function: Any, **attributes: Any) -> Any:
    def event(t: float, x: Tensor) -> Any:
        return function(t, x)

    vars(event).update(attributes)
    return event


HALF = [math.asin(0.5) / w for w in np.linspace(0.5, 2, 4)]


@pytest.mark.parametrize(
    "options",
    [slow({"rtol": 1e-11}), {"solver": "dopri8", "rtol": 1e-12},
     {"solver": "verner6", "n": 150}, slow({"solver": "dopri5", "n": 300}), {"solver": "fehlberg78", "n": 60}],
    ids=str,
)  # fmt: skip
def test_a_root_is_found_to_ten_digits(options: dict[str, Any]) -> None:
    problem = ds.ODEProblem(lambda t, x: torch.stack([x[1], -x[0]]), (0.0, 7.0), torch.tensor([0.0, 1.0], dtype=F64))
    found = ds.solve(problem, events=lambda t, x: x[0], **options)
    assert [known["t"] for known in found.events] == pytest.approx([math.pi, 2 * math.pi], abs=1e-10)
    assert torch.stack([known["x"] for known in found.events])[:, 1].tolist() == pytest.approx([-1.0, 1.0])
    assert {(known["event"], known["sample"]) for known in found.events} == {(0, None)}
    assert found.nfe <= ds.solve(problem, **options).nfe * 1.08 + 1 + 10 * 2
    assert found.reason == "end"


def test_backwards_too_and_twice_in_a_step() -> None:
    x0 = torch.tensor([math.sin(9)], dtype=F64)
    problem = ds.ODEProblem(lambda t, x: torch.full_like(x, math.cos(t)), (9.0, 1.0), x0)
    found = ds.solve(problem, "rk4", n=18, events=[lambda t, x: x[0], marked(lambda t, x: t - 5.1, direction=-1)])
    assert [known["event"] for known in found.events] == [0, 1, 0]
    assert [known["t"] for known in found.events] == pytest.approx([2 * math.pi, 5.1, math.pi], abs=1e-3)
    near = ds.solve(problem, "rk4", n=3, events=lambda t, x: (t - 7.0) * (t - 8.0))
    assert [known["t"] for known in near.events] == pytest.approx([8.0, 7.0], abs=1e-12), "both within one step"


@pytest.mark.parametrize(("direction", "count"), [(0, 3), (1, 1), (-1, 2), (2.5, 1)])
def test_directions_are_scipys(direction: float, count: int) -> None:
    problem = ds.ODEProblem(lambda t, x: torch.full_like(x, math.cos(t)), (0.0, 10.0), torch.zeros(1, dtype=F64))
    found = ds.solve(problem, rtol=1e-8, events=marked(lambda t, x: x[0], direction=direction))
    assert len(found.events) == count, "the zero at the start is none"


THREE: list[dict[str, Any]] = [{"rtol": 1e-10}, {"solver": "rk4", "n": 999}, {"solver": "dopri8", "rtol": 1e-11}]


def fall(p: Tensor) -> ds.ODEProblem:
    """From the height p[0] with the speed p[1], at the rate p[2]."""
    f = lambda t, x: torch.stack([x[1], -p[2] + 0 * x[1]])  # noqa: E731
    return ds.ODEProblem(f, (0.0, 10.0), torch.stack([p[0], p[1]]))


@pytest.mark.parametrize("options", THREE, ids=str)
def test_a_terminal_event_ends_the_run(options: dict[str, Any]) -> None:
    problem = fall(torch.tensor([10.0, 2.0, 9.81], dtype=F64))
    ground, peak = marked(lambda t, x: x[0], terminal=True, direction=-1), lambda t, x: x[1]
    found = ds.solve(problem, events=[ground, peak], save="all", **options)
    lands = (2 + math.sqrt(4 + 2 * 9.81 * 10)) / 9.81
    assert [known["t"] for known in found.events] == pytest.approx([2 / 9.81, lands], abs=1e-10)
    assert [known["event"] for known in found.events] == [1, 0]
    assert found.reason == "event"
    assert found.t[-1] == found.events[-1]["t"]
    assert found.x is found.trajectory[-1]
    assert torch.equal(found.x, found.events[-1]["x"])
    assert found.x.tolist() == pytest.approx([0.0, 2 - 9.81 * lands], abs=1e-8)
    assert len(found.t) == len(found.trajectory) == found.steps + 1
    twice = ds.solve(swing(1, 9.0), rtol=1e-9, events=marked(lambda t, x: x[0, 0] - 0.1, terminal=2))
    assert twice.t[-1] == twice.events[1]["t"] == pytest.approx((math.pi - math.asin(0.1)) / 0.5)


@pytest.mark.parametrize("options", [*THREE, {"solver": "lms", "n": 999}], ids=str)
def test_every_row_has_its_own_and_stops_alone(options: dict[str, Any]) -> None:
    stop = marked(lambda t, x: x[:, 0] - 0.5, terminal=True)
    found = ds.solve(swing(), events=stop, **options)
    close = 1e-9 if "rtol" in options or options["solver"] == "rk4" else 1e-4
    assert [known["sample"] for known in found.events] == [3, 2, 1, 0]
    assert [known["t"] for known in found.events] == pytest.approx(HALF[::-1], abs=close)
    assert all(known["x"].shape == (2,) for known in found.events)
    assert found.reason == "event"
    assert found.t[-1] == found.events[-1]["t"]
    assert found.x[:, 0].tolist() == pytest.approx([0.5] * 4, abs=close)
    assert found.x[:, 1].tolist() == pytest.approx(math.sqrt(0.75) * np.linspace(0.5, 2, 4), abs=10 * close)


def test_a_row_that_does_not_get_there_is_at_the_end() -> None:
    stop = marked(lambda t, x: x[:, 0] - 0.5, terminal=True)
    found = ds.solve(swing(end=0.5), schedule=np.linspace(0, 0.5, 6), rtol=1e-10, events=stop)
    assert [known["sample"] for known in found.events] == [3, 2]
    assert (found.reason, found.t[-1]) == ("end", 0.5)
    assert found.x[:, 0].tolist() == pytest.approx([math.sin(0.25), math.sin(0.5), 0.5, 0.5], abs=1e-8)
    third = torch.stack(found.trajectory)[:, 3, 0].tolist()
    assert third == pytest.approx([math.sin(2 * t) if t < HALF[3] else 0.5 for t in found.t], abs=1e-8)


def test_behind_its_event_a_row_does_no_harm() -> None:
    """x' = 1/(1 - x) has no solution from x = 1 on, which the first row reaches at t = 1/2, the second never."""
    problem = ds.ODEProblem(lambda t, x: 1 / (1 - x), (0.0, 3.0), torch.tensor([0.0, -3.0], dtype=F64))
    found = ds.solve(problem, rtol=1e-8, events=marked(lambda t, x: x - 0.9, terminal=True))
    assert [known["sample"] for known in found.events] == [0]
    assert found.events[0]["t"] == pytest.approx(0.5 * (1 - 0.01), abs=1e-7)
    assert found.x.tolist() == pytest.approx([0.9, 1 - math.sqrt(16 - 6)], abs=1e-6)
    x0 = torch.tensor([0.0, 3.0], dtype=F64)
    stiff = ds.SemilinearODE(-5.0, lambda t, x: torch.full_like(x, 5.0), (0.0, 1.0), x0)
    held = ds.solve(stiff, rtol=1e-8, events=marked(lambda t, x: x - 0.5, terminal=True))
    assert held.x.tolist() == pytest.approx([0.5, 1 + 2 * math.exp(-5)], abs=1e-6)


@pytest.mark.parametrize("gradient", [None, "backprop", "checkpoint"])
@pytest.mark.parametrize("options", [{"rtol": 1e-9}, {"solver": "rk4", "n": 41}], ids=str)
def test_the_time_of_an_event_has_a_gradient(options: dict[str, Any], gradient: Any) -> None:
    def landed(p: Tensor) -> ds.Solution:
        return ds.solve(fall(p), events=marked(lambda t, x: x[0], terminal=True), gradient=gradient, **options)

    def known(p: Tensor) -> Tensor:
        time = (p[1] + (p[1] ** 2 + 2 * p[2] * p[0]).sqrt()) / p[2]
        return torch.stack([time, p[1] - p[2] * time])

    p = torch.tensor([10.0, 2.0, 9.81], dtype=F64, requires_grad=True)
    found = landed(p)
    values = torch.stack([found.events[0]["time"], found.x[1]])
    for value, wanted in zip(values, known(p), strict=True):
        assert value.item() == pytest.approx(wanted.item(), abs=1e-10)
        gradients = [torch.autograd.grad(v, p, retain_graph=True)[0] for v in (value, wanted)]
        assert torch.allclose(*gradients, rtol=1e-7, atol=1e-9)
    if gradient is None:
        at, along = (p.detach(),), (torch.ones(3, dtype=F64),)
        _, pushed = torch.func.jvp(lambda p: landed(p).events[0]["time"], at, along)
        _, wanted = torch.func.jvp(lambda p: known(p)[0], at, along)
        assert pushed.item() == pytest.approx(wanted.item())


@pytest.mark.parametrize("gradient", [None, "checkpoint"])
def test_a_gradient_reaches_a_row_that_stopped(gradient: Any) -> None:
    p, w = torch.tensor(1.3, dtype=F64, requires_grad=True), torch.linspace(0.5, 2, 4, dtype=F64)
    problem = ds.ODEProblem(lambda t, x: p * w + 0 * x, (0.0, 1.0), torch.zeros(4, dtype=F64))  # x = p w t
    found = ds.solve(problem, rtol=1e-9, events=marked(lambda t, x: x - 0.8, terminal=True), gradient=gradient)
    assert [known["sample"] for known in found.events] == [3, 2, 1]
    (slope,) = torch.autograd.grad(found.x.sum(), p, retain_graph=True)
    assert float(slope) == pytest.approx(0.5), "only the row that goes on moves; the others end at 0.8"
    (later,) = torch.autograd.grad(found.events[0]["time"], p)
    assert float(later) == pytest.approx(-0.8 / (2 * 1.3**2))


@pytest.mark.parametrize("solver", ["tsit5", "dopri8", "rk4", "lms"])
def test_a_run_that_goes_on_finds_the_same(solver: str) -> None:
    options: Any = {"n": 60} if solver in ("rk4", "lms") else {"rtol": 1e-7}
    times = np.linspace(0, 5, 9) if "rtol" in options else None
    events = [marked(lambda t, x: x[:, 0] - 0.5, terminal=True), lambda t, x: x[:, 0] - 0.3]
    whole = ds.solve(swing(), solver, times, events=events, **options)
    for steps in range(6):
        run = ds.start(swing(), solver, times, events=events, **options)
        for _ in range(steps):
            run.step()
        run = ds.start(swing(), solver, times, events=events, state=pickle.loads(pickle.dumps(run.state)), **options)
        for _ in run:
            pass
        assert torch.equal(run.solution.x, whole.x)
        assert run.solution.t.tolist() == whole.t.tolist()
        assert [known["t"] for known in run.solution.events] == [known["t"] for known in whole.events]
        assert run.solution.reason == "event"


def test_events_and_times_are_kept_on_disk(tmp_path: Path) -> None:
    found = ds.solve(swing(), schedule=np.linspace(0, 5, 9), rtol=1e-7, events=lambda t, x: x[:, 0] - 0.5)
    again = ds.load_solution(found.save(tmp_path / "a.safetensors"))
    assert again.t.tolist() == found.t.tolist()
    assert len(again.events) == len(found.events) > 4
    for one, other in zip(again.events, found.events, strict=True):
        assert torch.equal(one["x"], other["x"])
        assert (one["t"], one["sample"], one["event"]) == (other["t"], other["sample"], other["event"])
    plain = ds.load_solution(ds.solve(swing(), n=3).save(tmp_path / "b.safetensors"))
    assert (plain.times, plain.events) == (None, None)


def test_inside_out_what_is_known_is_enough() -> None:
    problem, times = swing(), np.linspace(0, 5, 9)
    whole = ds.solve(problem, "dopri5", times, rtol=1e-6)

    def answered(run: ds.Run) -> ds.Solution:
        calls = run.calls()
        call = next(calls)
        try:
            while True:
                call = calls.send(problem.f(call.s, call.u))
        except StopIteration:
            return run.solution

    found = answered(ds.start(problem, "dopri5", times, rtol=1e-6))
    assert all(torch.equal(a, b) for a, b in zip(found.trajectory, whole.trajectory, strict=True))
    with pytest.raises(ds.SolverError, match=r"answered from outside"):
        answered(ds.start(problem, "rk4", n=9, events=lambda t, x: x[0, 0]))


def test_it_can_be_drawn() -> None:
    rate = torch.tensor(1.0, requires_grad=True)
    problem = ds.ODEProblem(lambda t, x: -rate * x, (0.0, 1.0), 1.0)
    for found in (ds.solve(problem, schedule=[0.0, 0.3, 1.0], rtol=1e-5), ds.solve(problem, n=3, save="all")):
        assert [line.get_xdata().tolist() for line in found.plot().axes[-1].lines] == [found.t.tolist()]


DECAY = ds.ODEProblem(lambda t, x: -x, (0.0, 1.0), torch.ones(2, 3))
NOISY = ds.SDEProblem(lambda t, x: -x, lambda t: 1.0, (0.0, 1.0), [[1.0]])
FLOW = ds.problems.Gaussian(torch.zeros(1), 1.0)


@pytest.mark.parametrize(
    ("problem", "options", "kind", "message"),
    [
        (DECAY, {"events": 3}, ds.ProblemError, r"event 0 must be a function \(t, x\), got int"),
        (DECAY, {"events": lambda t, x: x[0, 0] < 0.5}, ds.ProblemError, r"a condition; return what crosses 0, x"),
        (DECAY, {"events": lambda t, x: t > 0.5}, ds.ProblemError, "event 0 returned a condition"),
        (DECAY, {"events": [lambda t, x: t, None]}, ds.ProblemError, "event 1 must be .*, got NoneType"),
        (DECAY, {"events": lambda t, x: x}, ds.ProblemError, r"shape \(2, 3\) at t = 0; expected one .* row, \(2,\)"),
        (DECAY, {"events": lambda t, x: x[0]}, ds.ProblemError, r"event 0 returned shape \(3,\)"),
        (DECAY, {"events": lambda t, x: "a"}, ds.ProblemError, "event 0 returned str; expected a tensor or a number"),
        (DECAY, {"events": lambda t, x: math.nan}, ds.NonFiniteError, "event 0 is NaN at t = 0"),
        (DECAY, {"events": lambda t, x: x[0, 0] if t < 0.5 else x[0]}, ds.ProblemError, r"step \d+.* shape \(3,\)"),
        (DECAY, {"events": marked(lambda t, x: t, direction="up")}, ds.ProblemError, "direction 'up'; expected 1"),
        (DECAY, {"events": marked(lambda t, x: t, terminal=-1)}, ds.ProblemError, "terminal=-1; expected True"),
        (DECAY, {"events": lambda t, x: t, "execution": "tape"}, ds.SolverError, "leave execution out"),
        (DECAY, {"events": lambda t, x: t, "solver": "torchdiffeq:rk4"}, ds.SolverError, "events are found in ours"),
        (NOISY, {"events": lambda t, x: t}, ds.ProblemError, "path of an SDE .* no events"),
        (FLOW, {"events": lambda t, x: t}, ds.ProblemError, "events are of an ODE's solution"),
    ],
)  # fmt: skip
def test_what_is_no_event(problem: Any, options: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ds.solve(problem, **options)
