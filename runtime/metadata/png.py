"""Where `sd2rt run` puts its images, and what it writes into them about how they were made."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import EngineError, RequestError

if TYPE_CHECKING:
    from sd2rt.runtime.pipeline.pipeline import Pipeline
    from sd2rt.runtime.request.request import Request


def check_output(output: Path, total: int, option: str = "--output") -> None:
    """See that ``total`` images can be put into ``output``, a .png file or a folder, before any is made.

    Raises:
        RequestError: they cannot.
    """
    if output.suffix.lower() == ".png" and not output.is_dir():
        if total > 1:
            raise RequestError(f"{option} {output} is one file for {total} images: give a folder")
        folder = output.parent
    else:
        if output.suffix and not output.is_dir():
            raise RequestError(f"{option} {output} is neither a .png file nor a folder: images are PNG")
        folder = output
    # Folders that are missing are made later, inside the first that is there.
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise RequestError(f"{option} {output}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RequestError(f"{option} {output}: {existing} cannot be written to: choose another folder")


def facts_of(pipeline: Pipeline, request: Request) -> dict[str, Any]:
    """What made a resolved request's image, as it goes into the file and into ``--json``.

    ``request`` and ``inputs`` are what makes it again; the rest is the same, and what the bundle chose, for people.
    So are ``backend`` and ``precision``, which differ by rounding: a picture is made again on whatever is at hand.
    """
    from sd2rt.engines.bundle.sizes import TILE
    from sd2rt.runtime import __version__
    from sd2rt.runtime.metadata.recipe import settings_of
    from sd2rt.runtime.request.sampling import sampling_of
    from sd2rt.runtime.samplers import schedules_of

    settings, inputs = settings_of(request)
    sampler = pipeline.sampler_of(request)
    schedule = sampler.spacing if sampler.levels == "spaced" else sampler.levels
    width, height = pipeline.size_of(request)
    interval = request.guidance_interval
    optional = {
        "strength": request.strength,
        "noise_level": request.noise_level,
        # As JSON has no infinity.
        "guidance_interval": interval
        and tuple(level if math.isfinite(level) else None for level in interval),
        "prompt_syntax": None if request.prompt_syntax == "plain" else request.prompt_syntax,
        "clip_skip": request.clip_skip,
        "embeddings": {e.token: e.sha256[:12] for e in pipeline.embeddings} or None,
        "loras": [
            {"name": lora.name, "scale": lora.scale, "sha256": lora.sha256[:12]} for lora in pipeline.loras
        ]
        or None,
    }
    return {
        "task": pipeline.task_of(request),
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "steps": sampling_of(request, None).step_count,
        "sampler": sampler.name,
        "schedule": schedule if schedule in schedules_of(sampler.name) else None,
        "eta": request.eta,
        "guidance_scale": request.guidance_scale,
        "guidance_rescale": request.guidance_rescale,
        "seed": request.seed,
        "width": width,
        "height": height,
        "bundle": pipeline.manifest.name,
        "identity": pipeline.manifest.identity,
        "version": __version__,
        "backend": pipeline.backend,
        "precision": pipeline.precision,
        "request": settings,
        **({"inputs": inputs} if inputs else {}),
        **({"tile": pipeline.tile} if pipeline.tile != TILE else {}),
        **{name: value for name, value in optional.items() if value is not None},
    }


def save_image(image: Any, facts: dict[str, Any], output: Path) -> Path:
    """Write an image into ``output``, a file or a folder, and return where it is."""
    from sd2rt.runtime.images.write import save_png
    from sd2rt.runtime.metadata.infotext import write_parameters
    from sd2rt.runtime.metadata.recipe import A1111_CHUNK, CHUNK

    text = {A1111_CHUNK: write_parameters(facts, facts["version"]), CHUNK: json.dumps(facts)}
    named = output.suffix.lower() == ".png" and not output.is_dir()
    name = _name(facts)
    path, number = output if named else output / f"{name}.png", 1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                save_png(image, path, text, replace=named)
                return path
            except FileExistsError:
                # An earlier image is never overwritten unless it was named.
                path, number = output / f"{name}-{number}.png", number + 1
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error


def _name(facts: dict[str, Any]) -> str:
    """The seed, and the one that it varies towards."""
    settings = facts["request"]
    return (
        f"{facts['seed']}v{settings['variation_seed']}"
        if "variation_strength" in settings
        else f"{facts['seed']}"
    )
