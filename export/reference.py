"""The same checkpoint in PyTorch: what a bundle is compared with."""

from __future__ import annotations

import json
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from transformers import CLIPTokenizer

from sd2rt.engines.sampling import NoiseConfig, SamplerConfig
from sd2rt.export.checkpoint import Checkpoint


def reference_scheduler(noise: NoiseConfig, sampler: SamplerConfig) -> Any:
    """diffusers' scheduler for a sampler's configuration."""
    shared = {
        "num_train_timesteps": noise.num_train_timesteps,
        "beta_start": noise.beta_start,
        "beta_end": noise.beta_end,
        "beta_schedule": noise.beta_schedule,
        "prediction_type": noise.prediction_type,
        "timestep_spacing": sampler.spacing,
        "steps_offset": sampler.steps_offset,
    }
    if sampler.name == "ddim":
        return DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=sampler.set_alpha_to_one)
    if sampler.name == "pndm":
        return PNDMScheduler(**shared, skip_prk_steps=True, set_alpha_to_one=sampler.set_alpha_to_one)
    if sampler.name == "euler":
        return EulerDiscreteScheduler(**shared, final_sigmas_type=sampler.final_sigma)
    return DPMSolverMultistepScheduler(
        **shared,
        final_sigmas_type=sampler.final_sigma,
        lower_order_final=sampler.lower_order_final,
        solver_type=sampler.solver_type,
    )


def reference_pipeline(checkpoint: Checkpoint, sampler: SamplerConfig | None = None) -> Any:
    """diffusers' pipeline on the checkpoint, float32, with the checkpoint's own sampler or another."""
    pipeline = StableDiffusionPipeline(
        vae=checkpoint.vae(),
        text_encoder=checkpoint.text_encoder(),
        tokenizer=reference_tokenizer(checkpoint),
        unet=checkpoint.unet(),
        scheduler=reference_scheduler(checkpoint.noise, sampler or checkpoint.sampler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference_tokenizer(checkpoint: Checkpoint) -> CLIPTokenizer:
    """transformers' tokenizer with the checkpoint's vocabulary."""
    content = json.loads(checkpoint.tokenizer_json())
    model = content["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    return CLIPTokenizer(
        vocab=model["vocab"],
        merges=merges,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token=content["padding"]["pad_token"],
        model_max_length=int(checkpoint.parts.config("text_encoder")["max_position_embeddings"]),
    )
