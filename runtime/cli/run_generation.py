"""Generation for `sd2rt run`: images in batches, a second pass over them, upscaling, and facts for their metadata."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sd2rt.engines.errors import EngineError
from sd2rt.engines.printable import shown
from sd2rt.runtime.cli.console import Advance
from sd2rt.runtime.cli.run_output import write_depth
from sd2rt.runtime.cli.shell.preview import Show

if TYPE_CHECKING:
    from sd2rt.engines.bundle.manifest import Manifest
    from sd2rt.runtime.pipeline.image_job import ImageJob
    from sd2rt.runtime.pipeline.pipeline import Pipeline
    from sd2rt.runtime.pipeline.progress import Progress
    from sd2rt.runtime.prompts.syntax import PromptSyntax
    from sd2rt.runtime.prompts.textual_inversion import Embedding
    from sd2rt.runtime.request.planned import PlannedRequest
    from sd2rt.runtime.request.request import Request
    from sd2rt.runtime.request.second_pass import SecondPass
    from sd2rt.runtime.rows.image_requests import PlannedImages

_SHARED_FIELDS = ("prompt", "negative_prompt", "prompt_syntax", "clip_skip", "seed", "rng")
"""Fields of a request that the request to enlarge its image takes over."""

ImageWithFacts = tuple[Any, dict[str, Any]]
"""A PIL image, or latents for a second pass, and the facts for its file's metadata."""

Finish: TypeAlias = (
    "Callable[[Iterator[ImageWithFacts | EngineError]], Iterator[ImageWithFacts | EngineError]]"
)
"""Further work on the images of a batch."""


def generate(
    pipeline: Pipeline,
    upscaler: Pipeline | None,
    planned: PlannedImages,
    noise_level: int | None,
    advance: Advance,
    save_depth: Path | None,
    show: Show | None = None,
    finish: Finish | None = None,
) -> Iterator[tuple[ImageWithFacts | EngineError, dict[str, Any]]]:
    """Yield each image or its error, with the size of its batch and the seconds since the batch began.

    Each batch is yielded, and saved by the caller, before the next begins: an interruption loses no finished image.
    """
    for batch in planned.batches(pipeline.max_batch):
        began = time.perf_counter()
        outcomes = iter(make(pipeline, batch, "", advance, save_depth, show))
        save_depth = None
        if finish is not None:
            outcomes = finish(outcomes)
        if upscaler is not None:
            outcomes = upscaled(upscaler, outcomes, noise_level, advance)
        for outcome in outcomes:
            yield outcome, {"batch": len(batch), "batch_seconds": round(time.perf_counter() - began, 3)}


def make(
    pipeline: Pipeline,
    planned: list[PlannedRequest],
    stage: str,
    advance: Advance,
    save_depth: Path | None = None,
    show: Show | None = None,
) -> list[ImageWithFacts | EngineError]:
    """Make one image for each request, reporting progress as ``stage``; write the first one's depth map.

    Args:
        show: shows previews of the images.
    """
    with pipeline.stream_planned(planned) as running:
        if save_depth is not None:
            write_depth(running.jobs[0][0].conditioning.raw_depth, save_depth)
        for progress in running:
            advance(stage, progress, len(planned))
            if show is not None:
                _show_previews(show, progress, running.jobs, planned)
        outcomes = running.outcomes()
    return [
        outcome if isinstance(outcome, EngineError) else (outcome.images[0], outcome.recipes[0])
        for outcome in outcomes
    ]


def _show_previews(
    show: Show, progress: Progress, jobs: Sequence[Sequence[ImageJob]], planned: Sequence[PlannedRequest[Any]]
) -> None:
    snapshots, preview = progress.snapshots(), progress.rough
    for (job, *_), each in zip(jobs, planned, strict=True):
        for snapshot in snapshots:
            if snapshot.job is job:
                request = each.request
                name = f"{request.seed}v{request.variation_seed}" if request.varied else f"{request.seed}"
                show(name, snapshot.rough(preview))


def check_second_pass(second: SecondPass, manifest: Manifest, first: Request[Any]) -> None:
    """Check that a bundle can make the second pass, before the first is made.

    Raises:
        RequestError: it cannot.
    """
    from sd2rt.runtime.metadata.recipe import settings_of
    from sd2rt.runtime.request.planned import plan_requests

    plan_requests([_second_request(second, settings_of(first)[0], None)], manifest)


def finished_size(
    manifest: Manifest, request: Request[Any], second: SecondPass | None, upscaler: Manifest | None
) -> tuple[int, int]:
    """Compute width and height of a request's images after a second pass and upscaling."""
    from sd2rt.runtime.pipeline.conditioning import result_size

    width, height = result_size(manifest, request)
    if second is not None:
        width, height = second.fields["width"], second.fields["height"]
    factor = 1 if upscaler is None else upscaler.latents.vae_factor
    return width * factor, height * factor


