"""Loading and writing folders of checkpoints: equal to what diffusers reads, the unusable ones refused by name."""

from __future__ import annotations

import json
import math
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from models import emoji_model, linked_copy, replace, shipped_folder
from safetensors.torch import load_file, save_file

from diffsolve import VP, ModelError, ProblemError, solve
from diffsolve.problems import StableDiffusion
from diffsolve.problems.checkpoints import from_folder_or_hub
from diffsolve.problems.configs import read_scheduler_config
from diffsolve.problems.single_file import to_single_file

PARTS = ("unet", "vae", "text_encoder")
UNET = "unet/diffusion_pytorch_model.safetensors"


def assert_same_weights(a, b) -> None:
    for part in PARTS:
        one, other = getattr(a, part).state_dict(), getattr(b, part).state_dict()
        assert one.keys() == other.keys()
        assert [k for k in one if not torch.equal(one[k], other[k])] == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return linked_copy(shipped_folder(), tmp_path / "model")


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_single_file(shipped_folder(), tmp_path_factory.mktemp("one") / "emoji.safetensors", dtype=torch.float16)


def test_folder_is_what_diffusers_loads():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(shipped_folder(), torch_dtype=torch.float32)
    ours = emoji_model()
    assert_same_weights(ours, pipeline)
    text = ["A red apple!", "", "smiling face, with sunglasses"]
    assert ours.tokenizer(text).input_ids == pipeline.tokenizer(text).input_ids
    assert ours.vae.config.scaling_factor == pipeline.vae.config.scaling_factor
    process, prediction = read_scheduler_config(pipeline.scheduler.config)
    assert (ours.process, ours.prediction) == (process, prediction.name) == (VP(), "eps")


