"""DiffsolveScheduler in diffusers' own pipelines."""

from __future__ import annotations

import inspect
import threading
from contextlib import suppress
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks
from models import tiny_model
from pipelines import FAMILIES, drawn, embedded, embeddings, family, quiet, with_its_own
from scheduler_loop import first_latents, gap, seeded
from stubs import SOLVERS, rows, slow
from torch import Tensor

import diffsolve as ds
from diffsolve.interop.diffusers import DiffsolveScheduler
from diffsolve.problems import StableDiffusion

FAST = ["heun", "dpmpp_2m_sde", "damped_abm"]


@pytest.fixture(scope="module")
def apple() -> Any:
    model = StableDiffusion.from_pretrained("emoji", dtype="float64")
    return model(embeddings()["prompt_embeds"], guidance=1, height=16, width=16)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, Tensor]]:
    """A small model of random weights: in a pipeline, as a problem, and what its text encoder says."""
    folder = tiny_model(tmp_path_factory.mktemp("tiny"))
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False, dtype=torch.float64
    )
    model = StableDiffusion.from_pretrained(folder, dtype="float64")
    said = {"prompt_embeds": model.embed("red apple"), "negative_prompt_embeds": model.embed("")}
    return with_its_own(quiet(pipe)), model(said["prompt_embeds"], guidance=1, height=8, width=8), said


def off(solver: str, pipe: Any, problem: Any, said: dict[str, Tensor], size: int) -> float:
    """How far what the pipeline draws is from what `solve` does."""
    calls = max(3, (ds.get_solver(solver).stages or 1) + 1)
    pipe.scheduler = DiffsolveScheduler.from_config(pipe.scheduler.config, solver=solver, schedule="karras")
    generator, seeds = seeded(1, seed=7)
    x = ds.normals(3, range(1), 3, problem.shape, torch.float64, "cpu") * problem.process.sigma_max
    run = ds.start(problem, solver, "karras", nfe=calls, x=x, batch=seeds)
    latents = first_latents(run) / (1 if solver == "edm_stochastic" else pipe.scheduler.init_noise_sigma)
    if solver == "edm_stochastic":  # its first call is noised further
        pipe.scheduler.set_timesteps(calls)
        latents = latents / pipe.scheduler.init_noise_sigma
    drawn = pipe(
        **said, guidance_scale=1, num_inference_steps=calls, height=size, width=size, latents=latents,
        generator=generator, output_type="latent",
    ).images  # fmt: skip
    return gap(drawn, ds.solve(problem, solver, "karras", nfe=calls, x=x, batch=seeds).x)


@pytest.mark.parametrize("solver", FAST)
def test_the_embedded_model_draws_what_solve_draws(solver: str, apple: Any) -> None:
    assert off(solver, embedded(), apple, embeddings(), 16) < 1e-9


@pytest.mark.filterwarnings("ignore:.*reads the network's answer without guidance")
@pytest.mark.parametrize("solver", rows(SOLVERS, FAST))
def test_every_row_draws_what_solve_draws(solver: str, tiny: tuple[Any, Any, dict[str, Tensor]]) -> None:
    pipe, problem, said = tiny
    assert off(solver, with_its_own(pipe), problem, said, 8) < 1e-9


# families


class Watched(DiffsolveScheduler):
    """Notes each call of the pipeline: the answer, the sample, and what came of it."""

    calls: ClassVar[list[tuple[Tensor, Tensor, Tensor]]] = []
    watched: ClassVar[Any] = None

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *given: Any, **options: Any) -> Any:
        out = super().step(model_output, timestep, sample, *given, **options)
        if type(self).watched in (None, id(self)):  # not the copy that has the sound
            self.calls.append((model_output, sample, out[0]))
        return out

    step.__signature__ = inspect.signature(DiffsolveScheduler.step)  # type: ignore[attr-defined]


