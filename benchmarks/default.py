"""The default in two worlds, beside other rows: `python benchmarks/default.py --markdown docs/default_tables.md`.

A network under guidance (the embedded model, prompts and a seed that no constant was chosen on) and smooth mixtures.
Each sample's relative distance from the flow at sigma_min, at equal numbers of network calls, all rows from the same
starts on the same grid. What has been computed is kept in --cache, so that a run can be broken off.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor

import diffsolve as ds
from diffsolve.problems import StableDiffusion
from diffsolve.validation.references import reference, row_errors, sampling_cases
from diffsolve.validation.site import stamp

ROWS = ("guarded_abm", "damped_abm", "damped_abm(order=5, reach=2, trust=0.67)", "euler", "dpmpp_2m", "unipc",
        "unipc(order=2)", "unipc(order=1)", "lms(order=3)", "damped_abm(order=2)",
        "lms(order=2, form=noise)")  # fmt: skip
SHOWN = ("guarded_abm", "damped_abm", "euler", "dpmpp_2m", "unipc")
PROMPTS, SEED = ("sunflower", "slice of pizza", "owl", "volcano"), 5
PAGE = "docs/default_tables.md"
GUIDANCE, CALLS = (1.0, 4.0, 7.5, 12.0), (6, 8, 10, 15, 20, 30)
MIXTURES = ((10, (16, 2, 64)), (0, (8, 3, 32)))  # seed, dimensions
BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)
PEERS = Path(__file__).parent / "results" / "error_for_cost.md"
STEPS = 300  # of the network's reference
Errors = dict[str, dict[str, list[float]]]  # cell -> row -> the samples' errors


class Kept:
    """A file of results by key, written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, list[float]] = json.loads(path.read_text()) if path.is_file() else {}

    def put(self, key: str, errors: list[float]) -> list[float]:
        self.known[key] = errors
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.known))
        part.replace(self.path)
        return errors


def ended(problem: ds.ProbabilityFlow, row: str, nfe: int, x: Tensor) -> Tensor:
    """The state at sigma_min; infinite where the run fails."""
    try:
        return ds.solve(problem, row, "karras", nfe=nfe, x=x, final="none").x
    except ds.NonFiniteError:
        return x * math.inf


def of_network(kept: Kept, rows: tuple[str, ...]) -> Errors:
    """Errors of the embedded model: cell "guidance, calls"."""
    model, found = StableDiffusion.from_pretrained("emoji"), Errors()
    for guidance in GUIDANCE:
        problem = model(list(PROMPTS), guidance=guidance)
        x = problem.prior(len(PROMPTS), SEED)
        exact: Tensor | None = None
        for nfe in CALLS:
            cell = found.setdefault(f"guidance {guidance:g}, {nfe} calls", {})
            for row in rows:
                key = f"emoji {guidance:g} {nfe} {row}"
                if key not in kept.known and exact is None:
                    exact = ended(problem, "dpmpp_2m", STEPS, x).double()
                if key not in kept.known and exact is not None:
                    kept.put(key, row_errors(ended(problem, row, nfe, x), exact).tolist())
                cell[row] = kept.known[key]
    return found


def of_mixtures(kept: Kept, rows: tuple[str, ...]) -> Errors:
    """Errors of the smooth problems: cell "seed, dims, problem, calls"."""
    found = Errors()
    for seed, dims in MIXTURES:
        for case in sampling_cases(seed, dims=dims):
            for nfe in BUDGETS:
                cell = found.setdefault(f"{seed} {','.join(map(str, dims))} {case.name} {nfe}", {})
                for row in rows:
                    key = f"{seed} {dims} {case.name} {nfe} {row}"
                    if key not in kept.known:
                        kept.put(key, row_errors(ended(case.flow, row, nfe, case.x), reference(case).state).tolist())
                    cell[row] = kept.known[key]
    return found


def of_peers() -> dict[str, float]:
    """The least median error of a peer in each cell of the committed table of error for cost."""
    found, at = {}, ""
    for line in PEERS.read_text(encoding="utf-8").splitlines():
        if head := re.match(r"## Seed (\d+), dimensions ([\d,]+)", line):
            at = f"{head[1]} {head[2]}"
        parts = [part.strip() for part in line.split("|")]
        if at and len(parts) > 8 and parts[2].isdigit():
            found[f"{at} {parts[1]} {parts[2]}"] = float(parts[6])
    return found


def geometric(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def ratios(found: Errors, least: dict[str, float], row: str) -> list[float]:
    return [median(cell[row]) / least[name] for name, cell in found.items()]


def table(found: Errors, least: dict[str, float], what: str) -> Iterator[str]:
    """Of each row, its median error to the least of the cell: geometric mean, largest."""
    yield f"| row | to {what}, geometric mean | largest |\n|---|---|---|"
    for row in next(iter(found.values())):
        over = ratios(found, least, row)
        yield f"| `{row}` | {geometric(over):.2f} | {max(over):.1f} |"


def cells(found: Errors) -> Iterator[str]:
    """Median and 90 % quantile of each cell, and how often the first row is nearer than each of the others."""
    yield "| cell | best row | " + " | ".join(SHOWN) + " |\n" + "|---" * (2 + len(SHOWN)) + "|"
    for name, cell in found.items():
        best = min(cell, key=lambda row: median(cell[row]))
        shown = [f"{median(cell[row]):.1e}, {quantiles(cell[row], n=10)[-1]:.1e}" for row in SHOWN]
        yield f"| {name} | {best} {median(cell[best]):.1e} | " + " | ".join(shown) + " |"
    mine = SHOWN[0]
    for other in SHOWN[1:]:
        pairs = [(a, b) for cell in found.values() for a, b in zip(cell[mine], cell[other], strict=True)]
        yield f"\n`{mine}` is nearer than `{other}` in {sum(a < b for a, b in pairs)} of {len(pairs)} samples."


def page(network: Errors, mixtures: Errors) -> str:
    best = {name: min(median(errors) for errors in cell.values()) for name, cell in network.items()}
    plain = {name: min(median(cell[row]) for row in ("euler", "dpmpp_2m")) for name, cell in network.items()}
    peers = of_peers()
    over = ratios(network, plain, SHOWN[0])
    lines = [
        "# The default in two worlds", "", f"    python benchmarks/default.py --markdown {PAGE}", "",
        "Median over samples of the relative distance from the flow at sigma_min, on karras. The network: embedded "
        f"model, {len(PROMPTS)} prompts, reference {STEPS} steps. The mixtures: 256 starts, the peers of "
        "benchmarks/results/error_for_cost.md, each cell's best in hindsight.", "",
        "## The network", "", *table(network, best, "the best row of the cell"), "",
        f"`{SHOWN[0]}` to the better of Euler and 2M: geometric mean {geometric(over):.2f}, largest {max(over):.2f}.",
        "",
        "Median, 90 % quantile:", "", *cells(network), "",
        "## The mixtures", "", *table(mixtures, peers, "the best peer of the cell"), "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="file to write the tables to")
    parser.add_argument("--cache", type=Path, default=stamp.kept(PAGE), help="what is measured, kept")
    parser.add_argument("--rows", nargs="*", default=ROWS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept, rows = Kept(given.cache), tuple(given.rows)
    with torch.no_grad():
        text = page(of_network(kept, rows), of_mixtures(kept, rows))
    print(text)
    if given.markdown:
        stamp.write(PAGE, given.markdown, text)


if __name__ == "__main__":
    main()
