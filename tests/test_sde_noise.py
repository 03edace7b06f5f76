"""Noise of an SDE: diagonal, scalar and general, forwards and backwards in time, and what can't be told or solved."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from stubs import STOCHASTIC, gap, slow
from torch import Tensor

import diffsolve as ds
from diffsolve.validation import validate_strong

F64 = torch.float64
WAYS = [(0.0, 1.0), (1.0, 0.0)]
ROWS = 300
TURN = torch.tensor([[0.4, 0.5], [-0.5, 0.4]], dtype=F64)  # commutes with the drift's, as complex numbers do
DECAY = torch.tensor([[-0.5, 0.3], [-0.3, -0.5]], dtype=F64)
MIX = torch.tensor([[0.3, 0.2, -0.1], [0.1, -0.4, 0.2]], dtype=F64)


def start(rows: int = ROWS) -> Tensor:
    return torch.tensor([1.0, 0.5], dtype=F64).repeat(rows, 1)


def diagonal(span: tuple[float, float]) -> ds.SDEProblem:
    def exact(x: Tensor, t: float, s: float, w: Tensor) -> Tensor:
        return x * torch.exp(0.5 * (s - t) - 0.18 * abs(s - t) + 0.6 * w)

    return ds.SDEProblem(lambda t, x: 0.5 * x, lambda t, x: 0.6 * x, span, start(), exact, noise="diagonal")


def scalar(span: tuple[float, float]) -> ds.SDEProblem:
    """dx = A x dt + C x dW, A C = C A, one W a row: every g_i reads both components."""

    def exact(x: Tensor, t: float, s: float, w: Tensor) -> Tensor:
        exponent = DECAY * (s - t) - 0.5 * TURN @ TURN * abs(s - t) + TURN * w[..., None]
        return (torch.matrix_exp(exponent) @ x[..., None])[..., 0]

    return ds.SDEProblem(lambda t, x: x @ DECAY.T, lambda t, x: x @ TURN.T, span, start(), exact, noise="scalar")


def general(span: tuple[float, float]) -> ds.SDEProblem:
    """dx_i = x_i/2 dt + x_i sum_j c_ij dW_j, three W a row."""

    def exact(x: Tensor, t: float, s: float, w: Tensor) -> Tensor:
        return x * torch.exp(0.5 * (s - t) - 0.5 * MIX.square().sum(1) * abs(s - t) + w @ MIX.T)

    return ds.SDEProblem(lambda t, x: 0.5 * x, lambda t, x: x[..., None] * MIX, span, start(), exact, noise="general")


def ornstein(span: tuple[float, float], rows: int = ROWS) -> ds.SDEProblem:
    """dx = -x dt + 0.5 dW."""
    return ds.SDEProblem(lambda t, x: -x, lambda t: -0.5, span, torch.ones(rows, 1, dtype=F64))


@cache
def ornstein_end(span: tuple[float, float], n: int = 512) -> Tensor:
    """Its end, from the path of a solve: x(1) = e^-T (x(0) + int e^{tau} g dW), T and tau being signed times."""
    problem, (t0, t1), rows = ornstein(span), span, ROWS
    field = problem.field(ds.get_solver("sra1"), problem.x0, range(rows), 0, None)
    total = torch.zeros(rows, 1, dtype=F64)
    for i in range(n):
        a, b = t0 + (t1 - t0) * i / n, t0 + (t1 - t0) * (i + 1) / n
        h = abs(b - a)
        z, z2 = field.normal(ds.Span(a, b), ds.Noise.WIENER), field.normal(ds.Span(a, b), ds.Noise.LEVY_AREA)
        dw, area = math.sqrt(h) * z, h**1.5 * (z / 2 + z2 / math.sqrt(12))
        sign = 1.0 if b > a else -1.0
        weight = math.exp(sign * i * h)  # int e^{tau} dW over the step: by parts, to O(h^2)
        total = total + weight * (math.exp(sign * h) * dw - sign * area * math.exp(sign * h / 2))
    return math.exp(-(t1 - t0)) * (problem.x0 - 0.5 * total)


# -- strong orders, both ways in time


@pytest.mark.parametrize("span", WAYS, ids=["forwards", "backwards"])
@pytest.mark.parametrize(
    ("make", "solver", "order"),
    [
        (diagonal, "euler_maruyama", 0.5), (diagonal, "milstein", 1.0), (scalar, "euler_maruyama", 0.5),
        (scalar, "milstein", 1.0), (general, "euler_maruyama", 0.5),
    ],
)  # fmt: skip
def test_the_strong_order_against_the_exact_solution(make: Any, solver: str, order: float, span: Any) -> None:
    report = validate_strong(solver, make(span), claimed=order, ns=(8, 16, 32, 64))
    assert report.passed, str(report)
    assert report.measured < order + 0.25, str(report)


def takes(solver: str) -> bool:
    """Whether a row solves the user's own SDE with additive noise of one level."""
    try:
        ds.solve(ornstein((0.0, 1.0), 1), solver, n=3)
    except ds.DiffsolveError:
        return False
    return True


