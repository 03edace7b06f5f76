"""What people say of samplers, tested: each claim with a verdict and the figures that it rests on.

The claims are the folklore of the web interfaces and the papers' own summaries. They are tested on mixtures, whose flow
is known, and on the embedded model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import diffsolve as ds

from .report import as_json

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from rich.table import Table

Verdict = Literal["holds", "does not hold", "only when"]
EMBEDDED = "embedded model"
Curves = dict[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Finding:
    """A claim as it was tested on one problem. figures: the numbers, in words; curves: (x, y) by label, for a plot."""

    key: str
    says: str
    on: str
    verdict: Verdict
    figures: str
    condition: str = ""
    curves: Curves = field(default_factory=dict)
    axes: tuple[str, str] = ("", "")

    @property
    def said(self) -> str:
        return f"{self.verdict} {self.condition}".strip()


@dataclass(frozen=True)
class ClaimsReport:
    """Every finding; passed means that each claim was decided, not that it holds."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return bool(self.findings) and all(f.verdict and f.figures for f in self.findings)

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(f.key for f in self.findings))

    def of(self, key: str) -> list[Finding]:
        """The findings of one claim, one for each problem that it was tested on."""
        return [f for f in self.findings if f.key == key]

    def _verdict(self) -> str:
        counts = [(v, sum(f.verdict == v for f in self.findings)) for v in ("holds", "only when", "does not hold")]
        return f"{len(self.findings)} findings: {', '.join(f'{n} {v}' for v, n in counts)}"

    def __str__(self) -> str:
        lines = [f"  {f.says} [{f.on}]: {f.said}. {f.figures}" for f in self.findings]
        return "\n".join([f"claims: {self._verdict()}", *lines])

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table("claim", "on", "verdict", "figures", title="What is said of samplers", caption=self._verdict())
        colours = {"holds": "green", "does not hold": "red", "only when": "yellow"}
        for f in self.findings:
            table.add_row(f.says, f.on, f"[{colours[f.verdict]}]{f.said}[/]", f.figures)
        return table

    def to_json(self) -> str:
        return as_json({
            "passed": self.passed,
            "findings": [
                {"key": f.key, "says": f.says, "on": f.on, "verdict": f.verdict, "condition": f.condition,
                 "figures": f.figures, "curves": {k: [list(x), list(y)] for k, (x, y) in f.curves.items()}}
                for f in self.findings
            ],
        })  # fmt: skip

    def to_markdown(self) -> str:
        """The page docs/claims.md."""
        parts = [
            "# What is said of samplers, tested\n",
            "Made by `diffsolve validate claims --markdown docs/claims.md`. Each claim is tested on mixtures, whose "
            "flow is known, and on the embedded model; differences are medians over samples of the relative RMS.\n",
            f"{self._verdict()}.\n",
            "![Curves of the claims](claims.png)\n",
        ]
        for key in self.keys:
            found = self.of(key)
            parts.append(f"## {found[0].says}\n")
            parts += [f"- **{f.said[0].upper()}{f.said[1:]}** ({f.on}). {f.figures}" for f in found]
            parts.append("")
        return "\n".join(parts)

    def plot(self) -> Figure:
        """A panel for each finding that has curves."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter

        drawn = [f for f in self.findings if f.curves]
        columns = 3
        rows = -(-len(drawn) // columns) or 1
        figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
        for place, f in enumerate(drawn, 1):
            axes = figure.add_subplot(rows, columns, place)
            for label, (x, y) in f.curves.items():
                axes.plot(x, y, marker=".", label=label)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(f.axes[0])
            axes.set_ylabel(f.axes[1])
            axes.set_title(f"{f.key}, {f.on}", fontsize=9)
            axes.legend(fontsize=6)
        return figure


class Bench:
    """A problem, its starting points, and the runs made on it so far.

    guided: the problem at a guidance scale. ns: step counts that it can afford, `most` where a sampler needs many;
    reference: steps that are fine enough.
    """

    def __init__(
        self,
        name: str,
        guided: Callable[[float], Any],
        scale: float,
        batch: int,
        ns: tuple[int, ...],
        reference: int,
        most: int = 1000,
    ) -> None:
        self.name, self.guided, self.ns, self.reference, self.most = name, guided, ns, reference, most
        self.problem = guided(scale)
        self.x = self.problem.prior(batch, seed=7)
        self._ends: dict[str, tuple[torch.Tensor, int]] = {}

    def run(self, solver: str, schedule: str = "karras", n: int = 20, seed: int = 7, **options: Any) -> Any:
        """(x at sigma 0, NFE); repeated questions are answered from memory."""
        key = json.dumps([solver, schedule, n, seed, options])
        if key not in self._ends:
            solution = ds.solve(self.problem, solver, schedule, n, x=self.x, seed=seed, **options)
            self._ends[key] = solution.x, solution.nfe
        return self._ends[key]

    def end(self, *args: Any, **options: Any) -> torch.Tensor:
        return self.run(*args, **options)[0]

    def truth(self) -> torch.Tensor:
        """The flow's own end: a fine solution of order 2 on Karras' grid."""
        return self.end("dpmpp_2m", "karras", self.reference)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """The median over samples of |a - b|/|b|."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).median())


