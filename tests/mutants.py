"""Would the tests notice? Small faults are put into the product one at a time, and some test must fail for each.

    make mutants                    # Ctrl-C keeps what is done, and the next call goes on from there
    .venv/bin/python tests/mutants.py --seed 1 --count 40 --only solvers --jobs 2

A seeded sample of the faults of mutation.py, even over files and kinds, is tried out on a copy of the package, never
in the working tree, in three steps, each of which stops at the first test that fails:

1. A map of which fast test runs which line is made, a test file at a time.
2. Each mutant is shown the fast tests that run its statement, then its scope, then anything in its file: in each lot
   the fastest case of every test first, BUDGET seconds at the most.
3. What survives is shown what the map does not time, so the slow tests, of the test files that belong to it: those that
   import its module, or whose fast tests run it the most. SLOW seconds at the most.

The tests that killed are run on the unchanged code at last, and one that fails there too kills nothing.

All is kept in .mutants/. The map of a test file holds until that file changes: it knows a line by its text, so that
changes of the product leave it in place; it only says which tests to show first. A killed mutant stays so until its own
file or the test file that killed it changes; a survivor is tried again once anything has. Exits with 1 unless the share
ENOUGH is killed of the mutants that are not in mutants_equivalent.py.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import importlib.util
import json
import math
import multiprocessing
import os
import queue
import re
import signal
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import accumulate
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from mutants_equivalent import EQUIVALENT
from mutants_fork import PRELOAD, run_pytest
from mutation import Mutant, sample
from tqdm import tqdm

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
STORE = ROOT / ".mutants"
LEFT_OUT = (  # shells around other programs, training, and what runs on an accelerator alone
    "*/app/*", "*/interop/*", "*/__init__.py", "*/train.py", "problems/emoji/data.py", "*/evaluate.py",
    "diffsolve/execution/cuda.py",
)  # fmt: skip
OWN = ("mutants", "mutants_equivalent", "mutants_fork", "mutants_pytest", "mutation", "test_mutants")  # no tests
ENOUGH = 0.95
FIRST = 20  # fast tests that a mutant is shown before the others
BUDGET = 30.0  # seconds of the processor, as the map measured them, for the fast tests that a mutant is shown
SLOW = 90.0  # the same for the slow ones
NEAR = 6  # test files whose slow tests it is shown
PATIENCE = 120.0  # seconds beyond five times those after which it hangs, and so is killed

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(list(PRELOAD))

Tests = list[tuple[str, float]]  # names, and seconds
Result = dict[str, Any]  # the verdict; by: the test; sure: whether that one is known to pass on the unchanged code
Told = dict[str, Any]  # what the plugin's Chooser reads
Batch = tuple[list[str], Told]  # the test files, and that
ALIVE, PASSING = "survived", "survived the fast tests"


class Workshop:
    """Copies of the package, one for each job, and the runs of pytest on them."""

    def __init__(self, folder: Path, code: dict[str, bytes], jobs: int) -> None:
        self.code, self.homes = code, homes()
        self.free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self.running: set[ForkServerProcess] = set()
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

    def pytest(self, copy: Path, arguments: Sequence[str], limit: float | None, **environment: str) -> int | None:
        """The exit code, None when out of time. Raises RuntimeError where pytest can't be run."""
        options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "mutants_pytest"]
        environment |= {"MUTANTS_COPY": str(copy), "OMP_NUM_THREADS": "1"}
        log, paths = copy / "log.txt", [str(copy), str(TESTS)]
        process = FORKS.Process(
            target=run_pytest, args=([*options, *arguments], paths, str(ROOT), environment, str(log))
        )  # fmt: skip
        self.running.add(process)
        try:
            process.start()
            process.join(limit)
            code = process.exitcode
        finally:
            self.stop(process)
        if code == pytest.ExitCode.USAGE_ERROR:
            raise RuntimeError(log.read_text()[-3000:])
        return code

    def stop(self, *processes: ForkServerProcess) -> None:
        """End these processes, or all that run, and what they have started."""
        for process in processes or tuple(self.running):
            if process.pid and process.exitcode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.join()
            self.running.discard(process)

    def map(self, test: str, out: Path) -> None:
        with self.copy() as copy:
            code = self.pytest(copy, ["-m", "not slow", test], None, MUTANTS_OUT=str(out))
        if not out.exists():
            raise RuntimeError(f"{test} left no map, pytest ended with {code}")

    def run(self, copy: Path, files: list[str], told: Told, *options: str) -> tuple[int | None, list[str]]:
        """The exit code of what the plugin's Chooser chooses of these test files, and the tests that failed."""
        listed, out = copy / "tests.json", copy / "failed.json"
        out.unlink(missing_ok=True)
        listed.write_text(json.dumps({"but": False, "words": [], "seconds": math.inf} | told))
        code = self.pytest(
            copy, ["-m", "slow or not slow", *options, *files], PATIENCE + 5 * told.get("seconds", BUDGET),
            MUTANTS_TESTS=str(listed), MUTANTS_OUT=str(out), PYTHONDONTWRITEBYTECODE="1",
        )  # fmt: skip
        return code, json.loads(out.read_text()) if out.exists() else []

    def failing(self, tests: Iterable[str]) -> set[str]:
        """Those of these tests that fail on the unchanged code too: they would kill anything."""
        with self.copy() as copy:
            names = sorted(tests)
            code, failed = self.run(copy, together(names), {"tests": together(names, whole=True)})
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
            raise RuntimeError(f"on the unchanged code pytest ended with {code}")
        return set(failed)

    def verdict(self, mutant: Mutant, batches: Iterable[Batch], otherwise: str) -> Result:
        with self.copy(mutant) as copy:
            for files, told in batches:
                code, failed = self.run(copy, files, told, "-x") if files else (0, [])  # without files: the whole suite
                if code is None:
                    return {"verdict": "out of time", "by": "", "sure": True}
                if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                    by = failed[0] if failed else f"exit code {code}"
                    return {"verdict": "killed", "by": by, "sure": not failed}
        return {"verdict": otherwise, "by": "", "sure": True}


