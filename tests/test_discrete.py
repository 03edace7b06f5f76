"""Codes: the jump process in closed form against its matrices, its law against the data, and diffusers' scheduler."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import VQDiffusionPipeline, VQDiffusionScheduler
from diffusers.schedulers import scheduling_vq_diffusion as peer
from scipy.stats import chisquare
from stubs import gaussian, slow
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import CodeTable, DiscreteProblem, MaskAndReplace
from diffsolve.solvers.discrete import truncated

CODES = [entry.name for entry in ds.list_solvers() if entry.form is None]
TABLE = torch.tensor([[8.0, 1, 1], [0, 5, 2], [3, 0, 4]], dtype=torch.float64)
RATES = np.linspace(1, 0, 9)[:-1]
PROCESSES = {
    "linear": MaskAndReplace.linear(3, 20),
    "masks only": MaskAndReplace(3, np.append(RATES, 1e-4), np.append(1 - RATES, 1 - 1e-4)),
    "no masks": MaskAndReplace(3, np.append(RATES, 1e-4), np.zeros(9)),
}


def matrix(process: MaskAndReplace, s: int, t: int) -> Tensor:
    """Q[i, j] = q(x_t = j | x_s = i), one step after another."""
    k, total = process.classes, torch.eye(process.classes + 1, dtype=torch.float64)
    for i in range(s, t):
        alpha, beta, gamma = process.between(i, i + 1)
        q = torch.full((k + 1, k + 1), beta, dtype=torch.float64) + alpha * torch.eye(k + 1, dtype=torch.float64)
        q[:, k], q[k] = gamma, 0
        q[k, k] = 1
        total = total @ q
    return total


@pytest.mark.parametrize("name", PROCESSES)
def test_transitions_over_any_interval_are_the_product_of_the_steps(name: str) -> None:
    process = PROCESSES[name]
    for s, t in ((0, 1), (0, process.steps), (2, 5), (3, process.steps)):
        q = matrix(process, s, t)
        assert torch.allclose(q.sum(1), torch.ones(4, dtype=torch.float64), atol=1e-13)
        for x in range(4):
            given = process.likelihood(torch.tensor([[x]]), s, t, torch.float64)[0, :, 0]
            assert torch.allclose(given, q[:3, x], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_posterior_is_bayes_rule(name: str) -> None:
    process = PROCESSES[name]
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for s, t in ((0, 1), (0, 6), (4, 5), (3, process.steps), (0, process.steps)):
        whole, first, second = matrix(process, 0, t), matrix(process, 0, s), matrix(process, s, t)
        for x in range(4):
            if s == 0 and x < 3 and name == "masks only":
                continue  # what is no mask was never anything else: p is ruled out but for x itself
            expected = torch.zeros(4, dtype=torch.float64)
            for x0 in range(3):
                if whole[x0, x] > 0:
                    expected += p[x0] * second[:, x] * first[x0] / whole[x0, x]
            found = process.posterior(torch.tensor([[x]]), p.reshape(1, 3, 1), s, t)[0, :, 0]
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-14), (s, t, x)
            if name == "linear":
                assert float(found.sum()) == pytest.approx(1, abs=1e-9)


def law(problem: CodeTable, times: list[int]) -> Tensor:
    """The distribution of the words that ancestral steps over `times` lead to, over (K + 1)^L states, exactly."""
    k, places = problem.classes, problem.shape[0]
    states = torch.tensor(list(itertools.product(range(k + 1), repeat=places)))
    masked = float(problem.transition.masked[-1])
    single = torch.tensor([(1 - masked) / k] * k + [masked], dtype=torch.float64)
    now = single[states].prod(1)
    field = problem.field(ds.get_solver("vq_diffusion"), states, range(len(states)), 0, None)
    for t, s in itertools.pairwise(times):
        p = field.posterior(states, field(states, t), ds.Span(t, s))
        p = (p / p.sum(1, keepdim=True)).nan_to_num()  # 0/0 where no word can have led to the state
        now = now @ p[:, states, torch.arange(places)].prod(-1)
    clean = (states < k).all(1)
    assert float(now[~clean].sum()) < 1e-12
    return now[clean].reshape(problem.table.shape)


def total_variation(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().sum() / 2)


@pytest.mark.parametrize("times", [[100, 0], [100, 61, 60, 3, 0], list(range(100, -1, -1))], ids=len)
def test_one_place_has_the_datas_law_on_any_grid(times: list[int]) -> None:
    problem = CodeTable([0.1, 0.6, 0.0, 0.3])
    assert total_variation(law(problem, times), problem.table) < 2e-5, "what is left of x_0 at T"


def test_several_places_have_it_to_first_order_in_the_step() -> None:
    problem = CodeTable(TABLE, MaskAndReplace.linear(3, 400))
    errors = {n: total_variation(law(problem, np.linspace(400, 0, n + 1).round().astype(int).tolist()), problem.table)
              for n in (25, 50, 100, 400)}  # fmt: skip
    assert errors[25] / errors[50] == pytest.approx(2, abs=0.15)
    assert errors[50] / errors[100] == pytest.approx(2, abs=0.15)
    assert errors[400] < 2e-3, errors


def test_a_wrong_posterior_is_found_out() -> None:
    class Wrong(MaskAndReplace):
        def posterior(self, x: Tensor, p: Tensor, s: int, t: int) -> Tensor:
            return super().posterior(x, p, max(s - 1, 0), t)

    process = PROCESSES["no masks"]
    errors = []
    for kind in (MaskAndReplace, Wrong):
        problem = CodeTable([0.1, 0.6, 0.0, 0.3], kind(4, process.kept, process.masked))
        errors.append(total_variation(law(problem, list(range(8, -1, -1))), problem.table))
    assert errors[0] < 2e-4, "what is left of x_0 at T"
    assert errors[1] > 0.02, errors


@pytest.mark.parametrize("process", [slow(None), "masks only", "no masks"])
def test_samples_follow_the_law(process: str | None) -> None:
    problem = CodeTable(TABLE, PROCESSES[process] if process else None)
    steps = problem.transition.steps
    count = 6000
    solution = ds.solve(problem, "vq_diffusion", n=steps, batch=count)
    expected = law(problem, list(range(steps, -1, -1))).flatten().numpy()
    found = problem.frequencies(solution.x).flatten().numpy()
    possible = expected > 1e-9
    assert not found[~possible].any()
    counts = (count * found[possible]).round()
    assert chisquare(counts, counts.sum() * expected[possible] / expected[possible].sum()).pvalue > 0.01
    if process is None:
        assert total_variation(problem.frequencies(solution.x), problem.table) < 0.02


def test_the_exact_posterior_of_a_place_is_by_enumeration() -> None:
    problem = CodeTable(TABLE)
    x = torch.tensor([[3, 1], [2, 2], [3, 3]])
    p = problem.network(x, torch.full((3,), 40)).softmax(1)
    whole = matrix(problem.transition, 0, 40)
    for row, (a, b) in enumerate(x.tolist()):
        joint = problem.table * whole[:3, a][:, None] * whole[:3, b][None]
        assert torch.allclose(p[row, :, 0], joint.sum(1) / joint.sum(), rtol=1e-9)
        assert torch.allclose(p[row, :, 1], joint.sum(0) / joint.sum(), rtol=1e-9)


def test_noised_codes_have_the_forward_marginals() -> None:
    problem = CodeTable(TABLE)
    x = torch.zeros(4000, 2, dtype=torch.int64)
    for t in (30, 70):
        shares = problem.noised(x, t).flatten().bincount(minlength=4) / 8000
        assert torch.allclose(shares.double(), matrix(problem.transition, 0, t)[0], atol=0.02)
    end = (problem.prior(8000) == problem.mask).double().mean()
    assert float(end) > 0.999
    uniform = CodeTable(TABLE, PROCESSES["no masks"]).prior(4000).flatten().bincount(minlength=4) / 8000
    assert torch.allclose(uniform, torch.tensor([1, 1, 1, 0]) / 3, atol=0.02)


@pytest.fixture(scope="module")
def scheduler() -> VQDiffusionScheduler:
    """diffusers' scheduler of 100 steps and 6 classes, with its tables in float64."""
    made = VQDiffusionScheduler(num_vec_classes=7)
    at, att = peer.alpha_schedules(100)
    ct, ctt = peer.gamma_schedules(100)
    for name, table in {
        "log_at": at, "log_bt": (1 - at - ct) / 6, "log_ct": ct,
        "log_cumprod_at": att, "log_cumprod_bt": (1 - att - ctt) / 6, "log_cumprod_ct": ctt,
    }.items():  # fmt: skip
        assert torch.allclose(getattr(made, name).double().exp(), torch.from_numpy(table), rtol=1e-4)
        setattr(made, name, torch.from_numpy(table).log())
    return made


