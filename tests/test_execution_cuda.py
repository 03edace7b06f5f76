"""The CUDA players without a device: the kernel in Triton's interpreter, graphs by a stand-in that steps again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

INSIDE = "DIFFSOLVE_TEST_OF_GRAPHS"
NAMES = ["euler", "dpmpp_2m", "flow_euler", "euler_ancestral", "restart", "guarded_abm(guided=True)"]


@pytest.mark.slow
def test_kernel_and_graphs_are_the_host_s(tmp_path: Path) -> None:
    """In a process of its own: whether kernels are interpreted is decided where triton is imported."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", INSIDE: "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", __file__, "-k", "inside", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{2 * len(NAMES)} passed" in done.stdout


def replaying(step: Callable[[], Any]) -> tuple[Any, Any]:
    """A graph's stand-in: what the step left is made again in the same tensors."""
    made = step()

    class Graph:
        def replay(self) -> None:
            again = step()
            for (_, kept), (_, value) in zip(made.past, again.past, strict=True):
                kept.copy_(value)
            made.x.copy_(again.x)

    return Graph(), made


@pytest.mark.skipif(INSIDE not in os.environ, reason="run by test_kernel_and_graphs_are_the_host_s")
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_inside(name: str, graph: bool) -> None:
    from test_execution import gap, problem

    import diffsolve as ds
    from diffsolve.execution import cuda

    of, loop, captured = problem(torch.float64), None, []

    def capture(step: Callable[[], Any]) -> tuple[Any, Any]:
        captured.append(step)
        return replaying(step)

    for seed in (0, 0, 1):
        run = ds.start(of, name, n=5, batch=2, seed=seed, execution="fused")
        host: Any = run._loop
        if loop is None:
            passing = cuda.TritonPass(host.plan, torch.device("cpu"))
            given = host.solver, host.program, host.plan, run.solution.x, passing
            loop = cuda.GraphLoop(*given, capture) if graph else cuda.FusedLoop(*given)
        run._loop = loop
        visits = list(run)
        whole = ds.solve(of, name, n=5, batch=2, seed=seed, execution="eager")
        assert gap(run.solution.x, whole.x) < 1e-13
        assert (run.solution.nfe, run.solution.nodes) == (whole.nfe, whole.nodes)
        assert visits[-2].denoised is not None
        assert len(captured) == (len(visits) if graph else 0), "once for each step, and not again"