ABLE = [name for name in STOCHASTIC if takes(name)]


def test_which_rows_take_an_sde_of_ones_own() -> None:
    assert {"euler_maruyama", "milstein", "sra1", "sra3", "seeds_2", "euler_ancestral"} <= set(ABLE)


@pytest.mark.parametrize("span", WAYS, ids=["forwards", "backwards"])
@pytest.mark.parametrize("solver", [n if n in ("euler_maruyama", "sra1", "seeds_2") else slow(n) for n in ABLE])
def test_every_row_follows_the_exact_path(solver: str, span: Any) -> None:
    problem = ornstein(span)
    end = ornstein_end(span)
    coarse, fine = (float((ds.solve(problem, solver, n=n).x - end).square().mean().sqrt()) for n in (8, 64))
    assert coarse < 0.2
    assert fine < coarse / 5, "strong order 1 at least, on the path of this W and no other"


def test_the_sign_of_the_noise_is_that_of_its_path() -> None:
    ends = [ds.solve(ornstein((0.0, 1.0), 3), solver, n=128).x for solver in ("seeds_1", "sra1", "euler_ancestral")]
    assert max(gap(end, ends[1]) for end in ends) < 0.04


@pytest.mark.parametrize("span", WAYS, ids=["forwards", "backwards"])
@pytest.mark.parametrize("solver", ["euler_maruyama", "milstein", "sra1", "sra3"])
def test_additive_general_noise_is_the_diagonal_one_of_each_motion(solver: str, span: Any) -> None:
    """Of three motions, each a number times a column: the sum of three solves of a linear equation."""
    problem = ds.SDEProblem(lambda t, x: -x, lambda t: math.cos(t) * MIX, span, start(4), noise="general")
    found = ds.solve(problem, solver, n=12).x
    field = problem.field(ds.get_solver(solver), problem.x0, range(4), 0, None)
    assert field.normal(ds.Span(*span), ds.Noise.WIENER).shape == (4, 3)
    each = lambda t: (math.cos(t) * MIX).expand(4, 2, 3)  # noqa: E731
    full = ds.SDEProblem(lambda t, x: -x, each, span, start(4), noise="general")
    assert torch.equal(ds.solve(full, solver, n=12).x, found)
    fine = [ds.solve(problem, "sra3", n=n).x for n in (48, 96)]
    assert gap(found, fine[1]) < (2e-3 if solver.startswith("sra") else 0.08)
    assert gap(*fine) < 3e-4


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)], ids=str)
def test_states_of_any_shape(shape: tuple[int, ...]) -> None:
    x0 = torch.ones(5, *shape, dtype=F64)
    gs: list[Any] = [lambda t, x: 0.3 * x, lambda t, x: 0.3 * x[..., None]]
    one, behind = (ds.solve(ds.SDEProblem(lambda t, x: -x, g, (0, 1), x0, noise="scalar"), n=9).x for g in gs)
    assert torch.equal(one, behind), "torchsde's (B, d, 1) too"
    assert one.shape == x0.shape
    each = one.reshape(5, -1)
    assert float((each - each[:, :1]).abs().max()) == 0, "one motion moves all components alike"
    assert float(each[:, 0].var()) > 1e-3
    alone = ds.SDEProblem(lambda t, x: -x, lambda t, x: 0.3 * x[..., None], (0, 1), x0, noise="general")
    same = ds.SDEProblem(lambda t, x: -x, lambda t, x: 0.3 * x, (0, 1), x0, noise="scalar")
    assert gap(*(ds.solve(problem, "euler_maruyama", n=9).x.reshape(5, -1) for problem in (alone, same))) < 1e-12
    part = ds.solve(alone, n=9, x=x0[2:4], batch=[2, 3]).x
    assert torch.equal(part, ds.solve(alone, n=9).x[2:4])


