"""What the users of the web interfaces say of samplers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import torch

from diffsolve import FunctionDenoiser, ProbabilityFlow, solve
from diffsolve.grid import Final

from .bench import EMBEDDED, KARRAS, NORMAL, Bench, gap
from .claim import Finding, claim

USERS = "users of the web interfaces"
PLAIN = {
    "Euler": "euler", "LMS": "lms", "Heun": "heun", "DPM2": "dpm2", "DPM++ 2M": "dpmpp_2m", "DDIM": "ddim",
    "PLMS": "plms",
}  # fmt: skip
ANCESTRAL = {
    "Euler a": "euler_ancestral", "DPM2 a": "dpm2_ancestral", "DPM++ 2S a": "dpmpp_2s_ancestral",
    "DPM++ SDE": "dpmpp_sde",
}  # fmt: skip
OWN_GRID = {"DPM fast": ("dpm_fast", "exponential")}
SETTLED = 0.5  # a sampler converges where four times the steps leave at most this share of the change


def _grid(label: str) -> tuple[str, str]:
    return OWN_GRID.get(label) or ((PLAIN | ANCESTRAL)[label], NORMAL)


def _changes(bench: Bench, label: str, fresh: bool) -> list[float]:
    """How far the end moves from each step count to the next; fresh: with other noise at every step count."""
    solver, schedule = _grid(label)
    ends = [bench.end(solver, schedule, n, seed=n if fresh else 7) for n in bench.ns]
    return [gap(a, b) for a, b in pairwise(ends)]


def _settles(changes: list[float]) -> bool:
    return changes[-1] <= SETTLED * changes[-3]


@claim("Ancestral samplers keep changing as the number of steps grows; the others settle", key="changing", source=USERS)
def ancestral_samplers_keep_changing(bench: Bench) -> Finding:
    fresh = {label: _changes(bench, label, True) for label in ANCESTRAL}
    fixed = {label: _changes(bench, label, False) for label in ANCESTRAL}
    plain = {label: _changes(bench, label, False) for label in PLAIN}
    figures = (
        f"From {bench.ns[-2]} to {bench.ns[-1]} steps the picture moves by {_span(fresh)} with fresh noise, by "
        f"{_span(fixed)} on a fixed Brownian path, and by {_span(plain)} for the others"
    )
    curves = {f"{label}, {kind}": (bench.ns[1:], changes[label]) for kind, changes in
              (("fresh noise", fresh), ("one path", fixed)) for label in ANCESTRAL}  # fmt: skip
    axes = ("steps", "change from the step count before")
    others = max(changes[-1] for changes in plain.values())
    changing = [label for label in ANCESTRAL if fresh[label][-1] > 2 * others]
    settling = [label for label in changing if _settles(fixed[label])]
    if settling:
        return Finding("only when", figures, "each step count draws other noise, as the peers do", curves, axes)
    return Finding("holds" if changing else "does not hold", figures, "", curves, axes)


def _span(changes: dict[str, list[float]]) -> str:
    last = [c[-1] for c in changes.values()]
    return f"{min(last):.1e} to {max(last):.1e}"


@claim("DDIM and PLMS do not converge", key="ddim-plms", source=USERS)
def ddim_and_plms_do_not_converge(bench: Bench) -> Finding:
    changes = {label: _changes(bench, label, False) for label in ("DDIM", "PLMS", "Euler", "Heun")}
    errors = {label: gap(bench.end(*_grid(label), bench.ns[-1]), bench.truth()) for label in changes}
    figures = "; ".join(f"{k}: moves by {c[-3]:.1e}, then {c[-1]:.1e}, error {errors[k]:.1e}"
                        for k, c in changes.items())  # fmt: skip
    wrong = all(_settles(changes[label]) for label in ("DDIM", "PLMS"))
    return Finding("does not hold" if wrong else "holds", figures)


@claim("DPM fast and DPM adaptive do not converge", key="fast-adaptive", source=USERS)
def dpm_fast_and_dpm_adaptive_do_not_converge(bench: Bench) -> Finding:
    fast = _changes(bench, "DPM fast", False)
    errors = [gap(bench.end("dpm_adaptive", rtol=r, atol=r / 6, final="none"), _at_the_end(bench)) for r in RTOLS]
    figures = (
        f"DPM fast moves by {fast[0]:.1e}, ... {fast[-1]:.1e}; DPM adaptive's error at rtol "
        f"{', '.join(f'{r:g}' for r in RTOLS)}: {', '.join(f'{e:.1e}' for e in errors)}"
    )
    return Finding("does not hold" if _settles(fast) and errors[-1] < errors[0] / 2 else "holds", figures)


RTOLS = (0.05, 0.01, 0.002)


def _at_the_end(bench: Bench) -> torch.Tensor:
    return bench.end("dpmpp_2m", KARRAS, bench.reference, final="none")


@claim(
    "At high step counts the samplers fall into three groups of like pictures, A, B and C",
    key="groups", source=USERS,
)  # fmt: skip
def three_groups_of_like_pictures(bench: Bench) -> Finding:
    from scipy.cluster.hierarchy import fcluster, linkage

    groups = {
        "A": [("Euler a", NORMAL), ("DPM2 a", NORMAL), ("DPM++ 2S a", NORMAL), ("DPM fast", "exponential"),
              ("DPM2 a", KARRAS)],
        "B": [(label, NORMAL) for label in PLAIN],
        "C": [("LMS", KARRAS), ("DPM2", KARRAS), ("DPM++ 2M", KARRAS)],
    }  # fmt: skip
    names = [(group, *member) for group, members in groups.items() for member in members]
    n = bench.ns[-1]
    solvers = PLAIN | ANCESTRAL | {"DPM fast": "dpm_fast"}
    ends = [bench.end(solvers[label], schedule, n) for _, label, schedule in names]
    distances = [max(gap(a, b), 1e-300) for a, b in combinations(ends, 2)]
    found = fcluster(linkage(distances, "average"), 3, "maxclust").tolist()
    agreement = _rand([g for g, *_ in names], found)
    sets = [", ".join(f"{label}{' Karras' if s == KARRAS else ''}" for (_, label, s), f in
                      zip(names, found, strict=True) if f == k) for k in sorted(set(found))]  # fmt: skip
    stochastic = {f for (_, label, _), f in zip(names, found, strict=True) if label in ANCESTRAL}
    plain = {f for (_, label, _), f in zip(names, found, strict=True) if label not in ANCESTRAL}
    figures = f"At {n} steps three clusters are: {' | '.join(sets)}; adjusted Rand index {agreement:.2f}"
    if agreement > 0.8:
        return Finding("holds", figures)
    if not stochastic & plain:
        return Finding("only when", figures, "as two: those that add noise, and those that solve the ODE")
    return Finding("does not hold", figures)


def _rand(a: Sequence[object], b: Sequence[object]) -> float:
    """The adjusted Rand index of two partitions (Hubert & Arabie 1985)."""
    def pairs(labels: Sequence[object]) -> int:
        return sum(c * (c - 1) // 2 for c in (labels.count(v) for v in set(labels)))

    both, one, other = pairs(list(zip(a, b, strict=True))), pairs(a), pairs(b)
    chance = one * other / (len(a) * (len(a) - 1) / 2)
    most = (one + other) / 2
    return (both - chance) / (most - chance) if most != chance else 1.0


@claim("The final picture differs between Karras and non-Karras samplers", key="karras", source=USERS)
def karras_gives_another_picture(bench: Bench) -> Finding:
    few, many = bench.ns[1], bench.ns[-1]
    now = [gap(bench.end("heun", KARRAS, n), bench.end("heun", NORMAL, n)) for n in (few, many)]
    old = [bench.end("heun", KARRAS, n, sigma_min=0.1) for n in (few, many)]
    cut = [gap(end, bench.end("heun", NORMAL, n)) for end, n in zip(old, (few, many), strict=True)]
    figures = (
        f"Heun on Karras' grid and on even timesteps: {now[0]:.1e} apart at {few} steps, {now[1]:.1e} at {many}; with "
        f"sigma_min = 0.1, as web interfaces once had it on Karras' grid, {cut[0]:.1e} and {cut[1]:.1e}"
    )
    if now[1] > now[0] / 2:
        return Finding("holds", figures)
    return Finding("only when", figures, "the ends differ; on the same ends both go to one picture")


def _rounded(inner: ProbabilityFlow) -> ProbabilityFlow:
    """The problem whose network answers in float16: its noise estimate is rounded."""

    def denoised(y: torch.Tensor, sigma: float) -> torch.Tensor:
        return y - inner.eps(y, sigma).half().to(y.dtype) * sigma

    return ProbabilityFlow(
        process=inner.process, shape=inner.shape, dtype=inner.dtype, denoiser=FunctionDenoiser(denoised)
    )


@claim("LMS Karras: image degraded at high steps", key="lms-karras", source=USERS)
def lms_karras_degrades_at_high_steps(bench: Bench) -> Finding:
    flow = _rounded(bench.problem)
    half = Bench(bench.name, lambda _: flow, 1.0, len(bench.x), bench.ns, bench.reference, x=bench.x)
    high = (999,) if bench.name != EMBEDDED and bench.most > 100 else ()
    ns = (10, 20, 50, 100, 200, 400, *high)
    truth, curves = bench.truth(), {}
    runs: tuple[tuple[str, Bench, str, Final], ...] = (
        ("Karras, LMS down to 0, float16", half, KARRAS, "step"),
        ("Karras, LMS down to 0, exact", bench, KARRAS, "step"),
        ("Karras, Euler to 0, float16", half, KARRAS, "denoise"),
        ("even timesteps, LMS down to 0, float16", half, NORMAL, "step"),
    )
    for label, on, schedule, final in runs:
        curves[label] = (ns, [gap(on.end("lms", schedule, n, final=final), truth) for n in ns])
    figures = "; ".join(
        f"{label}: {min(e):.1e} at best, {e[-1]:.1e} at {ns[-1]} steps" for label, (_, e) in curves.items()
    )
    worse = {label: e[-1] > 2 * min(e) for label, (_, e) in curves.items()}
    axes = ("steps", "error")
    if worse["Karras, LMS down to 0, float16"] and not worse["Karras, Euler to 0, float16"]:
        condition = (
            "the step to sigma = 0 is a multistep one and the network rounds: that step is many times as long as "
            "those whose values it extrapolates"
        )
        return Finding("only when", figures, condition, curves, axes)
    return Finding("holds" if any(worse.values()) else "does not hold", figures, "", curves, axes)


RANKING = [  # as it is told, the fewest steps first; "slower" costs two calls a step
    ["euler_ancestral/karras", "euler/linspace", "dpmpp_2m/linspace", "lms/karras"],
    ["lms/linspace", "dpmpp_2m/karras", "heun/linspace", "dpmpp_2s_ancestral/linspace", "dpmpp_2s_ancestral/karras"],
    ["ddim/linspace", "plms/linspace", "dpm2/linspace", "dpm2/karras"],
    ["dpm_fast/exponential", "dpm2_ancestral/linspace"],
]


@claim(
    "By required steps: Euler a = Euler = 2M = LMS Karras, then LMS, 2M Karras, Heun, 2S a, then DDIM, "
    "PLMS, DPM2, then DPM fast, DPM2 a",
    key="ranking", source=USERS,
)  # fmt: skip
def the_ranking_by_steps_needed(bench: Bench) -> Finding:
    from scipy.stats import spearmanr

    told, needed, said = [], [], []
    for place, names in enumerate(RANKING):
        for name in names:
            solver, schedule = name.split("/")
            own = bench.end(solver, schedule, bench.ns[-1])
            n = next((n for n in (5, 8, *bench.ns) if gap(bench.end(solver, schedule, n), own) < 0.05), bench.ns[-1])
            told.append(place)
            needed.append(n)
            said.append(f"{solver} {schedule} {n}")
    rank = float(spearmanr(told, needed).statistic)
    figures = (
        f"Steps until within 5 % of what each settles on: {', '.join(said)}; rank correlation with the list {rank:.2f}"
    )
    return Finding("holds" if rank > 0.7 else "does not hold", figures)


@claim("DPM fast always seems to produce inferior images", key="fast", source=USERS)
def dpm_fast_is_inferior(bench: Bench) -> Finding:
    truth, curves = _at_the_end(bench), {}
    others = {"euler": KARRAS, "heun": KARRAS, "lms": KARRAS, "dpmpp_2m": KARRAS, "dpm_solver_3": "exponential"}
    budgets = (6, 9, 15, 21, 30, 51)
    for solver, schedule in {"dpm_fast": "exponential", **others}.items():
        runs = [bench.end(solver, schedule, nfe=nfe, final="none") for nfe in budgets]
        curves[solver] = (budgets, [gap(x, truth) for x in runs])
    fast = curves["dpm_fast"][1]
    ranks = [1 + sum(curves[other][1][i] < fast[i] for other in others) for i in range(len(budgets))]
    figures = (
        f"Place among {len(others) + 1} samplers at {', '.join(map(str, budgets))} calls: {ranks}; error at 15 "
        + ", ".join(f"{k} {e[2]:.1e}" for k, (_, e) in curves.items())
    )
    bad = [nfe for nfe, rank in zip(budgets, ranks, strict=True) if rank > len(others) - 1]
    axes = ("network calls", "error")
    if len(bad) == len(budgets):
        return Finding("holds", figures, "", curves, axes)
    if bad:
        return Finding("only when", figures, f"the calls are {', '.join(map(str, bad))}", curves, axes)
    return Finding("does not hold", figures, "", curves, axes)


@claim("DPM adaptive ignores the step count; more guidance means more steps", key="adaptive", source=USERS)
def dpm_adaptive_takes_more_steps_as_guidance_grows(bench: Bench) -> Finding:
    scales = (1.0, 2.0, 4.0, 7.5, 12.0, 15.0)
    calls = [solve(bench.guided(w), "dpm_adaptive", n=1 if w < 4 else 99, x=bench.x).nfe for w in scales]
    shown = ", ".join(f"{w:g}" for w in scales)
    figures = f"Network calls at guidance {shown}: {', '.join(map(str, calls))}, whatever n"
    grows = calls[-1] > 1.2 * calls[0] and sum(b >= a for a, b in pairwise(calls)) >= len(calls) - 2
    curves = {bench.name: (scales, calls)}
    return Finding("holds" if grows else "does not hold", figures, "", curves, ("guidance", "network calls"))


@claim("Most differences appear below 20 steps; there is little in the long run", key="long-run", source=USERS)
def samplers_differ_below_20_steps(bench: Bench) -> Finding:
    apart = []
    for n in (10, 20, bench.ns[-1]):
        ends = [bench.end(*_grid(label), n) for label in PLAIN]
        apart.append(sorted(gap(a, b) for a, b in combinations(ends, 2)))
    middle = [pairs[len(pairs) // 2] for pairs in apart]
    figures = f"Median distance between two ODE samplers at 10, 20, {bench.ns[-1]} steps: " + ", ".join(
        f"{m:.1e}" for m in middle
    )
    return Finding("holds" if middle[-1] < middle[0] / 4 else "does not hold", figures)


@claim("DPM++ 2M is more prone to deformations at high guidance than Euler", key="2m", source=USERS)
def dpmpp_2m_deforms_at_high_guidance(bench: Bench) -> Finding:
    scales, curves = (2.0, 4.0, 7.5, 15.0), {}
    solvers = {"dpmpp_2m": KARRAS, "euler": KARRAS, "heun": KARRAS, "lms": KARRAS}
    problems = [bench.guided(w) for w in scales]
    truths = [solve(problem, "dpmpp_2m", KARRAS, bench.reference // 2, x=bench.x).x for problem in problems]
    for solver, schedule in solvers.items():
        ends = [solve(problem, solver, schedule, nfe=15, x=bench.x).x for problem in problems]
        curves[solver] = (scales, [gap(end, truth) for end, truth in zip(ends, truths, strict=True)])
    figures = "Error at 15 calls, guidance 2 and 15: " + ", ".join(
        f"{s} {e[0]:.1e} and {e[-1]:.1e}" for s, (_, e) in curves.items()
    )
    ours, euler = curves["dpmpp_2m"][1], curves["euler"][1]
    worse = ours[-1] > euler[-1] and ours[-1] / ours[0] > euler[-1] / euler[0]
    return Finding("holds" if worse else "does not hold", figures, "", curves, ("guidance", "error at 15 calls"))
