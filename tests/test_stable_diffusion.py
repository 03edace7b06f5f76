"""StableDiffusion as a problem: guidance, batches of prompts, dtypes, pictures, and what it refuses."""

from __future__ import annotations

import json
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import emoji_model, linked_copy, replace, shipped_folder
from PIL import Image
from safetensors.torch import load_file, save_file
from stubs import slow

from diffsolve import ModelError, ProblemError, solve, start
from diffsolve.problems import StableDiffusion, calling
from diffsolve.problems.pictures import as_pixels


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
    assert len(solve(problem, "euler", n=1).x) == len(problem.prior()) == len(solve(problem.sde(), n=1).x) == 2
    for x, batch in ((None, 3), (problem.prior(4)[:3], None)):
        with pytest.raises(ProblemError, match=r"batch is 3, but there are 2 prompts.*; expected batch=2 or a mult"):
            start(problem, "euler", n=2, x=x, batch=batch)
    with pytest.raises(ProblemError, match="the batch is 3, but there are 2 prompts"):
        problem.denoise(y[:3], 3.0)


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


@pytest.mark.parametrize("dtype", [slow("float16"), slow("bfloat16"), "float64"])
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


@pytest.mark.parametrize("way", ["pixels", "encode"])
def test_the_vae_follows_a_gradient_and_keeps_no_graph_without_one(way, model, request):
    request.addfinalizer(lambda: model.vae.requires_grad_(False))
    model.vae.requires_grad_()
    shape = (1, 4, 8, 8) if way == "pixels" else (1, 3, 32, 32)
    call, x = getattr(model, way), torch.linspace(-0.5, 0.5, math.prod(shape)).reshape(shape)
    assert not call(x).requires_grad
    with torch.no_grad():
        assert not call(x.clone().requires_grad_()).requires_grad
    given = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(given).square().mean(), given)
    torch.testing.assert_close(torch.func.grad(lambda y: call(y).square().mean())(x), gradient)
    along, h = torch.ones(shape), 1e-2
    with torch.no_grad():
        slope = (call(x + h * along).square().mean() - call(x - h * along).square().mean()) / (2 * h)
    assert float((gradient * along).sum()) == pytest.approx(float(slope), rel=0.1)  # in float32
    assert len(model.decode(torch.zeros(1, 4, 8, 8, requires_grad=True))) == 1


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


