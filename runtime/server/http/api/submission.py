"""Make a request to a worker from the checked fields of a client's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from sd2rt.engines.bundle.model_kinds import KINDS, TaskName, kinds_for
from sd2rt.engines.bundle.sampler_config import A1111Schedule, a1111_schedules_of, schedules_of
from sd2rt.engines.bundle.sizes import parse_size
from sd2rt.engines.printable import shown
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import GenerationRequest, ImageRole, LoraSet, ModelInfo
from sd2rt.runtime.server.http.api.image_fields import ImageFields
from sd2rt.runtime.server.http.front import Front, new_id

_EDITS: tuple[TaskName, ...] = ("image-to-image", "depth-to-image", "upscaling")


def make_submission(
    front: Front,
    fields: ImageFields,
    images: Mapping[ImageRole, bytes],
    key: str | None,
    *,
    identity: str | None = None,
    watched: bool = False,
) -> GenerationRequest:
    """Choose the model and its task, and check what only the server's configuration limits.

    Args:
        key: of the caller, for fairness.
        identity: of the request; None makes one.
        watched: send an event for each step, as for streams.

    Raises:
        ServerError: ``model_not_found``, ``task_not_supported``, ``size_not_supported`` or ``invalid_value``.
    """
    front.require_ready()
    config = front.config
    name = front.default_model() if fields.model is None else fields.model
    model = _model(front.client.models, name, wanted_tasks(fields, images))
    count = 1 if fields.n is None else fields.n
    if count > config.max_images:
        raise ServerError(
            "invalid_value",
            f"n is {count}, more than this server's {config.max_images}: ask again",
            param="n",
        )
    if fields.stream and count > 1:
        raise ServerError(
            "invalid_value", f"stream is true and n is {count}: stream one image at a time", param="n"
        )
    steps = fields.num_inference_steps
    if steps is not None and steps > config.max_steps:
        raise ServerError(
            "invalid_value",
            f"num_inference_steps is {steps}, more than this server's {config.max_steps}: use fewer",
            param="num_inference_steps",
        )
    _check_schedule(fields)
    values = fields.request_fields() | _size(fields.size, model, config.max_side)
    model.complete(values, images, config.max_steps)
    return GenerationRequest(
        request_id=identity or new_id("img"),
        model=model.id,
        fields=values,
        images=dict(images),
        count=count,
        output_format=fields.output_format or "png",
        compression=fields.output_compression,
        partial_images=(fields.partial_images or 0) if fields.stream else 0,
        previews=bool(getattr(fields, "previews", None)),
        # Others have nobody who watches.
        every_step=bool(fields.stream) or watched,
        priority=fields.priority or "normal",
        key=key,
        deadline_ms=fields.deadline_ms,
        loras=_loras(fields, model),
    )


def wanted_tasks(fields: ImageFields, images: Mapping[ImageRole, bytes]) -> tuple[TaskName, ...]:
    """Return the tasks that take these images, the default first."""
    if images and getattr(fields, "noise_level", None) is not None:
        return ("upscaling",)
    if "mask" in images:
        return ("inpainting",)
    if "depth_map" in images:
        return ("depth-to-image",)
    return _EDITS if images else ("text-to-image",)


def _model(models: Mapping[str, ModelInfo], name: str | None, wanted: Sequence[TaskName]) -> ModelInfo:
    if name is not None:
        model = find_model(models, name)
        if not any(task in model.tasks for task in wanted):
            kind = KINDS.get(model.kind)  # type: ignore[call-overload]
            raise ServerError(
                "task_not_supported",
                f"{model.id} is of kind {model.kind}, which supports {' and '.join(model.tasks)}: "
                f"{wanted[0]} needs a bundle of kind {_either(wanted[0])}" + _needs(kind),
                param="model",
            )
        return model
    for task in wanted:
        # A model whose network reads the mask paints better than one that is kept inside of it.
        able = sorted(
            (model for model in models.values() if task in model.tasks), key=lambda m: m.kind != task
        )
        if able:
            return able[0]
    raise ServerError(
        "task_not_supported",
        f"no bundle here supports {wanted[0]}: the server needs one of kind {_either(wanted[0])}",
        param="model",
    )


def find_model(models: Mapping[str, ModelInfo], name: str) -> ModelInfo:
    """Return a model by its name.

    Raises:
        ServerError: ``model_not_found``.
    """
    if name not in models:
        raise ServerError(
            "model_not_found",
            f"no model is named {shown(name)!r}: this server has {', '.join(models)}",
            param="model",
        )
    return models[name]


def _needs(kind: Any) -> str:
    """Remind of the inputs that every task of a kind needs."""
    if kind is None or "text-to-image" in kind.tasks:
        return ""
    return "; POST /v1/images/edits takes an image" + (" and a mask" if "inpainting" in kind.tasks else "")


def _either(task: TaskName) -> str:
    kinds = kinds_for(task)
    return kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"


def _size(text: str | None, model: ModelInfo, largest: int) -> dict[str, int]:
    if text is None or text == "auto":
        return {}
    try:
        width, height = parse_size(text)
    except ValueError:
        raise ServerError(
            "size_not_supported", f"size is {shown(text)!r}: use WIDTHxHEIGHT, such as 512x512", param="size"
        ) from None
    if model.upscale_factor is not None:
        raise ServerError(
            "size_not_supported",
            f"{model.id} enlarges an image {model.upscale_factor} times: leave size out",
            param="size",
        )
    multiple = model.size_multiple
    low, high = model.smallest_side, min(model.largest_side, largest) // multiple * multiple
    if all(low <= side <= high and side % multiple == 0 for side in (width, height)):
        return {"width": width, "height": height}
    nearest = [
        f"{first}x{second}"
        for first in _near(width, low, high, multiple)
        for second in _near(height, low, high, multiple)
    ]
    raise ServerError(
        "size_not_supported",
        f"size is {shown(text)}, sides must be multiples of {multiple} from {low} to {high}: "
        f"use {' or '.join(nearest)}",
        param="size",
    )


def _near(side: int, low: int, high: int, multiple: int) -> Iterator[int]:
    """Yield the valid sides nearest to one: itself, or one below and one above."""
    below = min(max(side // multiple * multiple, low), high)
    yield below
    if below < side and below + multiple <= high and below != side:
        yield below + multiple


def _check_schedule(fields: ImageFields) -> None:
    """Check that grid and sampler have the named schedule; without a sampler, the worker knows the bundle's."""
    if fields.grid == "a1111":
        _check_a1111(fields)
        return
    if fields.sampler is None or fields.schedule is None:
        return
    there = schedules_of(fields.sampler)
    if fields.schedule not in there:
        remedy = f"choose one of {', '.join(there)}" if there else "leave it out"
        raise ServerError(
            "invalid_value",
            f"{fields.sampler} has no schedule {fields.schedule}: {remedy}",
            param="schedule",
        )