def made_again(
    pipeline: Pipeline,
    second: SecondPass,
    advance: Advance,
    outcomes: Iterator[ImageWithFacts | EngineError],
) -> Iterator[ImageWithFacts | EngineError]:
    """Enlarge each result, and make it again from there, one at a time."""
    from sd2rt.runtime.images.enlarge import enlarge_latents

    for outcome in outcomes:
        if isinstance(outcome, EngineError):
            yield outcome
            continue
        image, facts = outcome
        request = _second_request(second, facts["request"], None if second.on_latents else image)
        (planned,) = pipeline.plan([request])
        if second.on_latents:
            factor = pipeline.manifest.latents.vae_factor
            sides = second.fields["height"] // factor, second.fields["width"] // factor
            planned = replace(planned, image_latents=enlarge_latents(image, *sides, second.method))  # type: ignore[arg-type]
        (result,) = make(pipeline, [planned], "second pass", advance)
        if isinstance(result, EngineError):
            yield result
            continue
        image, second_facts = result
        recorded = {
            "method": second.method,
            "request": _recorded(second, second_facts["request"]),
            "from": [facts["width"], facts["height"]],
        }
        yield image, {**facts, "width": image.width, "height": image.height, "second_pass": recorded}


def _second_request(second: SecondPass, fields: dict[str, Any], image: Any) -> Request[Any]:
    """Make the request of the second pass, with fields of the first one's; None if latents replace the image."""
    from PIL import Image

    from sd2rt.runtime.request.request import make_request

    size = second.fields["width"], second.fields["height"]
    if image is None:
        # Only its size matters.
        enlarged = Image.new("RGB", size)
    else:
        resampling = Image.Resampling.LANCZOS if second.method == "lanczos" else Image.Resampling.NEAREST
        enlarged = image.resize(size, resampling)
    pixels = size[0] * size[1]
    return make_request(**{**fields, **second.fields, "image": enlarged, "max_image_pixels": pixels})


def _recorded(second: SecondPass, settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings.get(name, value) for name, value in second.fields.items()}


def upscaled(
    upscaler: Pipeline,
    outcomes: Iterator[ImageWithFacts | EngineError],
    noise_level: int | None,
    advance: Advance,
) -> Iterator[ImageWithFacts | EngineError]:
    """Enlarge images four times, one at a time: a large image is many tiles, a batch by itself."""
    for outcome in outcomes:
        if isinstance(outcome, EngineError):
            yield outcome
            continue
        image, facts = outcome
        shared = {name: facts["request"][name] for name in _SHARED_FIELDS if name in facts["request"]}
        planned = upscaler.plan([upscaling_request(image, noise_level, shared)])
        (result,) = make(upscaler, planned, "upscaling", advance)
        if isinstance(result, EngineError):
            yield result
            continue
        image, upscaling_facts = result
        yield image, {**facts, "width": image.width, "height": image.height, "upscaled": upscaling_facts}


def upscaling_request(image: Any, noise_level: int | None, fields: Mapping[str, Any]) -> Request[Any]:
    """Make the request that enlarges an image, with fields of the request that made it."""
    from sd2rt.runtime.request.request import make_request

    # The limit is for images from elsewhere.
    pixels = image.width * image.height
    return make_request(**fields, image=image, noise_level=noise_level, max_image_pixels=pixels)


def check_upscaling(
    manifest: Manifest, request: Request[Any], noise_level: int | None, embeddings: Sequence[Embedding]
) -> None:
    """Check that a bundle can enlarge a request's images, with these embeddings, before they are made.

    Raises:
        RequestError: it cannot.
    """
    from PIL import Image

    from sd2rt.runtime.prompts.textual_inversion import check_embedding
    from sd2rt.runtime.request.planned import plan_requests
    from sd2rt.runtime.request.resolve import require_task

    require_task("upscaling", manifest)
    for embedding in embeddings:
        check_embedding(embedding, manifest)
    # The image itself does not matter here, only the other fields.
    shared = {name: getattr(request, name) for name in _SHARED_FIELDS}
    plan_requests([upscaling_request(Image.new("RGB", (8, 8)), noise_level, shared)], manifest)


def bundled_note(lora: str, embeddings: Sequence[Embedding]) -> str:
    """Note on the embeddings that a LoRA's file holds too."""
    names = ", ".join(shown(embedding.token) for embedding in embeddings)
    return f"the LoRA {shown(lora)} holds embeddings too: prompts use them by their names, {names}"


def without_effect(pipeline: Pipeline, syntax: PromptSyntax) -> Iterator[str]:
    """Yield a note for each embedding that no prompt named, and each LoRA of scale 0 or without changes."""
    for embedding in pipeline.unused_embeddings:
        name = embedding.token if syntax == "plain" else embedding.a1111_name
        yield f"the embedding {shown(embedding.token)} had no effect: no prompt contains its name, {shown(name)}"
    for lora in pipeline.loras:
        if lora.scale == lora.text_scale == 0:
            yield f"the LoRA {shown(lora.name)} had no effect: its scale is 0"
        elif lora.is_zero:
            yield f"the LoRA {shown(lora.name)} had no effect: its changes are zero"
