"""Many solves at once: a queue against static batches, own steps against the batch's, a folder against a loop, and by
one, two and four processes.

    python benchmarks/many.py [--only processes] [--markdown benchmarks/results/queue.md]

One thread, the embedded model. CPU seconds are counted, and compared runs stand beside each other in time.
(Not queue.py: a script's folder comes first on the path, and the standard library has a queue.)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffsolve as ds
from diffsolve.app import many
from diffsolve.app.lines import Pictures
from diffsolve.app.picture import Settings
from diffsolve.engine import solve_many
from diffsolve.parallel import Share
from diffsolve.validation.site import stamp

PROMPTS = ("red apple", "cat", "blue car", "sun", "green tree", "fish", "house", "dog")
SOLVERS = ("damped_abm", "dpmpp_2m", "ddim", "heun", "euler_ancestral")
WIDTH = 8


def mixed(count: int) -> list[dict[str, Any]]:
    """Requests with 6 to 30 steps, five solvers, three guidances, every eighth with a tolerance in place of steps."""
    draw = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    for i in range(count):
        request = {"prompt": PROMPTS[i % 8], "guidance": float(draw.choice([2, 4, 6])), "seed": i}
        if i % 8 == 5:
            found.append(request | {"solver": "dpm_solver_3", "rtol": 0.1})
        else:
            found.append(request | {"solver": str(draw.choice(SOLVERS)), "n": int(draw.integers(6, 31))})
    return found


def seconds(task: Callable[[], object]) -> float:
    """CPU seconds of a task."""
    began = time.process_time()
    task()
    return time.process_time() - began


def queue(model: Any, count: int = 64) -> list[str]:
    """Throughput of a queue against static batches in order of arrival, which end when their slowest does."""
    requests, found, told = mixed(count), {}, {}

    def run(name: str, batches: list[list[dict[str, Any]]]) -> None:
        told[name] = calls = [0, 0]
        answers: list[Tensor] = []
        for batch in batches:
            going = solve_many(model, batch, max_batch=WIDTH, rows=WIDTH, order="arrival")
            answers += [answer.result().x for answer in going]
            calls[0], calls[1] = calls[0] + going.calls, calls[1] + going.samples
        found[name] = answers

    static = [requests[i : i + WIDTH] for i in range(0, count, WIDTH)]
    times = {name: seconds(lambda: run(name, batches)) for name, batches in (("queue", [requests]), ("static", static))}  # noqa: B023
    company = max(float((a - b).abs().max()) for a, b in zip(found["queue"], found["static"], strict=True))
    [alone] = solve_many(model, requests[:1], max_batch=WIDTH, rows=WIDTH)
    company = max(company, float((alone.result().x - found["queue"][0]).abs().max()))
    solved = []
    for request, x in list(zip(requests, found["queue"], strict=True))[:6]:
        kinds = ("prompt", "guidance")
        problem = model(**{k: request[k] for k in kinds})
        single = ds.solve(problem, **{k: v for k, v in request.items() if k not in kinds}).x
        solved.append(float((single - x).abs().max()))
    lines = [f"| {count} mixed requests, 8 at a time | calls | samples a call | CPU seconds | pictures a second |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, title in (("static", "static batches, in order of arrival"), ("queue", "`solve_many`, one queue")):
        calls, samples = told[name]
        lines.append(f"| {title} | {calls} | {samples / calls:.2f} | {times[name]:.1f} | {count / times[name]:.2f} |")
    return [*lines, "",
            f"Throughput of the queue over static batches: **{times['static'] / times['queue']:.2f}**, in calls "
            f"{told['static'][0] / told['queue'][0]:.2f}. A sample in this company, in another and alone, in calls of "
            f"as many rows: {company:.1g} apart at most; from `solve` with a batch of 1, whose network call rounds "
            f"otherwise: {max(solved):.1g}."]  # fmt: skip


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The root mean square over the samples."""
    return float(torch.stack([(a - b).square().mean() for a, b in zip(found, exact, strict=True)]).mean().sqrt())


def steps_of_each(title: str, problem: ds.ProbabilityFlow, count: int, rtol: float, exact_n: int) -> list[str]:
    """NFE where each sample's steps are its own against NFE where the batch's are, at equal error."""
    exact = list(ds.solve(problem, "heun", n=exact_n, batch=count, final="none").x.split(1))
    whole = ds.solve(problem, "dpm_solver_3", rtol=rtol, batch=count, final="none")
    aim, tried = error(list(whole.x.split(1)), exact), []
    for factor in (4.0, 2.0, 1.0, 0.5, 0.25):
        common = {"solver": "dpm_solver_3", "rtol": rtol * factor, "final": "none"}
        requests = [{**common, "batch": [i]} for i in range(count)]
        answers = list(solve_many(problem, requests, max_batch=16, order="arrival"))
        tried.append((error([a.result().x for a in answers], exact), [a.result().nfe for a in answers]))
        if tried[-1][0] <= aim:
            break
    got, each = tried[-1]
    return [f"| {title} | {aim:.2g} | {whole.nfe} | {got:.2g} | {mean(each):.1f} | {max(each)} | "
            f"{mean(each) / whole.nfe:.2f} |"]  # fmt: skip


