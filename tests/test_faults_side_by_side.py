"""Faults of diffusers' schedulers, and pains of their users, beside a DiffsolveScheduler in the same place.

Errors are relative to the exact flow of a mixture, whose own answers stand for a network.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from threading import Barrier, Thread
from typing import Any

import diffusers
import pytest
import torch
from peer_faults import VERSION
from peers import in_float64
from scheduler_loop import SD, SHAPE, gap, loop, network_of, scheduler, started
from stubs import numbers, slow
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import diffsolve as ds
from diffsolve.interop.diffusers import DiffsolveScheduler
from diffsolve.problems import GaussianMixture
from diffsolve.problems.diffusion import DiffusionField

pytestmark = [
    pytest.mark.skipif(diffusers.__version__ != VERSION, reason=f"of diffusers {VERSION}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of numpy, in their constructors
]
MULTI, UNIPC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
KARRAS: dict[str, Any] = SD | {"use_karras_sigmas": True}
MIXTURE = GaussianMixture(
    numbers(3, *SHAPE), [0.3, 0.5, 0.2], [1, 2, 3], ds.EDM(0.005, 80.0), dtype=torch.float64
)  # what the networks of scheduler_loop.py answer from


@cache
def exact(first: float, last: float) -> Tensor:
    """The end of the flow from `started()` at the noise level `first`, both as a VP pipeline has them."""
    grid = ds.make_grid(ds.Karras(), 600, MIXTURE.process, sigma_max=first, sigma_min=last or 0.005, final="none")
    return ds.solve(MIXTURE, "lms", grid, x=started() * math.hypot(1, first)).x / math.hypot(1, last)


def error(x: Tensor, first: float, last: float = 0.0) -> float:
    return gap(x.double(), exact(round(first, 9), round(last, 9)))


def eps(x: Tensor, sigma: float) -> Tensor:
    y = x.double() * math.hypot(1, sigma)
    return ((y - MIXTURE.denoise(y, sigma)) / sigma).to(x.dtype)


def theirs(name: str, n: int, config: dict[str, Any], dtype: torch.dtype = torch.float64, draws: Any = None) -> float:
    """The error at its last noise level above 0, its network asked at the noise level that it has in its table."""
    kind, none = getattr(diffusers, name), torch.zeros_like(started(), dtype=dtype)
    with in_float64(kind, draws or iter(lambda: none, None), wide=dtype == torch.float64):
        made = kind(**config)
        made.set_timesteps(n)
        levels, x = made.sigmas.double().tolist(), started().to(dtype)
        last = min(level for level in levels if level > 0)
        for t, sigma in zip(made.timesteps, levels, strict=False):
            if sigma > last:
                x = made.step(eps(x, sigma), t, x, return_dict=False)[0]
    return error(x, levels[0], last)


def ours(solver: str, n: int, dtype: torch.dtype = torch.float64, **options: Any) -> float:
    made = scheduler("sd", solver, **({"final": "none"} | options))
    made.set_timesteps(n)
    plan = made._now.clock.plan
    x = loop(made, network_of("sd"), started().to(dtype), generator=torch.manual_seed(0))
    return error(x, plan.calls[0].sigma, plan.end)


def slope(errors: list[float], times: float) -> float:
    return math.log(errors[0] / errors[1]) / math.log(times)


# ANCHORS' faults are numbered there; so are the pains


@pytest.mark.slow
def test_fault_1_a_third_order_that_is_the_second() -> None:
    config = KARRAS | {"solver_order": 3, "lower_order_final": False}
    assert slope([theirs(MULTI, n, config) for n in (100, 200)], 2) < 2
    assert slope([ours("dpmpp_3m", n) for n in (100, 200)], 2) > 2.8
    assert slope([ours("dpmpp_3m_published", n) for n in (100, 200)], 2) < 2


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every normal is 0, so that a stochastic method integrates its drift."""
    monkeypatch.setattr(DiffusionField, "normal", lambda self, *_: torch.zeros_like(self._address[0]))


