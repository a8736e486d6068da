"""Requests and events as messages on the wire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar

from sd2rt.runtime.images.preparation import Enlargement, Preparation
from sd2rt.runtime.server.generation import (
    Completed,
    DepthMap,
    Event,
    GeneratedImage,
    GenerationRequest,
    ModelInfo,
    Partial,
    Started,
    Stepped,
    TaskInfo,
)
from sd2rt.runtime.server.worker.wire import Frame, WireError

_Value = TypeVar("_Value")


def request_frame(request: GenerationRequest) -> Frame:
    """Encode a request; its images are the attachments."""
    # Not asdict, which would copy the images.
    fields = asdict(replace(request, images={}))
    fields["images"] = list(request.images)
    return Frame({"request": fields}, tuple(request.images.values()))


def request_of(frame: Frame) -> GenerationRequest:
    """Decode a request.

    Raises:
        WireError: the message is not one.
    """

    def decode() -> GenerationRequest:
        fields = dict(frame.header["request"])
        names, loras = fields.pop("images"), fields.pop("loras")
        preparation, enlargement = fields.pop("preparation"), fields.pop("enlargement")
        if preparation is not None:
            preparation = Preparation(**{**preparation, "mask_blur": tuple(preparation["mask_blur"])})
        return GenerationRequest(
            **fields,
            images=dict(zip(names, frame.attachments, strict=True)),
            loras=tuple(_lora(*entry) for entry in loras),
            preparation=preparation,
            enlargement=None if enlargement is None else Enlargement(**enlargement),
        )

    return _decoded(decode)


def _lora(name: Any, scale: Any, *text_scale: Any) -> tuple[str, float] | tuple[str, float, float]:
    if not text_scale:
        return str(name), float(scale)
    (text,) = text_scale
    return str(name), float(scale), float(text)


def event_frame(event: Event) -> Frame:
    """Encode an event; its images are the attachments."""
    match event:
        case DepthMap(data):
            return Frame({"event": "depth_map"}, (data,))
        case Started(queue_ms):
            return Frame({"event": "started", "queue_ms": queue_ms})
        case Stepped(step, steps, preview):
            header = {"event": "stepped", "step": step, "steps": steps}
            return Frame(header, () if preview is None else (preview,))
        case Partial(index, data):
            return Frame({"event": "partial", "index": index}, (data,))
        case Completed(images, facts):
            sizes = [{"seed": image.seed, "width": image.width, "height": image.height} for image in images]
            return Frame(
                {"event": "completed", "images": sizes, "facts": facts}, tuple(image.data for image in images)
            )


def event_of(frame: Frame) -> Event:
    """Decode an event.

    Raises:
        WireError: the message is not one.
    """

    def decode() -> Event:
        header, attachments = frame
        match header["event"]:
            case "depth_map":
                (data,) = attachments
                return DepthMap(data)
            case "started":
                return Started(header["queue_ms"])
            case "stepped":
                return Stepped(header["step"], header["steps"], attachments[0] if attachments else None)
            case "partial":
                (data,) = attachments
                return Partial(header["index"], data)
            case "completed":
                images = [
                    GeneratedImage(data=data, **sizes)
                    for sizes, data in zip(header["images"], attachments, strict=True)
                ]
                return Completed(images, header["facts"])
        raise ValueError

    return _decoded(decode)


def model_of(fields: dict[str, Any]) -> ModelInfo:
    """Decode facts about a model.

    Raises:
        WireError: they are none.
    """

    def decode() -> ModelInfo:
        tasks = {name: TaskInfo(**task) for name, task in fields["tasks"].items()}
        embeddings = tuple((str(token), int(count), int(size)) for token, count, size in fields["embeddings"])
        return ModelInfo(
            **{**fields, "tasks": tasks, "loras": tuple(fields["loras"]), "embeddings": embeddings}
        )

    return _decoded(decode)


def _decoded(decode: Callable[[], _Value]) -> _Value:
    try:
        return decode()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WireError(f"received a message that is incomplete: {error}") from None
