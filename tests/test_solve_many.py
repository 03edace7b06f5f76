"""Many solves at once: each as it is alone, whatever its company; what goes wrong with one is its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import diffsolve as ds
from diffsolve import Output, ProblemError, SolverError
from diffsolve.denoiser import per_sample
from diffsolve.engine import Answer, Request, solve_many
from diffsolve.problems import StableDiffusion

MIXTURE = ds.problems.GaussianMixture(
    [[2.0, 0.5, -1.0], [-1.5, 1.0, 0.0], [0.0, -2.0, 1.5]], [0.5, 0.3, 0.4], labels=[0, 1, 1]
)
MIXED: list[dict[str, Any]] = [
    {"solver": "dpmpp_2m", "n": 8, "seed": 1},
    {"solver": "heun", "schedule": "linspace", "n": 5, "seed": 2, "final": "none"},
    {"n": 12, "seed": 3, "sigma_max": 5.0},
    {"solver": "dpm_solver_3", "rtol": 1e-3, "seed": 4},
    {"solver": "euler_ancestral", "n": 9, "seed": 5},
    {"solver": "dpmpp_sde", "n": 6, "seed": 6, "eta": 0.5},
    {"solver": "heun(form=v)", "nfe": 9, "seed": 7, "sigma_min": 0.1},
    {"solver": "ddim", "n": 3, "seed": 8, "batch": [4, 9]},
    {"solver": "dpm_solver_3", "rtol": 1e-7, "atol": 1e-7, "seed": 9, "nfe": 40},
]


@cache
def emoji() -> StableDiffusion:
    return StableDiffusion.from_pretrained("emoji")


def by_index(answers: list[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: answer.index)


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x + (t / 1000).reshape(-1, 1))


CASES = {
    "mixture": MIXTURE,
    "guided": MIXTURE.guided(1, 3.0),
    "network": ds.ProbabilityFlow(network, "sd", "v", shape=(3,), dtype=torch.float64),
    "function": ds.ProbabilityFlow(
        denoiser=lambda y, s: Output(y / (1 + per_sample(s, y) ** 2)), shape=(3,), dtype=torch.float64),
    "ode": ds.ODEProblem(lambda t, x: -t * x * x, (0.0, 2.0), [1.0, 2.0, 0.5]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("max_batch", "rows"), [(1, None), (3, None), (64, None), (4, 4)])
def test_a_sample_is_as_it_is_alone(name: str, max_batch: int, rows: int | None) -> None:
    problem = CASES[name]
    requests = MIXED
    if name == "ode":
        requests = [{"solver": "rk4", "n": 7}, {"solver": "tsit5", "rtol": 1e-6}, {"solver": "heun", "n": 9, "nfe": 12}]
    found = by_index(list(solve_many(problem, requests, max_batch=max_batch, rows=rows)))
    assert len(found) == len(requests)
    for request, answer in zip(requests, found, strict=True):
        alone = ds.solve(problem, **request)
        assert answer.status == alone.reason, answer.message
        got = answer.result()
        assert (got.nfe, got.steps, got.solver, got.schedule) == (alone.nfe, alone.steps, alone.solver, alone.schedule)
        assert float((got.x - alone.x).abs().max()) <= 1e-12, request


@pytest.mark.slow
def test_prompts_guidance_and_sizes_of_the_embedded_model() -> None:
    model, shared = emoji(), {"n": 2}
    requests: list[dict[str, Any]] = [
        {"prompt": "red apple", "guidance": 4, "seed": 0, **shared},
        {"prompt": "a cat", "guidance": 1, "seed": 1, **shared},
        {"prompt": "a blue car", "guidance": 2.5, "negative_prompt": "red", "seed": 2, "n": 3, "eta": 1.0,
         "solver": "euler_ancestral"},
        {"prompt": "a dog", "guidance": 2, "seed": 3, "height": 48, **shared},
        {"prompt": ["sun", "moon"], "guidance": 3, "seed": 4, "batch": 2, "solver": "heun", "n": 2},
    ]  # fmt: skip
    many = solve_many(model, requests, max_batch=8, order="arrival")
    for request, answer in zip(requests, many, strict=True):
        kinds = "prompt", "guidance", "negative_prompt", "height"
        problem = model(**{k: v for k, v in request.items() if k in kinds})
        alone = ds.solve(problem, **{k: v for k, v in request.items() if k not in kinds})
        assert float((answer.result().x - alone.x).abs().max()) <= 1e-4, (request, answer.message)
        [single] = solve_many(model, [request], max_batch=8)  # of itself, to the bit where its batch is one sample
        assert float((answer.result().x - single.result().x).abs().max()) <= 1e-5, request
    assert many.calls < many.samples / 1.5  # they were called together
    [other] = solve_many(model("a cat", guidance=2), [{"prompt": "sun", "n": 1, "seed": 1}])
    assert other.result().problem.guidance == 2
    assert torch.allclose(other.result().x, ds.solve(model("sun", guidance=2), n=1, seed=1).x, atol=1e-4)


@pytest.mark.slow
def test_calls_of_as_many_rows_give_the_same_bits() -> None:
    requests = [{"prompt": p, "n": 2, "seed": i, "guidance": 3} for i, p in enumerate(("sun", "cat", "dog", "fish"))]
    found: dict[int, Tensor] = {}
    for max_batch in (1, 2, 3, 4):
        for answer in solve_many(emoji(), requests, max_batch=max_batch, rows=3):
            assert torch.equal(found.setdefault(answer.index, answer.result().x), answer.result().x)


def test_the_network_is_called_once_a_round_with_a_level_for_each_sample() -> None:
    seen: list[list[float]] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t.tolist())
        return x

    problem = ds.ProbabilityFlow(net, "edm", "eps", shape=(2,))
    many = solve_many(problem, [{"solver": "ddim", "n": n} for n in (3, 1, 4, 2)], max_batch=3, rows=0)
    answers = list(many)
    assert [answer.index for answer in answers] == [1, 0, 3, 2]
    assert sum(map(len, seen)) == sum(answer.result().nfe for answer in answers) == 10
    assert [len(levels) for levels in seen] == [3, 3, 3, 1]
    assert len(set(seen[1])) == 3
    assert (many.calls, many.samples, many.active) == (4, 10, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "huen"}, "did you mean 'heun'"),
        ({"sover": "heun"}, "unknown option 'sover'.*did you mean 'solver'"),
        ({"n": 0}, "n is 0|n = 0|at least 1"),
        ({"gradient": "backprop"}, "keeps no graph"),
        ({"x": torch.ones(1, 2, requires_grad=True)}, "keeps no graph"),
        ({"x": torch.ones(1, 7)}, "expected .B, 2."),
    ],
)
def test_what_cannot_be_asked_is_refused_alone(change: dict[str, Any], message: str) -> None:
    problem = ds.ProbabilityFlow(lambda x, t: x, "edm", "eps", shape=(2,))
    refused, fine = solve_many(problem, [{"n": 2, **change}, {"n": 2}], order="arrival")
    assert (refused.status, refused.solution, fine.status) == ("refused", None, "end")
    with pytest.raises(ds.DiffsolveError, match=message):
        refused.result()
    assert str(refused.error) == refused.message


def poisoned(x: Tensor, t: Tensor) -> Tensor:
    return torch.where(x[:, :1] > 1e3, torch.nan, x.tanh())


def angry(x: Tensor, t: Tensor) -> Tensor:
    if bool((x[:, 0] > 1e3).any()):
        raise ValueError("too large")
    return x.tanh()


@pytest.mark.parametrize(("net", "message"), [(poisoned, "step 1 of 3 .*NaN"), (angry, "too large")])
def test_what_fails_on_the_way_fails_alone(net: Callable[..., Tensor], message: str) -> None:
    problem = ds.ProbabilityFlow(net, "edm", "eps", shape=(2,))
    requests = [{"n": 3, "seed": i} for i in range(5)]
    requests[3]["x"] = torch.full((1, 2), 1e5)
    answers = list(solve_many(problem, requests, order="arrival", max_batch=5))
    assert [answer.status for answer in answers] == ["end"] * 3 + ["failed", "end"]
    failed = answers[3]
    assert failed.solution is not None
    assert failed.solution.reason == "failed"
    with pytest.raises((ds.DiffsolveError, ValueError), match=message):
        failed.result()
    for answer in (*answers[:3], answers[4]):
        assert torch.equal(answer.result().x, ds.solve(problem, n=3, seed=answer.index).x)


def test_what_does_not_fit_into_memory_is_halved_and_says_so() -> None:
    most = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        if len(x) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        most.append(len(x))
        return x

    problem = ds.ProbabilityFlow(net, "edm", "eps", shape=(2,))
    for rows, sizes in ((None, [4]), (8, [8, 4])):
        with pytest.warns(UserWarning, match="did not fit into memory") as told:
            answers = list(solve_many(problem, [{"n": 2, "seed": i} for i in range(8)], max_batch=8, rows=rows))
        assert [answer.status for answer in answers] == ["end"] * 8
        assert max(most) == 2
        assert [str(w.message) for w in told] == [
            f"a call of {k} samples did not fit into memory; now {k // 2} at a time" for k in sizes
        ]


def test_cancelling_and_closing() -> None:
    problem = ds.ProbabilityFlow(lambda x, t: x, "edm", "eps", shape=(2,))
    many = solve_many(problem, ({"n": n, "solver": "ddim"} for n in (2, 9, 9, 2, 2)), max_batch=2)
    first = next(many)
    assert first.index == 0
    assert 1 in many.active
    for index in (0, 1, 3):
        many.cancel(index)
    rest = {answer.index: answer for answer in many}
    assert {i: a.status for i, a in rest.items()} == {1: "cancelled", 2: "end", 3: "cancelled", 4: "end"}
    assert rest[1].solution is not None
    assert 0 < rest[1].solution.steps < 9
    assert rest[1].message == "after 2 steps"
    assert rest[3].solution is None
    with pytest.raises(SolverError, match="request 1 was cancelled"):
        rest[1].result()
    taken: list[int] = []
    queue = ({"n": 2, "seed": taken.append(i) or i} for i in range(100))  # type: ignore[func-returns-value]
    many = solve_many(problem, queue, max_batch=2)
    next(many)
    many.close()
    assert len(taken) <= 4
    assert many.active == []
    assert all(answer.index < 4 for answer in many)


def test_a_callback_stops_its_own_and_keys_come_back() -> None:
    problem = ds.ProbabilityFlow(lambda x, t: x, "edm", "eps", shape=(2,))
    requests = [Request(key="a", n=5, callback=lambda visit: visit.index == 2), Request(key="b", n=5)]
    found = {answer.request.key: answer for answer in solve_many(problem, requests)}
    assert (found["a"].status, found["a"].result().steps) == ("stopped", 3)
    assert found["b"].status == "end"
    own = ds.ProbabilityFlow(lambda x, t: x, "edm", "eps", shape=(4,))
    [answer] = solve_many(problem, [Request(own, n=2)])
    assert answer.result().x.shape == (1, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch"), ({"rows": 1.5}, "rows"), ({"order": "random"}, "order"),
        ({"problem": 3}, "problem must be"), ({"requests": {"n": 3}}, "requests must be a list"),
    ],
)  # fmt: skip
def test_other_arguments_are_checked_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SolverError, match=message):
        solve_many(**{"problem": MIXTURE, "requests": [], **options})


def test_a_request_that_is_none() -> None:
    refused, fine = solve_many(MIXTURE, [3, {"n": 2}], order="arrival")  # type: ignore[list-item]
    assert refused.status == "refused"
    assert "got int" in refused.message
    assert fine.status == "end"


def test_a_problem_is_taken_as_it_is_and_what_makes_one_is_asked_for_it() -> None:
    """Without options of the problem's: the very problem, whatever it can't be made anew from."""
    made = list[float]()

    def model(guidance: float = 2.0) -> ds.Problem:
        made.append(guidance)
        return MIXTURE

    for shared in (MIXTURE, model):
        for own in (MIXTURE, model, None):
            run = Request(own, solver="euler", n=2).begin(shared)  # type: ignore[arg-type]
            assert run.solution.problem is MIXTURE
    assert made == [2.0] * 3


def test_no_graph_and_no_change_of_a_problem() -> None:
    weight = torch.ones(2, requires_grad=True)
    problem = ds.ProbabilityFlow(lambda x, t: x * weight, "edm", "eps", shape=(2,))
    with warnings.catch_warnings():
        [answer] = solve_many(problem, [{"n": 2, "eta": 0.5, "solver": "euler_ancestral"}])
    assert not answer.result().x.requires_grad
    [unknown] = solve_many(problem, [{"process": None, "guidance": 3}])
    assert isinstance(unknown.error, ProblemError)
    assert "no field 'guidance'" in unknown.message
