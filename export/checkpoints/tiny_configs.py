"""Small configurations of SD2's architecture, for the demo and for tests with random weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.export.checkpoints.pipeline_configs import Config, PipelineConfigs

_PUBLISHED_BASE = PipelineConfigs.packaged("stable-diffusion-2-1-base")
_PUBLISHED_V = PipelineConfigs.packaged("stable-diffusion-2-1")
_PUBLISHED_TURBO = PipelineConfigs.packaged("sd-turbo")
_PUBLISHED_INPAINTING = PipelineConfigs.packaged("stable-diffusion-2-inpainting")
_PUBLISHED_DEPTH = PipelineConfigs.packaged("stable-diffusion-2-depth")
_PUBLISHED_UPSCALER = PipelineConfigs.packaged("stable-diffusion-x4-upscaler")


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Values of a small pipeline that differ from the published ones."""

    text_encoder: Config
    unet: Config
    vae: Config
    upscaler_unet: Config
    """Overrides for an upscaler's UNet, which has other blocks and another latent size."""
    upscaler_vae: Config
    depth_estimator: Config
    backbone: Config

    def applied_to(self, published: PipelineConfigs) -> PipelineConfigs:
        """A published pipeline in these sizes; all other values stay."""
        unet, vae = {**published.unet, **self.unet}, {**published.vae, **self.vae}
        if published.low_res_scheduler is not None:
            unet |= self.upscaler_unet
            vae |= self.upscaler_vae
        depth = published.depth_estimator
        if depth is not None:
            backbone = {**depth["backbone_config"], **self.backbone}
            depth = {**depth, **self.depth_estimator, "backbone_config": backbone}
        text_encoder = {**published.text_encoder, **self.text_encoder}
        return replace(published, text_encoder=text_encoder, unet=unet, vae=vae, depth_estimator=depth)


_SMALL = _Sizes(
    text_encoder={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
    },
    unet={
        "sample_size": 8,
        "block_out_channels": [16, 24, 32, 32],
        "attention_head_dim": [2, 3, 4, 4],
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "cross_attention_dim": 32,
    },
    vae={
        "sample_size": 64,
        "block_out_channels": [8, 16, 24, 24],
        "norm_num_groups": 4,
        "layers_per_block": 1,
    },
    upscaler_unet={"sample_size": 16, "block_out_channels": [16, 24, 24, 32], "attention_head_dim": 4},
    upscaler_vae={"sample_size": 32, "block_out_channels": [8, 16, 24]},
    depth_estimator={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "backbone_featmap_shape": [1, 32, 24, 24],
        "neck_hidden_sizes": [8, 16, 32, 32],
        "fusion_hidden_size": 16,
    },
    backbone={"embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "num_groups": 4, "depths": [1, 1, 1]},
)

SMALL = _SMALL.applied_to(_PUBLISHED_BASE)
"""The smallest pipeline with every kind of block: 64x64 pixels, epsilon prediction, PNDM."""

SMALL_V = replace(SMALL, scheduler=_PUBLISHED_V.scheduler)
"""SMALL with v prediction and DDIM."""

SMALL_TURBO = _SMALL.applied_to(_PUBLISHED_TURBO)
"""SMALL with Euler and trailing timesteps."""

SMALL_INPAINTING = _SMALL.applied_to(_PUBLISHED_INPAINTING)
"""SMALL with a mask and a masked image as conditions: 9 channels."""

SMALL_DEPTH = _SMALL.applied_to(_PUBLISHED_DEPTH)
"""SMALL with a depth map as condition: 5 channels, and a depth estimator for 384x384 pixels, as published."""

SMALL_UPSCALER = _SMALL.applied_to(_PUBLISHED_UPSCALER)
"""From 16x16 pixels to 64x64: 7 channels, a noise level, v prediction, DDIM."""

SMALLS: dict[ModelKind, PipelineConfigs] = {
    "base": SMALL,
    "v": SMALL_V,
    "turbo": SMALL_TURBO,
    "inpainting": SMALL_INPAINTING,
    "depth": SMALL_DEPTH,
    "upscaler": SMALL_UPSCALER,
}
"""The smallest pipeline of each kind."""

_DEMO = _Sizes(
    text_encoder={
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_attention_heads": 6,
        "num_hidden_layers": 4,
    },
    unet={
        "sample_size": 16,
        "block_out_channels": [48, 64, 64],
        "attention_head_dim": [3, 4, 4],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "norm_num_groups": 16,
        "layers_per_block": 1,
        "cross_attention_dim": 96,
    },
    vae={
        "sample_size": 128,
        "block_out_channels": [16, 32, 64, 64],
        "norm_num_groups": 8,
        "layers_per_block": 1,
    },
    upscaler_unet={
        "sample_size": 32,
        "block_out_channels": [32, 48, 48, 64],
        "attention_head_dim": 2,
        "down_block_types": _PUBLISHED_UPSCALER.unet["down_block_types"],
        "up_block_types": _PUBLISHED_UPSCALER.unet["up_block_types"],
    },
    upscaler_vae={"sample_size": 128, "block_out_channels": [16, 32, 48]},
    depth_estimator={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "backbone_featmap_shape": [1, 64, 24, 24],
        "neck_hidden_sizes": [16, 32, 64, 64],
        "fusion_hidden_size": 16,
    },
    backbone={"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "num_groups": 8, "depths": [1, 1, 1]},
)


_NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")


def _ancestral(prediction: str) -> Config:
    """The demo's scheduler, for a prediction type.

    SD2's checkpoints have PNDM and DDIM. The output of networks this small changes too fast between steps for PNDM's
    history of four (25 steps: 26 % of prompts drawn correctly, 93 % by DDIM). They also make larger errors, which
    fresh noise in every step corrects (98 %).
    """
    return {
        "_class_name": "EulerAncestralDiscreteScheduler",
        **{key: _PUBLISHED_V.scheduler[key] for key in _NOISE},
        "prediction_type": prediction,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


DEMO = replace(_DEMO.applied_to(_PUBLISHED_BASE), scheduler=_ancestral("epsilon"))
"""The demo's base model: 128x128 pixels, epsilon prediction."""

DEMO_V = replace(DEMO, scheduler=_ancestral("v_prediction"))
"""DEMO with v prediction."""

DEMO_TURBO = _DEMO.applied_to(_PUBLISHED_TURBO)
DEMO_INPAINTING = replace(_DEMO.applied_to(_PUBLISHED_INPAINTING), scheduler=_ancestral("v_prediction"))
"""With v prediction, unlike SD2's: most of the picture is given, and predicted noise says little about it."""

DEMO_DEPTH = replace(_DEMO.applied_to(_PUBLISHED_DEPTH), scheduler=_ancestral("epsilon"))
DEMO_UPSCALER = _DEMO.applied_to(_PUBLISHED_UPSCALER)

DEMOS: dict[ModelKind, PipelineConfigs] = {
    "base": DEMO,
    "v": DEMO_V,
    "turbo": DEMO_TURBO,
    "inpainting": DEMO_INPAINTING,
    "depth": DEMO_DEPTH,
    "upscaler": DEMO_UPSCALER,
}
"""The demo's configurations by kind; turbo has no trained weights."""

DEMO_SEED = 2
"""Seed of the random weights for these configurations in tests and benchmarks."""
