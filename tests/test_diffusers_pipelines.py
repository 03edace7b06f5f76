"""DiffsolveScheduler in diffusers' own pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pipelines import embedded, embeddings
from scheduler_loop import first_latents, gap, seeded
from stubs import SOLVERS, slow

import diffsolve as ds
from diffsolve.interop.diffusers import DiffsolveScheduler
from diffsolve.problems import StableDiffusion

FAST = ["heun", "dpmpp_2m_sde", "damped_abm"]


@pytest.fixture(scope="module")
def apple() -> Any:
    model = StableDiffusion.from_pretrained("emoji", dtype="float64")
    return model(embeddings()["prompt_embeds"], guidance=1, height=16, width=16)


@pytest.mark.parametrize("solver", [name if name in FAST else slow(name) for name in SOLVERS])
def test_the_embedded_model_draws_what_solve_draws(solver: str, apple: Any) -> None:
    pipe, calls = embedded(), max(3, (ds.get_solver(solver).stages or 1) + 1)
    pipe.scheduler = DiffsolveScheduler.from_config(pipe.scheduler.config, solver=solver, schedule="karras")
    generator, seeds = seeded(1, seed=7)
    x = ds.normals(3, range(1), 3, apple.shape, torch.float64, "cpu") * apple.process.sigma_max
    run = ds.start(apple, solver, "karras", nfe=calls, x=x, batch=seeds)
    latents = first_latents(run) / (1 if solver == "edm_stochastic" else pipe.scheduler.init_noise_sigma)
    if solver == "edm_stochastic":  # its first call is noised further
        pipe.scheduler.set_timesteps(calls)
        latents = latents / pipe.scheduler.init_noise_sigma
    drawn = pipe(
        **embeddings(), guidance_scale=1, num_inference_steps=calls, height=16, width=16, latents=latents,
        generator=generator, output_type="latent",
    ).images  # fmt: skip
    assert gap(drawn, ds.solve(apple, solver, "karras", nfe=calls, x=x, batch=seeds).x) < 1e-9


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