@pytest.fixture(scope="module")
def lcm(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    """The embedded model with a network that is told its guidance."""
    folder = linked_copy(shipped_folder(), tmp_path_factory.mktemp("lcm") / "model")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    state = load_file(file) | {"time_embedding.cond_proj.weight": torch.randn(128, 33, generator=generator)}
    file.unlink()
    save_file(state, file)
    for name, changes in (("unet/config.json", {"time_cond_proj_dim": 33}),
                          ("model_index.json", {"_class_name": "LatentConsistencyModelPipeline"}),
                          ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"})):
        replace(folder / name, {**json.loads((folder / name).read_text()), **changes})
    return StableDiffusion.from_pretrained(folder)


def test_a_network_that_is_told_its_guidance_is_called_once_with_it(lcm):
    from diffusers import LatentConsistencyModelPipeline

    seen = []
    hook = lcm.unet.register_forward_pre_hook(lambda _, args, given: seen.append((len(args[0]), given)),
                                              with_kwargs=True)
    for w in (8.5, None):
        problem = lcm(["red apple", "rocket"], guidance=w)
        y, sigma = problem.prior(4, sigma=2.0), 2.0
        found = problem.eps(y, sigma)
        rows, given = seen.pop()
        theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
            None, torch.full((4,), (w or 1.0) - 1), embedding_dim=33)
        assert (rows, seen) == (4, [])
        torch.testing.assert_close(given["timestep_cond"], theirs, rtol=1e-4, atol=1e-4)
        x, t = y / math.sqrt(1 + sigma**2), torch.full((4,), float(problem.process.t(sigma)))
        told = lcm.embed(["red apple", "rocket"]).repeat(2, 1, 1)
        eps = lcm.unet(x, t, encoder_hidden_states=told, timestep_cond=theirs).sample
        torch.testing.assert_close(found, eps, rtol=1e-3, atol=1e-3)
        seen.clear()
    hook.remove()
    assert solve(lcm("red apple", guidance=8), solver="lcm", n=4).nfe == 4
    with pytest.raises(ProblemError, match=r"told its guidance and has no negative prompt; leave negative_prompt out"):
        lcm("red apple", "banana")


def test_a_network_that_is_told_its_guidance_survives_a_single_file(lcm, tmp_path):
    from diffsolve.problems.single_file import to_single_file

    folder = lcm.source
    file = to_single_file(folder, tmp_path / "lcm.safetensors")
    again = StableDiffusion.from_single_file(file, config=folder)
    assert all(torch.equal(v, lcm.unet.state_dict()[k]) for k, v in again.unet.state_dict().items())


def test_a_prompt_may_be_its_embedding(model):
    told = model.embed(["red apple", "rocket"])
    problem = model(told, negative_prompt=model.embed("banana"), guidance=3)
    y = problem.prior(2)
    expected = model(["red apple", "rocket"], "banana", guidance=3).denoise(y, 2.0)
    assert torch.equal(problem.denoise(y, 2.0), expected)
    assert torch.equal(model(told, "banana", guidance=3).denoise(y, 2.0), expected)
    told.zero_()  # the problem has its own
    assert torch.equal(problem.denoise(y, 2.0), expected)
    longer = torch.cat([model.embed("red apple"), model.embed("rocket")], 1)
    assert model(longer, guidance=1).denoise(y, 2.0).isfinite().all()


@pytest.mark.parametrize(("prompt", "negative", "message"), [
    (torch.zeros(2, 128), "", r"prompt has the shape \(2, 128\); expected embeddings \(prompts, tokens, 128\)"),
    (torch.zeros(1, 24, 64), "", r"prompt has the shape \(1, 24, 64\)"),
    (torch.zeros(0, 24, 128), "", r"prompt has the shape \(0, 24, 128\)"),
    (torch.zeros(1, 24, 128, dtype=torch.int64), "", r"embeddings of torch\.int64; expected finite floats"),
    (torch.full((1, 24, 128), math.nan), "", r"expected finite floats"),
    (torch.zeros(1, 48, 128), "", r"the prompt has 48 tokens and the negative prompt 24; give both as embeddings"),
    ("red apple", torch.zeros(2, 24, 128), r"1 prompts and 2 negative prompts"),
])
def test_embeddings_that_can_not_be_meant(prompt, negative, message, model):
    with pytest.raises(ProblemError, match=message):
        model(prompt, negative)


@pytest.mark.parametrize(("prompt", "found"), [
    ("a (red:1.2) apple", r"\(red:1\.2\)"), ("a ((red)) apple", r"\(\(red\)\)"), ("(a red, b : 0.5)", r"b : 0\.5\)"),
    ("[cat:dog:0.5]", r"\[cat:dog:0\.5\]"), ("<lora:x:1>", r"<lora:x:1>"),
])
def test_weights_in_a_prompt_are_warned_of(prompt, found, model):
    with pytest.warns(UserWarning, match=rf"the prompt holds .*{found}.*not understood") as seen:
        model(prompt, guidance=1)
    assert seen[0].filename == __file__


@pytest.mark.parametrize("prompt", ["a red (apple)", "16:9", "(ratio 16:9)", "apple, [a]", "note: red", "a (b) (c)"])
def test_plain_brackets_are_not(prompt, model):
    model(prompt, guidance=1)


def test_one_buffer_for_every_answer_is_no_trap(model, monkeypatch):
    """An encoder and a VAE that write into the same memory each time, as compiled ones do."""
    plain, buffers = model("red apple", "banana", guidance=3), {}

    def into_one(value: torch.Tensor) -> torch.Tensor:
        return buffers.setdefault((id(type(value)), value.shape), torch.empty_like(value)).copy_(value)

    def encoded(self, *args, **given):
        return SimpleNamespace(last_hidden_state=into_one(encode(*args, **given).last_hidden_state))

    encode = model.text_encoder.forward
    monkeypatch.setattr(type(model.text_encoder), "__call__", encoded)
    problem = model("red apple", "banana", guidance=3)
    y = plain.prior(1)
    assert torch.equal(problem.denoise(y, 2.0), plain.denoise(y, 2.0))
    monkeypatch.undo()

    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    decode, expected = model.vae.decode, model.pixels(latents)
    monkeypatch.setattr(calling, "CHUNK", 1)
    monkeypatch.setattr(model.vae, "decode", lambda x: SimpleNamespace(sample=into_one(decode(x).sample)))
    torch.testing.assert_close(model.pixels(latents), expected)


GREY = np.linspace(0, 1, 32 * 32).reshape(32, 32)
PICTURES = {
    "I;16": Image.fromarray((GREY * 65535).round().astype(np.uint16)),
    "I": Image.fromarray((GREY * 65535).round().astype(np.int32)),
    "I of 255": Image.fromarray((GREY * 255).round().astype(np.int32)),
    "F": Image.fromarray(GREY.astype(np.float32)),
    "F of 255": Image.fromarray((GREY * 255).astype(np.float32)),
    "F of 65535": Image.fromarray((GREY * 65535).astype(np.float32)),
    "L": Image.fromarray((GREY * 255).round().astype(np.uint8)),
    "LA": Image.fromarray((GREY * 255).round().astype(np.uint8)).convert("LA"),
    "P": Image.fromarray((GREY * 255).round().astype(np.uint8)).convert("P"),
}


@pytest.mark.parametrize("mode", PICTURES)
def test_pictures_of_every_mode_are_read_rightly(mode):
    pixels = as_pixels(PICTURES[mode])
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels[0, 1].double(), torch.from_numpy(GREY * 2 - 1), rtol=0, atol=1 / 127)
    assert (pixels[0, 0] == pixels[0, 2]).all()


