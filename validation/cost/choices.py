"""The table of `solver="auto"`: by kind of problem and number of calls, which pair of row and schedule errs least.

Error: the median over samples of the relative distance from the flow at sigma_min (of an ODE, of its end), on mixtures
of a seed of its own and on the embedded networks; of a reverse SDE the sliced W2 distance to the mixture's samples. A
pair is judged by the geometric mean over problems of its error to each one's best. What was measured is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from diffsolve import DiffsolveError, NonFiniteError, Problem, normals, solve
from diffsolve.problems import Fashion, GaussianMixture, StableDiffusion

from .. import problems as odes
from ..cache import cache_folder
from ..problems import Case
from ..references import reference, row_errors, sampling_cases
from ..report import JSON, as_json

SEED, CALLS, STARTS = 20, (5, 8, 12, 20, 35), 64
REFERENCE = 120  # steps of a network's
FLOW = [(row, "karras") for row in ("guarded_abm", "damped_abm", "damped_abm(order=5, reach=2, trust=0.67)",
                                    "dpmpp_2m", "euler", "unipc", "lms(order=3, form=noise)")]  # fmt: skip
FLOW += [("guarded_abm", "exponential"), ("dpmpp_2m", "exponential")]
ODE = [(row, "uniform") for row in ("etdrk4", "rk4", "rk3", "heun", "midpoint", "dopri5", "tsit5", "abm(order=4)",
                                    "lms", "lms(order=4, start=third)", "abm_pece(order=4)")]  # fmt: skip
SDE = [(row, grid) for row in ("dpmpp_2m_sde", "dpmpp_3m_sde", "euler_ancestral", "sa_solver", "er_sde")
       for grid in ("karras", "exponential")]  # fmt: skip
STEPPED = {"ode": ("tsit5", "dopri5", "bs23", "dopri8"), "": ("adaptive_abm", "dpm_solver_3", "bs23", "dopri5")}
TARGET: dict[str, float] = {"ode": 1e-5, "": 1e-2}  # what a tolerance is scanned for
PAIRS = {"unguided": FLOW, "guided": FLOW, "ode": ODE, "sde": SDE}
Error = Callable[[str, str, int], float]


@dataclass(frozen=True)
class Trial:
    """A problem of a kind; error: (solver, schedule, calls) -> its error; stepped: (solver, rtol) -> (calls, error)."""

    name: str
    error: Error
    stepped: Callable[[str, float], tuple[int, float]] | None = None


class Network:
    """A problem of an embedded network, with its reference, made where it is first needed."""

    def __init__(self, make: Callable[[], Problem]) -> None:
        self.make = make

    @cached_property
    def problem(self) -> Problem:
        return self.make()

    @cached_property
    def exact(self) -> Tensor:
        return self.ended("dpmpp_2m", "karras", REFERENCE).double()

    def ended(self, solver: str, schedule: str, calls: int) -> Tensor:
        return solve(self.problem, solver, schedule, nfe=calls, batch=2, seed=SEED, final="none").x

    def error(self, solver: str, schedule: str, calls: int) -> float:
        return float(row_errors(self.ended(solver, schedule, calls), self.exact).median())


def trials(kind: str, networks: bool = True) -> list[Trial]:
    """The problems of a kind. networks: with the embedded ones, which take minutes."""
    if kind == "ode":
        cases = [odes.neural(SEED), odes.neural(SEED, 16), odes.clocked_logistic(SEED), odes.semilinear(SEED)]
        return [Trial(case.name, partial(_of_ode, case), partial(_stepped_ode, case)) for case in cases]
    if kind == "sde":
        return [Trial(f"gmm2, seed {seed}", partial(_of_sde, seed)) for seed in (SEED, SEED + 1)]
    guided = kind == "guided"
    mixtures = [case for case in sampling_cases(SEED, STARTS) if case.name.endswith("cfg") == guided]
    found = [Trial(case.name, partial(_of_flow, case), partial(_stepped_flow, case)) for case in mixtures]
    scales = {_emoji: (4.0, 7.5), _fashion: (2.0, 4.0)} if guided else {_emoji: (1.0,), _fashion: (1.0,)}
    made = [(make, scale) for make, some in scales.items() for scale in some if networks]
    return found + [Trial(f"{m.__name__[1:]} at {scale:g}", Network(partial(m, scale)).error) for m, scale in made]


def _emoji(scale: float) -> Problem:
    problem: Problem = StableDiffusion.from_pretrained("emoji")(["lemon", "lighthouse"], guidance=scale)
    return problem


def _fashion(scale: float) -> Problem:
    return Fashion(["bag", "dress"], scale)


def _of_flow(case: Case, solver: str, schedule: str, calls: int) -> float:
    x = solve(case.flow, solver, schedule, nfe=calls, x=case.x, final="none").x
    return float(row_errors(x, reference(case).state).median())


def _stepped_flow(case: Case, solver: str, rtol: float) -> tuple[int, float]:
    made = solve(case.flow, solver, x=case.x, rtol=rtol, nfe=1000, final="none")
    return made.nfe, float(row_errors(made.x, reference(case).state).median())


def _of_ode(case: Case, solver: str, schedule: str, calls: int) -> float:
    return case.error(solve(case.problem, solver, schedule, nfe=calls).x)


def _stepped_ode(case: Case, solver: str, rtol: float) -> tuple[int, float]:
    made = solve(case.problem, solver, rtol=rtol, nfe=2000)
    return made.nfe, case.error(made.x)


def _of_sde(seed: int, solver: str, schedule: str, calls: int, count: int = 8192) -> float:
    """Sliced W2, over 64 directions, of so many samples to as many of the mixture's."""
    free = next(case.problem for case in sampling_cases(seed, 1) if case.name == "gmm2")
    assert isinstance(free, GaussianMixture)
    x = solve(free.sde(1.0), solver, schedule, nfe=calls, batch=count, seed=seed).x
    directions = torch.nn.functional.normalize(normals(0, range(64), -96, (2,), torch.float64, "cpu"), dim=1)
    ends = [(part.double() @ directions.T).sort(0).values for part in (x, free.sample(count, seed + 1))]
    return float((ends[0] - ends[1]).square().mean().sqrt())


