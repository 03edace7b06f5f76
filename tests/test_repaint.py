"""RePaint: what is known is kept, what is painted goes with it, and the schedule and the step are the authors'."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import RePaintScheduler
from diffusers.schedulers import scheduling_repaint
from scipy.stats import cramervonmises, norm
from stubs import STOCHASTIC, gap, gaussian, mixture, numbers, slow

import diffsolve as ds
from diffsolve import problems
from diffsolve.problems import GaussianMixture, Inpaint, StableDiffusion
from diffsolve.program import State, fixed_step_loop, spans_of
from diffsolve.solvers import RePaint
from diffsolve.solvers.schedules import Linspace

MASK = torch.tensor([True, False, True])


def half_known(process: str = "sd") -> ds.ProbabilityFlow:
    return Inpaint(mixture((3,), process), numbers(3), MASK)


def known(problem: ds.ProbabilityFlow) -> Any:
    """What is known of the problem, (1, *shape)."""
    constraint: Any = problem.constraint
    return constraint.known


@pytest.mark.parametrize("execution", ["eager", "tape"])
@pytest.mark.parametrize("solver", ["euler", "heun", "dpm2", "dpmpp_2m", "lms(form=v)", "euler_ancestral", "repaint"])
def test_what_is_known_is_kept_to_the_bit(solver: str, execution: Any) -> None:
    problem = half_known()
    solution = ds.solve(problem, solver, n=12, batch=4, save="all", execution=execution)
    assert (solution.x[:, MASK] == known(problem)[:, MASK]).all()
    assert gap(solution.x[:1, 1], solution.x[1:2, 1]) > 1e-3
    for sigma, state in zip(solution.sigmas[1:], solution.trajectory[1:], strict=False):
        if solver == "repaint":
            break
        z = (state[:, MASK] - known(problem)[:, MASK]) / max(sigma, 1e-9)
        assert z.abs().max() < 5


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
@pytest.mark.parametrize("form", ["noise", "data", "time", "flow", "sde_noise"])
def test_the_known_part_has_the_level_reached_in_every_form(form: str, process: str) -> None:
    problem = Inpaint(gaussian((500,), process), numbers(500), torch.ones(500))
    name = "euler_ancestral" if ds.FORMS[form].stochastic else "ddim"
    solution = ds.solve(problem, f"{name}(form={form})", n=5, final="none", save="all")
    for sigma, state in zip(solution.sigmas[1:], solution.trajectory[1:], strict=True):
        assert float((state - known(problem)).std()) == pytest.approx(sigma, rel=0.15)


def test_a_plain_problem_takes_no_detour() -> None:
    plain, painted = (ds.solve(mixture(), s, n=25, batch=2) for s in ("ddpm", "repaint"))
    assert torch.equal(plain.x, painted.x)
    assert ds.solve(half_known(), "repaint", n=25, eta=0.0).nfe == 25


def levels(planned: list[ds.Span | ds.Renoise], count: int) -> list[int]:
    """The timesteps of the nodes that are reached, the first one included; a way up counts as each of its steps."""
    place = {step.start: count - 1 - step.index for step in planned if isinstance(step, ds.Span)}
    seen = [count - 1]
    for step in planned:
        if isinstance(step, ds.Renoise):
            seen += range(seen[-1] + 1, place[step.span.end] + 1)
        else:
            seen.append(place.get(step.end, -1))
    return seen


def planned(n: int, length: int, times: int) -> list[ds.Span | ds.Renoise]:
    problem, solver = half_known(), ds.get_solver(f"repaint(jump_length={length}, jump_n_sample={times})")
    field = problem.field(solver, torch.zeros(1), (0,), 0, None)
    grid = ds.make_grid(Linspace(), n, problem.process)
    return list(solver.plan(spans_of(grid, field.form), field))


@pytest.mark.parametrize(
    ("n", "length", "times"), [(50, 10, 10), (25, 5, 3), (23, 4, 2), (7, 1, 3), (10, 10, 10), (11, 10, 4), (1, 1, 1)]
)
def test_the_schedule_is_the_authors(n: int, length: int, times: int) -> None:
    scheduler = RePaintScheduler(num_train_timesteps=n)
    scheduler.set_timesteps(n, jump_length=length, jump_n_sample=times)
    steps = planned(n, length, times)
    assert levels(steps, n) == [*scheduler.timesteps.tolist(), -1]
    spans = [step.span if isinstance(step, ds.Renoise) else step for step in steps]
    keys = [(span.start, span.end, span.visit) for span in spans]
    assert len(set(keys)) == len(keys), "no noise is used twice"
    jumps = len(range(0, n - length, length)) * (times - 1)
    solution = ds.solve(half_known(), f"repaint(jump_length={length}, jump_n_sample={times})", "linspace", n=n)
    assert solution.nfe == n + jumps * length
    assert solution.steps == len(spans) == n + jumps * (length + 1)
    assert solution.x.isfinite().all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_steps(n: int) -> None:
    for solver in ("repaint", "repaint(jump_length=1)", "repaint(jump_length=2, solver=dpm2)"):
        assert ds.solve(half_known(), solver, n=n).x.isfinite().all()


TEN_STEPS = ds.VP("linear", 0.01, 0.3, 10)
BARS = 1 / (1 + TEN_STEPS.table**2)
BETAS = 1 - BARS / np.concatenate(([1.0], BARS[:-1]))  # in float64: those that the process's table stands for


def test_a_step_and_a_way_up_are_the_schedulers(monkeypatch: Any) -> None:
    scheduler = RePaintScheduler(num_train_timesteps=10, trained_betas=BETAS, eta=1.0, clip_sample=False)
    scheduler.set_timesteps(10, jump_length=2, jump_n_sample=2)
    inner = gaussian((6,), TEN_STEPS)
    mask = torch.tensor([1.0, 0, 1, 0, 1, 0], dtype=torch.float64)
    problem = Inpaint(inner, numbers(6, stream=-9), mask)
    solver = ds.get_solver("repaint(jump_length=2, jump_n_sample=2)")
    grid = ds.make_grid(ds.Timesteps([float(t) for t in range(9, -1, -1)]), 10, problem.process)
    y = problem.prior(2)
    field: Any = problem.field(solver, y, (0, 1), 0, None)
    program = ds.plan(solver, grid, field)
    alpha = [problem.process.alpha(s) for s in grid.nodes]
    states = [y, *(state.u for state in fixed_step_loop(solver, field, program, State(program.start, y)))]
    compared = {True: 0, False: 0}
    for (op, *_), before, after in zip(program, states, states[1:], strict=False):
        span, up = op.span, isinstance(op, ds.Renoise)
        i = grid.nodes.tolist().index(min(grid.nodes, key=lambda s: abs(s - field.form.sigma(span.start))))
        x = before * alpha[i]
        if span.last:
            continue
        z = field.normal(span, ds.Noise.RENOISE if up else ds.Noise.INCREMENT)
        if up:
            for t in (9 - i + 1, 9 - i + 2):  # the law of the scheduler's two draws, which are added here as one
                x = x * math.sqrt(1 - BETAS[t])
            variance = 1 - (alpha[i - 2] / alpha[i]) ** 2
            expected, j = x + math.sqrt(variance) * z, i - 2
        else:
            j, outs = i + 1, []
            eps = (before - inner.denoise(before, float(grid.nodes[i]))) / float(grid.nodes[i])
            own = problem.constraint.project(y, op.node, span, 0, (0, 1))
            for noise in (z, (own - known(problem)) / float(grid.nodes[j])):
                monkeypatch.setattr(scheduling_repaint, "randn_tensor", lambda *_, noise=noise, **__: noise)
                outs.append(scheduler.step(eps, 9 - i, x, known(problem), mask).prev_sample)
            expected = torch.where(mask == 1, outs[1], outs[0])
        assert gap(after * alpha[j], expected) < 1e-9
        compared[up] += 1
    assert compared[True] == 4
    assert compared[False] > 15


def test_one_beta_up_is_the_schedulers_undo_step(monkeypatch: Any) -> None:
    scheduler = RePaintScheduler(num_train_timesteps=10, trained_betas=BETAS)
    scheduler.set_timesteps(10)
    problem = gaussian((4,), TEN_STEPS)
    field: Any = problem.field(ds.get_solver("ddpm"), problem.prior(1), (0,), 0, None)
    low, high = (problem.process.sigma(t) for t in (3.0, 4.0))
    y, z = numbers(1, 4), numbers(1, 4, stream=-8)
    monkeypatch.setattr(scheduling_repaint, "randn_tensor", lambda *_, **__: z)
    up = scheduler.undo_step(y * problem.process.alpha(low), 4)
    ours = y + field.form.renoise_std(field.form.variable(low), field.form.variable(high)) * z
    assert gap(ours * problem.process.alpha(high), up) < 1e-9


@pytest.fixture(scope="module")
def correlated() -> tuple[GaussianMixture, float, float]:
    """x2 = x1 + noise of 0.3 in effect: many components along the diagonal, and the conditional mean and std at x1."""
    line = torch.linspace(-3, 3, 61, dtype=torch.float64)
    means, weights = torch.stack((line, line), 1), torch.exp(-line * line / 2)
    given, std = 1.2, 0.2
    share = weights * torch.exp(-((given - line) ** 2) / (2 * std**2))
    share /= share.sum()
    mean = float((share * line).sum())
    variance = float((share * (line - mean) ** 2).sum()) + std**2
    return GaussianMixture(means, [std] * 61, weights), mean, math.sqrt(variance)


def distance(x: np.ndarray, mean: float, std: float) -> float:
    """The Cramér-von Mises statistic of a sample against a normal distribution."""
    return float(cramervonmises(x, norm(mean, std).cdf).statistic)


@pytest.mark.parametrize("seed", [0, slow(1)])
def test_the_painted_part_follows_the_conditional_law_better_with_resampling(
    correlated: tuple[GaussianMixture, float, float], seed: int
) -> None:
    mixed, mean, std = correlated
    problem = Inpaint(mixed, torch.tensor([1.2, 0.0], dtype=torch.float64), torch.tensor([1, 0]))
    runs = {}
    for times in (1, 10):
        solver = f"repaint(jump_length=2, jump_n_sample={times})"
        x = ds.solve(problem, solver, "karras", n=20, batch=1000, seed=seed).x[:, 1].numpy()
        runs[times] = distance(x, mean, std)
    assert x.mean() == pytest.approx(mean, abs=0.05)
    assert x.std() == pytest.approx(std, abs=0.05)
    assert runs[10] < 0.1 * runs[1], runs


@pytest.mark.parametrize("solver", ["repaint(jump_length=2, jump_n_sample=3)", "repaint(jump_length=1, solver=heun)"])
def test_a_sample_does_not_know_its_batch_on_its_way_up_and_down(solver: str) -> None:
    problem = half_known()
    whole = ds.solve(problem, solver, n=7, batch=6, seed=3)
    assert gap(ds.solve(problem, solver, n=7, batch=[4], seed=3).x[:, 1], whole.x[4:5, 1]) < 1e-12
    assert gap(ds.solve(problem, solver, n=7, batch=6, seed=3, execution="tape").x, whole.x) < 1e-12
    assert gap(ds.solve(problem, solver, n=7, batch=6, seed=4).x, whole.x) > 1e-3


def test_rows_of_known_go_with_rows_of_the_batch() -> None:
    rows = numbers(2, 3)
    problem = Inpaint(mixture((3,)), rows, MASK)
    assert (ds.solve(problem, "euler", n=3, batch=2).x[:, MASK] == rows[:, MASK]).all()
    with pytest.raises(ds.ProblemError, match="known has 2 rows, the batch 3; expected one, or as many"):
        ds.solve(problem, "euler", n=3, batch=3)


def test_the_seed_and_the_node_key_the_known_parts_noise() -> None:
    problem = half_known()
    runs = [ds.solve(problem, "euler", n=4, x=problem.prior(1), seed=s, save="all").trajectory for s in (0, 0, 1)]
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][1], runs[2][1])
    z = [(runs[0][i][:, MASK] - known(problem)[:, MASK]) for i in (1, 2)]
    assert abs(float(torch.nn.functional.cosine_similarity(*z))) < 0.999
    field: Any = problem.field(ds.get_solver("ddpm"), problem.prior(1), (0,), 0, None)
    spans = [ds.Span(0.0, 1.0, index=3, count=8, visit=v) for v in (0, 0, 1)]
    visits = [field.project(problem.prior(1), span, field.form.sigma(span.end)) for span in spans]
    assert torch.equal(visits[0], visits[1])
    assert not torch.equal(visits[0], visits[2])
    repaint = ds.get_solver("repaint(jump_length=2, jump_n_sample=2)")
    for op, *rest in ds.plan(repaint, ds.make_grid(ds.Karras(), 6, problem.process), field):
        assert bool(rest) != isinstance(op, ds.Renoise), "a way up keeps its own noise"


def test_a_picture_is_kept_where_all_of_a_latents_pixels_are() -> None:
    model = StableDiffusion.from_pretrained("emoji")
    text = model("red apple", guidance=1)
    picture = text.decode(ds.solve(text, "euler", n=2).x)[0]
    keep = torch.ones(text.height, text.width)
    keep[: text.height // 2 + 1] = 0
    problem = Inpaint.picture(text, picture, keep)
    constraint: Any = problem.constraint
    assert constraint.mask[0, 0].float().mean(1).tolist() == [0] * 5 + [1] * 3
    solution = ds.solve(problem, "repaint(jump_length=1, jump_n_sample=2)", n=3)
    assert torch.equal(solution.x[:, :, 5:], model.encode(picture)[:, :, 5:])
    assert solution.images()[0].size == picture.size
    with pytest.raises(ds.ProblemError, match=r"keep has shape \(8, 8\), expected \(32, 32\)"):
        Inpaint.picture(text, picture, torch.ones(8, 8))


@pytest.mark.parametrize(
    ("values", "mask", "message"),
    [
        (numbers(3), [0, 1], r"mask has shape \(2,\), expected what broadcasts to known's \(1, 3\)"),
        (numbers(3), [0, 0.5, 1], r"mask must hold 0 .* and 1 \(known\), got 0.5; compare it"),
        (numbers(3), [0, 255, 1], "got 255"),
        (numbers(4), [0, 1, 1, 0], r"known is \(4,\) torch.float64, expected floats of shape \(B, 3\)"),
        (torch.ones(3, dtype=torch.int64), [0, 1, 1], r"known is .* torch.int64, expected floats"),
        (torch.tensor([float("nan"), 1, 1]), [1, 0, 1], "known has NaN or infinite values where the mask says"),
    ],
)
def test_what_cannot_be_inpainted(values: Any, mask: Any, message: str) -> None:
    with pytest.raises(ds.ProblemError, match=message):
        Inpaint(mixture((3,)), values, torch.as_tensor(mask))


def test_unknown_values_may_be_anything_where_the_mask_is_0() -> None:
    values = torch.tensor([1.0, float("nan"), 2.0])
    assert ds.solve(Inpaint(mixture((3,)), values, MASK), "heun", n=4).x.isfinite().all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("repaint(jump_length=0)", "jump_length must be a whole number of at least 1, got 0"),
        ("repaint(jump_n_sample=2.5)", "jump_n_sample must be a whole number of at least 1, got 2.5"),
        ("repaint(solver=huen)", "unknown solver 'huen'; did you mean 'heun'"),
        ("repaint(jumps=3)", "repaint has no option 'jumps'"),
    ],
)
def test_a_repaint_that_cannot_be_built(spec: str, message: str) -> None:
    with pytest.raises(ds.SolverError, match=message):
        ds.get_solver(spec)


def test_misuse() -> None:
    with pytest.raises(ds.ProblemError, match="call the model with a prompt first"):
        Inpaint(StableDiffusion.from_pretrained("emoji"), numbers(3), MASK)  # type: ignore[arg-type]
    with pytest.raises(ds.ProblemError, match="problem must be a ProbabilityFlow, got CodeTable"):
        Inpaint(problems.CodeTable([1, 1]), numbers(3), MASK)  # type: ignore[arg-type]
    with pytest.raises(ds.ProblemError, match="known and mask must be tensors or nested numbers"):
        Inpaint(mixture((3,)), numbers(3), "left")
    with pytest.raises(ds.SolverError, match="an ODE has none"):
        ds.solve(ds.ODEProblem(lambda t, x: x, (0.0, 1.0), [1.0]), "repaint", n=3)


def test_the_wrapper_takes_any_solver() -> None:
    for name in ("heun", "dpmpp_2m", "rk4", *STOCHASTIC[:3]):
        inner = ds.get_solver(name)
        wrapped = RePaint(inner, 2, 2)
        assert (wrapped.form, wrapped.history, wrapped.stages) == (inner.form, inner.history, inner.stages)
        solution = ds.solve(half_known(), wrapped, n=6)
        assert solution.x.isfinite().all()
        assert solution.nfe > ds.solve(half_known(), inner, n=6).nfe


def test_the_defaults_are_the_authors() -> None:
    for solver in (ds.get_solver("repaint"), RePaint(ds.get_solver("ddpm"))):
        assert (solver.jump_length, solver.jump_n_sample) == (10, 10)  # type: ignore[attr-defined]
