"""Pictures for `sd2rt run`: made in batches, upscaled, and what goes into their files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import EngineError
from sd2rt.runtime.cli.console import Advance
from sd2rt.runtime.cli.run_output import write_depth
from sd2rt.runtime.metadata.png import facts_of

if TYPE_CHECKING:
    from sd2rt.engines.bundle.manifest import Manifest
    from sd2rt.runtime.pipeline.pipeline import Pipeline
    from sd2rt.runtime.prompts.textual_inversion import Embedding
    from sd2rt.runtime.request.request import Request

_SHARED_FIELDS = ("prompt", "negative_prompt", "prompt_syntax", "clip_skip", "seed", "rng")
"""Fields of a request that hold for making its image larger, too."""

Made = tuple[Any, dict[str, Any]]
"""An image, and the facts that go into its file."""


def generate(
    pipeline: Pipeline,
    upscaler: Pipeline | None,
    requests: list[Request],
    noise_level: int | None,
    advance: Advance,
    save_depth: Path | None,
) -> Iterator[tuple[Made | EngineError, dict[str, Any]]]:
    """Yield each image, or the error in its place, with the size and the seconds of its batch so far.

    A batch at a time, to be saved before the next is begun: an interruption loses no finished image.
    """
    for start in range(0, len(requests), pipeline.max_batch):
        batch, began = requests[start : start + pipeline.max_batch], time.perf_counter()
        made = iter(make(pipeline, batch, "", advance, save_depth if start == 0 else None))
        if upscaler is not None:
            made = upscaled(upscaler, made, noise_level, advance)
        for outcome in made:
            yield outcome, {"batch": len(batch), "batch_seconds": round(time.perf_counter() - began, 3)}


def make(
    pipeline: Pipeline, requests: list[Request], stage: str, advance: Advance, save_depth: Path | None = None
) -> list[Made | EngineError]:
    with pipeline.stream_requests(requests) as running:
        if save_depth is not None:
            # Of a request that has been planned: one that is refused leaves no file.
            write_depth(running.pictures[0][0].conditioning.raw_depth, save_depth)
        for progress in running:
            advance(stage, progress, len(requests))
        outcomes = running.outcomes()
    return [
        outcome if isinstance(outcome, EngineError) else (outcome.images[0], facts_of(pipeline, request))
        for request, outcome in zip(running.requests, outcomes, strict=True)
    ]


def upscaled(
    upscaler: Pipeline, made: Iterator[Made | EngineError], noise_level: int | None, advance: Advance
) -> Iterator[Made | EngineError]:
    """The same images four times as large, one at a time: a large image is many tiles, a batch by itself."""
    for outcome in made:
        if isinstance(outcome, EngineError):
            yield outcome
            continue
        image, facts = outcome
        own = {name: facts["request"][name] for name in _SHARED_FIELDS if name in facts["request"]}
        (result,) = make(upscaler, [upscaling(image, noise_level, own)], "upscaling", advance)
        if isinstance(result, EngineError):
            yield result
            continue
        image, about = result
        sides = {"width": image.width, "height": image.height}
        yield image, {**facts, **sides, "upscaled": about}


def upscaling(image: Any, noise_level: int | None, told: Mapping[str, Any]) -> Request:
    """The request that makes an image larger, told what the image's own was told."""
    from sd2rt.runtime.request.request import make_request

    # What sd2rt has made itself is not too large for it.
    pixels = image.width * image.height
    return make_request(**told, image=image, noise_level=noise_level, max_image_pixels=pixels)


def check_upscaling(
    manifest: Manifest, request: Request, noise_level: int | None, embeddings: Sequence[Embedding]
) -> None:
    """See that a bundle can make a request's images larger, with these embeddings, before they are made.

    Raises:
        RequestError: it cannot.
    """
    from PIL import Image

    from sd2rt.runtime.prompts.textual_inversion import check_embedding
    from sd2rt.runtime.request.resolve import refuse_unless, resolve

    refuse_unless("upscaling", manifest)
    for embedding in embeddings:
        check_embedding(embedding, manifest)
    # Any image will do: only what it is asked with is looked at.
    told = {name: getattr(request, name) for name in _SHARED_FIELDS}
    resolve(upscaling(Image.new("RGB", (8, 8)), noise_level, told), manifest)
