"""The whole catalogue on a GPU: the CPU's result, the same noise, and no host sync inside the loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import diffsolve as ds
from diffsolve.program import State, fixed_step_loop

pytestmark = pytest.mark.cuda
NAMES = [row.name for row in ds.list_solvers() if row.form is not None]
MEANS, STDS = [[1.0, 0.5], [-1.0, 0.2], [0.3, -1.2]], [0.2, 0.3, 0.1]


def mixture(device: str) -> ds.ProbabilityFlow:
    return ds.problems.GaussianMixture(MEANS, STDS, device=device)


@pytest.fixture(autouse=True)
def syncs_allowed_again() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("execution", ["eager", "tape", "fused", "graph"])
@pytest.mark.parametrize("name", NAMES)
def test_same_result_as_on_the_cpu(name: str, execution: str) -> None:
    """To rounding: the noise's logarithm and cosine differ in the last bit."""
    if execution in ("fused", "graph"):
        pytest.importorskip("triton")
        if not ds.get_solver(name).traceable or ds.get_solver(name).controller is not None:
            pytest.skip("it has no plan")
    hosts = "fused" if execution == "graph" else execution
    runs = [ds.solve(mixture(d), name, n=8, batch=4, execution=e) for d, e in (("cpu", hosts), ("cuda", execution))]  # type: ignore[arg-type]
    assert runs[1].x.device.type == "cuda"
    assert runs[0].nfe == runs[1].nfe
    torch.testing.assert_close(runs[1].x.cpu(), runs[0].x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_host_sync_in_the_loop(name: str) -> None:
    problem, solver = mixture("cuda"), ds.get_solver(name)
    grid = ds.make_grid(ds.Karras(), 8, problem.process)
    x = problem.prior(4, 0)
    field = problem.field(solver, x, range(4), 0, None)
    program = ds.plan(solver, grid, field)
    start = State(program.start, field.form.to_form(x, program.start))
    states = fixed_step_loop(solver, field, program, start)
    next(states)  # the first step may set up what the others use
    torch.cuda.set_sync_debug_mode("error")
    for state in states:
        assert state.u.shape == x.shape


def test_noise_is_the_cpus_to_rounding() -> None:
    on_cpu, on_gpu = (ds.normals(3, range(4), 1, (64,), torch.float32, d) for d in ("cpu", "cuda"))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-5, atol=1e-6)


def test_the_embedded_model_draws_the_same_picture() -> None:
    runs = [
        ds.solve(ds.problems.StableDiffusion.from_pretrained("emoji", device=d)("red apple", guidance=4), "heun", n=10)
        for d in ("cpu", "cuda")
    ]
    difference = (runs[1].x.cpu() - runs[0].x).norm() / runs[0].x.norm()
    assert difference < 1e-2