def codes(*shape: int) -> Tensor:
    return torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("t", [1, 2, 50, 99])
def test_the_posterior_is_diffusers(scheduler: VQDiffusionScheduler, t: int) -> None:
    x = codes(3, 40)
    p = ds.normals(1, range(3), 9, (6, 40), torch.float64, "cpu").softmax(1)
    theirs = scheduler.q_posterior(p.log(), x, t).exp()
    ours = MaskAndReplace.linear(6).posterior(x, p, t, t + 1)  # their t = 0 is x_1
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("t", [0, 1, 60])
def test_a_step_is_diffusers_with_the_same_noise(scheduler: VQDiffusionScheduler, t: int, monkeypatch: Any) -> None:
    problem = DiscreteProblem(lambda x, t: logits, MaskAndReplace.linear(6), shape=(40,))
    logits = 3 * ds.normals(1, range(3), 9, (6, 40), torch.float64, "cpu")
    x, solver = codes(3, 40), ds.get_solver("vq_diffusion")
    field: Any = problem.field(solver, x, range(3), 0, None)
    span = ds.Span(t + 1, t)
    ours = solver.step(field, x, span, ()).y
    clocks = field.clocks(torch.ones(3, 7, 40, dtype=torch.float64), span)

    def gumbel(logits: Tensor, _: object) -> Tensor:
        return logits - clocks[:, : logits.shape[1]].log()

    monkeypatch.setattr(peer, "gumbel_noised", gumbel)
    theirs = scheduler.step(logits.log_softmax(1), t, x).prev_sample
    if t:
        assert torch.equal(ours, theirs)
    else:  # theirs is drawn from p(x_0) itself, ours from the posterior at s = 0, which is the same and has no mask
        assert (ours == theirs).double().mean() > 0.99