def test_general_noise_has_a_gradient() -> None:
    def end(p: Tensor, gradient: Any = None) -> Tensor:
        g = lambda t, x: p[1] * x[..., None] * MIX  # noqa: E731
        problem = ds.SDEProblem(lambda t, x: -p[0] * x, g, (0, 1), start(3), noise="general")
        return ds.solve(problem, n=5, gradient=gradient).x.sum()

    at, along = torch.tensor([0.7, 0.9], dtype=F64), torch.tensor([1.0, -0.5], dtype=F64)
    for gradient in (None, "checkpoint"):
        p = at.clone().requires_grad_()
        (found,) = torch.autograd.grad(end(p, gradient), p)
        slope = (end(at + 1e-5 * along) - end(at - 1e-5 * along)) / 2e-5
        assert float((found * along).sum()) == pytest.approx(float(slope), rel=1e-7)


# -- what can't be told


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("solver", ["euler_maruyama", "milstein"])
def test_a_square_g_says_what_it_is(solver: str, rows: int) -> None:
    x0 = torch.ones(rows, rows, dtype=F64)
    matrix = 0.3 * torch.eye(rows, dtype=F64) + 0.1
    asks = r"a level for each .* or a matrix .* noise='diagonal', or noise='general'"
    for g in (lambda t, x: matrix, lambda t: matrix, lambda t, x: matrix * x, lambda t, x: x.T @ x):
        problem = ds.SDEProblem(lambda t, x: -x, g, (0.0, 1.0), x0)
        with pytest.raises(ds.ProblemError, match=asks):
            ds.solve(problem, solver, n=3)
    plain = ds.SDEProblem(lambda t, x: -x, lambda t, x: matrix, (0.0, 1.0), x0, noise="diagonal")
    assert ds.solve(plain, solver, n=3).x.isfinite().all()
    each = lambda t, x: matrix.expand(rows, rows, rows)  # noqa: E731
    whole = ds.SDEProblem(lambda t, x: -x, each, (0.0, 1.0), x0, noise="general")
    assert ds.solve(whole, "euler_maruyama", n=3).x.isfinite().all()


@pytest.mark.parametrize(
    "g", [lambda t, x: 0.3 * x, lambda t, x: torch.ones_like(x), lambda t: 0.3, lambda t: torch.ones(3)]
)
def test_a_square_state_alone_is_no_question(g: Any) -> None:
    """Of one row a g that is by row returns one row; and a number or a level for each component is no matrix."""
    x0 = torch.ones(3, 3, dtype=F64)
    problem = ds.SDEProblem(lambda t, x: -x, g, (0.0, 1.0), x0)
    wider = ds.SDEProblem(lambda t, x: -x, g, (0.0, 1.0), torch.ones(4, 3, dtype=F64))
    assert torch.equal(ds.solve(problem, "milstein", n=4).x, ds.solve(wider, "milstein", n=4).x[:3])


def roll(x: Tensor) -> Tensor:
    return (x.roll(1, -1) + x.roll(-1, -1)) / 2


READERS: dict[str, Any] = {
    "the other one": (lambda t, x: x.flip(-1), {}),
    "both neighbours alike": (lambda t, x: roll(x), {}),
    "a little": (lambda t, x: x + 1e-2 * x.flip(-1), {}),
    "the norm": (lambda t, x: x * x.norm(dim=-1, keepdim=True), {}),
    "the sum": (lambda t, x: x.sum(-1, keepdim=True).expand_as(x), {}),
    "other rows": (lambda t, x: x.mean(0, keepdim=True).expand_as(x), {}),
    "other rows, scalar": (lambda t, x: x.mean(0, keepdim=True).expand_as(x), {"noise": "scalar"}),
    "a product": (lambda t, x: x * x.flip(-1), {}),
    "later": (lambda t, x: torch.cat([x[:, :1] * (x[:, 1:] - 1) ** 2, torch.ones_like(x[:, 1:])], 1), {}),
}


@pytest.mark.parametrize("case", READERS)
def test_milstein_refuses_a_g_that_reads_others(case: str) -> None:
    g, options = READERS[case]
    x0 = torch.ones(5, 4 if case.startswith("both") else 2, dtype=F64)
    problem = ds.SDEProblem(lambda t, x: 1 - x, g, (0.0, 1.0), x0, **options)
    with pytest.raises(ds.SolverError, match=r"^step [12] .*Milstein's correction is for .* take 'euler_maruyama'"):
        ds.solve(problem, "milstein", n=4)
    assert ds.solve(problem, "euler_maruyama", n=4).x.isfinite().all()


