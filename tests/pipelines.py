"""diffusers' own pipelines for the tests: the embedded model, and tiny ones made from config with random weights.

Each of FAMILIES makes (pipe, what it is called with) for an even number of network calls; nobody encodes a prompt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
import transformers
from models import emoji_model, shipped_folder
from torch import Tensor

from diffsolve.interop.diffusers import DiffsolveScheduler

torch.set_num_threads(1)
SIZE = {"height": 16, "width": 16}
Family = tuple[Any, dict[str, Any]]


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embedded(dtype: torch.dtype = torch.float64) -> Any:
    """The embedded model in diffusers' StableDiffusionPipeline, made once, with its own scheduler each time."""
    return with_its_own(_embedded(dtype))


@cache
def _embedded(dtype: torch.dtype) -> Any:
    kind = diffusers.StableDiffusionPipeline
    return with_its_own(quiet(kind.from_pretrained(
        shipped_folder(), safety_checker=None, requires_safety_checker=False, dtype=dtype
    )))  # fmt: skip


def with_its_own(pipe: Any) -> Any:
    """The pipeline with the scheduler that it had first, whatever a test has put in its place."""
    if not hasattr(pipe, "first_scheduler"):
        pipe.first_scheduler = pipe.scheduler
    pipe.scheduler = deepcopy(pipe.first_scheduler)
    return pipe


@cache
def embeddings(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """What the embedded model's text encoder says, so that a test does not wait for it."""
    model = emoji_model()
    return {
        "prompt_embeds": model.embed("red apple").to(dtype), "negative_prompt_embeds": model.embed("").to(dtype)
    }  # fmt: skip


def told(*shape: int, seed: int = 0) -> Tensor:
    """What a text encoder would say."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(seed: int = 5) -> Tensor:
    return torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(seed))


def kl(latents: int = 4, **options: Any) -> Any:
    """An autoencoder of one factor 2."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=latents, norm_num_groups=2, sample_size=16, **options,
    )  # fmt: skip


def unet(**options: Any) -> Any:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 2, "cross_attention_dim": 8,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**(given | options)).eval()


SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sd_parts(**options: Any) -> dict[str, Any]:
    scheduler = diffusers.EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="trailing")
    return {
        "vae": kl(), "text_encoder": None, "tokenizer": None, "unet": unet(**options), "scheduler": scheduler,
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
    }  # fmt: skip


SD_TOLD = {"prompt_embeds": told(1, 4, 8), "negative_prompt_embeds": told(1, 4, 8, seed=1), "guidance_scale": 3.0}


def sd() -> Family:
    return diffusers.StableDiffusionPipeline(**sd_parts()), SD_TOLD | SIZE


def sd_img2img() -> Family:
    return diffusers.StableDiffusionImg2ImgPipeline(**sd_parts()), SD_TOLD | {"image": picture(), "strength": 0.6}


def sd_inpaint() -> Family:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    given = SD_TOLD | SIZE | {"image": picture(), "mask_image": mask, "strength": 1.0}
    return diffusers.StableDiffusionInpaintPipeline(**sd_parts()), given


def sd_inpaint_9() -> Family:
    """Whose network is told the mask and the picture, in 9 channels."""
    return diffusers.StableDiffusionInpaintPipeline(**sd_parts(in_channels=9)), sd_inpaint()[1]


def controlnet() -> Family:
    parts = sd_parts()
    torch.manual_seed(1)
    control = diffusers.ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(4, 4))
    for parameter in control.parameters():  # its ends are zeros
        torch.nn.init.normal_(parameter, std=0.1)
    given = SD_TOLD | SIZE | {"image": picture(), "control_guidance_end": 0.5}
    return diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=control), given


def lcm() -> Family:
    parts = sd_parts(time_cond_proj_dim=8) | {"scheduler": diffusers.LCMScheduler(**SD_BETAS)}
    return diffusers.LatentConsistencyModelPipeline(**parts), {
        "prompt_embeds": told(1, 4, 8), "original_inference_steps": 50, **SIZE
    }  # fmt: skip


def lora() -> Family:
    """With low-rank changes of the attention weights, saved and loaded by diffusers' own loader."""
    peft = pytest.importorskip("peft")
    (pipe, given), (other, _) = sd(), sd()
    other.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=1, target_modules=["to_q", "to_v"]))
    torch.manual_seed(2)
    for name, parameter in other.unet.named_parameters():
        if "lora_B" in name:  # which begin at 0
            torch.nn.init.normal_(parameter, std=0.5)
    with tempfile.TemporaryDirectory() as folder:
        other.save_lora_weights(folder, unet_lora_layers=peft.get_peft_model_state_dict(other.unet))
        pipe.load_lora_weights(folder, adapter_name="low_rank")
    return pipe, given


