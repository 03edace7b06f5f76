"""A scheduler's run: begun in the middle, edited, copied, taken again, in several threads, with keyed noise."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import diffusers
import pytest
import torch
from scheduler_loop import SD, WORLDS, gap, loop, network_of, problem, scheduler, seeded, started
from stubs import SOLVERS, rows, slow
from torch import Tensor

import diffsolve as ds

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of numpy, in diffusers' constructors
    pytest.mark.filterwarnings("ignore:.*reads the network's answer without guidance"),
]
N = 15
MIXED = ["heun", "dpmpp_2m", "euler_ancestral", "unipc", "rk4", "damped_abm", "pndm", "dpmpp_sde", "score_sde_ve"]


def planned(world: str, solver: str, n: int = N) -> Any:
    made = scheduler(world, solver)
    made.set_timesteps(n)
    return made


def steps_of(made: Any) -> list[int]:
    """The first call of each step."""
    return made._now.clock.plan.starts


# begun in the middle


CUT = [name for name in SOLVERS if name not in ("edm_stochastic", "restart")]  # begins with noise; passes nodes again


@pytest.mark.parametrize("world", [world if world == "flow" else slow(world) for world in WORLDS])
@pytest.mark.parametrize("solver", rows(CUT))
def test_a_cut_is_the_end_of_the_grid(solver: str, world: str) -> None:
    made, flow, network = planned(world, solver), problem(world), network_of(world)
    whole = made._now.clock.plan
    for cut in (1, len(whole) // 2, len(whole) - 1):
        if cut >= len(whole):
            continue
        part, (generator, seeds) = made.timesteps[cut:], seeded()
        made.set_begin_index(cut)
        ours = loop(made, network, started(), timesteps=part, generator=generator)
        grid = whole.grid[whole.step_of(whole.begin(cut)) :]
        y = started() / float(whole.network.scaling(float(grid.nodes[0])).c_in)
        solved = ds.solve(flow, solver, grid, x=y, batch=seeds)
        assert len(part) == solved.nfe
        assert gap(ours, solved.x) < 1e-7


@pytest.mark.parametrize("solver", MIXED)
def test_slices_are_cut_where_steps_are(solver: str) -> None:
    made = planned("sd", solver)
    starts, count = steps_of(made), len(made.timesteps)
    for cut in range(1, count):
        nearest = min(starts, key=lambda s: (abs(s - cut), -s))
        assert torch.equal(made.timesteps[cut:][:1], made.timesteps[nearest : nearest + 1])
        if cut > 1:
            assert len(made.timesteps[:cut]) in (nearest, starts[1] if len(starts) > 1 else count)
        assert len(made.timesteps[:1]) == 1
        assert isinstance(made.timesteps[cut], Tensor)
    assert made.timesteps[3].shape == ()
    assert type(made.timesteps * 2) is type(made.timesteps[:1].repeat(3)) is Tensor
    assert [float(t) for t in made.timesteps] == made.timesteps.tolist()


@pytest.mark.parametrize("solver", MIXED[:-1])
def test_a_run_in_two_parts_is_one_run(solver: str) -> None:
    """As SDXL's base and refiner share one: denoising_end and denoising_start."""
    base, refiner, network = planned("sd", solver), planned("sd", solver), network_of("sd")
    for cut in range(2, len(base.timesteps) - 1, 3):
        part = base.timesteps[:cut]
        halfway = loop(base, network, started(), timesteps=part, generator=torch.manual_seed(0))
        refiner.set_begin_index(cut)
        rest = refiner.timesteps[cut:]
        assert len(part) in steps_of(base)
        if len(part) == min(steps_of(base), key=lambda s: (abs(s - cut), -s)):
            assert float(rest[0]) == float(base.timesteps[len(part)])
        assert loop(refiner, network, halfway, timesteps=rest).isfinite().all()


def test_a_plain_slice_that_begins_within_a_step_is_refused() -> None:
    made = planned("sd", "heun")
    with pytest.raises(ds.SolverError, match="slice scheduler"):
        made.step(started(), made.timesteps[3], started())


# edits


@pytest.mark.parametrize("world", [world if world == "sd" else slow(world) for world in WORLDS])
@pytest.mark.parametrize("solver", rows(SOLVERS))
def test_an_edit_that_changes_nothing_changes_nothing(solver: str, world: str) -> None:
    made, network = planned(world, solver), network_of(world)
    kept = loop(made, network, started(), generator=torch.manual_seed(0))
    made.set_timesteps(N)
    moved = loop(made, network, started(), between=lambda i, x: x.clone(), generator=torch.manual_seed(0))
    assert gap(moved, kept) < 1e-9