@pytest.mark.parametrize(
    "g",
    [
        lambda t, x: 0.3 * x.detach(), lambda t, x: torch.from_numpy(0.3 * x.numpy()),
        lambda t, x: torch.tensor([[0.3 * float(v) for v in row] for row in x], dtype=F64),
    ],
)  # fmt: skip
def test_milstein_refuses_a_g_whose_derivative_is_lost(g: Any) -> None:
    problem = ds.SDEProblem(lambda t, x: -x, g, (0.0, 1.0), torch.ones(5, 2, dtype=F64))
    with pytest.raises(ds.SolverError, match=r"the derivative of g is needed.* 'euler_maruyama'"):
        ds.solve(problem, "milstein", n=4)
    assert ds.solve(problem, "euler_maruyama", n=4).x.isfinite().all()


@pytest.mark.parametrize(
    "g", [lambda t, x: x.square(), lambda t, x: x * 0 + 1, lambda t, x: x.abs(), lambda t, x: x * 0]
)
@pytest.mark.parametrize("at", [0.0, 1.0, -1.0])
def test_milstein_takes_what_is_diagonal(g: Any, at: float) -> None:
    for dtype in (torch.float32, F64):
        problem = ds.SDEProblem(lambda t, x: 1 - x, g, (0.0, 1.0), torch.full((5, 3), at, dtype=dtype))
        assert ds.solve(problem, "milstein", n=4).x.isfinite().all()


X = torch.ones(3, 2, dtype=F64)
PROBLEM, SOLVER = ds.ProblemError, ds.SolverError


def solves(g: Any, solver: str = "euler_maruyama", noise: Any = None, **options: Any) -> Any:
    x0 = options.pop("x0", X)
    return lambda: ds.solve(ds.SDEProblem(lambda t, x: -x, g, (0.0, 1.0), x0, noise=noise), solver, n=3, **options)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (solves(lambda t, x: x, noise="additive"), PROBLEM, r"additive noise is told by g\(t\).* got 'additive'"),
        (solves(lambda t, x: x, noise="gen"), PROBLEM, "must be one of 'diagonal', 'scalar', 'general', got 'gen'"),
        (solves(lambda t, x: torch.ones(3, 2, 4)), PROBLEM, r"\(3, 2, 4\), expected \(3, 2\); .*noise='general'"),
        (solves(lambda t, x: torch.eye(2)), PROBLEM, r"\(2, 2\), expected \(3, 2\); .* of shape \(3, 2, m\)"),
        (solves(lambda t: torch.ones(3, 2, 4)), PROBLEM, r"\(3, 2, 4\), expected a number, .*noise='general'"),
        (solves(lambda t: torch.ones(1, 3, 2)), PROBLEM, r"\(1, 3, 2\), expected a number"),
        (solves(lambda t, x: torch.eye(2), noise="general"), PROBLEM, r"\(2, 2\); general noise takes \(3, 2, m\)"),
        (solves(lambda t: 0.5, noise="general"), PROBLEM, r"float; general .* \(3, 2, m\) or \(2, m\), m being"),
        (solves(lambda t, x: x[..., None].float(), noise="general"), PROBLEM, r"dtype torch\.float32, expected"),
        (solves(lambda t, x: x.mul_(2)), PROBLEM, "g at t = 0 changes the state it is given in place"),
        (solves(lambda t, x: x[..., None], "milstein", "general"), SOLVER, "general noise is neither; take 'euler_m"),
        (solves(lambda t, x: x[..., None], "sra1", "general"), SOLVER, r"sra1.? is for additive noise, g\(t\)"),
        (solves(lambda t, x: x[..., None], "seeds_2", "general"), SOLVER, "additive noise of one level"),
        (solves(lambda t: MIX, "seeds_2", "general"), SOLVER, "additive noise of one level"),
        (solves(lambda t: 0.5, x0=torch.ones(0, 2)), PROBLEM, r"shape \(0, 2\), and noise takes one row at least"),
        (solves(lambda t: torch.tensor(0.5, requires_grad=True), "seeds_2"), SOLVER, "without its gradient; take"),
        (solves(lambda t, x: x, "milstein", "general", eta=1.0), SOLVER, "its own g; leave eta out"),
    ],
)  # fmt: skip
def test_what_is_refused(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_the_default_takes_the_noise_that_is_there() -> None:
    gs: list[Any] = [lambda t, x: x[..., None], lambda t: MIX]
    found = [ds.solve(ds.SDEProblem(lambda t, x: -x, g, (0, 1), X, noise="general")).solver for g in gs]
    assert found == ["euler_maruyama", "milstein"]
