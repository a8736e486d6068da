"""Pictures for `sd2rt run`: made in batches, upscaled, and what goes into their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.runtime.cli.console import Advance
from sd2rt.runtime.metadata.png import check_output, facts_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sd2rt.runtime.pipeline.pipeline import Pipeline
    from sd2rt.runtime.request.request import Request

TOLD = ("prompt", "negative_prompt", "prompt_syntax", "clip_skip", "seed", "rng")
"""Fields of a request that hold for making its image larger, too."""

Made = tuple[Any, dict[str, Any]]
"""An image, and the facts that go into its file."""


def make(
    pipeline: Pipeline, requests: list[Request], stage: str, advance: Advance, save_depth: Path | None = None
) -> list[Made | EngineError]:
    with pipeline.stream_requests(requests) as running:
        if save_depth is not None:
            # Of a request that has been planned: one that is refused leaves no file.
            _save_depth(running.pictures[0][0].conditioning.raw_depth, save_depth)
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
        own = {name: facts["request"][name] for name in TOLD if name in facts["request"]}
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


def check_save_depth(path: Path | None, output: Path) -> None:
    if path is None:
        return
    if path.suffix.lower() != ".png" or path.is_dir():
        raise RequestError(f"--save-depth {path} is no .png file: depth maps are PNG")
    if path.absolute() == output.absolute():
        raise RequestError(f"--save-depth and --output are both {path}: give them two names")
    check_output(path, 1, option="--save-depth")


def _save_depth(depth: NDArray[np.float32], path: Path) -> None:
    from sd2rt.runtime.images.depth_map import save_depth

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_depth(depth, path)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error
