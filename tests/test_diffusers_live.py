"""A pipeline that is asked: as a problem, and with steps that are chosen as it goes."""

from __future__ import annotations

import copy
import gc
import threading
import time
from typing import Any

import pytest
import torch
from pipelines import drawn, embedded, embeddings, family
from scheduler_loop import gap
from stubs import rows, slow
from torch import Tensor

import diffsolve as ds
from diffsolve.interop.diffusers import DiffsolveScheduler, run
from diffsolve.problems import StableDiffusion, from_pipe

ASKED = ["sd", "sd_img2img", "sd_inpaint", "sd_inpaint_9", "controlnet", "lcm", "lora", "sdxl", "sdxl_img2img", "sd3",
         "flux", "flux_img2img", "qwen", "z_image", "wan", "sana"]  # fmt: skip
FAST = ("flux", "wan")


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.daemon and thread.name.startswith("Thread-")}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def asked(name: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    pipe, given = family(name, dtype)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.first_config)
    return from_pipe(pipe)(**given, output_type="latent", generator=generator(), **more)


@pytest.mark.parametrize("name", rows(ASKED, FAST))
def test_steps_are_chosen_as_it_goes(name: str) -> None:
    pipe, given = family(name)
    form = "" if name.startswith(("sd", "lcm", "lora", "controlnet")) and name != "sd3" else "(form=flow)"
    given = given | {"output_type": "latent", "generator": generator()}
    out = run(pipe, f"heun{form}", rtol=0.2, **given)
    assert out.solution.reason == "end"
    assert out.solution.nodes[-1] == 0
    latents = out.images if hasattr(out, "images") else out.frames
    assert latents.isfinite().all()
    assert gap(latents, out.solution.x) < 1e-5
    budget = run(pipe, f"heun{form}", rtol=1e-5, nfe=9, **given)
    assert budget.solution.nfe <= 9
    assert budget.solution.reason == "max_nfe"


INPAINTED = ["euler", "dpmpp_2m", "heun", "euler_ancestral"]


