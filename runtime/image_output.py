"""Where `sd2rt run` puts its images, and what it writes into them about how they were made."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import EngineError, RequestError

if TYPE_CHECKING:
    from sd2rt.runtime.pipeline import Pipeline
    from sd2rt.runtime.request import Request


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
    """What made a resolved request's image, as it goes into the file and into ``--json``."""
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
    }
    return {
        "task": pipeline.task_of(request),
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "steps": request.num_inference_steps,
        "sampler": pipeline.sampler_of(request).name,
        "schedule": pipeline.sampler_of(request).spacing,
        "eta": request.eta,
        "guidance_scale": request.guidance_scale,
        "guidance_rescale": request.guidance_rescale,
        "seed": request.seed,
        "width": width,
        "height": height,
        "bundle": pipeline.manifest.name,
        "identity": pipeline.manifest.identity,
        **{name: value for name, value in optional.items() if value is not None},
    }


_A1111_SAMPLERS = {"ddim": "DDIM", "pndm": "PLMS", "euler": "Euler", "dpmpp-2m": "DPM++ 2M"}


def _parameters(facts: dict[str, Any], version: str) -> str:
    """The text that AUTOMATIC1111's web interface writes into a PNG and reads back from it."""
    lines = [facts["prompt"] or ""]
    if facts["negative_prompt"]:
        lines.append(f"Negative prompt: {facts['negative_prompt']}")
    sampler = _A1111_SAMPLERS[facts["sampler"]]
    extra = [f"Spacing: {facts['schedule']}, "]
    extra += [f"Eta: {facts['eta']:g}, "] if facts["eta"] else []
    extra += [f"Denoising strength: {facts['strength']:g}, "] if "strength" in facts else []
    extra += [f"CFG rescale: {facts['guidance_rescale']:g}, "] if facts["guidance_rescale"] else []
    scale = facts["guidance_scale"]
    scales = scale if isinstance(scale, tuple) else (scale,)
    # One number is read back there: the one that steps begin with.
    extra += [f"CFG scales: {'/'.join(f'{scale:g}' for scale in scales)}, "] if len(scales) > 1 else []
    if "guidance_interval" in facts:
        low, high = facts["guidance_interval"]
        extra.append(f"CFG interval: {low:g}:{'inf' if high is None else f'{high:g}'}, ")
    lines.append(
        f"Steps: {facts['steps']}, Sampler: {sampler}, CFG scale: {scales[0]:g}, "
        f"Seed: {facts['seed']}, Size: {facts['width']}x{facts['height']}, "
        f"{''.join(extra)}Model hash: {facts['identity'][:10]}, Model: {facts['bundle']}, Version: sd2rt {version}"
    )
    return "\n".join(lines)


def save_image(image: Any, facts: dict[str, Any], output: Path) -> Path:
    """Write an image into ``output``, a file or a folder, and return where it is."""
    from sd2rt.runtime import __version__
    from sd2rt.runtime.image import save_png

    text = {"parameters": _parameters(facts, __version__), "sd2rt": json.dumps(facts)}
    named = output.suffix.lower() == ".png" and not output.is_dir()
    path, number = output if named else output / f"{facts['seed']}.png", 1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                save_png(image, path, text, replace=named)
                return path
            except FileExistsError:
                # An earlier image is never overwritten unless it was named.
                path, number = output / f"{facts['seed']}-{number}.png", number + 1
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error
