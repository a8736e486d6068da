"""The checkpoint in PyTorch and diffusers: the reference that a bundle is compared with."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import diffusers
from diffusers import (
    DDPMScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
)
from PIL.Image import Resampling
from transformers import CLIPTokenizer
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from sd2rt.engines.bundle.model_kinds import KINDS, TaskName
from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS, NoiseConfig, SamplerConfig
from sd2rt.export.checkpoints.checkpoint import Checkpoint
from sd2rt.export.checkpoints.scheduler_table import LEVEL_FLAGS, SCHEDULERS, Key


def reference_scheduler(noise: NoiseConfig, sampler: SamplerConfig) -> Any:
    """diffusers' scheduler for a sampler's configuration. Options that diffusers takes as arguments of step() (the
    order of lms, the churn of euler) are bound to it.

    Raises:
        ValueError: diffusers has no such sampler (ipndm), or its class lacks an option.
    """
    scheduler = make_scheduler(noise, sampler)
    arguments = step_arguments(sampler)
    if arguments:
        scheduler.step = partial(scheduler.step, **arguments)
    return scheduler


def make_scheduler(noise: NoiseConfig, sampler: SamplerConfig) -> Any:
    """Like :func:`reference_scheduler`, but the caller passes :func:`step_arguments` to step()."""
    entry = SCHEDULERS.get(sampler.name)
    if entry is None:
        raise ValueError(f"diffusers has no {sampler.name} on a checkpoint's noise schedule")
    if noise.rescale_betas_zero_snr and not entry.zero_snr:
        raise ValueError(f"{entry.name} has no rescale_betas_zero_snr")
    if sampler.levels not in entry.levels:
        raise ValueError(f"{entry.name} has no {sampler.levels} levels")
    keys = {key.name: _scheduler_value(key, getattr(sampler, key.field)) for key in entry.keys}
    shared = noise.model_dump(exclude=set() if entry.zero_snr else {"rescale_betas_zero_snr"})
    flags = {flag: True for flag, levels in LEVEL_FLAGS.items() if levels == sampler.levels}
    if entry.has_offset:
        shared["steps_offset"] = sampler.steps_offset
    if sampler.name == "sa-solver" and _fresh_noise(sampler) != _FRESH_NOISE:
        tau, start, end = _fresh_noise(sampler)
        keys["tau_func"] = lambda timestep: tau if start <= timestep <= end else 0.0
    return getattr(diffusers, entry.name)(**shared, **keys, **flags, **entry.fixed)


def step_arguments(sampler: SamplerConfig) -> dict[str, Any]:
    """The sampler's options that a scheduler's step() takes as arguments, without those at their defaults."""
    arguments = SCHEDULERS[sampler.name].step_arguments
    defaults = SAMPLER_OPTIONS[sampler.name]
    return {
        argument: getattr(sampler, field)
        for argument, field in arguments.items()
        if getattr(sampler, field) != defaults[field]
    }


def _scheduler_value(key: Key, value: Any) -> Any:
    """The value of a scheduler's configuration key for the value of the sampler's field."""
    if key.values is not None:
        spelling = next((text for text, meaning in key.values.items() if meaning == value), None)
        if spelling is None:
            raise ValueError(f"diffusers has no {key.name} for {key.field} {value!r}")
        return spelling
    if key.field == "lambda_min_clipped" and value is None:
        return float("-inf")
    return list(value) if isinstance(value, tuple) else value


def _fresh_noise(sampler: SamplerConfig) -> tuple[float, float, float]:
    return sampler.tau, sampler.tau_start, sampler.tau_end


# SASolverScheduler's values where tau_func is None.
_FRESH_NOISE = (1.0, 200.0, 800.0)

PIPELINES: dict[TaskName, Any] = {
    "text-to-image": StableDiffusionPipeline,
    "image-to-image": StableDiffusionImg2ImgPipeline,
    "inpainting": StableDiffusionInpaintPipeline,
    "depth-to-image": StableDiffusionDepth2ImgPipeline,
    "upscaling": StableDiffusionUpscalePipeline,
}
"""diffusers' pipeline for each task."""
_SAFETY: dict[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}


def reference_pipeline(
    checkpoint: Checkpoint, sampler: SamplerConfig | None = None, task: TaskName | None = None
) -> Any:
    """diffusers' pipeline for the checkpoint, in float32.

    Args:
        sampler: the sampler to use; by default the checkpoint's.
        task: one of the tasks of the checkpoint's kind; by default the first.
    """
    first, *_ = KINDS[checkpoint.variant].tasks
    pipeline = PIPELINES[first if task is None else task](
        vae=checkpoint.vae(),
        text_encoder=checkpoint.text_encoder(),
        tokenizer=reference_tokenizer(checkpoint),
        unet=checkpoint.unet(),
        scheduler=reference_scheduler(checkpoint.noise, sampler or checkpoint.sampler),
        **_extra_components(checkpoint),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _extra_components(checkpoint: Checkpoint) -> dict[str, Any]:
    """Pipeline components of the checkpoint's kind, beside the networks that all kinds have."""
    depth, low = checkpoint.depth_input, checkpoint.low_resolution
    if depth is not None:
        processor = DPTImageProcessorPil(
            size={"width": depth.size[0], "height": depth.size[1]},
            resample=Resampling[depth.resample.upper()],
            image_mean=list(depth.mean),
            image_std=list(depth.std),
            keep_aspect_ratio=False,
        )
        return {"depth_estimator": checkpoint.depth_estimator(), "feature_extractor": processor}
    if low is not None:
        noise = low.noise.model_dump(exclude={"prediction_type"})
        return {"low_res_scheduler": DDPMScheduler(**noise), "max_noise_level": low.max_noise_level}
    return _SAFETY


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