@dataclass
class Map:
    """Of one test file's fast tests: their seconds, inf where one does not pass; by product file and line, who runs it.

    lines: the place in sets, by the line's label. sets: tests by number.
    """

    tests: Tests
    sets: list[list[int]]
    lines: dict[str, dict[str, int]]

    def running(self, file: str, labels: frozenset[str] | None) -> set[int]:
        """The tests, by number, that run one of these lines (None: any) of a file, named by its place in a copy."""
        sets = {place for label, place in self.lines.get(file, {}).items() if labels is None or label in labels}
        return {test for place in sets for test in self.sets[place]}


Maps = dict[str, Map]  # by test file


def fast_tests(mutant: Mutant, file: str, maps: Iterable[Map]) -> list[str]:
    """The fast tests that a mutant is shown; `file` is the place of its file in a copy.

    First those that run its statement, then its scope, then anything in its file; in each lot the fastest case of every
    test before a second case of any.
    """
    shown: dict[str, float] = {}
    for labels in (mutant.lines, mutant.scope, None):
        lot = dict(m.tests[number] for m in maps for number in m.running(file, labels))
        cases: Counter[str] = Counter()
        order: dict[str, tuple[int, float]] = {}
        for name in sorted(lot, key=lambda name: (lot[name], name)):
            test = name.partition("[")[0]
            order[name] = cases[test], lot[name]
            cases[test] += 1
        for name in sorted(order, key=lambda name: order[name]):
            shown.setdefault(name, lot[name])
    sums = accumulate(shown[name] for name in shown if math.isfinite(shown[name]))
    return [
        name for name, spent in zip(filter(lambda name: math.isfinite(shown[name]), shown), sums, strict=True)
        if spent < BUDGET or spent == shown[name]
    ]  # fmt: skip


