"""What mutants.py runs inside pytest, as a plugin: it makes the map of a test file, or runs chosen tests."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import resource
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from mutation import labels

MEMORY = 8 << 30  # bytes that the tests of a mutant may take


def spent() -> float:
    """Seconds of the processor so far, those of processes that were waited for too."""
    return sum(os.times()[:4])


class Mapper:
    """Writes which tests passed, in how many seconds of the processor, and which of them ran which line."""

    def __init__(self, package: Path, out: Path) -> None:
        from coverage import Coverage

        self.package, self.out, self.seconds = package, out, defaultdict[str, float](float)
        self.coverage = Coverage(data_file=None, config_file=False, source=[str(package)], messages=False)
        self.coverage.set_option("run:disable_warnings", ["no-data-collected"])
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.coverage.switch_context(item.nodeid)
        self.seconds[item.nodeid] -= spent()
        done = yield
        self.seconds[item.nodeid] += spent()
        self.coverage.switch_context("")
        return done

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += 0.0 if report.passed else math.inf

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data, numbers = self.coverage.get_data(), {name: number for number, name in enumerate(self.seconds)}
        found: dict[str, dict[str, set[int]]] = {}
        for file in map(Path, data.measured_files()):
            names, lines = labels(file.read_bytes()), defaultdict[str, set[int]](set)
            for line, tests in data.contexts_by_lineno(str(file)).items():
                run = {numbers[test] for test in tests if test in numbers}
                if run and 0 < line <= len(names):  # line 0 is of an empty file
                    lines[names[line - 1]] |= run
            found[file.relative_to(self.package.parent).as_posix()] = lines
        sets: dict[tuple[int, ...], int] = {}
        places = {
            file: {label: sets.setdefault(tuple(sorted(run)), len(sets)) for label, run in lines.items()}
            for file, lines in found.items()
        }
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps({"tests": list(self.seconds.items()), "sets": list(sets), "lines": places}))
        part.replace(self.out)


class Chooser:
    """Runs the tests that are listed, in their order, and writes which of them fail.

    Told `but`, it runs those of the files that are not listed, until `seconds` of the processor are spent: first those
    with one of `words` in their name.
    """

    def __init__(self, told: dict[str, Any], out: Path) -> None:
        self.told, self.out, self.failed = told, out, list[str]()
        self.places = {name: place for place, name in enumerate(told["tests"])}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.told["but"]:
            items[:] = [item for item in items if item.nodeid not in self.places]
            items.sort(key=lambda item: not any(word in item.nodeid for word in self.told["words"]))
        else:
            items[:] = sorted((i for i in items if i.nodeid in self.places), key=lambda i: self.places[i.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        if spent() > self.told["seconds"]:
            raise pytest.exit.Exception("the budget is spent", pytest.ExitCode.OK)

    def pytest_sessionfinish(self) -> None:
        self.out.write_text(json.dumps(self.failed))


def pytest_configure(config: pytest.Config) -> None:
    package, out = Path(os.environ["MUTANTS_COPY"], "diffsolve"), Path(os.environ["MUTANTS_OUT"])
    found = importlib.util.find_spec("diffsolve")
    if found is None or found.origin != str(package / "__init__.py"):
        raise pytest.UsageError(f"diffsolve is not the copy's: {found}")
    if listed := os.environ.get("MUTANTS_TESTS"):
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        config.pluginmanager.register(Chooser(json.loads(Path(listed).read_text()), out))
    else:
        config.pluginmanager.register(Mapper(package, out))