def replayed(name: str, solver: str, calls: int, dtype: torch.dtype, **options: Any) -> tuple[float, float, int]:
    """How far a pipeline was from the run of solve() that is given the same answers: at each call, and at the end.

    And how many calls there were.
    """
    pipe, given = family(name, dtype)
    made = pipe.scheduler = Watched.from_config(pipe.first_config, solver=solver, **options)
    Watched.watched, made_calls = id(made), Watched.calls
    made_calls.clear()
    pipe(**given, num_inference_steps=calls, output_type="latent", generator=torch.manual_seed(0))
    play, (_, x, _) = made._now.run.play, made_calls[0]
    plan = play.plan
    y = x.double() / float(plan.network.scaling(plan.calls[0].sigma).c_in)
    run = ds.start(plan.problem(tuple(x.shape[1:]), y), plan.recipe.solver, plan.grid, x=y, batch=play.seeds or 1)
    due, count, worst = run.calls(), 0, 0.0
    call = next(due)
    with suppress(StopIteration):
        for answer, sample, _ in made_calls:
            worst, count = max(worst, gap(sample.double(), call.x)), count + 1
            call = due.send(answer.double())
    return worst, gap(made_calls[-1][2].double(), run.solution.x), count


ON_A_FLOW = ["euler", "heun(form=flow)", "dpmpp_2m", "euler_ancestral", "unipc", "rk4(form=flow)", "damped_abm",
             "dpmpp_sde"]  # fmt: skip
ON_VP = [name.partition("(")[0] for name in ON_A_FLOW]
FLOWS = ("sd3", "flux", "flux_img2img", "qwen", "z_image", "wan", "sana", "ltx2")
PAIRS = [(name, solver) for name in FAMILIES for solver in (ON_A_FLOW if name in FLOWS else ON_VP)]
EDITED = ("sd_inpaint",)  # whose samples are changed on their way


@pytest.mark.parametrize(
    ("name", "solver"), [pair if i % 9 == 1 else slow(*pair) for i, pair in enumerate(PAIRS)]
)
def test_every_family(name: str, solver: str) -> None:
    if name in EDITED:
        assert drawn(name, solver, 10).isfinite().all()
        return
    worst, end, calls = replayed(name, solver, 10, torch.float32)
    assert max(worst, end) < 2e-5
    assert calls == len(Watched.calls)
    strength = family(name)[1].get("strength", 1.0)
    assert 10 * strength - 4 < calls <= 10 * strength + 4


@pytest.mark.filterwarnings("ignore:.*reads the network's answer without guidance")
@pytest.mark.parametrize("solver", rows([name for name in SOLVERS if name != "edm_stochastic"]))  # begins with noise
def test_every_row_in_flux(solver: str) -> None:
    calls = max(3, (ds.get_solver(solver).stages or 1) + 1)
    worst, end, count = replayed("flux", solver, calls, torch.float64)
    assert max(worst, end) < 1e-7
    assert count == len(Watched.calls) <= calls


def test_both_experts_of_wan_are_called() -> None:
    pipe, _ = family("wan")
    seen = []
    hooks = [net.register_forward_hook(lambda *_, i=i: seen.append(i))
             for i, net in enumerate((pipe.transformer, pipe.transformer_2))]  # fmt: skip
    drawn("wan", "heun(form=flow)", 9)
    for hook in hooks:
        hook.remove()
    assert set(seen) == {0, 1}
    assert seen == sorted(seen), "the first is for the high noise levels"


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m"])
def test_what_is_not_painted_stays(solver: str) -> None:
    pipe, given = family("sd_inpaint")
    out = drawn("sd_inpaint", solver, 9)
    known = pipe.vae.encode(given["image"] * 2 - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    known = known.detach()
    free = gap(out[..., 4:], known[..., 4:])
    assert gap(out[..., :4], known[..., :4]) < 0.9 * free


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "euler_ancestral"])
def test_base_and_refiner_share_a_run(solver: str) -> None:
    base, given = family("sdxl")
    refiner, _ = family("sdxl_img2img")
    for pipe in (base, refiner):
        pipe.scheduler = DiffsolveScheduler.from_config(pipe.first_config, solver=solver, schedule="karras")
    same = {"num_inference_steps": 12, "output_type": "latent", "generator": torch.manual_seed(0)}
    halfway = base(**given, denoising_end=0.6, **same).images
    reached = base.scheduler.step_index
    part = {key: value for key, value in given.items() if key not in ("height", "width")}
    refiner(**part, image=halfway, denoising_start=0.6, **same)
    assert base.scheduler.sigmas[reached] == refiner.scheduler.sigmas[refiner.scheduler.begin_index]
    assert refiner.scheduler.step_index == len(refiner.scheduler.timesteps)


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "euler_ancestral", "unipc"])
def test_a_modular_pipeline_draws_what_the_pipeline_draws(solver: str) -> None:
    blocks = StableDiffusionXLAutoBlocks()
    for encoder in ("text_encoder", "ip_adapter"):
        blocks.sub_blocks.pop(encoder)
    pipe, given = family("sdxl")
    modular, told = quiet(blocks.init_pipeline()), dict(given)
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=told.pop("guidance_scale"))
    drawn = []
    for each in (pipe, modular):
        scheduler = DiffsolveScheduler.from_config(pipe.first_config, solver=solver)
        options = {"num_inference_steps": 10, "generator": torch.manual_seed(0), "output_type": "latent"}
        if each is modular:
            modular.update_components(unet=pipe.unet, vae=pipe.vae, scheduler=scheduler, guider=guider)
            drawn.append(modular(**told, **options, output="latents"))
        else:
            pipe.scheduler = scheduler
            drawn.append(pipe(**given, **options).images)
    assert gap(*drawn) < 1e-5