def folder(count: int = 16, n: int = 20) -> list[str]:
    """CPU seconds of `diffsolve batch` against a bare loop over `solve` and PNGs, the model being loaded."""
    pictures = Pictures([" {} "], Settings(prompt="red apple", n=n, guidance=4.0, batch=count))
    made, known = many.maker(pictures.base, False)
    problem, _ = made(pictures[0].settings)
    many.maker = lambda *_: (made, known)  # type: ignore[assignment]

    def loop(output: Path) -> None:
        for first in range(0, count, 4):
            solution = ds.solve(problem, n=n, batch=range(first, first + 4))
            for i, image in enumerate(solution.images()):
                image.save(output / f"{first + i}.png")

    def batch(output: Path) -> None:
        (output / ".batch" / "parts").mkdir(parents=True)
        (output / ".batch" / "ranks").mkdir()
        many.draw_many(pictures, output, Share(), False, None, None)

    inside, forward = [0.0], problem.model.unet.forward

    def counted(*given: object, **named: object) -> object:
        began = time.process_time()
        try:
            return forward(*given, **named)
        finally:
            inside[0] += time.process_time() - began

    problem.model.unet.forward = counted
    rows = []
    for turn in range(6):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            spent = []
            for task in (lambda: loop(Path(one)), lambda: batch(Path(other))):
                inside[0] = 0.0
                spent += [seconds(task), inside[0]]
        rows += [spent] if turn else []
    bare, of_bare, own, of_own = (median(row[i] for row in rows) / count for i in range(4))
    more = (own - of_own) - (bare - of_bare)
    return [f"`diffsolve batch` beside a bare loop (`solve`, batch 4, {n} steps, PNGs), the model loaded in both: "
            f"{1000 * bare:.0f} ms of CPU a picture in the loop, {1000 * of_bare:.0f} of it in the network; what is "
            f"not the network's takes {1000 * (own - of_own):.1f} ms in place of {1000 * (bare - of_bare):.1f}, "
            f"**{more / bare:+.1%}** of a picture (medians of five turns, {count} pictures each)."]  # fmt: skip


def processes(count: int = 16, n: int = 10) -> list[str]:
    """Seconds of the command by as many processes as a launcher would start, and whether the pictures are the same."""
    lines = [f"| `diffsolve batch --count {count} -n {n}` by | CPU seconds, all | of the longest | wall | same bytes |",
             "|---|---|---|---|---|"]  # fmt: skip
    first: dict[str, bytes] = {}
    for world in (1, 2, 4):
        with tempfile.TemporaryDirectory() as output:
            asked = [sys.executable, "-m", "diffsolve", "batch", "red apple", "--count", str(count), "-n", str(n)]
            began, ranks = time.monotonic(), []
            for rank in range(world):
                own = {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
                given = {"env": {**os.environ, **own}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                ranks.append(subprocess.Popen([*asked, "-o", output], **given))
            used = []
            for rank in ranks:
                _, status, spent = os.wait4(rank.pid, 0)
                rank.returncode = os.waitstatus_to_exitcode(status)
                assert rank.returncode == 0, f"a process ended with {rank.returncode}"
                used.append(spent.ru_utime + spent.ru_stime)
            wall = time.monotonic() - began
            found = {file.name: file.read_bytes() for file in Path(output).glob("*.png")}
            first = first or found
            lines.append(f"| {world} | {sum(used):.1f} | {max(used):.1f} | {wall:.1f} | "
                         f"{sum(found.get(name) == data for name, data in first.items())} of {count} |")  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="also write the tables here")
    parser.add_argument("--only", choices=("queue", "steps", "folder", "processes"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, lines = ds.problems.StableDiffusion.from_pretrained("emoji"), list[str]()
    if options.only in (None, "queue"):
        lines += [*queue(model), ""]
    if options.only in (None, "steps"):
        draw = np.random.default_rng(1)
        mixture = ds.problems.GaussianMixture(draw.normal(size=(6, 8)) * 3, draw.uniform(0.05, 0.5, 6))
        lines += ["| steps by error | error, batch's steps | NFE | error, own steps | NFE, mean | NFE, most | ratio |",
                  "|---|---|---|---|---|---|---|",
                  *steps_of_each("mixture, 64 samples", mixture, 64, 1e-3, 2000),
                  *steps_of_each("embedded, guidance 2, 8 samples", model("cat", guidance=2.0), 8, 3e-2, 80), ""]
    if options.only in (None, "folder"):
        lines += [*folder(), ""]
    if options.only in (None, "processes"):
        lines += processes()
    table = "\n".join(lines)
    print(table)
    if options.markdown:
        text = "# Many solves at once\n\n`python benchmarks/many.py`, one thread of a shared machine.\n\n"
        stamp.write("benchmarks/results/queue.md", options.markdown, f"{text}{table}")


if __name__ == "__main__":
    main()
