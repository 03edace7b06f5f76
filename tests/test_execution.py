"""Players of one program, eager and fused, by C and by torch: they give the same; what a fused run may not do."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stubs import rows, slow
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import diffsolve as ds
from diffsolve.execution import budget, choose, passes, player
from diffsolve.execution import native as compiled
from diffsolve.problems.guidance import Guided, NetworkDenoiser
from diffsolve.program import FixedLoop, State

SHAPE = (4, 16, 16)
ROWS = [row for row in ds.list_solvers() if row.form is not None]
TRACED = [row.name for row in ROWS if row.traceable and row.solver.controller is None]
KERNEL = ds.normals(5, (0,), -9, (4, 4, 3, 3), torch.float64, "cpu")[0] * 0.3


def network(x: Tensor, t: Tensor) -> Tensor:
    mixed = torch.nn.functional.conv2d(x, KERNEL.to(x), padding=1)
    return torch.tanh(mixed + t.view(-1, 1, 1, 1) / 1000)


def problem(dtype: torch.dtype = torch.float32, **options: Any) -> ds.ProbabilityFlow:
    return ds.ProbabilityFlow(network, shape=SHAPE, dtype=dtype, **options)


def both_sides(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return network(x, t), network(x, t) * 0.7


PROBLEMS = {
    "network": lambda dtype: problem(dtype),
    "guided": lambda dtype: ds.ProbabilityFlow(
        shape=SHAPE, dtype=dtype,
        denoiser=Guided(NetworkDenoiser(both_sides, "sd", "v"), 3.0, rescale=0.5),
    ),
    "denoiser": lambda dtype: ds.ProbabilityFlow(
        shape=SHAPE, dtype=dtype, process="edm", denoiser=lambda y, s: ds.Output(y / (1 + s * s) + torch.tanh(y) / 10)
    ),
}  # fmt: skip


def gap(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.fixture(params=["C", "torch"])
def each_player(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        without = compiled.Native(None, "the test says so")
        monkeypatch.setattr(player, "native", lambda: without)
        monkeypatch.setattr(choose, "native", lambda: without)
    elif compiled.native().library is None:
        pytest.skip(compiled.native().reason)
    return str(request.param)


@pytest.mark.filterwarnings("ignore:.* is made for guidance from")
@pytest.mark.parametrize("kind", ["network", *map(slow, ("guided", "denoiser"))])
@pytest.mark.parametrize("name", rows([n.replace("rectified_cfg_pp", "rectified_cfg_pp(guidance=3)") for n in TRACED]))
def test_fused_is_eager(name: str, kind: str) -> None:
    """In float32 to what either of them is off the same in float64, where that is more."""
    exact = ds.solve(PROBLEMS[kind](torch.float64), name, n=6, batch=2, execution="eager")
    fused = ds.solve(PROBLEMS[kind](torch.float64), name, n=6, batch=2, execution="fused")
    assert gap(fused.x, exact.x) < 1e-13
    assert (fused.nfe, fused.nodes, fused.steps) == (exact.nfe, exact.nodes, exact.steps)
    x = ds.ProbabilityFlow(network, PROBLEMS[kind](torch.float32).process, shape=SHAPE).prior(2, 0)
    eager, fused = (ds.solve(PROBLEMS[kind](torch.float32), name, n=6, x=x, execution=e) for e in ("eager", "fused"))  # type: ignore[arg-type]
    exact = ds.solve(PROBLEMS[kind](torch.float64), name, n=6, x=x.double(), execution="eager")
    assert gap(fused.x, eager.x) < max(1e-6, 3 * gap(eager.x, exact.x))


@pytest.mark.parametrize("final", ["denoise", "step", "none"])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "damped_abm", "dpmpp_2m_sde", "restart"])
def test_each_player_and_end(name: str, final: Any, each_player: str) -> None:
    given = {"n": 7, "batch": 2, "final": final, "seed": 3}
    eager, fused = (ds.solve(problem(torch.float64), name, execution=e, **given) for e in ("eager", "fused"))  # type: ignore[arg-type]
    assert gap(fused.x, eager.x) < 1e-13
    assert fused.stats["execution"] == "fused"
    assert ("the test says so" in fused.stats["why"]) == (each_player == "torch")


def test_a_constraint_is_put_between_passes() -> None:
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[:, :8] = True
    known = ds.normals(1, (0,), -3, SHAPE, torch.float64, "cpu")[0]
    of = ds.problems.Inpaint(problem(torch.float64), known, inside)
    for name in ("dpmpp_2m", "euler_ancestral"):
        eager, fused = (ds.solve(of, name, n=6, batch=2, execution=e) for e in ("eager", "fused"))  # type: ignore[arg-type]
        assert gap(fused.x, eager.x) < 1e-13


def test_what_was_handed_out_stays(each_player: str) -> None:
    """Visits that are kept, views of their states, and answers of a network that always writes to one tensor."""
    answer = torch.empty(2, *SHAPE, dtype=torch.float64)
    of = ds.ProbabilityFlow(lambda x, t: answer.copy_(network(x, t)), shape=SHAPE, dtype=torch.float64)
    for name in ("euler", "dpmpp_2m", "unipc"):
        eager, fused = (list(ds.start(of, name, n=8, batch=2, execution=e)) for e in ("eager", "fused"))  # type: ignore[arg-type]
        views = [visit.x[0].view(-1) for visit in ds.start(of, name, n=8, batch=2, execution="fused")]
        for a, b, view in zip(eager, fused, views, strict=True):
            assert gap(b.x, a.x) < 1e-13
            assert gap(view, a.x[0].view(-1)) < 1e-13
            assert a.denoised is not None
            assert b.denoised is not None
            assert gap(b.denoised, a.denoised) < 1e-12
            if a.node:
                assert gap(b.newest.value, a.newest.value) < 1e-9  # type: ignore[union-attr]


@pytest.mark.parametrize("name", TRACED)
def test_latents_are_those_that_are_read_and_the_state_twice(name: str) -> None:
    """Before and after a step: of a multistep row with what it reads, of another with its stages; 6 with noise."""
    answer = torch.ones(1, 4, 8, 8)
    constant = ds.ProbabilityFlow(denoiser=lambda y, sigma: ds.Output(answer), shape=(4, 8, 8))
    solver = ds.get_solver(name)
    run = ds.start(constant, solver, "karras", 12, x=constant.prior(1), execution="fused")
    for _ in run:
        pass
    loop = run._loop
    assert isinstance(loop, player.FusedLoop)
    read = solver.history + 1 if solver.history else solver.stages or 1
    more = {"pndm": 8, "guarded_abm": 16}.get(name, 0)  # stages beside a history, and two methods in one
    assert loop.buffers.made <= (6 if solver.stochastic else more or read + 2)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "guarded_abm", "euler_ancestral"])
def test_a_plan_takes_no_eager_step_and_looks_at_its_states_itself(
    name: str, each_player: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Tensor] = []
    monkeypatch.setattr("diffsolve.solution.is_finite", lambda x: looked.append(x) or True)
    monkeypatch.setattr(FixedLoop, "next", lambda *_: pytest.fail("a step is taken eagerly"))
    ds.solve(problem(), name, n=6, execution="fused", final="none")
    assert len(looked) == 1, "the start alone is looked at by itself"


@pytest.mark.parametrize(("name", "most"), [("euler", 4), ("dpmpp_2m", 7), ("lms", 9), ("unipc", 9),
                                            ("euler_ancestral", 6), ("dpmpp_2m_sde", 7)])  # fmt: skip
def test_buffers_are_few_and_used_again(name: str, most: int) -> None:
    """The state and its history before and after a step, what two calls are given, and what the step itself needs."""
    run = ds.start(problem(), name, n=20, batch=2, execution="fused")
    loop: Any = run._loop
    made = [loop.buffers.made for _ in run]
    assert max(made) == made[4 + run.solver.history], "nothing is allocated once it is warm"
    assert made[-1] <= most
    assert loop.plan.most < made[-1] + 1


def test_a_step_of_the_default_is_a_measurement_and_one_pass() -> None:
    """What is kept of the evidence is written while it is measured; the rest is nowhere, and blends are in a table of
    each sample. Alone or in company, many samples or few, it is the same."""
    run = ds.start(problem(), "guarded_abm", n=12, batch=2, execution="fused")
    for step in run._loop.plan.steps[5:11]:  # type: ignore[union-attr]
        ask, measured, last = step.instructions
        assert [type(item).__name__ for item in (ask, measured, last)] == ["Ask", "Measure", "Pass"]
        assert len(measured.rows.inputs) <= 8
        assert measured.rows.outputs[-1] == -1
        assert sum(out >= 0 for out in measured.rows.outputs) == 2
        assert last.shares == (measured.share,)
        assert len(last.inputs) <= 8
        assert len(last.outputs) == 3 + (step.prepared >= 0)
    many = ds.solve(problem(torch.float64), "guarded_abm", n=7, batch=passes.FEW + 1, execution="fused").x
    few = ds.solve(problem(torch.float64), "guarded_abm", n=7, batch=[passes.FEW], execution="fused").x
    assert gap(many[-1:], few) < 1e-13


def test_a_run_is_saved_gone_on_with_and_turned_inside_out() -> None:
    given: Any = {"n": 9, "batch": 2, "execution": "fused"}
    for name in ("dpmpp_2m", "lms", "dpmpp_2m_sde", "guarded_abm"):
        whole, run = ds.solve(problem(), name, **given), ds.start(problem(), name, **given)
        for _ in range(4):
            run.step()
        saved = run.state
        for _ in run:
            pass
        again = ds.start(problem(), name, state=saved, **given)
        for _ in again:
            pass
        assert torch.equal(again.solution.x, run.solution.x)
        assert torch.equal(whole.x, run.solution.x)
        asked = ds.start(problem(), name, **given)
        calls = asked.calls()
        call = next(calls, None)
        while call is not None:
            try:
                call = calls.send(network(call.x, call.t))
            except StopIteration:
                call = None
        assert gap(asked.solution.x, whole.x) < 1e-6


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_a_state_that_is_not_of_its_plan_is_gone_on_with_as_an_eager_run_does(name: str, each_player: str) -> None:
    """Laid out in memory in another way, or without what came before: a plan would read something else."""
    of, given = problem(torch.float64), {"n": 7, "batch": 2}
    run = ds.start(of, name, **given)  # type: ignore[arg-type]
    for _ in range(3):
        run.step()
    saved = run.state
    laid = {key: saved[key].contiguous(memory_format=torch.channels_last) for key in ("x", "u")}
    for other in (saved | laid, saved | {"past": ()}):
        eager, fused = (ds.start(of, name, state=other, execution=e, **given) for e in ("eager", "fused"))  # type: ignore[arg-type]
        eager.rest()
        fused.rest()
        assert gap(fused.solution.x, eager.solution.x) < 1e-13


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_found_in_its_step(value: float, each_player: str) -> None:
    calls = []

    def broken(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        raw = network(x, t)
        if len(calls) == 5:
            raw[1, 3, 15, 15] = value
        return raw

    with pytest.raises(ds.NonFiniteError, match=r"step 5 of 9 .*: the state has . NaN and . infinite values") as caught:
        ds.solve(ds.ProbabilityFlow(broken, shape=SHAPE), "euler", n=9, batch=2, execution="fused")
    assert caught.value.solution.steps == 4  # type: ignore[attr-defined]
    assert caught.value.solution.x.isfinite().all()  # type: ignore[attr-defined]


def test_auto_says_why() -> None:
    def why(of: ds.Problem, name: str = "euler", **given: Any) -> tuple[str, str]:
        stats = ds.solve(of, name, n=3, **given).stats
        return stats["execution"], stats["why"]

    assert why(problem())[0] == "fused"
    assert why(problem(), gradient="backprop") == ("eager", "gradients flow through eager steps")
    assert why(problem(), execution="eager") == ("eager", "asked for")
    assert "below 1024" in why(ds.ProbabilityFlow(lambda x, t: x, shape=(3,)))[1]
    assert why(problem(), "heun", rtol=0.1) == ("eager", "steps are chosen by their error")
    assert why(ds.problems.ODEProblem(lambda t, x: -x, (0.0, 1.0), torch.ones(1, 2000)))[0] == "eager"

    class Branching(ds.Solver):
        def step(self, f: Any, y: Any, span: ds.Span, past: Any) -> ds.Step:
            return ds.Step(y.clamp(-1e9, 1e9) + span.h * f(y, span.start))

    assert "clamp" in why(problem(), Branching())[1]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("euler", {"execution": "graph"}, "execution='graph' can't be: a graph is of a CUDA device"),
        ("euler", {"execution": "fused", "gradient": "backprop"}, "gradients flow through eager steps"),
        ("dpm_adaptive", {"execution": "fused"}, "steps are fixed before it is played"),
    ],
)
def test_what_can_not_be_is_refused(name: str, given: Any, says: str) -> None:
    with pytest.raises(ds.SolverError, match=says):
        ds.solve(problem(), name, n=3, **given)


def test_plans_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [ds.start(problem(), "unipc", n=5, execution="fused")._loop.plan for _ in range(2)]  # type: ignore[union-attr]
    assert plans[0] is plans[1]
    own = [ds.start(problem(), "restart", n=5, execution="fused")._loop for _ in range(2)]  # it plans its own steps
    assert own[0].plan is own[1].plan  # type: ignore[union-attr]
    assert own[0].program is own[1].program  # type: ignore[union-attr]
    assert plans[0].table.dtype == "float64"
    assert ds.start(problem(), "unipc", n=6, execution="fused")._loop.plan is not plans[0]  # type: ignore[union-attr]
    flow = ds.start(problem(process="flow", prediction="flow"), "unipc", n=5, execution="fused")
    assert flow._loop.plan is not plans[0]  # type: ignore[union-attr]


def test_a_budget_is_found_by_what_is_declared_and_plans_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the row: the most steps that it pays for, as counted; rows that plan for themselves may try more."""
    tried, counted = list[int](), budget.evaluations_of

    def counting(program: Any, solver: Any, field: Any) -> int:
        tried.append(len(program))
        return counted(program, solver, field)

    monkeypatch.setattr(budget, "evaluations_of", counting)
    tiny = ds.ProbabilityFlow(lambda x, t: x, shape=(2,))
    for row, final, most in itertools.product(ROWS, ("denoise", "none"), (14, 37)):
        if row.solver.controller is not None:
            continue
        tried.clear()
        eta = 0.0 if row.stochastic and most == 37 else None
        grid = ds.start(tiny, row.name, nfe=most, final=final, eta=eta).solution.grid  # type: ignore[arg-type]
        assert len(tried) == 1 or type(row.solver).plan is not ds.Solver.plan, row.name
        more = ds.make_grid(ds.Karras(), len(grid) + 1, tiny.process, final=final)  # type: ignore[arg-type]
        costs = [ds.count_evaluations(row.solver, of, tiny, eta) for of in (grid, more)]
        assert costs[0] <= most < costs[1], (row.name, final)


