"""Single files: the same weights as the folder's, what they predict, and every unusable one refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from models import emoji_model, sd15_like, shipped_folder
from safetensors.torch import load_file, save_file
from test_checkpoints import assert_same_weights

from diffsolve import EDM, VP, ModelError
from diffsolve.problems import StableDiffusion
from diffsolve.problems.checkpoints import from_folder_or_hub
from diffsolve.problems.single_file import from_single_file, to_single_file


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd15_like(tmp_path_factory.mktemp("sd15"))


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_single_file(shipped_folder(), tmp_path_factory.mktemp("one") / "emoji.safetensors", dtype=torch.float16)


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


def test_single_pickle_is_refused_unless_allowed(one_file, tmp_path):
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(one_file), "global_step": 3}, file)
    with pytest.raises(ModelError, match=r"model\.ckpt is a pickle, refused.*allow_pickle=True"):
        from_single_file(file, config=shipped_folder())
    assert_same_weights(from_single_file(file, config=shipped_folder(), allow_pickle=True), emoji_model())
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model\.ckpt can't be read"):
        from_single_file(file, config=shipped_folder(), allow_pickle=True)


class Opener:
    """What a hostile pickle does while it is read."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self):
        return Path.touch, (self.made,)


def test_no_code_of_an_allowed_pickle_is_run(one_file, tmp_path):
    file, made = tmp_path / "model.ckpt", tmp_path / "made"
    torch.save({"state_dict": load_file(one_file), "more": Opener(made)}, file)
    with pytest.raises(ModelError, match=r"model\.ckpt can't be read.*holds more than weights"):
        from_single_file(file, config=shipped_folder(), allow_pickle=True)
    assert not made.exists()


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


def test_a_safetensors_file_by_another_name_is_named(one_file, tmp_path):
    for name in ("model.ckpt", "model.txt"):
        shutil.copy(one_file, tmp_path / name)
        with pytest.raises(ModelError, match=r"is a safetensors file: name it \.safetensors"):
            StableDiffusion.from_single_file(tmp_path / name, config="emoji", allow_pickle=True)


def marked(one_file: Path, file: Path, metadata: dict[str, str] | None = None, *markers: str) -> StableDiffusion:
    save_file(load_file(one_file) | {name: torch.zeros(0) for name in markers}, file, metadata)
    return StableDiffusion.from_single_file(file, config="emoji")


def test_a_single_file_says_what_it_predicts(one_file, tmp_path):
    file = tmp_path / "marked.safetensors"
    assert marked(one_file, file).prediction == "eps"
    model = marked(one_file, file, None, "v_pred", "ztsnr")
    assert (model.prediction, model.process) == ("v", VP(zero_snr=True))
    assert marked(one_file, file, None, "v_pred").process == VP()
    assert marked(one_file, file, {"modelspec.prediction_type": "v"}).prediction == "v"
    assert marked(one_file, file, {"modelspec.prediction_type": "epsilon"}).prediction == "eps"
    with pytest.raises(ModelError, match=r"modelspec\.prediction_type is 'flow', expected one of epsilon, v"):
        marked(one_file, file, {"modelspec.prediction_type": "flow"})
    with pytest.raises(ModelError, match=r"v_pred and its modelspec\.prediction_type 'epsilon' are at odds"):
        marked(one_file, file, {"modelspec.prediction_type": "epsilon"}, "v_pred")
    with pytest.raises(ModelError, match=r"marker edm_vpred\.sigma_max: its network is one of EDM's"):
        marked(one_file, file, None, "edm_vpred.sigma_max")


@pytest.mark.parametrize(("line", "kind"), [
    ('        parameterization: "v"', "v"), ("parameterization: eps", "eps"), ("  parameterization: 'x0'", "x0"),
    ("model:\n    target: x", "eps"),
])  # fmt: skip
def test_a_yaml_beside_a_single_file_says_what_it_predicts(line, kind, one_file, tmp_path):
    file = tmp_path / "v.safetensors"
    file.symlink_to(one_file)
    file.with_suffix(".yaml").write_text(f"model:\n  params:\n{line}\n")
    assert StableDiffusion.from_single_file(file, config="emoji").prediction == kind


def test_a_yaml_that_is_at_odds_is_refused(one_file, tmp_path):
    state = {**load_file(one_file), "v_pred": torch.zeros(0)}
    save_file(state, tmp_path / "v.safetensors")
    (tmp_path / "v.yaml").write_text("parameterization: eps")
    with pytest.raises(ModelError, match=r"its marker v_pred and its v\.yaml beside it are at odds"):
        StableDiffusion.from_single_file(tmp_path / "v.safetensors", config="emoji")
    (tmp_path / "v.yaml").write_text("parameterization: score")
    with pytest.raises(ModelError, match=r"v\.yaml: its parameterization is 'score', expected one of eps, v, x0"):
        StableDiffusion.from_single_file(tmp_path / "v.safetensors", config="emoji")
    (tmp_path / "v.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match=r"v\.yaml can't be read"):
        StableDiffusion.from_single_file(tmp_path / "v.safetensors", config="emoji")


def test_a_single_file_s_nature_may_be_overridden(one_file):
    model = StableDiffusion.from_single_file(one_file, config="emoji", process="edm", prediction="v")
    assert (model.process, model.prediction) == (EDM(), "v")


def test_an_older_single_file_outlives_a_failed_write(one_file, tmp_path, monkeypatch):
    file = tmp_path / "one.safetensors"
    shutil.copy(one_file, file)

    def full(state: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ModelError, match=r"can't be written .*No space left"):
        to_single_file(shipped_folder(), file)
    assert file.read_bytes() == one_file.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["one.safetensors"]


def test_revision_reaches_the_hub(one_file, monkeypatch):
    asked = []

    def snapshot_download(name, *, revision, local_files_only, allow_patterns):
        asked.append((name, revision))
        return str(shipped_folder())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    StableDiffusion.from_single_file(one_file, config="some/model", revision="v3")
    StableDiffusion.from_pretrained("some/model", revision="v4")
    to_single_file("some/model", one_file.with_suffix(".again.safetensors"), revision="v5")
    assert asked == [("some/model", "v3"), ("some/model", "v4"), ("some/model", "v5")]
