"""Threads, registers that each test finds as they were, and `cuda`: skipped, with its reason, where no device is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the tests are small, and run side by side
if "MUTANTS_COPY" not in os.environ:  # whatever the shell says: compiled once, not by each process that a test starts
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"no CUDA device is visible to torch {torch.__version__}"))


@pytest.fixture(autouse=True)
def registers_as_they_were() -> Iterator[None]:
    """What a test registers is gone after it: the next one goes through the same catalogue."""
    from diffsolve import register

    register.load()
    before = [(each, each.copies()) for each in register.REGISTERS]
    yield
    for each, copies in before:
        if each.copies() != copies:
            each.undo(copies)