class NoReadingBack(TorchDispatchMode):
    """Refuses what makes the host wait for a device: item(), bool(), nonzero()."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", rows(TRACED))
def test_nothing_is_read_back_between_the_first_and_the_last_step(name: str) -> None:
    for execution in ("eager", "fused"):
        run = ds.start(problem(), name, n=5, execution=execution)  # type: ignore[arg-type]
        loop, state, field = run._loop, run._state, run.field
        with torch.no_grad():
            while not state.ended:
                with NoReadingBack():
                    state = loop.next(state, field)  # type: ignore[arg-type]
                assert isinstance(state, State)


def test_the_mode_sees_a_reading_back() -> None:
    for read in (lambda x: x.item(), bool, lambda x: x.nonzero(), lambda x: torch.equal(x, x), float):
        with pytest.raises(AssertionError), NoReadingBack():
            read(torch.ones(1))


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    compiled.native.cache_clear()
    monkeypatch.setenv("DIFFSOLVE_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    compiled.native.cache_clear()


def test_without_a_compiler_it_says_so(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no-such-compiler" in compiled.native().reason
    compiled.native.cache_clear()
    monkeypatch.setenv("CC", "false")
    assert "false failed" in compiled.native().reason
    compiled.native.cache_clear()
    monkeypatch.setenv("DIFFSOLVE_NATIVE", "0")
    assert "asks to do without" in compiled.native().reason


@pytest.mark.slow
def test_it_is_built_once_and_whole(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled.native().library is None:
        pytest.skip(compiled.native().reason)
    (made,) = (unbuilt / "cache").iterdir()
    when = made.stat().st_mtime_ns
    compiled.native.cache_clear()
    assert compiled.native().library is not None
    assert [f.stat().st_mtime_ns for f in (unbuilt / "cache").iterdir()] == [when]
    compiled.native.cache_clear()
    other = unbuilt / "other"
    other.mkdir()
    (other / made.name).write_bytes(b"half of it")
    monkeypatch.setenv("DIFFSOLVE_CACHE", str(other))
    assert compiled.native().library is not None  # made again


def test_code_for_one_process_leaves_nothing_behind(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(into: Path) -> Path:
        (unbuilt / "for-now").mkdir()
        return unbuilt / "for-now" / "kernels.so"

    library = ctypes.CDLL(None)
    monkeypatch.setattr(compiled, "_built", built)
    monkeypatch.setattr(compiled.ctypes, "CDLL", lambda path: library)
    monkeypatch.setattr(compiled, "Native", lambda *found: found)
    assert compiled.native() == (library, "")
    assert list(unbuilt.iterdir()) == []