class Kept:
    """Measured figures by name, in a file of the cache that is written after each."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / "choices.json"
        self.known: dict[str, float] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def get(self, name: str, make: Callable[[], float]) -> float:
        if name not in self.known:
            try:
                self.known[name] = make()
            except NonFiniteError:
                self.known[name] = math.inf
            except DiffsolveError:  # it needs more calls than there are
                self.known[name] = math.nan
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.known))
        return self.known[name]


def geometric(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(min(max(v, 1e-300), 1e300)) for v in values) / len(values))


def by_calls(kind: str, found: Sequence[Trial], kept: Kept, calls: Sequence[int]) -> Iterator[tuple[int, JSON]]:
    """(calls, the best pair of the kind and how it compares), by number of calls."""
    for count in calls:
        errors = {
            pair: [kept.get(f"{kind} {t.name} {count} {pair}", partial(t.error, *pair, count)) for t in found]
            for pair in PAIRS[kind]
        }
        errors = {pair: row for pair, row in errors.items() if not any(map(math.isnan, row))}
        best = [min(column) for column in zip(*errors.values(), strict=True)]
        over = {pair: geometric([e / b for e, b in zip(row, best, strict=True)]) for pair, row in errors.items()}
        (first, ratio), *rest = sorted(over.items(), key=lambda item: item[1])
        then = f"{rest[0][0][0]} on {rest[0][0][1]}, {rest[0][1]:.2f}" if rest else "none"
        yield count, {"solver": first[0], "schedule": first[1], "ratio": round(ratio, 3), "next": then,
                      "error": float(f"{geometric(errors[first]):.2g}")}  # fmt: skip


def by_tolerance(kind: str, found: Sequence[Trial], kept: Kept) -> JSON:
    """The row that chooses its steps and takes least calls to an error, tolerance scanned."""
    target, rows = TARGET.get(kind, TARGET[""]), STEPPED.get(kind, STEPPED[""])

    def least(stepped: Callable[[str, float], tuple[int, float]], row: str) -> float:
        runs = (stepped(row, 10 ** (-k / 3)) for k in range(2, 34))
        return float(next((calls for calls, error in runs if error <= target), math.inf))

    over = {
        row: geometric([kept.get(f"{kind} {t.name} to {target:g} {row}", partial(least, t.stepped, row))
                        for t in found if t.stepped is not None])
        for row in rows
    }  # fmt: skip
    (first, calls), (second, more), *_ = sorted(over.items(), key=lambda item: item[1])
    return {"solver": first, "why": f"{calls:.0f} calls to an error of {target:g} (next {second}, {more:.0f})"}


@torch.no_grad()
def choices(
    command: str, kept: Kept | None = None, stamp: str = "", *, kinds: Sequence[str] = tuple(PAIRS),
    networks: bool = True, calls: Sequence[int] = CALLS, progress: Callable[[str], object] = bool,
) -> str:  # fmt: skip
    """The table as JSON. kept: what has been measured. stamp: of which code it is.

    Raises what a row raises that is neither lost nor too dear.
    """
    kept, table = kept or Kept(), {}
    for kind in kinds:
        progress(kind)
        found = trials(kind, networks)
        rows: dict[str, JSON] = {"problems": len(found), "pairs": len(PAIRS[kind]),
                                 "of": [t.name for t in found]}  # fmt: skip
        rows["calls"] = {str(count): row for count, row in by_calls(kind, found, kept, calls)}
        if kind != "sde":
            rows["tolerance"] = by_tolerance(kind, found, kept)
        table[kind] = rows
    return as_json({"diffsolve_auto": 1, "command": command, "stamp": stamp, "seed": SEED, "kinds": table})
