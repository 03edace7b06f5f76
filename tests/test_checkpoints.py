"""Loading and writing checkpoints: equal to what diffusers reads, and every unusable file refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from models import emoji_model, linked_copy, replace, sd15_like, shipped_folder
from safetensors.torch import load_file, save_file

from diffsolve import VP, ModelError
from diffsolve.problems import StableDiffusion
from diffsolve.problems.checkpoints import from_folder_or_hub, process_of
from diffsolve.problems.single_file import from_single_file, to_single_file

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
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd15_like(tmp_path_factory.mktemp("sd15"))


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
    process, prediction = process_of(pipeline.scheduler.config)
    assert (ours.process, ours.prediction) == (process, prediction) == (VP(), "eps")


@pytest.mark.parametrize("name", ["emoji", "sd15"])
def test_single_file_round_trip_is_exact(name, sd15, tmp_path):
    folder = sd15 if name == "sd15" else shipped_folder()
    components = from_folder_or_hub(folder)
    file = to_single_file(components, tmp_path / "one.safetensors")
    assert_same_weights(components, from_single_file(file, config=folder))


@pytest.mark.parametrize("name", ["emoji", "sd15"])
def test_single_file_is_what_diffusers_converts(name, sd15, tmp_path):
    from diffusers.loaders.single_file_utils import (
        convert_ldm_clip_checkpoint,
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
    )

    components = from_folder_or_hub(sd15 if name == "sd15" else shipped_folder())
    state = load_file(to_single_file(components, tmp_path / "one.safetensors"))
    text = {k.removeprefix("text_model."): v for k, v in convert_ldm_clip_checkpoint(state).items()}
    for part, theirs in (("unet", convert_ldm_unet_checkpoint(dict(state), components.unet.config)),
                         ("vae", convert_ldm_vae_checkpoint(dict(state), components.vae.config)),
                         ("text_encoder", text)):
        ours = {k.removeprefix("text_model."): v for k, v in getattr(components, part).state_dict().items()}
        assert ours.keys() == theirs.keys()
        assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


def test_single_file_has_stable_diffusions_own_numbering(sd15, tmp_path):
    state = load_file(to_single_file(sd15, tmp_path / "one.safetensors"))
    unet, vae = "model.diffusion_model.", "first_stage_model."
    for name in ("input_blocks.3.0.op.weight", "input_blocks.4.0.skip_connection.weight",
                 "middle_block.1.proj_in.weight", "output_blocks.2.1.conv.weight",
                 "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
                 "output_blocks.5.2.conv.weight", "output_blocks.11.1.proj_out.weight", "out.2.weight"):
        assert unet + name in state
    assert unet + "input_blocks.10.1.norm.weight" not in state  # the lowest level has no attention
    assert vae + "decoder.up.3.upsample.conv.weight" in state
    assert vae + "decoder.up.0.upsample.conv.weight" not in state
    assert state[vae + "encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    assert "cond_stage_model.transformer.text_model.final_layer_norm.weight" in state


def test_public_single_file_loader(one_file):
    model = StableDiffusion.from_single_file(one_file, config="emoji")
    assert_same_weights(model, emoji_model())
    assert model.source == str(one_file)


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


def test_single_pickle_is_refused_unless_allowed(one_file, tmp_path):
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(one_file), "global_step": 3}, file)
    with pytest.raises(ModelError, match=r"model\.ckpt is a pickle, refused.*allow_pickle=True"):
        from_single_file(file, config=shipped_folder())
    assert_same_weights(from_single_file(file, config=shipped_folder(), allow_pickle=True), emoji_model())
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model\.ckpt can't be read"):
        from_single_file(file, config=shipped_folder(), allow_pickle=True)


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
    "lcm": (lambda f: edited(f / "unet/config.json", time_cond_proj_dim=256), r"further input \(time_cond_proj_dim"),
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
        asked.append((name, revision, allow_patterns[-3:]))
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


def test_unusable_single_file_is_refused(one_file, tmp_path):
    def refused(file: Path, message: str, **given) -> None:
        with pytest.raises(ModelError, match=message):
            StableDiffusion.from_single_file(file, **{"config": "emoji", **given})

    refused(tmp_path / "none.safetensors", r"none\.safetensors: no such file")
    refused(tmp_path, r"is a folder; expected one file")
    (tmp_path / "notes.txt").write_text("weights")
    refused(tmp_path / "notes.txt", r"notes\.txt: expected a \.safetensors file")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(one_file.read_bytes()[:100_000])
    refused(cut, r"cut\.safetensors can't be read .*truncated")
    other = tmp_path / "other.safetensors"
    save_file({"lora_unet_a.alpha": torch.ones(1), "b": torch.ones(1)}, other)
    refused(other, r"2 weights named b, lora_unet_a\.alpha, \.\.\., which looks like a LoRA.*model\.diffusion_model\.")
    save_file({"b": torch.ones(1)}, other)
    refused(other, r"1 weights named b, .*no model known here")
    reduced = {k: v for k, v in load_file(one_file).items() if "out.2.bias" not in k}
    save_file(reduced, other)
    refused(other, r"1 of the \d+ weights .* first model\.diffusion_model\.out\.2\.bias")
    refused(one_file, r"no such folder", config=tmp_path / "nowhere")


def test_single_file_for_another_config_is_refused(one_file, sd15):
    with pytest.raises(ModelError, match=r"another config"):
        from_single_file(one_file, config=sd15)


def test_single_file_that_cannot_be_written(tmp_path):
    with pytest.raises(ModelError, match=r"one\.safetensors can't be written .*folder that exists"):
        to_single_file(shipped_folder(), tmp_path / "no" / "one.safetensors")


@pytest.mark.parametrize(("config", "process", "prediction"), [
    ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, VP(), "eps"),
    ({"prediction_type": "v_prediction"}, VP("linear", 1e-4, 0.02), "v"),
    ({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100, "prediction_type": "sample"},
     VP("cosine", 1e-4, 0.02, 100), "x0"),
    ({"trained_betas": [0.1, 0.2]}, VP(steps=2, betas=(0.1, 0.2)), "eps"),
])
def test_scheduler_config_gives_the_process(config, process, prediction):
    assert process_of(config) == (process, prediction)


@pytest.mark.parametrize(("config", "message"), [
    ({"prediction_type": "flow_prediction"}, r"prediction_type is 'flow_prediction', expected one of epsilon"),
    ({"beta_schedule": "sigmoid"}, r"beta_schedule is 'sigmoid', expected one of linear"),
    ({"rescale_betas_zero_snr": True}, r"rescale_betas_zero_snr .* sigma infinite"),
])
def test_unknown_scheduler_config_is_refused(config, message):
    with pytest.raises(ModelError, match=message):
        process_of(config)