def test_fault_2_a_third_order_of_the_sde_that_is_the_first(still: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def drift(first: float, last: float) -> Tensor:
        grid = ds.make_grid(ds.Karras(), 600, MIXTURE.process, sigma_max=first, sigma_min=last, final="none")
        fine = ds.solve(MIXTURE, "dpmpp_3m_sde(mended=True)", grid, x=started() * math.hypot(1, first)).x
        return fine / math.hypot(1, last)

    monkeypatch.setitem(globals(), "exact", cache(drift))
    config = KARRAS | {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "lower_order_final": False}
    assert slope([theirs(MULTI, n, config | {"final_sigmas_type": "zero"}) for n in (40, 160)], 4) < 1.6
    assert slope([ours("dpmpp_3m_sde(mended=True)", n) for n in (40, 160)], 4) > 2.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "solver"),
    [(DEIS, {"solver_order": 3}, "deis"),
     ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 4, "tau_func": lambda _: torch.tensor(0.0)},
      "sa_solver(predictor=3, corrector=4)")],
)  # fmt: skip
def test_fault_4_more_steps_are_worse_in_float32(name: str, config: dict[str, Any], solver: str) -> None:
    left = [theirs(name, n, KARRAS | config, torch.float32) for n in (40, 200)]
    still = {"eta": 0.0} if solver.startswith("sa") else {}
    right = [ours(solver, n, torch.float32, **still) for n in (40, 200)]
    assert left[1] > 10 * left[0]
    assert right[1] < 0.1 * right[0]


def test_fault_6_a_default_grid_whose_last_step_is_a_jump() -> None:
    """Theirs stops at the timestep 999/n and goes to 0 from there; ours, of the same config, at the first timestep."""
    found: dict[str, list[float]] = {"theirs": [], "ours": [], "karras": []}
    network = network_of("sd")
    for n in (50, 200):
        their = diffusers.UniPCMultistepScheduler(**SD, solver_order=3)
        their.set_timesteps(n)
        levels, x = their.sigmas.double().tolist(), started()
        for t, sigma in zip(their.timesteps, levels, strict=False):
            x = their.step(eps(x, sigma), t, x, return_dict=False)[0]
        found["theirs"].append(error(x, levels[0]))
        for name, schedule in (("ours", {}), ("karras", {"schedule": "karras"})):
            made = DiffsolveScheduler.from_config(their.config, solver="unipc", **schedule)
            made.set_timesteps(n)
            calls = made._now.clock.plan.calls
            found[name].append(error(loop(made, network, started()), calls[0].sigma))
            assert calls[-1].sigma < 0.5 * levels[-2]
            assert calls[-1].sigma == pytest.approx(ds.VP().sigma_min)
    assert slope(found["theirs"], 4) < 0.9 < 1.3 < slope(found["ours"], 4)
    assert found["karras"][0] < 0.25 * found["theirs"][1], "with a quarter of its calls"


@pytest.mark.parametrize(
    ("name", "config", "n", "solver"),
    [(UNIPC, {"solver_order": 3, "lower_order_final": False}, 21, "unipc"),
     (MULTI, {"solver_order": 3, "lower_order_final": False}, 3, "dpmpp_3m"), (MULTI, {"solver_order": 3}, 21, "lms")],
)  # fmt: skip
def test_fault_7_a_last_step_of_no_length(name: str, config: dict[str, Any], n: int, solver: str) -> None:
    """Pains 5 and 7 too: the last noise level counts twice where the run ends at it."""
    network = network_of("sd")
    their = getattr(diffusers, name)(**KARRAS, **config, final_sigmas_type="sigma_min")
    their.set_timesteps(n)
    assert not loop(their, network, started()).isfinite().all()
    made = DiffsolveScheduler.from_config(their.config, solver=solver)
    made.set_timesteps(n)
    assert all(a > b > 0 for a, b in pairwise(made.sigmas.tolist()))
    plan = made._now.clock.plan
    assert error(loop(made, network, started()), plan.calls[0].sigma, plan.end) < (0.1 if n > 3 else 2)


@pytest.mark.parametrize("spacing", ["linspace", slow("trailing")])
def test_fault_8_more_steps_of_ddim_are_worse(spacing: str) -> None:
    """Pain 1 too: a step ends 1000 // n below its start, wherever the next one starts."""
    left, right, network = [], [], network_of("sd")
    for n in (120, 600):
        their = diffusers.DDIMScheduler(**SD, timestep_spacing=spacing, clip_sample=False)
        their.set_timesteps(n)
        levels = ((1 - their.alphas_cumprod.double()) / their.alphas_cumprod.double()).sqrt()
        x = started()
        for t in their.timesteps:
            x = their.step(eps(x, float(levels[int(t)])), t, x, return_dict=False)[0]
        left.append(error(x, float(levels[int(their.timesteps[0])])))
        made = DiffsolveScheduler.from_config(their.config, solver="ddim")
        made.set_timesteps(n)
        right.append(error(loop(made, network, started()), made._now.clock.plan.calls[0].sigma))
    assert left[1] > 5 * left[0]
    assert right[1] < 0.4 * right[0]