def xl_parts(**options: Any) -> dict[str, Any]:
    net = unet(addition_embed_type="text_time", addition_time_embed_dim=2, transformer_layers_per_block=1,
               projection_class_embeddings_input_dim=20, **options)  # fmt: skip
    return {
        "vae": kl(), "text_encoder": None, "text_encoder_2": None, "tokenizer": None, "tokenizer_2": None, "unet": net,
        "scheduler": diffusers.EulerDiscreteScheduler(**SD_BETAS),
    }  # fmt: skip


XL_TOLD = SD_TOLD | {"pooled_prompt_embeds": told(1, 8), "negative_pooled_prompt_embeds": told(1, 8, seed=3)}


def sdxl() -> Family:
    return diffusers.StableDiffusionXLPipeline(**xl_parts()), XL_TOLD | SIZE


def sdxl_img2img() -> Family:
    given = XL_TOLD | {"image": picture(), "strength": 0.5}
    return diffusers.StableDiffusionXLImg2ImgPipeline(**xl_parts()), given


def flow(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def sd3() -> Family:
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        caption_projection_dim=8, joint_attention_dim=8, pooled_projection_dim=8, out_channels=4,
    )  # fmt: skip
    texts = dict.fromkeys(f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3"))
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=net, vae=kl(shift_factor=0.06), scheduler=flow(shift=3.0), **texts
    )
    return pipe, XL_TOLD | SIZE


def flux_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4), guidance_embeds=True,
    )  # fmt: skip
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    dynamic = flow(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0)
    return {"transformer": net, "vae": kl(1, shift_factor=0.06), "scheduler": dynamic, **texts}


FLUX_TOLD = {"prompt_embeds": told(1, 4, 8), "pooled_prompt_embeds": told(1, 8), "guidance_scale": 3.5, **SIZE}


def flux() -> Family:
    return diffusers.FluxPipeline(**flux_parts()), FLUX_TOLD


def flux_img2img() -> Family:
    return diffusers.FluxImg2ImgPipeline(**flux_parts()), FLUX_TOLD | {"image": picture(), "strength": 0.6}


def qwen() -> Family:
    torch.manual_seed(0)
    net = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, guidance_embeds=False, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )  # fmt: skip
    dynamic = flow(use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9, base_shift=0.5)
    pipe = diffusers.QwenImagePipeline(scheduler=dynamic, vae=vae, text_encoder=None, tokenizer=None, transformer=net)
    return pipe, {
        "prompt_embeds": told(1, 4, 8), "prompt_embeds_mask": torch.ones(1, 4, dtype=torch.long), **SIZE,
        "negative_prompt_embeds": told(1, 4, 8, seed=1), "true_cfg_scale": 2.0,
        "negative_prompt_embeds_mask": torch.ones(1, 4, dtype=torch.long),
    }  # fmt: skip


def z_image() -> Family:
    torch.manual_seed(0)
    net = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=8, axes_dims=[4, 2, 2], axes_lens=[64, 16, 16],
    )  # fmt: skip
    with torch.no_grad():
        for name in ("x_pad_token", "cap_pad_token"):  # of uninitialised memory
            getattr(net, name).fill_(0.5)
    pipe = diffusers.ZImagePipeline(
        scheduler=flow(shift=3.0), vae=kl(shift_factor=0.1), text_encoder=None, tokenizer=None, transformer=net
    )
    return pipe, {
        "prompt_embeds": [told(4, 8)], "negative_prompt_embeds": [told(4, 8, seed=1)], "guidance_scale": 2.0, **SIZE
    }  # fmt: skip


def wan() -> Family:
    """Two experts, switched at a time."""
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=8, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=16,
        ))  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4, scale_factor_spatial=2, scale_factor_temporal=2,
    )  # fmt: skip
    multistep = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=multistep, transformer=nets[0], transformer_2=nets[1],
        boundary_ratio=0.875,
    )  # fmt: skip
    return pipe, {
        "prompt_embeds": told(1, 4, 8), "negative_prompt_embeds": told(1, 4, 8, seed=1), "guidance_scale": 2.0,
        "num_frames": 3, **SIZE,
    }  # fmt: skip


