"""What pipelines out of the ordinary pass to a DiffsolveScheduler: more to a step, pixels, a learned variance."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from scheduler_loop import SD, gap, scheduler, started

from diffsolve.interop.diffusers import DiffsolveScheduler


def test_what_some_pipelines_pass_to_a_step_beside_the_rest() -> None:
    """LTX's hand over the answer's negative where each token has its time, Kandinsky's priors the time that follows."""
    made, (x, answer) = scheduler("flow", "heun"), (started(), started(2).flip(0))
    made.set_timesteps(5)
    plain = made.step(answer, made.timesteps[0], x).prev_sample
    times = made.timesteps[0].expand(2, 3)
    for options in ({"per_token_timesteps": times}, {"prev_timestep": made.timesteps[1]}):
        raw = -answer if "per_token_timesteps" in options else answer
        assert torch.equal(made.step(raw, made.timesteps[0], x, **options).prev_sample, plain)


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_pipelines_of_pixels_without_a_prompt(solver: str) -> None:
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).eval()  # fmt: skip
    own = diffusers.DDIMScheduler(timestep_spacing="trailing")

    def drawn(kind: Any, made: Any, **options: Any) -> torch.Tensor:
        pipe = kind(net, own)
        pipe.scheduler = made  # DDIMPipeline makes a DDIMScheduler of what it is constructed with
        pipe.set_progress_bar_config(disable=True)
        given = {"num_inference_steps": 10, "output_type": "np", "return_dict": False, **options}
        return torch.from_numpy(pipe(**given, generator=torch.Generator().manual_seed(0))[0])

    ours = DiffsolveScheduler.from_config(own.config, solver=solver, schedule="trailing")
    left = drawn(diffusers.DDIMPipeline, ours, use_clipped_model_output=True)
    assert torch.equal(left, drawn(diffusers.DDPMPipeline, ours))
    assert left.isfinite().all()
    if solver == "ddim":
        assert gap(left, drawn(diffusers.DDIMPipeline, own, use_clipped_model_output=True)) < 0.02


@pytest.mark.parametrize("clip", [{"clip_sample": False}, {"clip_sample": True}, {"thresholding": True}])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", None])
def test_a_learned_variance_goes_with_a_clipped_estimate(solver: str | None, clip: dict[str, Any]) -> None:
    """As of DeepFloyd IF, whose network answers with twice the channels."""
    x, ends = started()[..., None] * 2, []
    for variance in ("fixed_small", "learned_range"):
        made = DiffsolveScheduler(**SD, solver=solver, variance_type=variance, **clip)
        made.set_timesteps(4)
        y = x
        for t in made.timesteps:
            raw = y.flip(0) if variance == "fixed_small" else torch.cat([y.flip(0), y], 1)
            out = made.step(raw, t, y)
            y = out.prev_sample
        ends.append((y, out.pred_original_sample))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