def test_fault_9_an_error_that_goes_by_the_number_of_steps_modulo_3() -> None:
    network, left = network_of("sd"), []
    diffusers.utils.logging.set_verbosity_error()
    for n in range(24, 34):
        their = diffusers.DPMSolverSinglestepScheduler(**KARRAS, solver_order=3, lower_order_final=True)
        their.set_timesteps(n)
        x, levels = started(), their.sigmas.double().tolist()
        for t, sigma in zip(their.timesteps, levels, strict=False):
            x = their.step(eps(x, sigma), t, x, return_dict=False)[0]
        left.append(error(x, levels[0]))
    assert sum(b > 1.2 * a for a, b in pairwise(left)) >= 2
    for solver in ("dpm_solver_3", "dpm_fast"):
        right = []
        for n in range(24, 34):
            made = scheduler("sd", solver)
            made.set_timesteps(n)
            right.append(error(loop(made, network, started()), made._now.clock.plan.calls[0].sigma))
        assert all(b <= a * (1 + 1e-9) for a, b in pairwise(right)), "a call more is never worse"


def test_fault_10_adams_of_high_order_explodes() -> None:
    """torchdiffeq's, of its default max_order 12, hands back what is left; here a run that does is stopped and said."""
    torchdiffeq = pytest.importorskip("torchdiffeq")

    def f(t: Any, x: Tensor) -> Tensor:
        return -x * x * t

    x0 = torch.ones(1)
    end = float(torchdiffeq.odeint(f, x0, torch.linspace(0, 10, 101), method="explicit_adams")[-1])
    assert not abs(end - 1 / 51) < 1e-2
    problem = ds.ODEProblem(f, (0.0, 10.0), x0)
    for solver in ("lms", "torchdiffeq:explicit_adams"):
        assert float(ds.solve(problem, solver, n=100).x) == pytest.approx(1 / 51, rel=1e-3)
    with pytest.raises(ds.NonFiniteError, match="too long"):
        ds.solve(problem, "lms(order=12)", n=100)


@pytest.mark.slow
def test_fault_11_float32_and_rounded_times_are_floors() -> None:
    network, n = network_of("sd"), 400
    rounded = diffusers.UniPCMultistepScheduler(**KARRAS, solver_order=3, final_sigmas_type="sigma_min")
    rounded.set_timesteps(n)
    levels = rounded.sigmas.double().tolist()
    assert error(loop(rounded, network, started()), levels[0], levels[-1]) > 5e-6
    assert ours("rk4", n) < 1e-7
    assert ours("unipc", n) < 2e-6


def test_pain_2_as_many_calls_as_were_asked_for() -> None:
    asked = (7, 100)

    def counts(made: Any) -> list[int]:
        return [(made.set_timesteps(n), len(made.timesteps))[1] for n in asked]

    theirs = {name: counts(getattr(diffusers, f"{name}Scheduler")(**SD)) for name in (
        "HeunDiscrete", "KDPM2Discrete", "PNDM")}  # fmt: skip
    assert all(a > b for found in theirs.values() for a, b in zip(found, asked, strict=True)), theirs
    for solver, stages in (("heun", 2), ("dpm2", 2), ("pndm", 4)):
        found = counts(scheduler("sd", solver))
        assert all(0 <= n - count < stages for n, count in zip(asked, found, strict=True)), (solver, found)


@pytest.mark.parametrize("name", [DEIS, MULTI, UNIPC, "DPMSolverSinglestepScheduler", "SASolverScheduler"])
def test_pain_3_times_that_are_there_twice(name: str) -> None:
    """Fault 12 too: of a cosine's Karras levels 13 in 30 round to a time that is taken."""
    their, n = getattr(diffusers, name)(beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True), 30
    their.set_timesteps(n)
    assert len(set(their.timesteps.tolist())) < n - 10
    with pytest.raises((IndexError, AssertionError)):
        loop(their, lambda x, t: x * 0.5, started())
    for solver in ("dpmpp_2m", "unipc", "heun"):
        made = DiffsolveScheduler.from_config(their.config, solver=solver)
        made.set_timesteps(n)
        times = made.timesteps[made._now.clock.plan.starts].tolist()
        assert len(set(times)) == len(times)
        assert loop(made, lambda x, t: x * 0.5, started()).isfinite().all()


