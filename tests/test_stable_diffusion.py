"""StableDiffusion as a problem: guidance, batches of prompts, dtypes, pictures, and what it refuses."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from models import emoji_model
from PIL import Image

from diffsolve import ModelError, ProblemError, solve
from diffsolve.problems import StableDiffusion


@pytest.fixture(scope="session")
def model() -> StableDiffusion:
    return emoji_model()


@pytest.fixture
def calls(model):
    """The batch sizes of the network's calls while the test runs."""
    seen = []
    hook = model.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    yield seen
    hook.remove()


def test_embedded_model_has_a_name(model):
    assert model.source == "emoji"
    assert repr(model) == "StableDiffusion('emoji', dtype=float32, device=cpu, predicts eps)"


def test_guidance_in_one_call_equals_two(model, calls):
    problem = model("red apple", negative_prompt="banana", guidance=3.0)
    y, sigma = problem.prior(2, seed=1, sigma=2.0), 2.0
    guided = problem.eps(y, sigma)
    assert calls == [4]
    with_prompt = model("red apple", guidance=1).eps(y, sigma)
    without = model("banana", guidance=None).eps(y, sigma)
    assert calls == [4, 2, 2]
    torch.testing.assert_close(guided, without + 3 * (with_prompt - without), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model("red apple", "banana", 0).eps(y, sigma), without, rtol=1e-4, atol=1e-4)


def test_denoise_is_the_networks_own_eps(model):
    problem = model("red apple", guidance=1)
    y, t = problem.prior(1), 600
    sigma = problem.process.sigma(float(t))
    x = y / math.sqrt(1 + sigma**2)
    told = model.embed("red apple")
    eps = model.unet(x, torch.tensor(t), encoder_hidden_states=told).sample
    torch.testing.assert_close(problem.eps(y, sigma), eps, rtol=1e-4, atol=1e-4)


def test_each_row_draws_its_own_prompt(model):
    prompts = ["red apple", "rocket"]
    problem = model(prompts, guidance=4)
    y = problem.prior(4)
    together = problem.denoise(y, 3.0)
    for row in range(4):
        alone = model(prompts[row % 2], guidance=4).denoise(y[row : row + 1], 3.0)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(ProblemError, match=r"batch is 3, but there are 2 prompts; expected batch=2 or a multiple"):
        solve(problem, solver="euler", n=2, batch=3)


def test_one_negative_prompt_or_one_each(model):
    y = model("rocket").prior(2)
    one = model(["red apple", "rocket"], "banana", 4).denoise(y, 3.0)
    each = model(["red apple", "rocket"], ["banana", "banana"], 4).denoise(y, 3.0)
    assert torch.equal(one, each)
    with pytest.raises(ProblemError, match=r"2 prompts and 3 negative prompts"):
        model(["a", "b"], ["c", "d", "e"])


def test_what_was_asked_is_kept(model):
    problem = model("red apple", "banana", guidance=None, height=40)
    assert (problem.prompt, problem.negative_prompt, problem.guidance) == ("red apple", "banana", 1.0)
    assert (problem.height, problem.width, problem.shape) == (40, 32, (4, 10, 8))
    assert problem.model is model


def test_solve_gives_pictures(model):
    solution = solve(model("red apple", guidance=4), solver="euler", schedule="karras", n=3, batch=2)
    assert solution.x.shape == (2, 4, 8, 8)
    assert solution.nfe == 3
    pictures = solution.images()
    assert [(p.size, p.mode) for p in pictures] == [((32, 32), "RGB")] * 2


def test_another_size(model):
    solution = solve(model("red apple", height=48, width=40), solver="euler", n=2)
    assert solution.images()[0].size == (40, 48)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_state_stays_in_float32_or_better(dtype, model):
    other = StableDiffusion.from_pretrained("emoji", dtype=dtype)
    assert {p.dtype for m in (other.unet, other.vae, other.text_encoder) for p in m.parameters()} == {other.dtype}
    solution = solve(other("red apple", guidance=2), solver="heun", n=3)
    assert solution.x.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    expected = solve(model("red apple", guidance=2), solver="heun", n=3).x
    error = (solution.x - expected).norm() / expected.norm()
    assert error < {"float16": 0.05, "bfloat16": 0.3, "float64": 1e-4}[dtype]
    assert solution.images()[0].size == (32, 32)


