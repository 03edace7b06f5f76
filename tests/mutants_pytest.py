"""What mutants.py runs inside pytest, as a plugin: it makes the map of a test file, or runs the tests that it lists."""

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

MEMORY = 8 << 30  # bytes that the tests of a mutant may take


class Mapper:
    """Writes which tests passed, in how many seconds, and which of them ran which line; -1 stands for the import."""

    def __init__(self, package: Path, out: Path) -> None:
        from coverage import Coverage

        self.package, self.out, self.seconds = package, out, defaultdict[str, float](float)
        self.coverage = Coverage(data_file=None, config_file=False, source=[str(package)], messages=False)
        self.coverage.set_option("run:disable_warnings", ["no-data-collected"])
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.coverage.switch_context(item.nodeid)
        done = yield
        self.coverage.switch_context("")
        return done

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration if report.passed else math.inf

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data, numbers = self.coverage.get_data(), {name: number for number, name in enumerate(self.seconds)}
        sets: dict[tuple[int, ...], int] = {}
        lines = {
            Path(file).relative_to(self.package.parent).as_posix(): {
                line: sets.setdefault(tuple(sorted(numbers.get(name, -1) for name in names)), len(sets))
                for line, names in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps({"tests": list(self.seconds.items()), "sets": list(sets), "lines": lines}))
        part.replace(self.out)


class Chooser:
    """Runs the tests that are listed, in their order, and writes which of them fail."""

    def __init__(self, listed: Path, out: Path) -> None:
        self.places = {name: place for place, name in enumerate(json.loads(listed.read_text()))}
        self.out, self.failed = out, list[str]()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.places), key=lambda i: self.places[i.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.out.write_text(json.dumps(self.failed))


def pytest_configure(config: pytest.Config) -> None:
    package, out = Path(os.environ["MUTANTS_COPY"], "diffsolve"), Path(os.environ["MUTANTS_OUT"])
    found = importlib.util.find_spec("diffsolve")
    if found is None or found.origin != str(package / "__init__.py"):
        raise pytest.UsageError(f"diffsolve is not the copy's: {found}")
    if listed := os.environ.get("MUTANTS_TESTS"):
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        config.pluginmanager.register(Chooser(Path(listed), out))
    else:
        config.pluginmanager.register(Mapper(package, out))
