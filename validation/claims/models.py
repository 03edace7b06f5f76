"""What the papers say of samples, models and grids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from diffsolve import FunctionDenoiser, NetworkDenoiser, Output, ProbabilityFlow, solve
from diffsolve.denoiser import Sigma
from diffsolve.problems import GaussianMixture
from diffsolve.process import as_process

from ..samples.distances import sliced_wasserstein
from .bench import EMBEDDED, KARRAS, NORMAL, Bench, gap
from .claim import Curve, Finding, claim

AXES = ("steps", "sliced W2 to the data")


def _distance(
    data: GaussianMixture, count: int, solver: str, n: int, schedule: str = NORMAL,
    problem: ProbabilityFlow | None = None,
) -> float:  # fmt: skip
    """From the data to what a solver makes of `problem`, by default the data's own flow, over `count` samples."""
    start = data.noised(data.sample(count, seed=5), data.span[0], seed=3)  # an exact start: no prior's error
    x = solve(data if problem is None else problem, solver, schedule, n, x=start, seed=3).x
    return float(sliced_wasserstein(x, data.sample(count, seed=11), projections=64, resamples=1).value)


def _floor(data: GaussianMixture, count: int) -> float:
    """The distance of two sets of true samples."""
    a, b = data.sample(count, seed=12), data.sample(count, seed=11)
    return float(sliced_wasserstein(a, b, projections=64, resamples=1).value)


def _enough(ns: tuple[int, ...], distances: Sequence[float], floor: float) -> int | None:
    """The first step count from which on the distance is within half of the floor above it."""
    good = [n for n, rest in zip(ns, (distances[i:] for i in range(len(ns))), strict=True) if max(rest) < 1.5 * floor]
    return good[0] if good else None


@claim(
    "DDPM needs about 1000 steps, DDIM about 50; fewer now",
    key="ddpm", source="Ho et al. 2020 and Song et al. 2021 (DDIM), sec. 5",
)  # fmt: skip
def ddpm_needs_a_thousand_steps_ddim_fifty(bench: Bench) -> Finding:
    ns: tuple[int, ...] = tuple(n for n in (5, 10, 20, 50, 100, 250, 1000) if n <= bench.most)
    curves: dict[str, Curve] = {}
    if bench.name == EMBEDDED:  # no data to compare with: the distance from what each settles on
        ns = (5, 10, 20, 50, 100)
        for solver in ("ddpm", "ddim", "dpmpp_2m"):
            own = bench.end(solver, NORMAL, 200)
            curves[solver] = (ns, [gap(bench.end(solver, NORMAL, n), own) for n in ns])
        axes, floor, what = ("steps", "distance from 200 steps"), 0.05 / 1.5, "within 5 % of 200 steps"
    else:
        problem = bench.guided(1.0)
        floor, axes, what = _floor(problem, bench.samples), AXES, "as good as true samples (no guidance)"
        for solver in ("ddpm", "ddim", "dpmpp_2m"):
            curves[solver] = (ns, [_distance(problem, bench.samples, solver, n) for n in ns])
    enough = {solver: _enough(ns, values, floor) for solver, (_, values) in curves.items()}
    figures = f"Steps from which on the samples are {what}: " + ", ".join(
        f"{solver} {n or f'above {ns[-1]}'}" for solver, n in enough.items()
    )
    ddpm, ddim, new = (n or 10 * ns[-1] for n in enough.values())
    if ddpm >= 250 and ddim <= 100:
        return Finding("holds", figures, "", curves, axes)
    if new <= ddim <= ddpm:
        order = "read as an order: DDPM needs the most, DDIM fewer, later samplers the fewest"
        return Finding("only when", figures, order, curves, axes)
    return Finding("does not hold", figures, "", curves, axes)