def test_dtype_may_be_torchs_own():
    assert StableDiffusion.from_pretrained(dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(("given", "message"), [
    ({"dtype": "float23"}, r"unknown dtype 'float23' .*did you mean 'float32'"),
    ({"dtype": torch.int64}, r"unknown dtype torch\.int64 .*float16"),
    ({"device": "gpu"}, r"unknown device 'gpu'; this machine has: cpu"),
    ({"device": "cuda:99"}, r"device 'cuda:99' is not available; this machine has: cpu"),
])
def test_unknown_dtype_or_device(given, message):
    with pytest.raises(ModelError, match=message):
        StableDiffusion.from_pretrained("emoji", **given)


@pytest.mark.parametrize(("given", "message"), [
    ({"prompt": ""}, None),
    ({"prompt": 3}, r"prompt is 3; expected a string"),
    ({"prompt": []}, r"prompt is \[\]; expected a string or a list of at least one"),
    ({"prompt": ["a", None]}, r"prompt is \['a', None\]"),
    ({"negative_prompt": None}, r"negative_prompt is None"),
    ({"guidance": np.float32(2)}, None),
    ({"guidance": math.nan}, r"guidance is nan; expected a number of at least 0"),
    ({"guidance": math.inf}, r"guidance is inf"),
    ({"guidance": -1}, r"guidance is -1"),
    ({"guidance": "4"}, r"guidance is '4'"),
    ({"height": 30}, r"height is 30; expected a multiple of 4 pixels, such as 32"),
    ({"width": 0}, r"width is 0; .* such as 4"),
    ({"width": 32.0}, r"width is 32\.0; .* such as 32"),
    ({"width": "32"}, r"width is '32'"),
])
def test_what_a_prompt_call_refuses(given, message, model):
    if message is None:
        model(**{"prompt": "red apple", **given})
        return
    with pytest.raises(ProblemError, match=message):
        model(**{"prompt": "red apple", **given})


def test_a_cut_prompt_is_named(model):
    kept = "a Red apple, " * 5
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model(kept.strip() + " and  a Blue HAT with thirteen stars", negative_prompt="x")
    (warning,) = seen
    assert "the text encoder reads 24; cut off: " in str(warning.message)
    cut = str(warning.message).split("cut off: ")[1].strip("'")
    assert cut.endswith("Blue HAT with thirteen stars")
    assert warning.filename == __file__
    whole = (kept.strip() + " and  a Blue HAT with thirteen stars").removesuffix(cut)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(whole)


def test_decode_wants_finite_latents_of_the_right_shape(model):
    latents = torch.zeros(3, 4, 8, 8)
    assert len(model.decode(latents)) == 3
    latents[1, 0, 0, 0] = math.nan
    with pytest.raises(ProblemError, match=r"latents 1 of 3 hold NaN or infinity; take more steps"):
        model("red apple").decode(latents)
    with pytest.raises(ProblemError, match=r"latents have the shape \(4, 8, 8\); expected \(B, 4, h, w\)"):
        model.decode(latents[0])


def test_pictures_survive_encode_and_decode(model):
    sample = solve(model("red apple", guidance=4), solver="heun", n=12).images()
    again = model.decode(model.encode(sample))
    error = np.asarray(sample[0], float) - np.asarray(again[0], float)
    assert 20 * math.log10(255 / np.sqrt(np.square(error).mean())) > 20


def test_encode_takes_pictures_and_tensors(model):
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    white = torch.ones(1, 3, 32, 32)
    torch.testing.assert_close(model.encode(clear), model.encode(white))
    with pytest.raises(ProblemError, match=r"height is 30; expected a multiple of 4"):
        model.encode(white[:, :, :30])
    with pytest.raises(ProblemError, match=r"expected pictures of one size, got \[\(16, 16\), \(32, 32\)\]"):
        model.encode([clear, clear.resize((16, 16))])
    with pytest.raises(ProblemError, match=r"images have the shape \(3, 32, 32\)"):
        model.encode(white[0])


@pytest.mark.cuda
def test_on_cuda(model):
    theirs = StableDiffusion.from_pretrained("emoji", device="cuda")
    solution = solve(theirs("red apple", guidance=4), solver="heun", n=5)
    expected = solve(model("red apple", guidance=4), solver="heun", n=5).x
    assert solution.x.device.type == "cuda"
    assert (solution.x.cpu() - expected).norm() / expected.norm() < 1e-2
    assert solution.images()[0].size == (32, 32)
