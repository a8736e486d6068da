"""Small configurations of SD2's architecture, for random weights: what tests and the demo run."""

from __future__ import annotations

from dataclasses import replace

from sd2rt.export.pipeline_configs import Config, PipelineConfigs

_PUBLISHED_BASE = PipelineConfigs.packaged("stable-diffusion-2-1-base")
_PUBLISHED_V = PipelineConfigs.packaged("stable-diffusion-2-1")


def _sized(*, text_encoder: Config, unet: Config, vae: Config) -> PipelineConfigs:
    """The published base configuration with other sizes: everything else stays as SD2 has it."""
    return PipelineConfigs(
        text_encoder={**_PUBLISHED_BASE.text_encoder, **text_encoder},
        unet={**_PUBLISHED_BASE.unet, **unet},
        vae={**_PUBLISHED_BASE.vae, **vae},
        scheduler=_PUBLISHED_BASE.scheduler,
    )


SMALL = _sized(
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
)
"""As small as SD2 gets: every kind of block, 64x64 pixels, epsilon prediction, PNDM."""

SMALL_V = replace(SMALL, scheduler=_PUBLISHED_V.scheduler)
"""SMALL with v prediction and DDIM."""

DEMO = _sized(
    text_encoder={
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
    },
    unet={
        "sample_size": 16,
        "block_out_channels": [32, 64, 96, 96],
        "attention_head_dim": [2, 4, 6, 6],
        "norm_num_groups": 16,
        "layers_per_block": 1,
        "cross_attention_dim": 64,
    },
    vae={
        "sample_size": 128,
        "block_out_channels": [16, 32, 64, 64],
        "norm_num_groups": 8,
        "layers_per_block": 1,
    },
)
"""The checkpoint named ``demo``: 128x128 pixels, epsilon prediction, PNDM."""

DEMO_V = replace(DEMO, scheduler=_PUBLISHED_V.scheduler)
"""DEMO with v prediction and DDIM."""

DEMO_SEED = 2