@claim("Quality grows with the number of steps", key="steps", source="Song et al. 2021 (DDIM), sec. 5.1")
def quality_grows_with_steps(bench: Bench) -> Finding:
    solvers, truth = ("ddim", "heun", "dpmpp_2m", "lms"), bench.truth()
    curves = {s: (bench.ns, [gap(bench.end(s, KARRAS, n), truth) for n in bench.ns]) for s in solvers}
    falls = {s: all(b < a for a, b in pairwise(e) if a > 1e-10) for s, (_, e) in curves.items()}
    figures = f"Distance from the flow's end, {bench.ns[0]} to {bench.ns[-1]} steps: " + ", ".join(
        f"{s} {e[0]:.1e} to {e[-1]:.1e}" for s, (_, e) in curves.items()
    )
    return Finding("holds" if all(falls.values()) else "does not hold", figures, "", curves, ("steps", "error"))


@claim("A higher-order solver pays: Heun against Euler at equal cost", key="order", source="Karras et al. 2022, sec. 3")
def a_higher_order_pays(bench: Bench) -> Finding:
    budgets = (5, 9, 15, 21, 31, 51, 101) if bench.name != EMBEDDED else (5, 9, 15, 21, 31, 51)
    truth = bench.truth()
    curves = {
        s: (budgets, [gap(bench.end(s, KARRAS, nfe=nfe), truth) for nfe in budgets])
        for s in ("euler", "heun", "dpmpp_2m", "lms")
    }
    pays = [nfe for i, nfe in enumerate(budgets) if curves["heun"][1][i] < curves["euler"][1][i]]
    many = [nfe for i, nfe in enumerate(budgets) if curves["dpmpp_2m"][1][i] < curves["euler"][1][i]]
    figures = (
        f"Heun is nearer to the flow than Euler at {pays or 'none'} of {list(budgets)} calls, 2M at {many or 'none'}; "
        f"at {budgets[-1]} calls " + ", ".join(f"{s} {e[-1]:.1e}" for s, (_, e) in curves.items())
    )
    axes = ("network calls", "error")
    if len(pays) == len(budgets):
        return Finding("holds", figures, "", curves, axes)
    if pays and pays == [nfe for nfe in budgets if nfe >= pays[0]]:
        return Finding("only when", figures, f"there are {pays[0]} calls or more (Heun)", curves, axes)
    return Finding("does not hold", figures, "", curves, axes)


def _flawed(inner: ProbabilityFlow, size: float) -> ProbabilityFlow:
    """A denoiser with an error of its own, a fixed smooth function of the state: what churn is said to repair."""

    def denoised(y: torch.Tensor, sigma: float) -> torch.Tensor:
        wave = torch.sin(3 * y.flip(-1) / (1 + sigma)) * (size * sigma / (1 + sigma))
        return inner.denoise(y, sigma) + wave

    return ProbabilityFlow(
        process=inner.process, shape=inner.shape, dtype=inner.dtype, denoiser=FunctionDenoiser(denoised)
    )


@claim(
    "There is an optimal amount of stochasticity, to be found empirically",
    key="churn", source="Karras et al. 2022, sec. 4", on_mixtures_only=True,
)  # fmt: skip
def some_stochasticity_is_optimal(bench: Bench) -> Finding:
    problem, rates, n = bench.guided(1.0), (0.0, 2.0, 5.0, 10.0, 20.0, 40.0), 40
    floor = _floor(problem, bench.samples)
    curves = {
        label: (tuple(max(r, 0.5) for r in rates),
                [_distance(problem, bench.samples, f"edm_stochastic(churn={r})", n, KARRAS, on) for r in rates])
        for label, on in (("exact denoiser", problem), ("flawed denoiser", _flawed(problem, 0.3)))
    }  # fmt: skip
    best = {label: rates[values.index(min(values))] for label, (_, values) in curves.items()}
    figures = "; ".join(
        f"{label}: {values[0]:.3f} without churn, {min(values):.3f} at {best[label]:g}, "
        f"{values[-1]:.3f} at {rates[-1]:g}"
        for label, (_, values) in curves.items()
    ) + f" (true samples {floor:.3f}; {n} steps, no guidance)"
    gains = {label: values[0] - min(values) > 0.15 * floor for label, (_, values) in curves.items()}
    holds = any(gain and best[label] < rates[-1] for label, gain in gains.items())
    return Finding("holds" if holds else "does not hold", figures, "", curves, ("churn (0.5 stands for 0)", AXES[1]))