@pytest.mark.parametrize("share", [0.3, 0.86, 0.999])
def test_truncation_is_diffusers(share: float) -> None:
    p = (3 * ds.normals(1, range(2), 9, (6, 40), torch.float64, "cpu")).softmax(1)
    theirs = VQDiffusionPipeline.truncate(None, p.log(), share).clamp(-70).exp()
    assert torch.allclose(truncated(p, share), theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("spec", [*CODES, "vq_diffusion(truncation=0.8)", "vq_diffusion(purity=1.0)"])
def test_a_run(spec: str) -> None:
    problem = CodeTable(TABLE)
    seen: list[Any] = []

    def watch(progress: Any) -> None:
        seen.append((progress.sigma, progress.denoised))

    solution = ds.solve(problem, spec, n=7, batch=40, seed=3, save="all", callback=watch)
    assert (solution.nfe, solution.steps, solution.n, solution.reason, solution.solver) == (7, 7, 7, "end", spec)
    assert solution.sigmas.tolist() == [100, 86, 71, 57, 43, 29, 14, 0]
    assert [time for time, _ in seen] == solution.sigmas.tolist()[1:]
    assert all(((x >= 0) & (x < 3)).all() for _, x in seen)
    assert solution.x.dtype == torch.int64
    assert int(solution.x.max()) < problem.mask
    assert {x.dtype for x in solution.trajectory} == {torch.int64}
    masks = [int((x == problem.mask).sum()) for x in solution.trajectory]
    assert masks == sorted(masks, reverse=True)
    assert torch.equal(solution.x, ds.solve(problem, spec, n=7, batch=40, seed=3).x)
    assert torch.equal(solution.x[[7, 2]], ds.solve(problem, spec, n=7, batch=[7, 2], seed=3).x)
    assert torch.equal(solution.x, ds.solve(problem, spec, n=7, x=problem.prior(40, seed=3), seed=3).x)
    assert not torch.equal(solution.x, ds.solve(problem, spec, n=7, batch=40, seed=4).x)


def test_any_falling_timesteps_are_a_grid() -> None:
    problem = CodeTable(TABLE)
    solution = ds.solve(problem, "vq_diffusion", [100, 37, 5, 0], batch=3)
    assert (solution.nfe, solution.schedule) == (3, "explicit")
    part = ds.solve(problem, "vq_diffusion", [100, 37], batch=3)
    rest = ds.solve(problem, "vq_diffusion", [37, 5, 0], x=part.x)
    assert torch.equal(rest.x, solution.x)
    assert ds.solve(problem, "vq_diffusion", nfe=12).nfe == 12
    assert ds.solve(problem, "vq_diffusion", nfe=150).nfe == 100


def test_truncation_keeps_the_likeliest() -> None:
    problem = CodeTable([0.5, 0.3, 0.15, 0.05])
    x = ds.solve(problem, "vq_diffusion(truncation=0.7)", n=50, batch=400).x
    assert set(x.flatten().tolist()) == {0, 1}
    only = PROCESSES["masks only"]
    shown = CodeTable([0.5, 0.3, 0.2], only)
    x = torch.tensor([[2], [1], [0]])
    kept = ds.solve(shown, "vq_diffusion(truncation=0.4)", [4, 2, 0], x=x).x
    assert torch.equal(kept, x), "what was never masked can't have been anything else"


def test_purity_unmasks_the_sure_places_first_and_as_many_as_the_process() -> None:
    sure = torch.full((3, 3, 3, 3), 1e-6, dtype=torch.float64)
    sure[0] = 1  # the first place is all but known, the others are even
    problem = CodeTable(sure)
    states = ds.solve(problem, "vq_diffusion(purity=0)", n=100, batch=500, save="all").trajectory
    for t, x in zip(range(99, -1, -1), states[1:], strict=True):
        left = (x == problem.mask).sum(1)
        assert bool((left == math.floor(4 * problem.transition.masked[t])).all()), t
    for before, after in itertools.pairwise(states):
        stays = before != problem.mask
        assert torch.equal(before[stays], after[stays])
    first = (states[1][:, 0] != problem.mask).double().mean()
    assert float(first) == pytest.approx(1 / 2, abs=0.07), "1 against three times 1/3"
    x = ds.solve(CodeTable([0.5, 0.3, 0.2]), "vq_diffusion(purity=8.0)", n=10, batch=500).x
    share = torch.tensor([0.5, 0.3, 0.2]) ** (1 + 8 * 0.5)
    assert float((x == 0).double().mean()) == pytest.approx(float(share[0] / share.sum()), abs=0.05)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"solver": "heun"}, ds.SolverError, "heun.* solves a diffusion of numbers, and CodeTable is one of codes"),
        ({"form": "noise"}, ds.SolverError, "form = 'noise' was given, but <vq_diffusion.* is no method of a flow"),
        ({"eta": 1.0}, ds.SolverError, "a jump process has none; leave eta out"),
        ({"n": 101}, ds.GridError, "n is 101, but the process has 100 timesteps"),
        ({"schedule": "karras"}, ds.GridError, "codes take schedule='uniform' or falling timesteps"),
        ({"schedule": [100, 50.5, 0]}, ds.GridError, "timesteps are whole numbers that fall from at most 100"),
        ({"schedule": [0, 50, 100]}, ds.GridError, "timesteps are whole numbers that fall"),
        ({"schedule": [120, 0]}, ds.GridError, "at most 100"),
        ({"schedule": [60, 0]}, ds.GridError, "start at 60, the prior is at 100; pass x"),
        ({"sigma_min": 0.1}, ds.GridError, "codes have timesteps and no sigma"),
        ({"x": torch.zeros(2, 2)}, ds.ProblemError, "codes are an int64 tensor, got dtype torch.float32"),
        ({"x": [[0, 0]]}, ds.ProblemError, "codes are an int64 tensor, got a list"),
        ({"x": torch.full((2, 2), 4)}, ds.ProblemError, "codes are 0 to 2, and 3 the mask; got 4"),
        ({"x": torch.full((2, 2), -1)}, ds.ProblemError, "got -1"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, ds.ProblemError, r"shape \(2, 3\), expected \(B, 2\)"),
        ({"dtype": torch.float64}, ds.ProblemError, "dtype is torch.float64, but codes are int64"),
        ({"execution": "tape"}, ds.SolverError, "not traceable"),
        ({"rtol": 1e-2}, ds.SolverError, "jumps between codes, which has no error; leave rtol, atol"),
        ({"solver": "vq_diffusion(truncation=1.5)"}, ds.SolverError, "must be a number from 0 to 1, got 1.5"),
        ({"solver": "vq_diffusion(truncation=0)"}, ds.SolverError, "truncation must be a finite number above 0, got 0"),
        ({"solver": "vq_diffusion(purity=-1)"}, ds.SolverError, "purity, .* must be a number from 0 to 1000, got -1"),
        ({"solver": "vq_diffusion(form=sigma)"}, ds.SolverError, "unknown form 'sigma' for vq_diffusion"),
    ],
)
def test_misuse(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ds.solve(CodeTable(TABLE), **{"solver": "vq_diffusion", **options})


def test_a_solver_of_codes_solves_codes_only() -> None:
    with pytest.raises(ds.SolverError, match=r"vq_diffusion.* is no method of a flow; take one such as"):
        ds.solve(gaussian(), "vq_diffusion")
    with pytest.raises(ds.SolverError, match="an ODE has none"):
        ds.solve(ds.ODEProblem(lambda t, x: x, (0.0, 1.0), [1.0]), "vq_diffusion")
    with pytest.raises(ds.SolverError, match="unknown form 'codes' for heun"):
        ds.get_solver("heun(form=codes)")
    assert [entry.name for entry in ds.list_solvers("discrete")] == CODES == ["vq_diffusion"]


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (lambda x, t: x, ds.ProblemError, r"network at t = 9 returned \(\(1, 4\), torch.int64\), expected floats"),
        (lambda x, t: torch.zeros(1, 3, 4), ds.ProblemError, r"expected floats of shape \(1, 2, 4\)"),
        (lambda x, t: None, ds.ProblemError, "returned NoneType"),
        (lambda x, t: torch.full((1, 2, 4), torch.nan), ds.NonFiniteError, "make probabilities that are NaN"),
    ],
)
def test_what_a_network_may_not_return(network: Any, error: type[Exception], message: str) -> None:
    problem = DiscreteProblem(network, MaskAndReplace.linear(2, 9), shape=(4,))
    with pytest.raises(error, match=message):
        ds.solve(problem, "vq_diffusion", n=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskAndReplace(2, [1, 0.5, 0.6], [0, 0.1, 0.2]), "at t = 2 they are 0.6 and 0.2"),
        (lambda: MaskAndReplace(2, [1, 0.5], [0, 0.6]), "their sum stay within 1; at t = 1"),
        (lambda: MaskAndReplace(2, [0.9, 0.5], [0, 0.1]), "start at 1 and 0, got 0.9 and 0"),
        (lambda: MaskAndReplace(2, [1, 0.5], [0, 0.1, 0.2]), r"got shapes \(2,\) and \(3,\)"),
        (lambda: MaskAndReplace.linear(0), "number of classes must be a whole number of at least 1"),
        (lambda: CodeTable([[1, 2, 3], [1, 2, 3]]), r"table has shape \(2, 3\), expected \(K,\) \* L"),
        (lambda: CodeTable([1, -1]), "table must hold finite numbers of at least 0"),
        (lambda: CodeTable([1, 1], MaskAndReplace.linear(3)), "the transition has 3 classes, the table 2"),
        (lambda: DiscreteProblem(3, MaskAndReplace.linear(3), shape=(2,)), "network must be a function"),
        (lambda: DiscreteProblem(print, 0.5, shape=(2,)), "transition must be a MaskAndReplace, got float"),
        (lambda: DiscreteProblem(print, MaskAndReplace.linear(3), shape=2), "shape is one sample's shape"),
    ],
)
def test_what_is_no_problem_of_codes(make: Any, message: str) -> None:
    with pytest.raises(ds.ProblemError, match=message):
        make()


def test_purity_needs_masks() -> None:
    with pytest.raises(ds.SolverError, match="this process masks nothing; leave purity out"):
        ds.solve(CodeTable(TABLE, PROCESSES["no masks"]), "vq_diffusion(purity=1.0)", n=3)
    with pytest.raises(ds.ProblemError, match="codes are 0 to 2, and nothing is masked; got 3"):
        ds.solve(CodeTable(TABLE, PROCESSES["no masks"]), "vq_diffusion", n=3, x=torch.full((1, 2), 3))


def test_a_table_has_no_pictures() -> None:
    with pytest.raises(ds.ProblemError, match="CodeTable has no pictures"):
        ds.solve(CodeTable(TABLE), "vq_diffusion", n=2).images()