def near_files(mutant: Mutant, file: str, maps: Maps, texts: Mapping[str, str]) -> list[str]:
    """The test files that belong to a mutant: those that import its module, then those that run it with most tests."""
    module = file.removesuffix(".py").replace("/", ".")
    run = any(m.running(file, mutant.lines) for m in maps.values())  # a first test runs the `def` of all it imports
    near: dict[str, float] = {}
    for test, m in maps.items():
        share = len(m.running(file, mutant.lines if run else mutant.scope)) / max(len(m.tests), 1)
        near[test] = share + bool(re.search(rf"\b{module}\b", texts[test]))
    return sorted((test for test, value in near.items() if value), key=lambda test: -near[test])[:NEAR]


def words(mutant: Mutant, file: str, maps: Iterable[Map]) -> list[str]:
    """What a slow test's name may share with a mutant: the strings of its statement, the cases that alone run it."""
    found = {word for label in mutant.lines for word in re.findall(r'"(\w{3,})"', label)}
    for m in maps:
        run, cases = m.running(file, mutant.lines), (set[str](), set[str]())
        for number, (name, _) in enumerate(m.tests):
            cases[number in run].update(re.findall(r"\w{3,}", name.partition("[")[2]))
        found |= cases[True] - cases[False]
    return sorted(found)


def together(tests: Iterable[str], whole: bool = False) -> list[str]:
    """The files of these tests, or the tests (`whole`) with those of one file next to each other, for its fixtures."""
    files: dict[str, list[str]] = {}
    for name in tests:
        files.setdefault(name.partition("::")[0], []).append(name)
    return [name for names in files.values() for name in names] if whole else list(files)


class Kept:
    """The results in a file; each holds as long as what it rests on stays the same."""

    def __init__(self, path: Path, code: dict[str, bytes], tests: dict[str, bytes]) -> None:
        self.path, self.code, self.tests = path, code, tests
        self.whole = [*code.values(), *tests.values()]
        self.results: dict[str, Result] = json.loads(path.read_text()) if path.exists() else {}

    def rests_on(self, mutant: Mutant, result: Result) -> str:
        killer = self.tests.get(result["by"].partition("::")[0], b"")
        return digest(self.whole if result["verdict"] in (ALIVE, PASSING) else [self.code[mutant.file], killer])

    def __getitem__(self, mutant: Mutant) -> Result | None:
        result = self.results.get(mutant.name)
        return result if result and result["on"] == self.rests_on(mutant, result) else None

    def verdict(self, mutant: Mutant) -> str:
        return str((self[mutant] or {"verdict": ""})["verdict"])

    def put(self, mutant: Mutant, result: Result | None) -> None:
        if result:
            self.results[mutant.name] = result | {"on": self.rests_on(mutant, result)}
        else:
            self.results.pop(mutant.name, None)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1))
        part.replace(self.path)


def make_maps(workshop: Workshop, pool: ThreadPoolExecutor, tests: dict[str, bytes]) -> Maps:
    """The map of each test file by its name; those that are not there yet are made."""
    (STORE / "maps").mkdir(exist_ok=True)
    outs = {test: STORE / f"maps/{Path(test).stem}-{digest([text])}.json" for test, text in tests.items()}
    made = [pool.submit(workshop.map, test, out) for test, out in outs.items() if not out.exists()]
    for future in tqdm(as_completed(made), "which test runs which line", len(made), unit=" files", disable=not made):
        future.result()
    return {test: Map(**json.loads(out.read_text())) for test, out in outs.items()}


