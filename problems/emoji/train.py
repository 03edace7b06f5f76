"""Train the embedded model: `python -m diffsolve.problems.emoji.train vae|unet|export --work FOLDER`.

Three stages, each resumable (rerun the command: it goes on from its last checkpoint) and seeded:
`vae` fits an AutoencoderKL, `unet` the tokenizer, the CLIP text encoder and the eps-predicting UNet on its latents,
`export` writes the averaged weights as an fp16 `StableDiffusionPipeline` folder. Losses go to FOLDER/loss-*.jsonl.
The size is meant for two CPU cores; on CUDA, `--size 64 --width 192` trains 16x16x4 latents with a larger UNet.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..training import Run
from . import data

CONTEXT = 24
TEXT_WIDTH = 128
NO_CAPTION = 0.1  # the share of captions dropped, so that guidance has an unconditional model
MIN_SNR = 5.0  # Hang et al. 2023 (arXiv 2303.09556): weight min(SNR, 5)/SNR on the eps loss


def build_vae(size: int) -> AutoencoderKL:
    channels = (32, 64, 128)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=size,
    )


def build_unet(size: int, width: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=size // 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(width, width * 3 // 2),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def build_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A byte-pair vocabulary of the captions' own words, in the two files that CLIPTokenizer reads."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(words, "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False,
        special_tokens=["<|startoftext|>", "<|endoftext|>"])
    bpe.train_from_iterator(captions, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(bpe.to_str())["model"]
    vocab = model["vocab"]
    for symbol in alphabet:  # a letter that only ever ended a word, or never did, must still be spelt
        vocab.setdefault(symbol + "</w>", len(vocab))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "bos_token": "<|startoftext|>",
              "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, projection_dim=TEXT_WIDTH,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))


def train_vae(args: argparse.Namespace) -> None:
    _, images = dataset(args)
    vae = build_vae(args.size)
    run = Run("vae", {"vae": vae}, args, cool=0.25, save=500, device=args.device)
    for rows in run.batches(len(images)):
        x = images[rows].to(args.device)
        flip = torch.rand(len(rows), generator=run.draws) < 0.5
        x[flip] = x[flip].flip(-1)
        with torch.autocast(args.device, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=run.draws).to(args.device)
            y = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        error = y - x
        kl = posterior.kl().float().mean() / x[0].numel()
        run.update(error.abs().mean() + 2 * error.square().mean() + 1e-4 * kl)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Posterior means, unscaled."""
    return torch.cat([vae.encode(x).latent_dist.mean for x in images.split(128)])


def train_unet(args: argparse.Namespace) -> None:
    emojis, images = dataset(args)
    vae = averaged(args, "vae", build_vae(args.size))
    latents = encode(vae, images.to(args.device)).cpu()
    scale = float(1 / latents.std())
    (args.work / "scaling_factor.json").write_text(json.dumps(scale))
    latents *= scale
    tokenizer = build_tokenizer([c for e in emojis for c in e.captions], args.work / "tokenizer")
    tokens = [tokenize(tokenizer, list(e.captions)) for e in emojis]
    empty = tokenize(tokenizer, [""])[0]
    torch.manual_seed(args.seed)
    unet, text = build_unet(args.size, args.width), build_text_encoder(tokenizer)
    run = Run("unet", {"unet": unet, "text": text}, args, cool=0.25, save=500, device=args.device)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)
    snr = (abar / (1 - abar)).float()
    signal, noise_level = abar.sqrt().float(), (1 - abar).sqrt().float()
    for rows in run.batches(len(latents)):
        choice = torch.rand(args.batch, 2, generator=run.draws).tolist()
        ids = torch.stack([
            empty if drop < NO_CAPTION else tokens[i][int(pick * len(tokens[i]))]
            for i, (drop, pick) in zip(rows.tolist(), choice, strict=True)])
        t = torch.randint(1000, (args.batch,), generator=run.draws)
        x0 = latents[rows]
        eps = torch.randn(x0.shape, generator=run.draws)
        x = signal[t].view(-1, 1, 1, 1) * x0 + noise_level[t].view(-1, 1, 1, 1) * eps
        weight = (snr[t].clamp(max=MIN_SNR) / snr[t]).to(args.device)
        with torch.autocast(args.device, torch.bfloat16):
            context = text(ids.to(args.device)).last_hidden_state
            guess = unet(x.to(args.device), t.to(args.device), context).sample.float()
        run.update((weight * (guess - eps.to(args.device)).square().mean((1, 2, 3))).mean())


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    kept = tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
    return kept.input_ids


def dataset(args: argparse.Namespace) -> tuple[list[data.Emoji], torch.Tensor]:
    folder = data.fetch(args.work)
    emojis = data.read(folder)
    return emojis, torch.from_numpy(data.pictures(folder, emojis, args.size))


def averaged(args: argparse.Namespace, stage: str, module: Any, key: str | None = None) -> Any:
    state = torch.load(args.work / f"{stage}.pt", map_location=args.device, weights_only=True)
    module.load_state_dict(state["average"][key or stage])
    return module.to(args.device).eval().requires_grad_(False)


def export(args: argparse.Namespace) -> None:
    """FOLDER/model: unet, vae, text_encoder, tokenizer, scheduler and model_index.json, fp16 safetensors."""
    vae = averaged(args, "vae", build_vae(args.size))
    vae.register_to_config(scaling_factor=json.loads((args.work / "scaling_factor.json").read_text()))
    tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=averaged(args, "unet", build_text_encoder(tokenizer), "text"), tokenizer=tokenizer,
        unet=averaged(args, "unet", build_unet(args.size, args.width)), scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)
    folder = args.work / "model"
    pipeline.to(torch.float16).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):  # transformers 5 writes tokenizer.json alone, 4 reads these
        shutil.copy(args.work / "tokenizer" / name, folder / "tokenizer" / name)
    weights = folder / "text_encoder" / "model.safetensors"
    state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(weights).items()}
    save_file(state, weights, metadata={"format": "pt"})  # with the prefix, transformers 4 and 5 both find them
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("vae", "unet", "export"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the data, checkpoints, logs and the export")
    parser.add_argument("--size", type=int, default=32, help="pixels a side; latents are a quarter of it")
    parser.add_argument("--width", type=int, default=128, help="channels of the UNet's first level")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    {"vae": train_vae, "unet": train_unet, "export": export}[args.stage](args)


if __name__ == "__main__":
    main()