def _check_a1111(fields: ImageFields) -> None:
    """Check that AUTOMATIC1111 has the named sampler, and the schedule type for it."""
    there: tuple[str, ...] = get_args(A1111Schedule)
    if fields.sampler is not None:
        try:
            there = a1111_schedules_of(fields.sampler)
        except ValueError as error:
            raise ServerError("invalid_value", str(error), param="sampler") from None
    if fields.schedule is not None and fields.schedule not in there:
        whose = "the grid a1111" if fields.sampler is None else f"{fields.sampler} in the grid a1111"
        raise ServerError(
            "invalid_value",
            f"{whose} has no schedule {fields.schedule}: choose one of {', '.join(there)}",
            param="schedule",
        )


def _loras(fields: ImageFields, model: ModelInfo) -> LoraSet:
    chosen: LoraSet = tuple(
        (lora.name, lora.scale)
        if lora.text_scale in (None, lora.scale)
        else (lora.name, lora.scale, lora.text_scale)
        for lora in fields.loras or ()
    )
    names = [name for name, *_ in chosen]
    for name in names:
        if name not in model.loras:
            there = f"it has {', '.join(model.loras)}" if model.loras else "it has none"
            raise ServerError(
                "invalid_value", f"{model.id} has no LoRA named {shown(name)!r}: {there}", param="loras"
            )
        if names.count(name) > 1:
            raise ServerError("invalid_value", f"{shown(name)} is given twice: add the scales", param="loras")
    return chosen