def try_out(mutants: list[Mutant], workshop: Workshop, pool: ThreadPoolExecutor, kept: Kept, with_slow: bool) -> None:
    """Judge these mutants, and keep the results. The maps are made once a mutant waits for a verdict."""
    texts = {test: text.decode() for test, text in kept.tests.items()}
    maps: Maps = {}
    unfit: set[str] = set()

    def fast(mutant: Mutant) -> Result:
        tests = [name for name in fast_tests(mutant, workshop.place(mutant.file), maps.values()) if name not in unfit]
        batches = [(together(part), {"tests": together(part, whole=True)}) for part in (tests[:FIRST], tests[FIRST:])]
        return workshop.verdict(mutant, batches, PASSING)

    def slow(mutant: Mutant) -> Result:
        file = workshop.place(mutant.file)
        known = [name for m in maps.values() for name, _ in m.tests]
        told = {"but": True, "tests": [*known, *unfit], "words": words(mutant, file, maps.values()), "seconds": SLOW}
        return workshop.verdict(mutant, [(near_files(mutant, file, maps, texts), told)], ALIVE)

    rounds = [("fast tests", fast, ""), ("slow tests", slow, PASSING)][: 2 if with_slow else 1]
    while True:
        if not maps and any(kept.verdict(m) in ("", PASSING) for m in mutants):
            maps |= make_maps(workshop, pool, kept.tests)
        for title, judge, before in rounds:
            tried = {pool.submit(judge, m): m for m in mutants if kept.verdict(m) == before}
            for future in tqdm(as_completed(tried), title, len(tried), unit=" mutants", disable=not tried):
                kept.put(tried[future], future.result())
        doubtful = {mutant: result for mutant in mutants if (result := kept[mutant]) and not result["sure"]}
        if not doubtful:
            return
        unfit |= (failing := workshop.failing({result["by"] for result in doubtful.values()}))
        for mutant, result in doubtful.items():
            kept.put(mutant, None if result["by"] in failing else result | {"sure": True})
        if failing:
            print("These fail on the unchanged code too, and are left out:", *sorted(failing), sep="\n  ")


def equivalent(mutant: Mutant) -> bool:
    return (mutant.file, *mutant.texts) in EQUIVALENT


def report(mutants: list[Mutant], kept: Kept) -> bool:
    """Print a table by folder, and the survivors; whether enough were killed."""
    counted = [mutant for mutant in mutants if kept.verdict(mutant) and not equivalent(mutant)]
    survivors = [mutant for mutant in counted if kept.verdict(mutant) in (ALIVE, PASSING)]
    table: dict[str, Counter[str]] = {}
    for mutant in counted:
        for row in (mutant.file.split("/")[0], "all"):
            table.setdefault(row, Counter()).update(["all", kept.verdict(mutant)])
    print(f"\n{'':12}{'mutants':>9}{'killed':>9}{'(out of time)':>15}{'survived':>10}{'share':>8}")
    for row, verdicts in sorted(table.items(), key=lambda item: (item[0] == "all", item[0])):
        total, alive = verdicts["all"], verdicts[ALIVE] + verdicts[PASSING]
        print(f"{row:12}{total:9}{total - alive:9}{verdicts['out of time']:15}{alive:10}{1 - alive / total:8.1%}")
    known = sum(map(equivalent, mutants))
    print(f"Not counted: {known} equivalent, {len(mutants) - len(counted) - known} not tried yet.")
    for mutant in survivors:
        print(f"\n{mutant.file}:{mutant.line} {kept.verdict(mutant)} ({mutant.kind})")
        print("    {}\n -> {}".format(*mutant.texts))
    return known + len(counted) == len(mutants) and len(survivors) <= (1 - ENOUGH) * len(counted)


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
    parser.add_argument("--fast", action="store_true", help="leave the slow tests for another call")
    options = parser.parse_args()

    files = sorted(path for home in homes() for path in (ROOT / home).rglob("*.py"))
    code = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in files}
    only = options.only.strip("/")
    named = [name for name in code if f"{name}/".startswith(f"{only}/" if only else "")]
    sources = {name: code[name] for name in named if not any(fnmatch(name, rule) for rule in LEFT_OUT)}
    mutants = sample(sources, options.seed, options.count)
    found = [path.resolve() for path in options.tests or sorted(TESTS.glob("test_*.py")) if path.stem not in OWN]
    tests = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in found}

    STORE.mkdir(exist_ok=True)
    (STORE / ".gitignore").write_text("*\n")
    kept = Kept(STORE / "results.json", code, tests)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(options.jobs) as pool:
        workshop = Workshop(Path(folder).resolve(), code, options.jobs)
        try:
            try_out([m for m in mutants if not equivalent(m)], workshop, pool, kept, with_slow=not options.fast)
        except KeyboardInterrupt:
            print("\nStopped; the next call goes on from here.")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            workshop.stop()
    return 0 if report(mutants, kept) else 1


if __name__ == "__main__":
    raise SystemExit(main())