@pytest.mark.parametrize("solver", [s for s in MIXED if s != "score_sde_ve"])
def test_an_edit_of_a_step_s_state_is_the_new_state(solver: str) -> None:
    made, flow, network = planned("sd", solver), problem("sd"), network_of("sd")
    at = steps_of(made)[2] if len(steps_of(made)) > 2 else steps_of(made)[1]
    change = 0.3 * torch.ones_like(started())
    generator, seeds = seeded()
    ours = loop(made, network, started(), between=lambda i, x: x + change if i == at - 1 else x, generator=generator)
    in_place = planned("sd", solver)
    again = loop(in_place, network, started(), between=lambda i, x: x.add_(change) if i == at - 1 else x,
                 generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert gap(again, ours) < 1e-12

    plan = made._now.clock.plan
    sigma, options = plan.calls[0].sigma, {"n": len(plan.grid), "batch": seeds}
    run = ds.start(flow, solver, plan.grid, x=started() / float(plan.network.scaling(sigma).c_in), **options)
    for _ in range(plan.calls[at].step):
        run.step()
    saved = run.state
    node = saved["node"]
    y = saved["x"] + change / float(plan.network.scaling(node).c_in)
    saved |= {"x": y, "u": run.field.form.to_form(y, node)}
    resumed = ds.start(flow, solver, plan.grid, state=saved, n=len(plan.grid))
    for _ in resumed:
        pass
    assert gap(ours, resumed.solution.x) < 1e-9


def test_an_edit_on_a_stage_moves_the_step() -> None:
    """Heun: y_1 = (the stage as edited) + h/2 (k_2 - k_1). diffusers' own forgets it."""
    made, flow, network = planned("sd", "heun"), problem("sd"), network_of("sd")
    plan, change = made._now.clock.plan, 0.5
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.clone(), network(x, t)))
        return seen[-1][1]

    end = loop(made, watched, started(), timesteps=list(made.timesteps)[:2], between=lambda i, x: x + change * (i == 0))
    s0, s1 = plan.calls[0].sigma, plan.calls[1].sigma
    scale = [float(plan.network.scaling(s).c_in) for s in (s0, s1)]
    stage, k1, k2 = seen[1][0] / scale[1], seen[0][1], seen[1][1]  # eps is the slope
    assert gap(end / scale[1], stage + (s1 - s0) / 2 * (k2 - k1)) < 1e-12
    assert flow.process.sigma_max == s0

    theirs = diffusers.HeunDiscreteScheduler(**SD, use_karras_sigmas=True)
    theirs.set_timesteps(8)

    def run(edit: float) -> Tensor:
        theirs.set_timesteps(8)
        x = started() * theirs.init_noise_sigma
        x = theirs.step(k1, theirs.timesteps[0], x).prev_sample + edit
        return theirs.step(k2, theirs.timesteps[1], x).prev_sample

    assert gap(run(0.0), run(100.0)) < 1e-9, "diffusers' Heun drops the edit"


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "damped_abm", "rk4", "euler_ancestral"])
def test_what_is_known_is_kept_when_it_is_put_back_after_every_call(solver: str) -> None:
    made, network = planned("sd", solver, 25), network_of("sd")
    known, noise = torch.full((2, 3), 0.7).double(), started() * -1
    times = list(made.timesteps)

    def put_back(i: int, x: Tensor) -> Tensor:
        if i + 1 == len(times):
            return x
        x = x.clone()
        x[:, 0] = made.add_noise(known, noise, torch.tensor([float(times[i + 1])]))[:, 0]
        return x

    end = loop(made, network, started(), between=put_back)
    free = loop(planned("sd", solver, 25), network, started())
    assert (end[:, 0] - 0.7).abs().max() < 0.15 < (free[:, 0] - 0.7).abs().max()


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", "score_sde_ve"])
def test_a_data_estimate_is_that_of_its_call_whenever_it_is_read(solver: str) -> None:
    made, network, x, late, at_once = planned("sd", solver), network_of("sd"), started(), [], []
    for t in made.timesteps:
        late.append(made.step(network(x, t.expand(2)), t, x, generator=torch.manual_seed(0), return_dict=False))
        at_once.append(late[-1][1])
        x = late[-1][0]
    assert all(torch.equal(pair[1], estimate) for pair, estimate in zip(late, at_once, strict=True))
    buffer, made = torch.empty_like(x), planned("sd", solver)
    first = made.step(buffer.copy_(network(started(), made.timesteps[:1])), made.timesteps[0], started(),
                      generator=torch.manual_seed(0), return_dict=False)  # fmt: skip
    assert gap(first[1], at_once[0]) < 1e-12
    buffer.zero_()
    with pytest.raises(ds.SolverError, match="written over since"):
        first[1]