@pytest.mark.parametrize(
    ("name", "solver"),
    [(name, solver) if solver in ("heun", "dpmpp_2m") else slow(name, solver) for solver in INPAINTED
     for name in ("sd_inpaint", "sd_inpaint_9")],
)  # fmt: skip
def test_inpainting_paints_what_the_pipeline_paints(name: str, solver: str) -> None:
    """What is put back after each call is on the straight way from its noise, where every method is exact."""
    pipe, given = family(name)
    left = drawn(name, solver, 8, schedule="karras")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.first_config)
    out = run(pipe, solver, "karras", nfe=8, **given, output_type="latent", generator=generator())
    assert gap(out.images, left) < 2e-6
    assert gap(out.solution.x, out.images) < 1e-6
    if name == "sd_inpaint":
        finer = run(pipe, "heun", rtol=0.05, **given, output_type="latent", generator=generator())
        assert gap(finer.images[..., :4], out.images[..., :4]) == 0, "what is known"
        assert gap(finer.images[..., 4:], out.images[..., 4:]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_video_and_sound_are_one_state(guidance: float) -> None:
    """Under guidance the pipeline reads the noise level of the call under way off its scheduler."""
    pipe, given = family("ltx2")
    given = given | {"guidance_scale": guidance, "audio_guidance_scale": guidance, "output_type": "latent"}
    if guidance > 1:
        given |= {f"negative_{key}": given[key] for key in ("prompt_embeds", "prompt_attention_mask")}
        given["negative_prompt_embeds"] = given["negative_prompt_embeds"].flip(-1)
    pipe.scheduler = DiffsolveScheduler.from_config(pipe.first_config, solver="dpmpp_2m", schedule="karras")
    left = pipe(**given, num_inference_steps=4, generator=generator())
    grid = pipe.scheduler._now.clock.plan.grid
    pipe.scheduler = type(pipe.first_scheduler).from_config(pipe.first_config)
    right = run(pipe, "dpmpp_2m", grid, num_inference_steps=4, **given, generator=generator())
    assert gap(right.frames, left.frames) < 1e-5
    assert gap(right.audio, left.audio) < 1e-5
    problem = from_pipe(pipe)(**given, generator=generator())
    video, sound = problem.split(problem.latents)
    assert problem.latents[0].numel() == video[0].numel() + sound[0].numel()
    adaptive = run(pipe, "heun(form=flow)", rtol=0.5, **given, generator=generator())
    assert adaptive.audio.isfinite().all()
    assert adaptive.solution.reason == "end"


@pytest.mark.parametrize(("first", "message"), [(0, "takes no step with the copy"), (1, "can't be copied in mid-run")])
def test_a_copy_of_the_scheduler_that_is_no_state_is_refused(first: int, message: str) -> None:
    def copied(pipe: Any, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == first:
            copy.deepcopy(pipe.scheduler)
        return {}

    class Copies(type(family("sd")[0])):  # type: ignore[misc]
        def prepare_extra_step_kwargs(self, *given: Any) -> Any:
            copy.deepcopy(self.scheduler)
            return super().prepare_extra_step_kwargs(*given)

    pipe, given = family("sd")
    own = Copies(**pipe.components, requires_safety_checker=False) if first == 0 else pipe
    own.scheduler = type(pipe.first_scheduler).from_config(pipe.first_config)
    with pytest.raises(ds.ProblemError, match=message):
        run(own, "euler", nfe=4, **given, output_type="latent", callback_on_step_end=copied if first else None)


def test_a_mask_that_mixes_is_refused() -> None:
    def mixed(pipe: Any, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": tensors["latents"] * 0.9}

    pipe, given = family("sd_inpaint")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.first_config)
    given = given | {"output_type": "latent", "callback_on_step_end": mixed}
    with pytest.raises(ds.ProblemError, match="soft mask, or changes it otherwise"):
        run(pipe, "euler", nfe=4, **given)


def test_inpainting_goes_on_with_the_same_noise_when_it_begins_again() -> None:
    whole, part = asked("sd_inpaint"), asked("sd_inpaint", num_inference_steps=4)
    assert gap(*(ds.solve(each, "dpmpp_2m", n=9, x=whole.latents).x for each in (part, whole))) < 1e-6


@pytest.mark.slow
def test_the_steps_are_those_of_solve() -> None:
    """The embedded model: by its own problem, and through diffusers' pipeline."""
    pipe = embedded()
    model = StableDiffusion.from_pretrained("emoji", dtype="float64")
    own = model(embeddings()["prompt_embeds"], guidance=1, height=16, width=16)
    given = {**embeddings(), "guidance_scale": 1, "height": 16, "width": 16, "output_type": "latent"}
    problem = from_pipe(pipe)(**given, generator=generator())
    x = problem.latents
    left, right = (ds.solve(p, "dpm_solver_3", rtol=0.5, x=x) for p in (problem, own))
    assert left.nfe == right.nfe
    assert gap(left.x, right.x) < 1e-9
    made = run(pipe, "dpm_solver_3", rtol=0.5, **given, generator=generator())
    assert gap(made.images, right.x) < 1e-9
    assert made.solution.nfe == right.nfe


def test_pictures_come_back_and_the_pipeline_is_as_it_was() -> None:
    pipe, given = family("sd")
    before = pipe.scheduler
    made = run(pipe, "dpm_adaptive", rtol=0.5, **given, generator=generator())
    assert made.images[0].size == (16, 16)
    assert made.solution.stats["accepted"] > 3
    assert pipe.scheduler is before
    problem = asked("sd")
    solution = ds.solve(problem, "dpmpp_2m", n=4, x=problem.latents)
    assert len(problem.decode(solution.x)) == 1


def test_any_row_and_another_library_s_method() -> None:
    pytest.importorskip("torchdiffeq")
    pipe, given = family("flux")
    made = run(pipe, "torchdiffeq:rk4", nfe=20, **given, output_type="latent", generator=generator())
    assert made.solution.solver == "torchdiffeq:rk4"
    pipe.scheduler = DiffsolveScheduler.from_config(pipe.first_config, solver="dpmpp_2m", schedule="karras")
    assert run(pipe, nfe=4, **given, output_type="latent").solution.solver == "dpmpp_2m"


def test_the_pipeline_s_own_start_costs_no_call_more() -> None:
    pipe, given = family("flux")
    calls = []
    hook = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    made = run(pipe, "dpmpp_2m", nfe=6, **given, output_type="latent", generator=generator())
    hook.remove()
    assert len(calls) == made.solution.nfe == 6


@pytest.mark.parametrize("name", ["sd", slow("flux")])
def test_gradients_flow_through_a_pipeline(name: str) -> None:
    problem = asked(name, torch.float64)
    x = problem.latents.clone().requires_grad_()
    direction = ds.normals(1, range(1), 3, problem.shape, torch.float64, "cpu")

    def value(start: Tensor) -> Tensor:
        return (ds.solve(problem, "dpmpp_2m", "karras", n=3, x=start).x * direction).sum()

    (slope,) = torch.autograd.grad(value(x), x)
    step = 1e-5 * problem.process.sigma_max * direction
    with torch.no_grad():
        measured = (value(x + step) - value(x - step)) / 2
    assert float((slope * step).sum()) == pytest.approx(float(measured), rel=1e-3)


def test_a_problem_goes_with_the_rest() -> None:
    problem = asked("sd", torch.float64)
    there = ds.solve(problem.reversed(), "heun", n=5, x=problem.latents * 0 + 0.5)
    assert there.x.std() > 1
    known = torch.ones(problem.shape, dtype=torch.float64)
    held = ds.solve(ds.problems.Inpaint(problem, known, torch.ones(problem.shape)), "heun", n=3, x=problem.latents)
    assert torch.equal(held.x, known[None])
    with torch.no_grad():
        low, again = (problem.denoiser(x, 2.0).denoised for x in (problem.latents, problem.latents.clone()))
    assert torch.equal(low, again)


def test_it_begins_again_when_its_times_are_through() -> None:
    problem = asked("flux", num_inference_steps=4)
    solution = ds.solve(problem, "dpmpp_2m", n=11, x=problem.latents)
    whole = asked("flux")
    assert gap(solution.x, ds.solve(whole, "dpmpp_2m", n=11, x=problem.latents).x) < 1e-6


def test_a_network_that_answers_in_one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is compiled to a CUDA graph does."""
    pipe, given = family("sd")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.first_config)
    own, held = pipe.unet.forward, []

    def forward(*sample: Any, **options: Any) -> Any:
        (answer,) = own(*sample, **(options | {"return_dict": False}))
        held.append(answer.clone() if not held else held[0].copy_(answer))
        return (held[0],)

    given = given | {"guidance_scale": 1.0, "output_type": "latent"}
    plain = from_pipe(pipe)(**given, generator=generator())
    right = ds.solve(plain, "dpmpp_2m", n=4, x=plain.latents).x
    monkeypatch.setattr(pipe.unet, "forward", forward)
    static = from_pipe(pipe)(**given, generator=generator())
    for _ in range(2):
        assert gap(ds.solve(static, "dpmpp_2m", n=4, x=static.latents).x, right) < 1e-6


def test_its_thread_ends_with_it() -> None:
    before = threads()
    problem = asked("flux")
    assert len(threads() - before) == 1
    del problem
    gc.collect()
    for _ in range(100):
        if not threads() - before:
            return
        time.sleep(0.02)
    pytest.fail("the pipeline still waits to be asked")


def test_a_callback_sees_each_call_and_interrupts() -> None:
    pipe, given = family("sd")
    seen = []

    def watch(inside: Any, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(float(t))
        if step == 5:
            pipe._interrupt = True  # as a button would
        return tensors

    out = run(pipe, "heun", rtol=1e-2, **given, output_type="latent", callback_on_step_end=watch)
    assert len(seen) == 6
    assert out.solution.reason == "failed"
    assert out.images.isfinite().all()


def test_the_bar_shows_the_share_of_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    pipe, given = family("flux")
    pipe.set_progress_bar_config(disable=False)
    try:
        run(pipe, "heun(form=flow)", rtol=0.05, **given, output_type="latent")
    finally:
        pipe.set_progress_bar_config(disable=True)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "NFE=" in shown
    assert "1000" not in shown


def ran(name: str, solver: str = "heun") -> Any:
    pipe, given = family(name)
    return run(pipe, solver, **given)


def edited(name: str) -> Any:
    def half(pipe: Any, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": tensors["latents"] * 0.5}

    pipe, given = family(name)
    return run(pipe, "heun", **given, callback_on_step_end=half)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: from_pipe("a name")("red apple"), ds.ProblemError, "with a scheduler, got str"),
        (lambda: edited("sd"), ds.ProblemError, "changed the sample"),
        (lambda: ran("sd", "hein"), ds.SolverError, "did you mean 'heun'"),
        (lambda: run(family("sd")[0], "heun", height=16), ValueError, "prompt"),
        (lambda: ds.solve(asked("sd"), "heun", n=2, batch=3), ds.ProblemError, "the pipeline was called for samples"),
        (lambda: asked("sd").denoise(asked("sd").latents.repeat(2, 1, 1, 1), torch.tensor([1.0, 2.0])), ds.ProblemError,
         "told one time"),
    ],
)  # fmt: skip
def test_messages(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