@pytest.mark.parametrize(("name", "solver"), [("HeunDiscrete", "heun"), ("KDPM2Discrete", "dpm2")])
def test_pain_4_a_cut_within_a_step(name: str, solver: str) -> None:
    """What img2img does: half of all cuts begin a run in the middle of one of theirs, which is then another method."""
    network, n = network_of("sd"), 20
    their = getattr(diffusers, f"{name}Scheduler")(**SD)
    made = scheduler("sd", solver, schedule="linspace")
    for cut in (9, 10, 15, 16):
        their.set_timesteps(n)
        made.set_timesteps(2 * n - 1)
        results = []
        for one in (their, made):
            times = one.timesteps[cut:]
            one.set_begin_index(cut)
            first = ds.VP().sigma(float(times[0]))
            x = started() * (math.hypot(1, first) if one is their else 1)
            results.append(error(loop(one, network, x, timesteps=times), first))
        assert (results[0] > 1) == (cut % 2 == 1), "theirs"
        assert results[1] < 0.05


@pytest.mark.parametrize("name", [DEIS, MULTI, UNIPC, "SASolverScheduler", "DPMSolverSinglestepScheduler"])
def test_pain_9_the_time_that_is_told_is_that_of_the_level(name: str) -> None:
    their = getattr(diffusers, name)(**KARRAS)
    their.set_timesteps(20)
    made = DiffsolveScheduler.from_config(their.config, solver="dpmpp_2m")
    made.set_timesteps(20)

    def off(one: Any) -> float:
        pairs = zip(one.timesteps.tolist(), one.sigmas.tolist(), strict=False)
        return max(abs(ds.VP().sigma(t) / sigma - 1) for t, sigma in pairs if sigma > 0.03)

    assert off(their) > 0.02
    assert off(made) < 1e-5


class OnDevice(TorchDispatchMode):
    """How many float64 tensors come to be on a device that stands for one that has none of them."""

    wide = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.wide += isinstance(out, Tensor) and out.dtype == torch.float64 and out.device.type == "meta"
        return out


def test_pain_19_no_float64_on_the_device() -> None:
    with OnDevice() as theirs:
        diffusers.FlowMapEulerDiscreteScheduler().set_timesteps(10, device="meta")
    assert theirs.wide, "unless the device is one of those that it knows by name"
    for world in ("sd", "flow"):
        for solver in ("dpmpp_2m", "heun(form=sigma)", "unipc"):
            made, x = scheduler(world, solver), torch.empty(2, *SHAPE, device="meta")
            with OnDevice() as own:
                made.set_timesteps(10, device="meta")
                for t in made.timesteps:
                    x = made.step(x, t, x, return_dict=False)[0]
            assert own.wide == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pain_20_noise_that_is_lost_to_half_precision(dtype: torch.dtype) -> None:
    """At the first timestep alpha^2 = 0.99915 is 1 in bfloat16: diffusers adds no noise at all."""
    clean, noise, first = torch.zeros(1, 3, dtype=dtype), torch.ones(1, 3, dtype=dtype), torch.tensor([0])
    their = diffusers.DDIMScheduler(**SD).add_noise(clean, noise, first)
    made = scheduler("sd", "ddim").add_noise(clean, noise, first)
    right = ds.VP().sigma_min / math.hypot(1, ds.VP().sigma_min)
    assert gap(made.double(), torch.full((1, 3), right).double()) < torch.finfo(dtype).eps
    off = gap(their.double(), torch.full((1, 3), right).double())
    assert off == 1 if dtype == torch.bfloat16 else off > 10 * torch.finfo(dtype).eps


def test_pain_22_two_runs_of_one_scheduler() -> None:
    """Two threads that take turns: theirs runs out of its table, ours has a run for each thread."""
    network, made = network_of("sd"), scheduler("sd", "dpmpp_2m")
    their = diffusers.DPMSolverMultistepScheduler(**KARRAS)

    def turns(one: Any) -> list[Tensor]:
        one.set_timesteps(6)
        states = [started(), started() * 2]
        for t in one.timesteps:
            for k, x in enumerate(states):
                states[k] = one.step(network(x, t.expand(2)), t, x, return_dict=False)[0]
        return states

    with pytest.raises(IndexError):
        turns(their)
    gate, ends = Barrier(2, timeout=20), {}

    def work(scale: int) -> None:
        made.set_timesteps(6)
        x = started() * scale
        for t in made.timesteps:
            gate.wait()
            x = made.step(network(x, t.expand(2)), t, x, return_dict=False)[0]
        ends[scale] = x

    threads = [Thread(target=work, args=(scale,)) for scale in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scale in (1, 2):
        alone = scheduler("sd", "dpmpp_2m")
        alone.set_timesteps(6)
        assert gap(ends[scale], loop(alone, network, started() * scale)) < 1e-12