@claim("Solver and schedule go with any model: VP, VE, EDM, flow", key="modular", source="Karras et al. 2022, sec. 2")
def solver_and_schedule_go_with_any_model(bench: Bench) -> Finding:
    """One denoiser as VP, VE, EDM and flow models: the same samplers on the same noise levels, the same errors."""
    solvers = ("euler", "heun", "dpmpp_2m", "lms")
    errors: dict[str, list[float]] = {}
    high, low = 14.0, 0.03
    for kind in ("sd", "ve", "edm", "flow"):
        problem = _as_a_model_of(bench.problem, kind)
        x = bench.x / bench.problem.span[0] * high

        def end(solver: str, n: int, problem: ProbabilityFlow = problem, x: torch.Tensor = x) -> torch.Tensor:
            return solve(problem, solver, KARRAS, n, x=x, sigma_max=high, sigma_min=low).x

        truth = end("dpmpp_2m", bench.reference // 2)
        errors[kind] = [gap(end(s, 20), truth) for s in solvers]
    spread = max(max(e) / min(e) - 1 for e in zip(*errors.values(), strict=True))
    figures = "Error of " + ", ".join(solvers) + " at 20 Karras steps: " + "; ".join(
        f"{kind} {', '.join(f'{e:.2e}' for e in each)}" for kind, each in errors.items()
    ) + f"; they differ by at most {spread:.1e}"
    return Finding("holds" if spread < 1e-3 else "does not hold", figures)


def _as_a_model_of(inner: ProbabilityFlow, kind: str) -> ProbabilityFlow:
    """The same denoiser behind another process and prediction: through what such a model's network would answer."""
    process = as_process(kind)
    prediction = {"sd": "v", "ve": "eps", "edm": "edm", "flow": "flow"}[kind]
    halves = NetworkDenoiser(lambda x, t: x, process, prediction)  # its own network is not called

    def denoiser(y: torch.Tensor, sigma: Sigma) -> Output:
        k = halves.scaling(sigma)
        x, _ = halves.inputs(y, sigma)
        state = x / k.c_in
        return halves.output(y, (inner.denoise(state, sigma) - state * k.c_skip) / k.c_out, sigma)

    return ProbabilityFlow(process=process, shape=inner.shape, dtype=inner.dtype, denoiser=denoiser)


@claim(
    "Smaller steps towards the picture, larger ones at first, are better",
    key="grid", source="Karras et al. 2022, sec. 3",
)  # fmt: skip
def smaller_steps_near_the_picture_are_better(bench: Bench) -> Finding:
    truth, n = bench.truth(), 20
    high, low = bench.problem.span
    even = [high + (low - high) * i / (n - 1) for i in range(n)] + [0.0]
    found = {}
    for solver in ("euler", "heun", "dpmpp_2m"):
        x = solve(bench.problem, solver, even, x=bench.x).x
        ends = (bench.end(solver, KARRAS, n), bench.end(solver, NORMAL, n), x)
        found[solver] = [gap(end, truth) for end in ends]
    figures = f"Error at {n} steps on Karras' grid, on even timesteps, on even sigmas: " + "; ".join(
        f"{s} {', '.join(f'{e:.1e}' for e in each)}" for s, each in found.items()
    )
    return Finding("holds" if all(k < e for k, _, e in found.values()) else "does not hold", figures)


@claim(
    "Pictures from one latent share their high-level features",
    key="latent", source="Song et al. 2021 (DDIM), sec. 5.2",
)  # fmt: skip
def one_latent_gives_like_pictures(bench: Bench) -> Finding:
    few, many = bench.end("ddim", NORMAL, 20), bench.end("ddim", NORMAL, bench.ns[-1])
    same, others = gap(few, many), gap(few.roll(1, 0), many)
    ddpm = gap(bench.end("ddpm", NORMAL, 20, seed=1), bench.end("ddpm", NORMAL, 20, seed=2))
    figures = (
        f"From one latent, DDIM at 20 and at {bench.ns[-1]} steps: {same:.1e} apart; from two latents {others:.1e}; "
        f"DDPM from one latent with two noises: {ddpm:.1e}"
    )
    return Finding("holds" if same < others / 3 and ddpm > same else "does not hold", figures)
