"""Would the tests notice? Small faults are put into the product one at a time, and some test must fail for each.

    make mutants                    # Ctrl-C keeps what is done, and the next call goes on from there
    .venv/bin/python tests/mutants.py --seed 1 --count 40 --only solvers --jobs 2

A seeded sample of the faults of mutation.py (mutants), even over files and kinds, is tried out on a copy of the
package, never in the working tree. A map of which test runs which line is made first, a test file at a time; a mutant
is then shown the tests that run its line, the fastest first, until one fails, and after them those that run what it
belongs to, for some lines run at import, or but once. Map and results are kept in .mutants/ under a hash of the
sources; a survivor is tried again once a test has changed. Exits with 1 unless the share ENOUGH is killed of the
mutants that are not in EQUIVALENT.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import importlib.util
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from mutation import Mutant, sample
from tqdm import tqdm

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
STORE = ROOT / ".mutants"
LEFT_OUT = ("*/app/*", "*/interop/*", "*/__init__.py", "*/train.py", "problems/emoji/data.py", "*/evaluate.py")
OWN = ("mutants", "mutants_pytest", "mutation", "test_mutants")  # of the tests, those that run no line of the product
ENOUGH = 0.95
FIRST = 40  # tests that a mutant is shown before the slower ones
BUDGET = 120.0  # seconds of tests, as the map measured them, that a mutant is shown at the most
PATIENCE = 120.0  # seconds beyond thrice the measured ones after which it hangs, and so is killed

# (file, its line, the line as changed): why no test can tell the two apart. These are not counted.
EQUIVALENT: dict[tuple[str, str, str], str] = {}

Tests = list[tuple[str, float]]  # names, and seconds
Results = dict[str, dict[str, Any]]  # by the mutant's name


class Workshop:
    """Copies of the package, one for each job, and the runs of pytest on them."""

    def __init__(self, folder: Path, code: dict[str, bytes], jobs: int) -> None:
        self.code, self.homes = code, homes()
        self.free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self.running: set[subprocess.Popen[str]] = set()
        for copy in (folder / str(job) for job in range(jobs)):
            for file in (path for home in self.homes for path in (ROOT / home).rglob("*")):
                name = file.relative_to(ROOT).as_posix()
                if name in code or (file.is_file() and file.suffix not in (".py", ".pyc")):
                    target = copy / self.place(name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(code[name]) if name in code else target.symlink_to(file)
            compileall.compile_dir(copy, quiet=1)
            self.free.put(copy)

    def place(self, name: str) -> str:
        """Where a file of the product stands in a copy."""
        home, _, rest = name.partition("/")
        return f"{self.homes[home]}/{rest}"

    @contextmanager
    def copy(self, mutant: Mutant | None = None) -> Iterator[Path]:
        """A copy that no other job uses, with the mutant in it."""
        copy = self.free.get()
        try:
            if mutant:
                target = copy / self.place(mutant.file)
                Path(importlib.util.cache_from_source(str(target))).unlink(missing_ok=True)
                target.write_bytes(mutant.code)
            yield copy
        finally:
            if mutant:
                target.write_bytes(self.code[mutant.file])
            self.free.put(copy)

    def pytest(self, copy: Path, arguments: Iterable[str], limit: float | None, **environment: str) -> int | None:
        """The exit code, None when out of time. Raises RuntimeError where pytest can't be run."""
        options = ["-q", "--tb=short", "-m", "slow or not slow", "-p", "no:cacheprovider", "-p", "mutants_pytest"]
        paths = [str(copy), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "MUTANTS_COPY": str(copy), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(  # -P, since the folder diffsolve/ of the root must not be found first
            [sys.executable, "-P", "-m", "pytest", *options, *arguments], cwd=ROOT, env=os.environ | environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.running.add(process)
        try:
            told, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.stop(process)
        if process.returncode == pytest.ExitCode.USAGE_ERROR:
            raise RuntimeError(told[-3000:])
        return process.returncode

    def stop(self, *processes: subprocess.Popen[str]) -> None:
        """End these processes, or all that run, and what they have started."""
        for process in processes or tuple(self.running):
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self.running.discard(process)

    def map(self, test: Path, out: Path) -> None:
        with self.copy() as copy:
            code = self.pytest(copy, [str(test)], None, MUTANTS_OUT=str(out))
        if not out.exists():
            raise RuntimeError(f"{test} left no map, pytest ended with {code}")

    def run(self, copy: Path, tests: Tests, *options: str) -> tuple[int | None, list[str]]:
        """The exit code of these tests, and which of them failed. Those of one file run together, for its fixtures."""
        listed, out = copy / "tests.json", copy / "failed.json"
        out.unlink(missing_ok=True)
        files: dict[str, list[str]] = {}
        for name, _ in tests:
            files.setdefault(name.partition("::")[0], []).append(name)
        listed.write_text(json.dumps([name for names in files.values() for name in names]))
        code = self.pytest(
            copy, [*options, *files], PATIENCE + 3 * sum(seconds for _, seconds in tests),
            MUTANTS_TESTS=str(listed), MUTANTS_OUT=str(out), PYTHONDONTWRITEBYTECODE="1",
        )  # fmt: skip
        return code, json.loads(out.read_text()) if out.exists() else []

    def verdict(self, mutant: Mutant, tests: Tests) -> dict[str, Any]:
        if not tests:
            return {"verdict": "survived", "by": "no test runs it"}
        with self.copy(mutant) as copy:
            for batch in filter(None, (tests[:FIRST], tests[FIRST:])):
                code, failed = self.run(copy, batch, "-x")
                if code is None:
                    return {"verdict": "out of time", "by": ""}
                if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                    return {"verdict": "killed", "by": failed[0] if failed else f"exit code {code}"}
        return {"verdict": "survived", "by": f"{len(tests)} tests pass"}


@dataclass
class Map:
    """Of one test file. tests: inf seconds where one does not pass. lines: the place in sets, by file and line."""

    tests: Tests
    sets: list[list[int]]
    lines: dict[str, dict[str, int]]

    def running(self, file: str, first: float, last: float) -> set[int]:
        """The tests, by number, that run one of these lines."""
        sets = {place for line, place in self.lines.get(file, {}).items() if first <= int(line) <= last}
        return {test for place in sets for test in self.sets[place]}


def shown_tests(mutant: Mutant, file: str, maps: list[Map]) -> Tests:
    """The tests that a mutant is shown; `file` is the place of its file in a copy.

    First those that run its statement, then its scope, then anything in its file, then the rest of the test files that
    import it; in each lot the fastest case of every test before a second case of any.
    """
    if not any(m.running(file, *mutant.lines) for m in maps):
        return []
    shown: dict[str, float] = {}
    for lines in (mutant.lines, mutant.scope, (0, math.inf), None):
        lot: dict[str, float] = {}
        for m in maps:
            numbers = m.running(file, *(lines or (0, math.inf)))
            if numbers and not lines:
                numbers.update(range(len(m.tests)))
            lot.update(m.tests[number] for number in numbers - {-1})
        cases: Counter[str] = Counter()
        order: dict[str, tuple[int, float]] = {}
        for name in sorted(lot, key=lambda name: (lot[name], name)):
            test = name.partition("[")[0]
            order[name] = cases[test], lot[name]
            cases[test] += 1
        for name in sorted(order, key=lambda name: order[name]):
            shown.setdefault(name, lot[name])
    chosen: Tests = []
    spent = 0.0
    for name, seconds in shown.items():
        if math.isfinite(seconds) and (not chosen or spent + seconds < BUDGET):
            chosen.append((name, seconds))
            spent += seconds
    return chosen


def make_maps(workshop: Workshop, pool: ThreadPoolExecutor, outs: dict[Path, Path]) -> list[Map]:
    """The map of each test file; those that are not there yet are made."""
    made = [pool.submit(workshop.map, test, out) for test, out in outs.items() if not out.exists()]
    for future in tqdm(as_completed(made), "which test runs which line", len(made), unit=" files", disable=not made):
        future.result()
    return [Map(**json.loads(out.read_text())) for out in outs.values()]


def try_out(workshop: Workshop, pool: ThreadPoolExecutor, mutants: list[Mutant], maps: list[Map]) -> Iterator[Any]:
    """(name, result) of each mutant as it becomes known."""
    shown = {mutant: shown_tests(mutant, workshop.place(mutant.file), maps) for mutant in mutants}
    with workshop.copy() as copy:  # a test that fails here too would kill anything
        code, unfit = workshop.run(copy, sorted({test for tests in shown.values() for test in tests[:FIRST]}))
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"on the unchanged code pytest ended with {code}")
    if unfit:
        print("These fail on the unchanged code, and are left out:", *unfit, sep="\n  ")
    tried = {
        pool.submit(workshop.verdict, mutant, [test for test in tests if test[0] not in unfit]): mutant
        for mutant, tests in shown.items()
    }
    for future in tqdm(as_completed(tried), "mutants", len(tried), unit=" mutants"):
        yield tried[future].name, future.result()


def equivalent(mutant: Mutant) -> bool:
    return (mutant.file, *mutant.texts) in EQUIVALENT


def report(mutants: list[Mutant], results: Results) -> bool:
    """Print a table by folder, and the survivors; whether enough were killed."""
    counted = [mutant for mutant in mutants if mutant.name in results and not equivalent(mutant)]
    survivors = [mutant for mutant in counted if results[mutant.name]["verdict"] == "survived"]
    table: dict[str, Counter[str]] = {}
    for mutant in counted:
        for row in (mutant.file.split("/")[0], "all"):
            table.setdefault(row, Counter())[results[mutant.name]["verdict"]] += 1
    print(f"\n{'':12}{'mutants':>9}{'killed':>9}{'(out of time)':>15}{'survived':>10}{'share':>8}")
    for row, verdicts in sorted(table.items(), key=lambda item: (item[0] == "all", item[0])):
        total, alive = verdicts.total(), verdicts["survived"]
        print(f"{row:12}{total:9}{total - alive:9}{verdicts['out of time']:15}{alive:10}{1 - alive / total:8.1%}")
    known = sum(map(equivalent, mutants))
    print(f"Not counted: {known} equivalent, {len(mutants) - len(counted) - known} not tried yet.")
    for mutant in survivors:
        print(f"\n{mutant.file}:{mutant.line} survived ({mutant.kind}; {results[mutant.name]['by']})")
        print("    {}\n -> {}".format(*mutant.texts))
    return len(survivors) <= (1 - ENOUGH) * len(counted)


def homes() -> dict[str, str]:
    """The folders of the product, and where they stand in a copy so that it imports as `diffsolve`."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"]
    return {folder: name.replace(".", "/") for name, folder in table.items()}


def digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    parser.add_argument("--count", type=int, default=120, help="mutants in the sample (120)")
    parser.add_argument("--only", default="", metavar="PATH", help="mutants of this file or folder alone")
    parser.add_argument("--jobs", type=int, default=1, help="runs of pytest side by side (1)")
    parser.add_argument("--tests", nargs="+", type=Path, metavar="FILE", help="these test files alone")
    options = parser.parse_args()

    files = sorted(path for home in homes() for path in (ROOT / home).rglob("*.py"))
    code = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in files}
    only = options.only.strip("/")
    sources = {
        name: text for name, text in code.items()
        if f"{name}/".startswith(f"{only}/" if only else "") and not any(fnmatch(name, rule) for rule in LEFT_OUT)
    }  # fmt: skip
    mutants = sample(sources, options.seed, options.count)

    store = STORE / digest([*map(str.encode, code), *code.values()])
    store.mkdir(parents=True, exist_ok=True)
    (STORE / ".gitignore").write_text("*\n")
    every = sorted(path for path in TESTS.glob("*.py") if path.stem not in OWN)
    helpers = [path.read_bytes() for path in every if not path.name.startswith("test_")]
    tests = [path.resolve() for path in options.tests or every if path.name.startswith("test_")]
    outs = {test: store / f"{test.stem}-{digest([*helpers, test.read_bytes()])}.json" for test in tests}
    suite, kept = digest(out.name.encode() for out in outs.values()), store / "results.json"
    results: Results = json.loads(kept.read_text()) if kept.exists() else {}
    settled = {name for name, result in results.items() if result["verdict"] != "survived" or result["suite"] == suite}
    waiting = [mutant for mutant in mutants if not equivalent(mutant) and mutant.name not in settled]

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(options.jobs) as pool:
        workshop = Workshop(Path(folder).resolve(), code, options.jobs)
        try:
            maps = make_maps(workshop, pool, outs)
            for name, result in try_out(workshop, pool, waiting, maps) if waiting else ():
                results[name] = result | {"suite": suite}
                kept.write_text(json.dumps(results, indent=1))
                waiting = [mutant for mutant in waiting if mutant.name != name]
        except KeyboardInterrupt:
            print("\nStopped; the next call goes on from here.")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            workshop.stop()
    return 0 if report(mutants, results) and not waiting else 1


if __name__ == "__main__":
    raise SystemExit(main())