def sana() -> Family:
    torch.manual_seed(0)
    net = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=8,
    )  # fmt: skip
    kinds = ("ResBlock", "ResBlock")
    vae = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=kinds, decoder_block_types=kinds,
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        downsample_block_type="conv", upsample_block_type="interpolate", scaling_factor=0.4,
    )  # fmt: skip
    multistep = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.SanaPipeline(tokenizer=None, text_encoder=None, vae=vae, transformer=net, scheduler=multistep)
    masks = {f"{side}prompt_attention_mask": torch.ones(1, 4) for side in ("", "negative_")}
    return pipe, {
        "prompt_embeds": told(1, 4, 8), "negative_prompt_embeds": told(1, 4, 8, seed=1), "guidance_scale": 2.0,
        "use_resolution_binning": False, "negative_prompt": None, **masks, "height": 32, "width": 32,
    }  # fmt: skip


def ltx2() -> Family:
    """Video and sound, the scheduler of the one a deep copy of the other's."""
    if not hasattr(transformers, "Gemma4ForConditionalGeneration"):
        pytest.skip(f"transformers {transformers.__version__} lacks what diffusers' LTX2 pipeline imports")
    torch.manual_seed(0)
    net = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
        audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=1, caption_channels=8, rope_type="split",
        qk_norm="rms_norm_across_heads", rope_double_precision=False,
    )  # fmt: skip
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    sides: dict[str, Any] = {}
    for side in ("video", "audio"):
        sides |= {f"{side}_connector_num_attention_heads": 2, f"{side}_connector_attention_head_dim": 4,
                  f"{side}_connector_num_layers": 1, f"{side}_connector_num_learnable_registers": None}  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=8, text_proj_in_factor=1, connector_rope_base_seq_len=16, rope_theta=10000.0,
        rope_double_precision=False, causal_temporal_positioning=False, rope_type="split", **sides,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTX2Video(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(4,), decoder_block_out_channels=(4,),
        layers_per_block=(1,), decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False), downsample_type=("spatial",),
        upsample_residual=(False,), upsample_factor=(1,), patch_size=1, patch_size_t=1,
    )  # fmt: skip
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2,
        resolution=8, latent_channels=2, mid_block_add_attention=False, mel_bins=8,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=8, out_channels=2, upsample_kernel_sizes=[4], upsample_factors=[2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1]],
    )  # fmt: skip
    pipe = diffusers.LTX2Pipeline(
        scheduler=flow(use_dynamic_shifting=True, shift_terminal=0.1, base_shift=0.95, max_shift=2.05), vae=vae,
        audio_vae=audio_vae, text_encoder=None, tokenizer=None, connectors=connectors, transformer=net,
        vocoder=vocoder,
    )  # fmt: skip
    plain = {
        f"{side}{what}": value
        for side in ("", "audio_")
        for what, value in (
            ("guidance_scale", 1.0),
            ("stg_scale", 0.0),
            ("modality_scale", 1.0),
            ("guidance_rescale", 0.0),
        )
    }
    return pipe, {
        "prompt_embeds": told(1, 4, 8), "prompt_attention_mask": torch.ones(1, 4, dtype=torch.long), "num_frames": 3,
        "height": 32, "width": 32, **plain,
    }  # fmt: skip


FAMILIES: dict[str, Callable[[], Family]] = {
    made.__name__: made
    for made in (
        sd, sd_img2img, sd_inpaint, sd_inpaint_9, controlnet, lcm, lora, sdxl, sdxl_img2img, sd3, flux, flux_img2img,
        qwen, z_image, wan, sana, ltx2,
    )
}  # fmt: skip


def family(name: str, dtype: torch.dtype = torch.float32) -> Family:
    """One of FAMILIES, made once, with its own scheduler each time, and that one's config as `pipe.first_config`."""
    pipe, given = _family(name, dtype)
    return with_its_own(pipe), given


@cache
def _family(name: str, dtype: torch.dtype) -> Family:
    pipe, given = FAMILIES[name]()
    quiet(pipe.to(dtype))
    pipe.first_config = pipe.scheduler.config
    wide = {key: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for key, v in given.items()}
    return pipe, wide


def drawn(name: str, solver: str, calls: int, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The latents that a family draws with a solver; `options` are of the scheduler, or of the pipeline."""
    pipe, given = family(name, dtype)
    ours = {key: options.pop(key) for key in ("schedule", "eta", "final") if key in options}
    pipe.scheduler = DiffsolveScheduler.from_config(pipe.first_config, solver=solver, **ours)
    given = given | {"generator": torch.Generator().manual_seed(3), "output_type": "latent"} | options
    return pipe(**given, num_inference_steps=calls, return_dict=False)[0]