def test_fp16_files_are_found_where_there_are_no_others(folder):
    for part in PARTS:
        (file,) = (folder / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert_same_weights(from_folder_or_hub(folder), emoji_model())


def test_names_of_older_writers_are_known(folder):
    vae = load_file(shipped_folder() / "vae" / "diffusion_pytorch_model.safetensors")
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        vae = {k.replace(f".attentions.0.{new}.", f".attentions.0.{old}."): v for k, v in vae.items()}
    text = load_file(shipped_folder() / "text_encoder" / "model.safetensors")
    text = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in text.items()}
    text["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    for file, state in (("vae/diffusion_pytorch_model", vae), ("text_encoder/model", text)):
        (folder / f"{file}.safetensors").unlink()
        save_file(state, folder / f"{file}.safetensors")
    assert_same_weights(from_folder_or_hub(folder), emoji_model())


def test_pickles_are_refused_unless_allowed(folder):
    file = folder / UNET
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(ModelError, match=r"no safetensors, only diffusion_pytorch_model\.bin.*allow_pickle=True"):
        StableDiffusion.from_pretrained(folder)
    assert_same_weights(StableDiffusion.from_pretrained(folder, allow_pickle=True), emoji_model())


def edited(file: Path, **changes: object) -> None:
    replace(file, {**json.loads(file.read_text()), **changes})


def truncate(file: Path) -> None:
    replace(file, file.read_bytes()[:5000])


def reweigh(file: Path, change) -> None:
    state = load_file(file)
    change(state)
    file.unlink()
    save_file(state, file)


BROKEN = {
    "no index": (lambda f: (f / "model_index.json").unlink(), r"model_index\.json: no such file; expected a diffusers"),
    "no weights": (lambda f: (f / UNET).unlink(), r"unet.*safetensors: no such file.*incomplete"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), r"vae.config\.json: no such file"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), r"scheduler_config\.json: no such file"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), r"its configs or its tokenizer can't be used"),
    "truncated": (lambda f: truncate(f / UNET), r"unet.*can't be read \(SafetensorError.*truncated"),
    "pointer": (lambda f: replace(f / UNET, b"version https://git-lfs.github.com/spec/v1\noid"), r"git lfs pull"),
    "broken json": (lambda f: replace(f / "vae/config.json", b"{"), r"config\.json can't be read \(JSONDecodeError"),
    "sdxl": (lambda f: edited(f / "model_index.json", _class_name="StableDiffusionXLPipeline"),
             r"describes a StableDiffusionXLPipeline; expected a StableDiffusionPipeline"),
    "part left out": (lambda f: edited(f / "model_index.json", vae=[None, None]), r"vae is missing, expected a Auto"),
    "other part": (lambda f: edited(f / "model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
                   r"text_encoder is T5EncoderModel, expected a CLIPTextModel"),
    "inpainting": (lambda f: edited(f / "unet/config.json", in_channels=9), r"takes 9 channels, .* have 4; an inp"),
    "lcm": (lambda f: edited(f / "unet/config.json", time_cond_proj_dim=256), r"first time_embedding\.cond_proj"),
    "classes": (lambda f: edited(f / "unet/config.json", num_class_embeds=9), r"further input \(num_class_embeds = 9"),
    "variance": (lambda f: edited(f / "unet/config.json", out_channels=8), r"takes 4 channels and returns 8"),
    "scaled latents": (lambda f: edited(f / "vae/config.json", latents_mean=[0.0] * 4), r"latents_mean is given"),
    "NaN": (lambda f: reweigh(f / UNET, lambda s: s["conv_in.bias"].fill_(math.nan)), r"conv_in\.bias holds NaN"),
    "infinite": (lambda f: reweigh(f / UNET, lambda s: s["conv_in.bias"][3].fill_(math.inf)),
                 r"conv_in\.bias holds NaN"),
    "quantised": (lambda f: reweigh(f / UNET, lambda s: s.update({"conv_in.bias": s["conv_in.bias"].to(torch.int8)})),
                  r"conv_in\.bias is of torch\.int8, a quantised weight"),
    "fewer tokens": (lambda f: edited(f / "text_encoder/config.json", vocab_size=100), r"has \d+ tokens, .* knows 100"),
    "other text": (lambda f: edited(f / "unet/config.json", cross_attention_dim=768), r"is 768, .* width 128"),
    "other depth": (lambda f: edited(f / "unet/config.json", layers_per_block=2), r"weights of the UNet.* are missing"),
    "other size": (lambda f: edited(f / "vae/config.json", latent_channels=4, norm_num_groups=8,
                                    block_out_channels=[16, 64, 128]), r"vae.*has the shape .* expects"),
    "unknown block": (lambda f: edited(f / "unet/config.json", up_block_types=["NoBlock", "UpBlock2D"]),
                      r"its configs or its tokenizer can't be used .*NoBlock"),
    "weight lost": (lambda f: reweigh(f / UNET, lambda s: s.pop("conv_in.weight")), r"1 of .* first conv_in\.weight"),
    "weight added": (lambda f: reweigh(f / UNET, lambda s: s.update(lora=torch.ones(1))), r"no place in .* first lora"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folder_is_refused(name, folder):
    breaking, message = BROKEN[name]
    breaking(folder)
    with pytest.raises(ModelError, match=message):
        StableDiffusion.from_pretrained(folder)


def test_what_is_no_folder_is_refused(one_file, tmp_path):
    with pytest.raises(ModelError, match=r"no such folder; expected .*'emoji'"):
        StableDiffusion.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"is a file; .*from_single_file"):
        StableDiffusion.from_pretrained(one_file)
    with pytest.raises(ModelError, match=r"nobody/nothing: no such folder, and as a hub id it can't be fetched \(\w+"):
        StableDiffusion.from_pretrained("nobody/nothing", local_files_only=True)


def test_hub_is_asked_for_what_is_needed_only(folder, monkeypatch):
    (folder / UNET).rename((folder / UNET).with_suffix(".fp16.safetensors"))
    asked = []

    def snapshot_download(name, *, revision, local_files_only, allow_patterns):
        asked.append((name, revision, [p for p in allow_patterns if p.endswith("safetensors") and "*" not in p]))
        if len(asked) == 1:  # as the hub does, hand over only what the patterns name
            return str(linked_copy(folder.parent / "model", folder.parent / "first", without="*.fp16.*"))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_same_weights(from_folder_or_hub("some/model", revision="v2"), emoji_model())
    assert asked == [
        ("some/model", "v2", [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]),
        ("some/model", "v2", [UNET.replace(".safe", ".fp16.safe"), "vae/diffusion_pytorch_model.fp16.safetensors",
                              "text_encoder/model.fp16.safetensors"]),
    ]


def shard(folder: Path, part: str, stem: str, half: bool = False) -> Path:
    """The weights of a part in two files with an index, named as their libraries do; the index."""
    whole = folder / part / f"{stem}.safetensors"
    state, homes = load_file(whole), {}
    whole.unlink()
    names, end = sorted(state), ".fp16" if half else ""
    for i, keys in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"{stem}-0000{i}-of-00002{end}.safetensors"
        save_file({k: state[k] for k in keys}, folder / part / file)
        homes |= dict.fromkeys(keys, file)
    index = folder / part / f"{stem}.safetensors.index{end}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return index


STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.mark.parametrize("half", [False, True])
def test_shards_are_read_by_their_index(folder, half):
    for part, stem in STEMS.items():
        shard(folder, part, stem, half)
    assert_same_weights(StableDiffusion.from_pretrained(folder), emoji_model())


def test_shards_of_pickles_are_refused_unless_allowed(folder):
    index = shard(folder, "unet", STEMS["unet"])
    homes = json.loads(index.read_text())["weight_map"]
    for name in set(homes.values()):
        torch.save(load_file(folder / "unet" / name), folder / "unet" / name.replace(".safetensors", ".bin"))
        (folder / "unet" / name).unlink()
    homes = {k: name.replace(".safetensors", ".bin") for k, name in homes.items()}
    index.rename(folder / "unet" / "diffusion_pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": homes}))
    with pytest.raises(ModelError, match=r"only .*\.bin, a pickle, refused"):
        StableDiffusion.from_pretrained(folder)
    assert_same_weights(StableDiffusion.from_pretrained(folder, allow_pickle=True), emoji_model())


