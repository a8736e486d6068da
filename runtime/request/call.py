"""Split a pipeline call into requests of one prompt each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import repr_of, shown
from sd2rt.runtime.request.fields import CallOptions, OutputType
from sd2rt.runtime.request.request import Request, check_mask, make_request

_IMAGE_FIELDS = ("image", "mask_image", "depth_map")
_SPLIT_FIELDS = ("num_images_per_prompt", "seed", "variation_seed", "variation_strength")


def split_call(
    prompt: str | Sequence[str] | None, options: CallOptions, output_type: OutputType = "pil"
) -> list[Request[Any]]:
    """Split a call into one request per prompt. Each request also gets the options shared by all prompts.

    A single image, mask or depth map is used for every prompt; a list must have one for each prompt.

    Raises:
        RequestError: a field is invalid, or a list's length does not match the number of prompts.
    """
    fields: dict[str, Any] = {**options, "output_type": output_type}
    embeds, negative_embeds = fields.pop("prompt_embeds", None), fields.pop("negative_prompt_embeds", None)
    negative, latents = fields.pop("negative_prompt", None), fields.pop("latents", None)
    if prompt is not None and not isinstance(prompt, str):
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray | memoryview):
            raise RequestError(f"prompt is {shown(repr_of(prompt))}: use text, or a list of texts")
        prompts: list[str | None] = list(prompt)
        if not prompts:
            raise RequestError("the list of prompts is empty: pass at least one")
    elif embeds is not None and prompt is None:
        embeds = np.asarray(embeds)
        embeds = embeds if embeds.ndim == 3 else embeds[None]
        prompts = [None] * len(embeds)
    else:
        prompts = [prompt]
    count = len(prompts)
    if negative is not None and not isinstance(negative, str | list | tuple):
        raise RequestError(
            f"negative_prompt is {shown(repr_of(negative))}: use a string, or a list with one for each prompt"
        )
    negatives = [negative] * count if negative is None or isinstance(negative, str) else list(negative)
    if len(negatives) != count:
        raise RequestError(
            f"got {len(negatives)} negative prompts for {count} prompts: pass one for all, or one for each"
        )
    if negative_embeds is not None:
        negative_embeds = np.asarray(negative_embeds)
        negative_embeds = negative_embeds if negative_embeds.ndim == 3 else negative_embeds[None]
        if len(negative_embeds) not in (1, count):
            raise RequestError(
                f"got {len(negative_embeds)} negative_prompt_embeds for {count} prompts: "
                "pass one for all, or one for each"
            )
    # Load a shared image once and pass the same object to every request, so that caches keyed by it hit.
    images = {name: fields.pop(name) for name in _IMAGE_FIELDS if name in fields}
    limit = {name: fields[name] for name in ("max_image_pixels",) if name in fields}
    single = {name: value for name, value in images.items() if not isinstance(value, list | tuple)}
    loaded = make_request(prompt="", **limit, **single)
    shared = {name: getattr(loaded, name) for name in single}
    per_prompt = {name: _one_each(name, value, count) for name, value in images.items() if name not in single}
    # Validate the fields needed for splitting first; each request validates the rest.
    numbers = {name: fields[name] for name in _SPLIT_FIELDS if name in fields}
    checked = make_request(prompt="", **numbers)
    per_request, seed = checked.num_images_per_prompt, checked.seed
    if latents is not None:
        latents = np.asarray(latents)
        if latents.ndim != 4 or len(latents) != count * per_request:
            raise RequestError(
                f"latents have shape {list(latents.shape)}: use shape [{count * per_request}, C, h, w]"
            )
    requests: list[Request[Any]] = []
    for index in range(count):
        prompt_fields = dict(fields, prompt=prompts[index], negative_prompt=negatives[index])
        prompt_fields |= {name: values[index] for name, values in per_prompt.items()}
        if embeds is not None:
            prompt_fields["prompt_embeds"] = embeds[index] if prompts[index] is None else embeds
        if negative_embeds is not None:
            prompt_fields["negative_prompt_embeds"] = negative_embeds[index % len(negative_embeds)]
        if latents is not None:
            prompt_fields["latents"] = latents[index * per_request : (index + 1) * per_request]
        first_seed, variation_seed = checked.seeds_of(0 if seed is None else seed, index * per_request)
        if seed is not None:
            prompt_fields["seed"] = first_seed
        if variation_seed is not None:
            prompt_fields["variation_seed"] = variation_seed
        request = make_request(**prompt_fields).model_copy(update=shared)
        check_mask(request.image, request.mask_image)
        requests.append(request)
    return requests


def _one_each(name: str, values: Sequence[Any], count: int) -> list[Any]:
    if len(values) != count:
        raise RequestError(
            f"{name} has {len(values)} items for {count} prompts: pass one for all, or one for each"
        )
    return list(values)