def benches(quick: bool) -> list[Bench]:
    """A guided mixture and a plain one; and, unless quick, the embedded model with guidance."""
    from .references import sampling_cases

    cases: dict[str, Any] = {case.name: case.problem for case in sampling_cases()}
    ns, most = ((10, 20, 50, 100, 200), 100) if quick else ((10, 20, 50, 100, 200, 400), 1000)

    def mixture(name: str) -> Callable[[float], Any]:
        return lambda scale: cases[name].guided(1, scale) if scale != 1 else cases[name]

    made = [
        Bench("gmm2", mixture("gmm2"), 1.0, 64, ns, 2000, most),
        Bench("gmm64 cfg", mixture("gmm64"), 7.5, 64, ns, 2000, most),
    ]
    if not quick:
        prompts = ["red apple", "penguin", "rocket", "crown"]
        model = ds.problems.StableDiffusion.from_pretrained("emoji")
        made.append(Bench(EMBEDDED, lambda w: model(prompts, guidance=w), 4.0, len(prompts), (10, 20, 50, 100), 400))
    return made


def validate_claims(
    keys: Sequence[str] | None = None, *, quick: bool = False, watch: Callable[[str], Any] = bool
) -> ClaimsReport:
    """Test every claim (or those of `keys`) and say whether it holds.

    quick: mixtures only. watch: called with the name of each test as it begins. Raises SolverError for an unknown key.
    """
    tests = claims()

    for key in keys or ():
        if key not in tests:
            raise ds.SolverError(f"unknown claim {key!r}{ds.did_you_mean(key, tests)}")
    found: list[Finding] = []
    for bench in benches(quick):
        for key in keys or tests:
            test = tests[key]
            if test.on_mixtures_only and bench.name == EMBEDDED:
                continue
            watch(f"{key}, {bench.name}")
            verdict, condition, figures, *rest = test.run(bench)
            curves, axes = rest if rest else ({}, ("", ""))
            found.append(Finding(key, test.says, bench.name, verdict, figures, condition, curves, axes))
    return ClaimsReport(tuple(sorted(found, key=lambda f: list(tests).index(f.key))))


@dataclass(frozen=True)
class Test:
    """A claim as it is told, and the function that tests it."""

    says: str
    run: Callable[[Bench], tuple[Any, ...]]
    on_mixtures_only: bool = False


def claims() -> dict[str, Test]:
    """Every claim, by its key."""
    from . import claims_quality as q
    from . import claims_tests as t

    return {
        "changing": Test("Ancestral samplers keep changing as the number of steps grows; the others settle",
                         t.ancestral_samplers_keep_changing),
        "ddim-plms": Test("DDIM and PLMS do not converge", t.ddim_and_plms_do_not_converge),
        "fast-adaptive": Test("DPM fast and DPM adaptive do not converge",
                              t.dpm_fast_and_dpm_adaptive_do_not_converge),
        "groups": Test("At high step counts the samplers fall into three groups of like pictures, A, B and C",
                       t.three_groups_of_like_pictures),
        "karras": Test("The final picture differs between Karras and non-Karras samplers",
                       t.karras_gives_another_picture),
        "lms-karras": Test("LMS Karras: image degraded at high steps", t.lms_karras_degrades_at_high_steps),
        "ranking": Test("By required steps: Euler a = Euler = 2M = LMS Karras, then LMS, 2M Karras, Heun, 2S a, then "
                        "DDIM, PLMS, DPM2, then DPM fast, DPM2 a", t.the_ranking_by_steps_needed),
        "fast": Test("DPM fast always seems to produce inferior images", t.dpm_fast_is_inferior),
        "adaptive": Test("DPM adaptive ignores the step count; more guidance means more steps",
                         t.dpm_adaptive_takes_more_steps_as_guidance_grows),
        "long-run": Test("Most differences appear below 20 steps; there is little in the long run",
                         t.samplers_differ_below_20_steps),
        "2m": Test("DPM++ 2M is more prone to deformations at high guidance than Euler",
                   t.dpmpp_2m_deforms_at_high_guidance),
        "ddpm": Test("DDPM needs about 1000 steps, DDIM about 50; fewer now",
                     q.ddpm_needs_a_thousand_steps_ddim_fifty),
        "steps": Test("Quality grows with the number of steps", q.quality_grows_with_steps),
        "order": Test("A higher-order solver pays: Heun against Euler at equal cost", q.a_higher_order_pays),
        "churn": Test("There is an optimal amount of stochasticity, to be found empirically",
                      q.some_stochasticity_is_optimal, on_mixtures_only=True),
        "modular": Test("Solver and schedule go with any model: VP, VE, EDM, flow",
                        q.solver_and_schedule_go_with_any_model),
        "grid": Test("Smaller steps towards the picture, larger ones at first, are better",
                     q.smaller_steps_near_the_picture_are_better),
        "latent": Test("Pictures from one latent share their high-level features", q.one_latent_gives_like_pictures),
    }  # fmt: skip
