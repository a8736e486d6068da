"""Prepare a planned request for the step loop: encode its texts and images, draw its noise, make trajectories."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.denoising.guidance import plan_guidance
from sd2rt.runtime.denoising.kept_area import KeptArea, NoisedOriginal, ReplacedEstimate
from sd2rt.runtime.denoising.trajectory import Trajectory
from sd2rt.runtime.networks.networks import Networks
from sd2rt.runtime.pipeline.conditioning import Conditioning, Start
from sd2rt.runtime.pipeline.image_job import ImageJob
from sd2rt.runtime.prompts.schedule import schedule_texts
from sd2rt.runtime.prompts.text_conditioning import TextConditioning
from sd2rt.runtime.request.idle_fields import idle_fields
from sd2rt.runtime.request.planned import PlannedRequest
from sd2rt.runtime.request.request import Request
from sd2rt.runtime.request.sampling import nominal_calls, sampler_of
from sd2rt.runtime.rng.brownian_path import BrownianPath
from sd2rt.runtime.rng.select import NormalGenerator, make_generator
from sd2rt.runtime.samplers.a1111.facts import TIMESTEP_SAMPLERS
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.tiling.noise import ImageNoise, TileGenerator, TilePath
from sd2rt.runtime.tiling.tiling import Tiling


def prepare(networks: Networks, planned: PlannedRequest[Any], seed: int) -> list[ImageJob]:
    """Make a job for each image of a planned request; the networks must be acquired.

    Raises:
        RequestError: the bundle cannot honour the request.
        EngineError: the device failed or ran out of memory.
    """
    request, plan = planned.request, planned.plan
    for note in idle_fields(request):
        warnings.warn(note, stacklevel=2)
    conditioning = Conditioning(networks, planned)
    latents = _initial_noise(request, conditioning)
    scale = request.guidance_scale
    assert scale is not None
    guidance = plan_guidance(scale, request.guidance_rescale, request.guidance_interval, plan.levels)
    texts = guidance.apply(_texts(networks, request, len(plan.steps), any(guidance.guided)))
    _, h, w = conditioning.shape
    side = networks.tile if conditioning.tileable else max(h, w)
    # Without tiles, latents of any side are one box.
    tiling = Tiling(h, w, side, side // 4) if conditioning.tileable else Tiling(h, w, side, 0, multiple=1)
    manifest = networks.bundle.manifest
    jobs = []
    for index in range(request.num_images_per_prompt):
        image_seed, variation_seed = request.seeds_of(seed, index)
        generator = make_generator(request.rng, image_seed)
        variation = None if variation_seed is None else make_generator(request.rng, variation_seed)
        noise = None if latents is None else np.asarray(latents[index], np.float32)
        start = conditioning.draw(generator, noise, variation)
        generators: Sequence[NormalGenerator] = [generator]
        if len(tiling.boxes) > 1:
            step_noise = ImageNoise(image_seed, conditioning.shape, request.rng)
            generators = [TileGenerator(step_noise, box) for box in tiling.boxes]
        path = None
        if plan.path is not None:
            path = BrownianPath(request.rng, image_seed, conditioning.shape, *plan.path)
        trajectories = [
            Trajectory(
                plan=plan,
                latents=box.cut(start.noise),
                texts=texts,
                guidance=guidance.values,
                generator=tile_generator,
                seed=image_seed,
                path=None if path is None else TilePath(path, box),
                image_latents=None if start.image_latents is None else box.cut(start.image_latents),
                extra=None if start.extra is None else box.cut(start.extra),
                noise_level=request.noise_level,
                kept=_kept_area(request, manifest, plan, conditioning, start),
            )
            for tile_generator, box in zip(generators, tiling.boxes, strict=True)
        ]
        jobs.append(ImageJob(conditioning, trajectories, tiling))
    return jobs


def _kept_area(
    request: Request[Any], manifest: Manifest, plan: Plan, conditioning: Conditioning, start: Start
) -> KeptArea | None:
    """Make the area outside of the mask, if the denoiser has no input for it."""
    if start.kept is None:
        return None
    kept = conditioning.latent_mask < 0.5
    if request.grid != "a1111":
        return NoisedOriginal(plan, kept, start.kept, start.noise)
    sampler = sampler_of(request, manifest).name
    if sampler in TIMESTEP_SAMPLERS:
        return NoisedOriginal(plan, kept, start.kept, start.noise, clean=True)
    # Its LCM takes every output for noise.
    prediction = "epsilon" if sampler == "lcm" else manifest.noise.prediction_type
    return ReplacedEstimate(plan, kept, start.kept, prediction)


def _initial_noise(request: Request[Any], conditioning: Conditioning) -> NDArray[Any] | None:
    """Check the initial noise that the request brings, [n, C, h, w], if any."""
    latents, expected = request.latents, (request.num_images_per_prompt, *conditioning.shape)
    if latents is None:
        return None
    if conditioning.strength is not None:
        raise RequestError("latents cannot be combined with an image to start from: leave one of them out")
    if latents.shape != expected:
        raise RequestError(f"latents have shape {list(latents.shape)}, expected {list(expected)}")
    return latents


def _texts(
    networks: Networks, request: Request[Any], calls: int, guided: bool
) -> tuple[TextConditioning, ...]:
    prompt = _embeds(networks, "prompt_embeds", request.prompt_embeds)
    negative = _embeds(networks, "negative_prompt_embeds", request.negative_prompt_embeds)
    return schedule_texts(
        networks.text,
        request.prompt or "" if prompt is None else prompt,
        request.negative_prompt or "" if negative is None else negative,
        guided=guided,
        syntax=request.prompt_syntax,
        clip_skip=request.clip_skip or 0,
        calls=calls,
        nominal_calls=nominal_calls(request, networks.bundle.manifest),
    )


def _embeds(networks: Networks, name: str, embeds: NDArray[Any] | None) -> NDArray[Any] | None:
    """Check hidden states [tokens, D] and convert them to the denoiser's type; ``name`` is for messages."""
    if embeds is None:
        return None
    if embeds.ndim == 3 and len(embeds) == 1:
        embeds = embeds[0]
    width = networks.text.width
    if embeds.ndim != 2 or embeds.shape[1] != width or not len(embeds):
        raise RequestError(f"{name} has shape {list(embeds.shape)}, expected [tokens, {width}]")
    if not np.isfinite(embeds).all():
        raise RequestError(f"{name} holds values that are not finite")
    denoiser = networks.bundle.manifest.parts["denoiser"]
    dtype = next(tensor.dtype for tensor in denoiser.inputs if tensor.name == "text")
    return embeds.astype(dtype)