@pytest.mark.parametrize(("change", "message"), [
    (lambda homes: {}, r"expected a weight_map"),
    (lambda homes: 3, r"expected a weight_map"),
    (lambda homes: dict.fromkeys(homes, 3), r"expected a weight_map"),
    (lambda homes: dict.fromkeys(homes, "../vae/diffusion_pytorch_model.safetensors"), r"in its own folder"),
    (lambda homes: dict.fromkeys(homes, "none.safetensors"), r"none\.safetensors: no such file"),
    (lambda homes: {**homes, "more": min(homes.values())}, r"lacks more, which .*index\.json says is in it"),
])
def test_a_broken_index_is_refused(folder, change, message):
    index = shard(folder, "unet", STEMS["unet"])
    homes = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": change(homes)}))
    with pytest.raises(ModelError, match=message):
        StableDiffusion.from_pretrained(folder)


def test_names_beside_the_weights_are_known(folder, one_file, tmp_path):
    reweigh(folder / "text_encoder" / "model.safetensors", lambda s: s.update({
        "text_projection.weight": torch.eye(3), "logit_scale": torch.tensor(1.0)}))
    reweigh(folder / "vae" / "diffusion_pytorch_model.safetensors", lambda s: s.update(logvar=torch.tensor(0.0)))
    assert_same_weights(StableDiffusion.from_pretrained(folder), emoji_model())
    state = load_file(one_file) | {
        "cond_stage_model.transformer.text_projection.weight": torch.eye(3),
        "cond_stage_model.transformer.logit_scale": torch.tensor(1.0), "cond_stage_model.logit_scale": torch.ones(1),
        "first_stage_model.logvar": torch.tensor(0.0), "first_stage_model.model_ema.decay": torch.tensor(0.9),
        "model_ema.decay": torch.tensor(0.9), "model_ema.diffusion_modelinput_blocks00weight": torch.ones(2),
        "logvar": torch.zeros(1000), "betas": torch.zeros(1000), "first_stage_model.loss.logvar": torch.tensor(0.0),
    }
    file = tmp_path / "more.safetensors"
    save_file(state, file)
    assert_same_weights(StableDiffusion.from_single_file(file, config="emoji"), emoji_model())


def as_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps({"a": 1}))


def as_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("archive/data.pkl", b"x")


MISNAMED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle": (as_pickle, r"it is a pickle.*allow_pickle"),
    "zip": (as_zip, r"it is a zip archive, as torch\.save"),
    "page": (lambda f: f.write_bytes(b"\n<!DOCTYPE html><html>404"), r"it is a web page"),
    "pointer": (lambda f: f.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid"), r"Git LFS pointer"),
    "json": (lambda f: f.write_text('{"weight_map": {}}'), r"it is JSON"),
    "gguf": (lambda f: f.write_bytes(b"GGUF" + bytes(60)), r"it is GGUF"),
    "empty": (lambda f: f.write_bytes(b""), r"it is empty"),
    "gzip": (lambda f: f.write_bytes(b"\x1f\x8b" + bytes(9)), r"it is a gzip"),
}


