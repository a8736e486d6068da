"""Decode, validate and plan the images of a request. Runs in a thread, and touches no engine."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.sizes import LARGEST_SIDE, check_side
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.init_image import fitting_size, load_image
from sd2rt.runtime.images.mask import transparent_repainted
from sd2rt.runtime.images.painting import Painting, drawn_mask
from sd2rt.runtime.images.preparation import Preparation
from sd2rt.runtime.images.read import MAX_PIXELS, TooManyPixelsError, decode_image
from sd2rt.runtime.images.resize_modes import enlarged
from sd2rt.runtime.pipeline.conditioning import result_size, size_of
from sd2rt.runtime.request.planned import PlannedRequest, plan_requests
from sd2rt.runtime.request.request import Request, make_request
from sd2rt.runtime.request.resolve import task_of
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import MAX_PROMPT, GenerationRequest, ImageRole

if TYPE_CHECKING:
    from PIL.Image import Image

_FIELD_OF: dict[ImageRole, str] = {"image": "image", "mask": "mask_image", "depth_map": "depth_map"}
FIELDS = frozenset(Request.model_fields) - {
    *_FIELD_OF.values(),
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "num_images_per_prompt",
    "max_image_pixels",
    "output_type",
}
"""Fields of a request that may come from elsewhere. Images come as bytes: a path would be a file of this machine."""


@dataclass(frozen=True, slots=True)
class PlannedGeneration:
    """A request that can be generated."""

    images: list[PlannedRequest[Any]]
    """One request an image, with its own seed, as ``sd2rt run`` makes them."""
    width: int
    height: int
    finish: Callable[[Image], Image] | None
    """Makes the picture to send of a generated one, from any thread."""
    finished: tuple[int, int]
    """Width and height of the picture to send."""


def plan_generation(
    request: GenerationRequest,
    manifest: Manifest,
    *,
    max_steps: int,
    max_image_pixels: int | None,
    max_side: int = LARGEST_SIDE,
) -> PlannedGeneration:
    """Decode the images of a request, and plan it for a bundle.

    Args:
        max_steps: of the sampler.
        max_image_pixels: of an input image; None for the limit of ``sd2rt run``.
        max_side: of the result, in pixels.

    Raises:
        ServerError: the request cannot be honoured.
        RequestError: the same, with ``invalid_value`` as its code.
    """
    fields = dict(request.fields)
    if unknown := sorted(fields.keys() - FIELDS):
        raise ServerError(
            "invalid_value", f"unknown request option {unknown[0][:60]!r}", param=unknown[0][:60]
        )
    multiple = manifest.latents.size_multiple
    _check_limits(request, fields, max_steps, multiple)
    limit = MAX_PIXELS if max_image_pixels is None else max_image_pixels
    images = {_FIELD_OF[role]: _decoded(role, data, limit) for role, data in request.images.items()}
    seed = fields.pop("seed", None)
    # As `sd2rt run`, so that the metadata of both are equal.
    fields.setdefault("negative_prompt", "")
    first = make_request(**fields, seed=secrets.randbits(32) if seed is None else seed)
    finish: Callable[[Image], Image] | None = None
    finished: tuple[int, int] | None = None
    if request.preparation is not None:
        painting = _painting(images, first, request.preparation, limit, multiple)
        images = {"image": painting.image} | ({"mask_image": painting.mask} if painting.mask else {})
        finish, finished = painting.finish, painting.whole_size
    elif "mask_image" in images:
        images["mask_image"] = transparent_repainted(images["mask_image"])
    try:
        # Images are decoded: only the field's own rules are left, such as that a depth map is gray.
        loaded = make_request(prompt="", max_image_pixels=limit, **images) if images else None
    except RequestError as error:
        raise ServerError("invalid_image", str(error), param=next(iter(images))) from None
    if loaded is not None:
        first = first.model_copy(update={name: getattr(loaded, name) for name in images})
    try:
        task_of(first, manifest)
    except RequestError as error:
        raise ServerError("task_not_supported", str(error)) from None
    try:
        width, height = size_of(manifest, first)
    except RequestError as error:
        raise ServerError("size_not_supported", str(error), param="size") from None
    if first.only_masked and first.image is not None:
        _check_whole(first.image)
    _check_result(manifest, width, height, max_side)
    if request.enlargement is not None and first.image is not None and manifest.low_resolution is not None:
        original, factor = first.image.size, manifest.latents.vae_factor
        if request.enlargement.scale(*original) > factor:
            raise ServerError(
                "size_not_supported",
                f"{request.model} enlarges an image {factor} times, and more is asked for: ask for less",
                param="upscaling_resize",
            )
        finish = partial(enlarged, original=original, wanted=request.enlargement)
        finished = request.enlargement.size(*original)
    planned = plan_requests([first], manifest)[0]
    if len(planned.plan.steps) > 2 * max_steps + 1:
        raise ServerError(
            "invalid_value", f"{len(planned.plan.steps)} denoiser calls are too many: use fewer steps"
        )
    return PlannedGeneration(
        [_image_of(planned, index) for index in range(request.count)],
        width,
        height,
        finish,
        result_size(manifest, first) if finished is None else finished,
    )


def _painting(
    images: dict[str, Any], request: Request[Any], settings: Preparation, limit: int, multiple: int
) -> Painting:
    """Prepare the image and its mask for the size of a request, by default that of the image.

    Raises:
        ServerError: there is no image, or the mask does not fit.
    """
    if "image" not in images:
        raise ServerError("invalid_image", "there is no image to start from: send one", param="image")
    try:
        image = load_image(images["image"], max_pixels=limit)
        mask = drawn_mask(images["mask_image"]) if "mask_image" in images else None
        width, height = request.width, request.height
        if width is None or height is None:
            width, height = fitting_size(image, multiple)
        if settings.only_masked:
            _check_whole(image)
        return Painting(image, mask, width, height, settings)
    except RequestError as error:
        raise ServerError(
            "invalid_image", str(error), param="mask" if "mask_image" in images else "image"
        ) from None


def _check_whole(image: Image) -> None:
    """Check the size of an image that the result has too, since only its masked area is painted.

    Raises:
        RequestError: it is too large.
    """
    if max(image.size) > LARGEST_SIDE:
        raise RequestError(
            f"the image is {image.width}x{image.height} pixels, and so is the result: use at most {LARGEST_SIDE} "
            "a side"
        )


def _check_limits(request: GenerationRequest, fields: dict[str, Any], max_steps: int, multiple: int) -> None:
    steps = fields.get("num_inference_steps")
    lists = [
        value
        for value in map(fields.get, ("timesteps", "sigmas", "guidance_scale"))
        if isinstance(value, list)
    ]
    if isinstance(steps, int) and steps > max_steps:
        raise ServerError(
            "invalid_value",
            f"num_inference_steps is {steps}: use at most {max_steps}",
            param="num_inference_steps",
        )
    if any(len(values) > max_steps for values in lists):
        raise ServerError("invalid_value", f"a list has more than {max_steps} numbers: use fewer steps")
    for name in ("prompt", "negative_prompt"):
        text = fields.get(name)
        if isinstance(text, str) and len(text) > MAX_PROMPT:
            raise ServerError(
                "invalid_value", f"{name} has {len(text)} characters: use at most {MAX_PROMPT}", param=name
            )
    for name in ("width", "height"):
        side = fields.get(name)
        if isinstance(side, int) and not isinstance(side, bool):
            try:
                check_side(name, side, multiple)
            except RequestError as error:
                raise ServerError("size_not_supported", str(error), param="size") from None


def _check_result(manifest: Manifest, width: int, height: int, max_side: int) -> None:
    """Check the size of a result, which a large image to start from decides if there is no size."""
    if (width, height) == manifest.native_sizes[0]:
        return
    upscales = manifest.low_resolution is not None
    limit = 2 * max_side if upscales else max_side
    if max(width, height) > limit:
        remedy = "send a smaller image" if upscales else "use a smaller size"
        raise ServerError(
            "size_not_supported",
            f"the result would be {width}x{height} pixels: a side can be at most {limit}: {remedy}",
            param="size",
        )


def _decoded(role: ImageRole, data: bytes, limit: int) -> Any:
    try:
        return decode_image(data, f"the {role.replace('_', ' ')}", limit)
    except TooManyPixelsError as error:
        raise ServerError("too_many_pixels", str(error), param=role) from None
    except RequestError as error:
        raise ServerError("invalid_image", str(error), param=role) from None


def _image_of(planned: PlannedRequest[Any], index: int) -> PlannedRequest[Any]:
    request = planned.request
    assert request.seed is not None
    seed, variation_seed = request.seeds_of(request.seed, index)
    seeds = {"seed": seed} if variation_seed is None else {"seed": seed, "variation_seed": variation_seed}
    return replace(planned, request=request.model_copy(update=seeds))
