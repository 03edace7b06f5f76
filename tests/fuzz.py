"""Random calls of solve(), runs, configs, pictures and the command line, and what must hold of each of them.

    python tests/fuzz.py [--calls 10000] [--seed 0] [--folder .fuzz]        what `make fuzz` runs

No foreign exception, no hang, no silent wrong result: what comes back is finite, the same a second time and in any
batch, the same by every way through a run, and near the exact flow where that is known. Seeded; blocks of calls that
are done are not done again, and what was found is in the folder, with its traceback.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import fuzz_cases
import fuzz_configs
import hypothesis
import numpy as np
import torch
from hypothesis import HealthCheck, Phase
from models import tiny_model
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve import validate
from diffsolve.app import cli, picture

LIMIT = 20  # seconds of a call: of its own work, or on the clock where it has had its turn
TURNS = 6  # LIMITs on the clock, in which a busy machine has let it work for one
BLOCK = 50
MEMORY = 3e7  # bytes that the machine is said to have, so that what goes in is soon done
KNOWN = (UserWarning, DeprecationWarning, FutureWarning)
torch.set_num_threads(1)


class Hang(BaseException):
    """A call that takes too long; no `except Exception` may keep it."""


@contextmanager
def watched() -> Iterator[None]:
    """At most LIMIT seconds, little memory, and no warning of an arithmetic kind."""
    began, turns = time.process_time(), iter(range(1, TURNS))

    def late(*_: object) -> None:
        if time.process_time() - began >= LIMIT or next(turns, None) is None:
            raise Hang
        signal.alarm(LIMIT)

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        with warnings.catch_warnings(), mock.patch.object(validate, "available", return_value=MEMORY):
            warnings.simplefilter("error")
            for kind in KNOWN:
                warnings.simplefilter("ignore", kind)
            yield
    except Hang:
        raise AssertionError(f"it took more than {LIMIT} s") from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(call: Callable[[], Any]) -> Any:
    """What the call gives, or None where it is refused with a message; any other exception gets through."""
    try:
        return call()
    except ds.DiffsolveError as error:
        said = str(error)
    assert len(said) > 10, f"an error that says nothing: {said!r}"
    assert not said.rstrip().endswith((":", "one of", ",")), f"an error that breaks off: {said}"
    return None


# ---- solve


def check_solve(case: fuzz_cases.Solve) -> None:
    problem, options = fuzz_cases.problem(case.problem), case.options
    x = options.get("x")
    before = x.detach().clone() if isinstance(x, torch.Tensor) and x.device.type == "cpu" else None
    with watched():
        solution = attempt(lambda: ds.solve(problem, **options))
        if before is not None:
            assert torch.equal(x.detach().to_dense(), before.to_dense()) or before.isnan().any(), "x was changed"
        if solution is None:
            return
        check_solution(solution, options)
        ALSO[case.also](case, problem, solution)


def check_solution(solution: ds.Solution, options: dict[str, Any]) -> None:
    assert solution.x.isfinite().all(), "the solution is not finite"
    assert solution.nfe >= 0
    if options.get("nfe") is not None:
        assert solution.nfe <= options["nfe"], f"{solution.nfe} evaluations of {options['nfe']}"
    assert np.isfinite(solution.visited).all()
    assert len(solution.nodes) == solution.steps + 1, "nodes and steps"
    if options.get("save") == "all" and not options.get("events") and options.get("rtol") is None:
        assert len(solution.trajectory or []) == solution.steps + 1, "trajectory and steps"
    assert solution.reason in ("end", "max_nfe", "event"), solution.reason


def same(a: torch.Tensor, b: torch.Tensor, what: str, tolerance: float = 0.0) -> None:
    a, b = a.detach(), b.detach()
    scale = max(1.0, float(b.double().abs().max())) if b.numel() else 1.0
    gap = float((a.double() - b.double()).abs().max()) if b.numel() else 0.0
    single = tolerance * (1e6 if a.dtype == torch.float32 else 1)
    assert a.shape == b.shape, what
    assert gap <= single * scale, f"{what}: {gap:g} of {scale:g}"


def again(case: fuzz_cases.Solve, problem: Any, solution: ds.Solution) -> None:
    same(solution.x, ds.solve(problem, **case.options).x, "a second time")


def alone(case: fuzz_cases.Solve, problem: Any, solution: ds.Solution) -> None:
    """Each sample by itself; of chosen steps, and of what reads a norm of the batch, there is no such thing."""
    options = dict(case.options)
    batch = options.pop("batch", None)
    batch = len(solution.x) if batch is None else batch
    if not hasattr(problem, "shape") or "x" in options or _chosen(case, solution) or ":" in solution.solver:
        return
    for row, sample in enumerate(range(int(batch)) if not isinstance(batch, list) else batch):
        one = ds.solve(problem, **options, batch=[sample])
        same(one.x, solution.x[row : row + 1], f"sample {sample} alone", 1e-11)


def _chosen(case: fuzz_cases.Solve, solution: ds.Solution) -> bool:
    asked = [case.options.get(name) for name in ("rtol", "atol", "controller")]
    return solution.schedule == "adaptive" or any(value is not None for value in asked)


def run(case: fuzz_cases.Solve, problem: Any, solution: ds.Solution) -> None:
    started = ds.start(problem, **{k: v for k, v in case.options.items() if k != "callback"})
    for _ in started:
        pass
    same(started.solution.x, solution.x, "step by step")


def resume(case: fuzz_cases.Solve, problem: Any, solution: ds.Solution) -> None:
    options = {k: v for k, v in case.options.items() if k != "events"}
    whole = ds.solve(problem, **options)
    first = ds.start(problem, **options)
    for _ in range(max(1, whole.steps // 2)):
        first.step()
    state = attempt(lambda: first.state)
    if state is None:
        return
    given = {k: v for k, v in options.items() if k not in ("x", "seed", "batch")}
    second = attempt(lambda: ds.start(problem, **given, state=state))
    if second is None:
        return
    for _ in second:
        pass
    same(second.solution.x, whole.x, "gone on with")
    assert second.solution.nodes == whole.nodes


def calls(case: fuzz_cases.Solve, problem: Any, solution: ds.Solution) -> None:
    if not isinstance(problem, ds.ProbabilityFlow) or case.options.get("events"):
        return
    started = ds.start(problem, **case.options)
    due = started.calls()
    call = attempt(lambda: next(due, None))
    while call is not None:
        try:
            call = due.send(problem.denoiser(call.y, call.sigma))
        except StopIteration:
            same(started.solution.x, solution.x, "inside out", 1e-12)
            return


def tape(case: fuzz_cases.Solve, problem: Any, solution: ds.Solution) -> None:
    other = attempt(lambda: ds.solve(problem, **{**case.options, "execution": "tape"}))
    if other is not None:
        same(other.x, solution.x, "from a tape", 1e-9)


def exact(case: fuzz_cases.Solve, problem: Any, solution: ds.Solution) -> None:
    """With 256 steps a method of the flow is near its exact end, or nearer with more."""
    if case.problem not in fuzz_cases.EXACT or _chosen(case, solution) or ":" in solution.solver:
        return
    given = case.options.get("solver")
    method = ds.get_solver(problem.default_solver if given is None else given)
    if method.order is None or method.stochastic or ds.FORMS[case.options.get("form") or method.form].stochastic:
        return
    options = {k: v for k, v in case.options.items() if k in ("solver", "form", "seed", "batch", "execution")}
    rule = case.options.get("schedule")
    coarse = ("ays", "uniform", "linear_quadratic")  # from 4500 it ends in a step from 17 to 0.03 yet
    named = isinstance(rule, str) and "(" not in rule and rule not in coarse

    def error(n: int, **ends: float) -> tuple[float, float]:
        fine = ds.solve(problem, **options, schedule=rule if named else "karras", n=n, final="none", save="all", **ends)
        assert fine.trajectory is not None
        end = problem.exact(fine.trajectory[0], fine.visited[0], fine.visited[-1])
        return float((fine.x - end).norm() / end.norm()), float(fine.visited[-1])

    found, last = error(256)
    if found >= 0.1:  # some grids and first orders are that coarse; what converges is not wrong
        finer, _ = error(1024, sigma_min=last)  # "leading" ends elsewhere with more steps than there are times
        assert finer < 0.5 * found, f"{given} on {rule} is {found:g}, with 1024 steps {finer:g} from the exact flow"


ALSO = {f.__name__: f for f in (again, alone, run, resume, calls, tape, exact)}

# ---- what is made of arguments, configs, pictures, commands


def check_make(case: fuzz_cases.Make) -> None:
    """It is made or refused; a problem that is made can be solved, a process read, a schedule and a controller used."""
    with watched():
        made = attempt(lambda: fuzz_cases.CALLS[case.name][0](**case.given))
        if isinstance(made, ds.Problem):
            solution = attempt(lambda: ds.solve(made, n=2))
            assert solution is None or solution.x.isfinite().all()
        elif isinstance(made, ds.Process):
            low, high = attempt(lambda: (made.sigma_min, made.sigma_max)) or (1.0, 2.0)
            assert 0 < low < high < np.inf, (low, high)
        elif isinstance(made, ds.Controller):
            attempt(lambda: ds.solve(fuzz_cases.problem("gaussian sd"), "dopri5", controller=made, nfe=100))
        elif isinstance(made, ds.Schedule):
            attempt(lambda: ds.make_grid(made, 5, ds.VP()))
        elif isinstance(made, torch.Tensor):
            assert made.isfinite().all() or not all(
                t.isfinite().all() for t in case.given.values() if isinstance(t, torch.Tensor))  # fmt: skip


def check_config(case: fuzz_configs.Config) -> None:
    with watched():
        found = attempt(lambda: ds.problems.read_scheduler_config(case.config, case.tokens))
        if found is None:
            return
        process, prediction = found
        low, high = process.sigma_min, process.sigma_max
        assert 0 < low < high < np.inf, (low, high)
        middle = float(np.sqrt(low * high))
        for sigma in (low, middle, high):
            k = prediction.scaling(sigma, process)
            assert all(np.isfinite(float(c)) for c in (k.c_skip, k.c_out, k.c_in, k.c_noise)), (sigma, k)
            assert abs(process.sigma(process.t(sigma)) / sigma - 1) < 1e-6, sigma
        problem = ds.problems.Gaussian(torch.zeros(2), 0.5, process)
        for solver in ("euler", "dpmpp_2m"):
            solution = attempt(lambda solver=solver: ds.solve(problem, solver, n=3))
            assert solution is None or solution.x.isfinite().all()


def check_settings(chunk: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, watched():
        file, info = Path(folder) / "a.png", PngInfo()
        try:
            text = chunk if isinstance(chunk, str) else json.dumps(chunk)
            info.add_text("diffsolve", text)
        except (UnicodeEncodeError, ValueError):
            return  # what no file can hold
        Image.new("RGB", (2, 2)).save(file, pnginfo=info)
        found = attempt(lambda: picture.read(file))
        if found is not None:
            json.dumps(found[1:]).encode()
            again = picture.Settings(**vars(found[0]))
            assert again == found[0]


@cache
def tiny() -> tuple[Path, Path]:
    """A model of a few thousand weights, and a picture of it."""
    folder = Path(tempfile.mkdtemp())
    model, made = tiny_model(folder / "model"), folder / "made.png"
    arguments = ["sample", "apple", "--model", str(model), "-n", "1", "--device", "cpu", "-o", str(made)]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    return model, made


def check_command(arguments: list[str]) -> None:
    model, made = tiny()
    with tempfile.TemporaryDirectory() as folder, chdir(folder), watched():
        out = Path(folder) / "out.png"
        places = {"MODEL": str(model), "PICTURE": str(made), "OUT": str(out)}
        command = [places.get(argument, argument) for argument in arguments]
        result = CliRunner().invoke(cli.app, command)
        if isinstance(result.exception, Hang):
            raise result.exception
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (0, 1, 2), result.exit_code
        assert "Traceback" not in result.output, result.output
        if result.exit_code == 0 and out.exists():
            first, settings = out.read_bytes(), picture.read(out)[0]
            assert settings.model == str(model)
            CliRunner().invoke(cli.app, command)
            assert out.read_bytes() == first, "the same command drew another picture"
        elif result.exit_code:
            assert not out.exists(), "an error, and a picture"


KINDS: dict[str, tuple[Callable[[Any], None], Any]] = {
    "solve": (check_solve, fuzz_cases.solve), "make": (check_make, fuzz_cases.make),
    "config": (check_config, fuzz_configs.config),
    "settings": (check_settings, fuzz_configs.settings), "command": (check_command, fuzz_configs.command),
}  # fmt: skip
ROUND = ["solve"] * 10 + ["make"] * 4 + ["config"] * 3 + ["settings"] + ["command"] * 2


def block(kind: str, seed: int, calls: int) -> int:
    """So many random calls of a kind; how many there were. Raises what the first bad one raises, made small."""
    check, cases = KINDS[kind]
    count = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=calls, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False, print_blob=False,
    )  # fmt: skip
    @hypothesis.given(cases())
    def body(case: Any) -> None:
        nonlocal count
        count += 1
        check(case)

    body()
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"))
    parser.add_argument("--kind", choices=KINDS, help="of these calls alone")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    record = args.folder / f"{args.kind or 'all'}-{args.seed}.json"
    done = json.loads(record.read_text()) if record.exists() else {}
    for number in range(-(-args.calls // BLOCK)):
        if str(number) in done:
            continue
        kind = args.kind or ROUND[number % len(ROUND)]
        try:
            done[str(number)] = {"kind": kind, "calls": block(kind, args.seed * 1_000_003 + number, BLOCK)}
        except Exception as error:
            told = "".join(traceback.format_exception(error))
            (args.folder / f"found-{args.seed}-{number}.txt").write_text(told, errors="backslashreplace")
            done[str(number)] = {"kind": kind, "calls": BLOCK, "found": f"{type(error).__name__}: {error}"[:300]}
            print(f"block {number}, {kind}: {type(error).__name__}: {error}"[:300].encode(errors="backslashreplace"))
        record.write_text(json.dumps(done, indent=1))
    found = [entry for entry in done.values() if "found" in entry]
    print(f"{sum(entry['calls'] for entry in done.values())} calls, {len(found)} of {len(done)} blocks found something")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
