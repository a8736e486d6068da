"""Collect the generation metadata of an image and format it as PNG text chunks."""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sd2rt.engines.bundle.manifest import Manifest
    from sd2rt.engines.bundle.sampler_config import SamplerConfig
    from sd2rt.engines.lora.file import Lora
    from sd2rt.runtime.prompts.textual_inversion import Embedding
    from sd2rt.runtime.request.planned import PlannedRequest
    from sd2rt.runtime.request.request import Request


class Loaded(Protocol):
    """A pipeline, as far as it is recorded in an image's metadata."""

    tile: int

    @property
    def manifest(self) -> Manifest: ...
    @property
    def backend(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def embeddings(self) -> Sequence[Embedding]: ...
    @property
    def loras(self) -> Sequence[Lora]: ...

    def sampler_of(self, request: Request[Any]) -> SamplerConfig: ...
    def size_of(self, request: Request[Any]) -> tuple[int, int]: ...


class Facts:
    """Metadata of images by their planned requests, with the LoRAs and embeddings that are loaded now."""

    def __init__(self, pipeline: Loaded) -> None:
        self._pipeline = pipeline
        self._embeddings, self._loras = pipeline.embeddings, pipeline.loras

    def __call__(self, planned: PlannedRequest[Any]) -> dict[str, Any]:
        """Return the metadata of a planned request's image, as stored in its file and printed by ``--json``.

        ``request`` and ``inputs`` are sufficient to reproduce the image. The other entries are for readers: they
        repeat settings, including the bundle's defaults. ``backend`` and ``precision`` are also only informative:
        reproducing an image uses the available backend, and results then differ by rounding.
        """
        from sd2rt.engines.bundle.sizes import TILE
        from sd2rt.runtime.metadata.recipe import settings_of
        from sd2rt.runtime.request.sampling import sampling_of
        from sd2rt.runtime.samplers import schedules_of

        pipeline, request = self._pipeline, planned.request
        settings, inputs = settings_of(request)
        sampler = pipeline.sampler_of(request)
        schedule = sampler.spacing if sampler.levels == "spaced" else sampler.levels
        known: str | None = schedule if schedule in schedules_of(sampler.name) else None
        if request.grid == "a1111":
            known = request.schedule or "automatic"
        width, height = pipeline.size_of(request)
        interval = request.guidance_interval
        optional = {
            "strength": request.strength,
            "noise_level": request.noise_level,
            # JSON has no infinity: None stands for no upper limit.
            "guidance_interval": interval
            and tuple(level if math.isfinite(level) else None for level in interval),
            "prompt_syntax": None if request.prompt_syntax == "plain" else request.prompt_syntax,
            "clip_skip": request.clip_skip,
            "embeddings": {e.token: e.sha256[:12] for e in self._embeddings} or None,
            "loras": [_lora(lora) for lora in self._loras] or None,
        }
        return {
            "task": planned.task.name,
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "steps": sampling_of(request, None).step_count,
            "sampler": sampler.name,
            "schedule": known,
            "eta": request.eta,
            "guidance_scale": request.guidance_scale,
            "guidance_rescale": request.guidance_rescale,
            "seed": request.seed,
            "width": width,
            "height": height,
            "bundle": pipeline.manifest.name,
            "identity": pipeline.manifest.identity,
            "version": version("sd2rt"),
            "backend": pipeline.backend,
            "precision": pipeline.precision,
            "request": settings,
            **({"inputs": inputs} if inputs else {}),
            **({"tile": pipeline.tile} if pipeline.tile != TILE else {}),
            **{name: value for name, value in optional.items() if value is not None},
        }


def _lora(lora: Lora) -> dict[str, Any]:
    text = {} if lora.text_scale == lora.scale else {"text_scale": lora.text_scale}
    return {"name": lora.name, "scale": lora.scale, **text, "sha256": lora.sha256[:12]}


def started_from_image(facts: Mapping[str, Any]) -> bool:
    """Return whether a picture with these facts started from an image, rather than from noise alone."""
    return "image" in facts.get("inputs", ())


def png_text(facts: dict[str, Any]) -> dict[str, str]:
    """Return a PNG's text chunks by key: AUTOMATIC1111's parameters, and sd2rt's chunk with all facts as JSON."""
    from sd2rt.runtime.metadata.infotext import write_parameters
    from sd2rt.runtime.metadata.recipe import A1111_CHUNK, CHUNK

    return {A1111_CHUNK: write_parameters(facts, facts["version"]), CHUNK: json.dumps(facts)}
