"""What each test finds, whichever ran before it: threads, registers, generators, a cache of this run alone.

And `cuda`: skipped, with its reason, where no device is.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

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


OWN_CACHE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """What was kept on disk by other code would hide what this one does; one cache for all processes of a run."""
    if not hasattr(config, "workerinput") and "DIFFSOLVE_CACHE" not in os.environ:
        config.stash[OWN_CACHE] = os.environ["DIFFSOLVE_CACHE"] = tempfile.mkdtemp(prefix="diffsolve-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if folder := config.stash.get(OWN_CACHE, None):
        shutil.rmtree(folder, ignore_errors=True)
        del os.environ["DIFFSOLVE_CACHE"]


@pytest.fixture(autouse=True)
def as_they_were() -> Iterator[None]:
    """What a test registers is gone after it, and the next one draws the same; what it sets globally it puts back."""
    import numpy as np
    import torch

    from diffsolve import register

    def settings() -> tuple[object, ...]:
        return torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), Path.cwd()

    register.load()
    before = [(each, each.copies()) for each in register.REGISTERS]
    for seed in (random.seed, np.random.seed, torch.default_generator.manual_seed):
        seed(0)
    found = settings()
    yield
    for each, copies in before:
        if each.copies() != copies:
            each.undo(copies)
    assert settings() == found, "a test leaves what it has set: dtype, threads, gradients or folder"