def test_pictures_with_holes_are_on_white():
    black = Image.new("1", (4, 4))
    assert (as_pixels(black) == -1).all()
    assert (as_pixels([Image.new("LA", (4, 4), (0, 0)), Image.new("RGBA", (4, 4), (9, 9, 9, 0))]) == 1).all()
    indexed = Image.new("P", (4, 4), 3)
    indexed.info["transparency"] = 3
    assert (as_pixels(indexed) == 1).all()


@pytest.mark.parametrize(("images", "message"), [
    (np.zeros((32, 32, 3), np.uint8), r"images are ndarray; expected PIL pictures, or a tensor"),
    ([], r"images are list; expected PIL"), (None, r"images are NoneType"), ("a.png", r"images are str"),
    ([torch.zeros(3, 32, 32)], r"images are list"),
    (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"images are of torch\.uint8; expected floats in \[-1, 1\]"),
    (torch.full((1, 3, 32, 32), 255.0), r"images hold values up to 255; expected floats in \[-1, 1\]"),
    (torch.full((1, 3, 32, 32), math.nan), r"images hold values up to nan"),
    (torch.zeros(0, 3, 32, 32), r"images have the shape \(0, 3, 32, 32\)"),
    (torch.zeros(1, 1, 32, 32), r"images have the shape \(1, 1, 32, 32\)"),
    (torch.zeros(3, 32, 32), r"images have the shape \(3, 32, 32\); expected \(B, 3, height, width\)"),
    (Image.fromarray(np.full((32, 32), 1e6, np.float32)), r"mode 'F' holds levels from 1e\+06 .*; expected 0 to"),
    (Image.fromarray(np.full((32, 32), -1, np.float32)), r"mode 'F' holds levels from -1"),
    (Image.fromarray(np.full((32, 32), math.nan, np.float32)), r"mode 'F' holds levels from nan"),
])
def test_what_is_no_picture_is_refused(images, message, model):
    with pytest.raises(ProblemError, match=message):
        model.encode(images)
