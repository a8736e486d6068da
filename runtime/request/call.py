"""A call's keyword arguments, and its division into requests of one prompt each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.request.fields import CallOptions, OutputType
from sd2rt.runtime.request.request import Request, check_mask, make_request

_PICTURES = ("image", "mask_image", "depth_map")
_COUNTED = ("num_images_per_prompt", "seed", "variation_seed", "variation_strength")


def split_call(
    prompt: str | Sequence[str] | None, options: CallOptions, output_type: OutputType = "pil"
) -> list[Request[Any]]:
    """Split a call into one request for each prompt, and what was given for all of them with it.

    An image, mask or depth map is every prompt's, or a list has one for each.
    """
    fields: dict[str, Any] = {**options, "output_type": output_type}
    embeds, negative_embeds = fields.pop("prompt_embeds", None), fields.pop("negative_prompt_embeds", None)
    negative, latents = fields.pop("negative_prompt", None), fields.pop("latents", None)
    if prompt is not None and not isinstance(prompt, str):
        prompts: list[str | None] = list(prompt)
        if not prompts:
            raise RequestError("the list of prompts is empty")
    elif embeds is not None and prompt is None:
        embeds = np.asarray(embeds)
        embeds = embeds if embeds.ndim == 3 else embeds[None]
        prompts = [None] * len(embeds)
    else:
        prompts = [prompt]
    count = len(prompts)
    if negative is not None and not isinstance(negative, str | list | tuple):
        raise RequestError(f"negative_prompt is {negative!r}: give a text, or a list of one for each prompt")
    negatives = [negative] * count if negative is None or isinstance(negative, str) else list(negative)
    if len(negatives) != count:
        raise RequestError(f"{len(negatives)} negative prompts for {count} prompts: give one, or one each")
    if negative_embeds is not None:
        negative_embeds = np.asarray(negative_embeds)
        negative_embeds = negative_embeds if negative_embeds.ndim == 3 else negative_embeds[None]
        if len(negative_embeds) not in (1, count):
            raise RequestError(f"{len(negative_embeds)} negative_prompt_embeds for {count} prompts")
    # Read once, and the same object in every request: what is made of it is made once too.
    given = {name: fields.pop(name) for name in _PICTURES if name in fields}
    limit = {name: fields[name] for name in ("max_image_pixels",) if name in fields}
    single = {name: value for name, value in given.items() if not isinstance(value, list | tuple)}
    loaded = make_request(prompt="", **limit, **single)
    shared = {name: getattr(loaded, name) for name in single}
    own_pictures = {name: _each(name, value, count) for name, value in given.items() if name not in single}
    # What the division needs must be numbers already; the rest is checked with each request.
    numbers = {name: fields[name] for name in _COUNTED if name in fields}
    checked = make_request(prompt="", **numbers)
    each, seed = checked.num_images_per_prompt, checked.seed
    if latents is not None:
        latents = np.asarray(latents)
        if latents.ndim != 4 or len(latents) != count * each:
            raise RequestError(
                f"latents have the shape {list(latents.shape)}, expected [{count * each}, C, h, w]"
            )
    requests: list[Request[Any]] = []
    for index in range(count):
        own = dict(fields, prompt=prompts[index], negative_prompt=negatives[index])
        own |= {name: pictures[index] for name, pictures in own_pictures.items()}
        if embeds is not None:
            own["prompt_embeds"] = embeds[index] if prompts[index] is None else embeds
        if negative_embeds is not None:
            own["negative_prompt_embeds"] = negative_embeds[index % len(negative_embeds)]
        if latents is not None:
            own["latents"] = latents[index * each : (index + 1) * each]
        first, other = checked.seeds_of(0 if seed is None else seed, index * each)
        if seed is not None:
            own["seed"] = first
        if other is not None:
            own["variation_seed"] = other
        request = make_request(**own).model_copy(update=shared)
        check_mask(request.image, request.mask_image)
        requests.append(request)
    return requests


def _each(name: str, given: Sequence[Any], count: int) -> list[Any]:
    if len(given) != count:
        raise RequestError(f"{len(given)} of {name} for {count} prompts: give one, or one each")
    return list(given)