def test_a_lora_of_diffusers_loader_is_at_work_and_can_be_taken_out() -> None:
    pipe, plain = family("lora")[0], drawn("sd", "dpmpp_2m", 6)
    adapted = drawn("lora", "dpmpp_2m", 6)
    assert gap(adapted, plain) > 1e-3
    pipe.disable_lora()
    assert gap(drawn("lora", "dpmpp_2m", 6), plain) < 1e-6
    pipe.enable_lora()
    assert torch.equal(drawn("lora", "dpmpp_2m", 6), adapted)


def test_a_callback_stops_and_edits() -> None:
    pipe, given = family("sd")
    pipe.scheduler = DiffsolveScheduler.from_config(pipe.first_config, solver="heun", schedule="karras")
    seen = []

    def stop(pipe: Any, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(float(t))
        pipe._interrupt = step == 4
        return {"latents": tensors["latents"] * 1.5}

    pipe(**given, num_inference_steps=9, output_type="latent", callback_on_step_end=stop)
    assert seen == pipe.scheduler.timesteps.tolist()[:5]
    assert pipe.scheduler.step_index == 5


def test_lcm_is_drawn_at_the_times_it_was_distilled_at() -> None:
    pipe, _ = family("lcm")
    drawn("lcm", "lcm", 4)
    theirs = diffusers.LCMScheduler.from_config(pipe.first_config)
    theirs.set_timesteps(4, original_inference_steps=50)
    assert pipe.scheduler.timesteps.tolist() == theirs.timesteps.tolist()


def test_two_pipelines_of_one_set_of_weights_in_two_threads() -> None:
    pipe, given = family("flux")
    alone = {n: drawn("flux", "dpmpp_2m", n) for n in (5, 7)}
    found = {}

    def work(n: int) -> None:
        own = quiet(type(pipe)(**pipe.components))
        own.scheduler = DiffsolveScheduler.from_config(pipe.first_config, solver="dpmpp_2m")
        found[n] = own(**given, num_inference_steps=n, output_type="latent", return_dict=False,
                       generator=torch.Generator().manual_seed(3))[0]  # fmt: skip

    threads = [threading.Thread(target=work, args=(n,)) for n in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[n], alone[n]) for n in alone)


# saved


def test_a_folder_with_it_is_saved_and_loaded(tmp_path: Any) -> None:
    pipe = embedded()
    pipe.scheduler = DiffsolveScheduler.from_config(pipe.scheduler.config, solver="heun", schedule="karras")
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path, dtype=torch.float64)
    assert type(again.scheduler) is DiffsolveScheduler
    assert again.scheduler.config.solver == "heun"


def test_a_prompt_becomes_a_picture_in_three_lines() -> None:
    pipe = embedded(torch.float32)
    pipe.scheduler = DiffsolveScheduler.from_config(pipe.scheduler.config, solver="dpmpp_2m", schedule="karras")
    image = pipe("red apple", num_inference_steps=2, guidance_scale=4).images[0]
    assert image.size == (32, 32)