@pytest.mark.parametrize("kind", MISNAMED)
def test_the_true_format_of_a_misnamed_file_is_named(kind, folder, tmp_path):
    make, message = MISNAMED[kind]
    file = tmp_path / "model.safetensors"
    make(file)
    with pytest.raises(ModelError, match=rf"model\.safetensors can't be read: .*{message}"):
        StableDiffusion.from_single_file(file, config="emoji")
    (folder / UNET).unlink()
    make(folder / UNET)
    with pytest.raises(ModelError, match=rf"diffusion_pytorch_model\.safetensors can't be read: .*{message}"):
        StableDiffusion.from_pretrained(folder)


def test_weights_too_large_for_the_dtype_are_named(folder):
    reweigh(folder / UNET, lambda s: s.update({"conv_in.bias": s["conv_in.bias"].float() + 1e6}))
    StableDiffusion.from_pretrained(folder)
    with pytest.raises(ModelError, match=r"conv_in\.bias is too large for torch\.float16"):
        StableDiffusion.from_pretrained(folder, dtype="float16")


@pytest.mark.parametrize("name", [3, None, b"emoji"])
def test_a_name_that_is_none(name):
    if name is not None:
        with pytest.raises(ModelError, match=r"named by a string or a path"):
            StableDiffusion.from_pretrained(name)
    with pytest.raises(ModelError, match=r"named by a string or a path"):
        StableDiffusion.from_single_file(name)


@pytest.mark.parametrize("name", ["~nobody-here/model", "a" * 5000, "a\0b", ""])
def test_a_name_that_no_file_can_have(name):
    with pytest.raises(ModelError):
        StableDiffusion.from_pretrained(name, local_files_only=True)
    with pytest.raises(ModelError):
        StableDiffusion.from_single_file(f"{name}.safetensors", config="emoji")


HOSTILE = (None, True, "abc", "", -1, 0, 0.5, 1e30, math.nan, math.inf, 10**30, [], [1, "a"], {}, {"a": 1})
FILES = ("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
         "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json")


# What loaded, and then failed with an error of torch or Python's own.
FAILED = [
    ("unet/config.json", key, value) for key, value in (
        ("attention_head_dim", -1), ("norm_num_groups", -1), ("downsample_padding", -1), ("downsample_padding", 7),
        ("mid_block_scale_factor", 0), ("norm_eps", math.nan), ("norm_eps", -1.0), ("sample_size", -1),
        ("sample_size", "8"), ("sample_size", 100000), ("sample_size", [8, 8, 8]), ("freq_shift", "0"),
        ("layers_per_block", 10**9), ("block_out_channels", 128), ("block_out_channels", ["a"]), ("act_fn", 3),
    )
] + [
    ("vae/config.json", key, value) for key, value in (
        ("norm_num_groups", -1), ("scaling_factor", "0.2"), ("scaling_factor", math.nan), ("scaling_factor", 0),
        ("shift_factor", "a"), ("shift_factor", math.inf), ("block_out_channels", None), ("sample_size", {}),
    )
] + [
    ("text_encoder/config.json", key, value) for key, value in (
        ("layer_norm_eps", None), ("layer_norm_eps", -1.0), ("num_attention_heads", -1), ("eos_token_id", None),
        ("eos_token_id", [-1]), ("hidden_size", 10**12), ("num_hidden_layers", 10**9), ("vocab_size", "many"),
    )
] + [
    ("tokenizer/tokenizer_config.json", key, value) for key, value in (
        ("model_max_length", "77"), ("model_max_length", -1), ("pad_token", None),
    )
] + [
    ("model_index.json", key, value) for key, value in (
        ("unet", 3), ("unet", "a"), ("vae", []), ("vae", [1, 2, 3]), ("_class_name", []), ("tokenizer", {"a": 1}),
    )
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "key", "value"), FAILED, ids=str)
def test_a_value_that_can_not_be_meant_is_refused(name, key, value, folder):
    plain = json.loads((folder / name).read_text())
    replace(folder / name, json.dumps({**plain, key: value}).encode())
    with pytest.raises(ModelError):
        StableDiffusion.from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_any_value_under_any_key_of_a_config_works_or_is_refused(name, folder):
    plain, drawn = json.loads((folder / name).read_text()), random.Random(name)
    cases = [(key, value) for key in plain for value in HOSTILE]
    for key, value in drawn.sample(cases, min(25, len(cases))):
        replace(folder / name, json.dumps({**plain, key: value}).encode())
        try:
            model = StableDiffusion.from_pretrained(folder)
            model.encode(model.decode(solve(model("red apple", guidance=2), solver="euler", n=1).x))
        except (ModelError, ProblemError):
            continue