# copies, repeats, threads


@pytest.mark.parametrize("how", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("solver", MIXED)
def test_a_copy_in_mid_run_goes_on_as_if_nothing_had_happened(solver: str, how: Any) -> None:
    network = network_of("sd")
    made = planned("sd", solver)
    whole = loop(made, network, started(), generator=torch.manual_seed(0))
    made.set_timesteps(N)
    x, times = started(), list(made.timesteps)
    generator = torch.manual_seed(0)
    for t in times:
        copied = how(made)
        left = made.step(network(x, t.expand(2)), t, x, generator=generator).prev_sample
        right = copied.step(network(x, t.expand(2)), t, x, generator=torch.manual_seed(0)).prev_sample
        assert torch.equal(left, right), "the two don't know of each other"
        made, x = copied, right.clone()
    assert gap(x, whole) < 1e-12


@pytest.mark.parametrize("solver", MIXED)
def test_a_call_taken_twice_is_taken_once(solver: str) -> None:
    made, network = planned("sd", solver), network_of("sd")
    whole = loop(made, network, started(), generator=torch.manual_seed(0))
    made.set_timesteps(N)
    x, generator = started(), torch.manual_seed(0)
    for t in made.timesteps:
        answer = network(x, t.expand(2))
        first = made.step(answer, t, x, generator=generator).prev_sample
        assert torch.equal(first, made.step(answer, t, x, generator=generator).prev_sample)
        x = first
    assert gap(x, whole) < 1e-12
    theirs = diffusers.EulerDiscreteScheduler(**SD)
    theirs.set_timesteps(5)
    once, twice = (theirs.step(started(), theirs.timesteps[0], started()).prev_sample for _ in range(2))
    assert not torch.equal(once, twice), "diffusers' advances"


def test_a_run_is_begun_again_without_set_timesteps() -> None:
    made, network = planned("sd", "dpmpp_2m"), network_of("sd")
    assert torch.equal(*(loop(made, network, started()) for _ in range(2)))


def test_threads_share_a_scheduler_and_the_weights() -> None:
    made, network, found = scheduler("sd", "dpmpp_2m"), network_of("sd"), {}
    scales, gate = (1, 2, 3), threading.Barrier(3, timeout=20)

    def work(scale: int) -> None:
        made.set_timesteps(N)
        x = started() * scale
        for t in made.timesteps:
            gate.wait()
            x = made.step(network(x, t.expand(2)), t, x, return_dict=False)[0]
        found[scale] = x

    threads = [threading.Thread(target=work, args=(scale,)) for scale in scales]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scale in scales:
        assert gap(found[scale], loop(planned("sd", "dpmpp_2m"), network, started() * scale)) < 1e-12


# noise


@pytest.mark.parametrize("solver", ["euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde"])
def test_a_list_of_generators_keys_each_sample_s_noise(solver: str) -> None:
    network = network_of("sd")

    def drawn(which: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(i) for i in which]
        return loop(planned("sd", solver), network, started(5)[which], generator=generators)

    whole = drawn([0, 1, 2, 3, 4])
    assert torch.allclose(whole[[1, 3]], drawn([1, 3]), atol=1e-12)
    assert torch.allclose(whole[2:3], drawn([2]), atol=1e-12)
    one = loop(planned("sd", solver), network, started(5)[2:3], generator=torch.Generator().manual_seed(2))
    assert torch.allclose(whole[2:3], one, atol=1e-12)
    with pytest.raises(ds.SolverError, match="there are 3 generators and 2 samples"):
        loop(planned("sd", solver), network, started(2), generator=[torch.Generator()] * 3)
    for given in (3, [3, 3]):
        with pytest.raises(ds.SolverError, match=r"a generator is a torch\.Generator, got int; a seed is for"):
            loop(planned("sd", solver), network, started(2), generator=given)


def test_diffusers_noise_goes_by_the_order_of_calls() -> None:
    """One generator for a batch: sample 1 of 2 is not sample 1 of 3; with ours neither, but a list of them is kept."""
    network, results = network_of("sd"), []
    for which in ([0, 1], [0, 1, 2]):
        theirs = diffusers.EulerAncestralDiscreteScheduler(**SD)
        theirs.set_timesteps(6)
        x, generator = started(3)[which].float(), torch.Generator().manual_seed(0)
        for t in theirs.timesteps:
            theirs.scale_model_input(x, t)
            x = theirs.step(network(x, t.expand(len(x))), t, x, generator=generator).prev_sample
        results.append(x)
    assert not torch.allclose(results[0][1], results[1][1], atol=1e-3)


def test_a_generator_s_next_number_is_read_once_a_run() -> None:
    made, network, generator = planned("sd", "euler_ancestral"), network_of("sd"), torch.Generator().manual_seed(0)
    first = loop(made, network, started(), generator=generator)
    second = loop(made, network, started(), generator=generator)
    assert not torch.equal(first, second), "another run, other noise"
    torch.manual_seed(4)
    third = loop(made, network, started())
    torch.manual_seed(4)
    assert torch.equal(third, loop(made, network, started())), "torch's own where none is given"


@pytest.mark.parametrize("solver", ["ddim_eta", "euler_ancestral", "dpmpp_2m_sde"])
def test_eta_of_a_step_is_the_solver_s(solver: str) -> None:
    flow, network = problem("sd"), network_of("sd")
    generator, seeds = seeded()
    ours = loop(planned("sd", solver), network, started(), generator=generator, eta=0.4)
    plan = planned("sd", solver)._now.clock.plan
    x = started() / float(plan.network.scaling(plan.calls[0].sigma).c_in)
    assert gap(ours, ds.solve(flow, solver, "karras", N, x=x, batch=seeds, eta=0.4).x) < 1e-9
    with pytest.raises(ds.SolverError, match="eta"):
        loop(planned("sd", "heun"), network, started(), eta=0.4)
    still = scheduler("sd", solver, eta=0.0)
    still.set_timesteps(N)
    assert gap(loop(still, network, started()), ds.solve(flow, solver, "karras", N, x=x, eta=0.0).x) < 1e-9


# a time for each sample


@pytest.mark.parametrize("solver", MIXED[:-1])
def test_each_sample_may_be_at_a_time_of_its_own(solver: str) -> None:
    made, network = planned("sd", solver), network_of("sd")
    whole = loop(made, network, started(), generator=[torch.Generator().manual_seed(i) for i in (0, 1)])
    made.set_timesteps(N)
    ticks = made.timesteps.tolist()
    lag, x, done = 2, started().clone(), [0, 0]
    generators = [torch.Generator().manual_seed(i) for i in (0, 1)]
    stream = [(i, i - lag) for i in range(len(ticks) + lag)]
    for pair in stream:
        due = [k for k, i in enumerate(pair) if 0 <= i < len(ticks)]
        if len(due) == 1:  # the other has not begun, or is done
            k = due[0]
            row = made._now.rows
            t = torch.tensor([ticks[pair[k]]])
            one = scheduler_row(made, row, k, network(x[k : k + 1], t), t, x[k : k + 1], generators[k])
            x[k] = one[0]
            continue
        t = torch.tensor([ticks[i] for i in pair])
        answer = torch.cat([network(x[k : k + 1], t[k : k + 1]) for k in (0, 1)])
        x = made.step(answer, t, x, generator=generators, return_dict=False)[0].clone()
        done = [i + 1 for i in pair]
    assert max(done) == len(ticks)
    assert gap(x, whole) < 1e-9


def scheduler_row(made: Any, row: Any, k: int, answer: Tensor, t: Tensor, x: Tensor, generator: Any) -> Tensor:
    """One row alone, of a batch whose other row has not begun or is done."""
    from diffsolve.interop.diffusers.session import Run, at, seeds_of

    play = at(made._now, row.setdefault(k, Run()), float(t), None)
    return play.answer(answer, x, lambda count: seeds_of(generator, count))


def test_diffusers_takes_no_time_for_each_sample() -> None:
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        theirs = getattr(diffusers, name)(**SD)
        theirs.set_timesteps(5)
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            theirs.step(started(), theirs.timesteps[:2], started())
