"""The same checkpoint in PyTorch: what a bundle is compared with."""

from __future__ import annotations

import json
from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
)
from PIL.Image import Resampling
from transformers import CLIPTokenizer
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from sd2rt.engines.kinds import KINDS, TaskName
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


_PIPELINES: dict[TaskName, Any] = {
    "text-to-image": StableDiffusionPipeline,
    "image-to-image": StableDiffusionImg2ImgPipeline,
    "inpainting": StableDiffusionInpaintPipeline,
    "depth-to-image": StableDiffusionDepth2ImgPipeline,
    "upscaling": StableDiffusionUpscalePipeline,
}
_SAFETY: dict[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}


def reference_pipeline(
    checkpoint: Checkpoint, sampler: SamplerConfig | None = None, task: TaskName | None = None
) -> Any:
    """diffusers' pipeline on the checkpoint, float32.

    Args:
        sampler: another than the checkpoint's own.
        task: one of those that its kind offers; the first where it is left out.
    """
    first, *_ = KINDS[checkpoint.variant].tasks
    pipeline = _PIPELINES[first if task is None else task](
        vae=checkpoint.vae(),
        text_encoder=checkpoint.text_encoder(),
        tokenizer=reference_tokenizer(checkpoint),
        unet=checkpoint.unet(),
        scheduler=reference_scheduler(checkpoint.noise, sampler or checkpoint.sampler),
        **_own_components(checkpoint),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def other_task(pipeline: Any, task: TaskName) -> Any:
    """The same networks in the pipeline of another task."""
    if type(pipeline) is _PIPELINES[task]:
        return pipeline
    other = _PIPELINES[task](**pipeline.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def _own_components(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the pipeline of a checkpoint's kind has beside the networks that all have."""
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
