"""Bodies of OpenAI's image API: answers, and events of a stream."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from typing import Any, Literal

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, GenerationRequest, ModelInfo, Partial
from sd2rt.runtime.server.http.api.image_fields import ImageFields

EventPrefix = Literal["image_generation", "image_edit"]


class ImageAnswer:
    """Answer to one request for images.

    Args:
        request: as it was sent to the worker.
        fields: as the client sent them.
        ignored: names of the client's fields that nobody reads.
        model: that generates.
    """

    def __init__(
        self, request: GenerationRequest, fields: ImageFields, ignored: Sequence[str], model: ModelInfo
    ) -> None:
        self._request = request
        self._fields = fields
        self._ignored = list(ignored)
        self._model = model
        self._created = int(time.time())

    def body(self, completed: Completed) -> bytes:
        """Return the whole answer, as JSON."""
        images = completed.images
        answer: dict[str, Any] = {
            "created": self._created,
            "background": "opaque",
            "output_format": self._request.output_format,
            "size": f"{images[0].width}x{images[0].height}",
            "usage": _usage(completed),
            "sd2rt": self._facts(completed),
            "data": [{"b64_json": _text(image.data), "seed": image.seed} for image in images],
        }
        if (identifier := self._identifier()) is not None:
            answer["safety_identifier"] = identifier
        return json.dumps(answer).encode()

    def partial(self, event: Partial, prefix: EventPrefix) -> dict[str, Any]:
        """Return the event of an image on the way."""
        return {
            **self._event(f"{prefix}.partial_image", event.data, self._size()),
            "partial_image_index": event.index,
        }

    def completed(self, event: Completed, prefix: EventPrefix) -> dict[str, Any]:
        """Return the event of the finished image."""
        image = event.images[0]
        found = {
            **self._event(f"{prefix}.completed", image.data, f"{image.width}x{image.height}"),
            "usage": _usage(event),
            "seed": image.seed,
            "sd2rt": self._facts(event),
        }
        if (identifier := self._identifier()) is not None:
            found["safety_identifier"] = identifier
        return found

    def _event(self, kind: str, data: bytes, size: str) -> dict[str, Any]:
        return {
            "type": kind,
            "b64_json": _text(data),
            "created_at": self._created,
            "background": "opaque",
            "output_format": self._request.output_format,
            # A field that the client's types have; it has no effect here.
            "quality": "auto",
            "size": size,
        }

    def _size(self) -> str:
        fields = self._request.fields
        if "width" in fields:
            return f"{fields['width']}x{fields['height']}"
        # An edit's default is the size of its image, which only the worker decodes.
        return "auto" if self._request.images else f"{self._model.width}x{self._model.height}"

    def _facts(self, completed: Completed) -> dict[str, Any]:
        facts = completed.facts
        return {
            "id": self._request.request_id,
            "model": self._request.model,
            "seeds": [image.seed for image in completed.images],
            "sampler": facts.get("sampler"),
            "steps": facts.get("steps"),
            "queue_ms": facts.get("queue_ms"),
            "ignored": self._ignored,
            "warnings": facts.get("warnings", []),
        }

    def _identifier(self) -> str | None:
        return self._fields.safety_identifier or self._fields.user or None


def server_event(data: dict[str, Any], event: str | None = None) -> bytes:
    """Return one server-sent event."""
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data: {json.dumps(data)}\n\n".encode()


def error_event(error: ServerError) -> bytes:
    """Return the event of a failure in mid-stream."""
    return server_event({"type": "error", "error": error.body()})


def comment(text: str) -> bytes:
    """Return a line that clients skip; it keeps the connection alive."""
    return f": {text}\n\n".encode()


def _usage(completed: Completed) -> dict[str, Any]:
    """Count text tokens of the prompt where the worker does; images are no tokens here."""
    text = int(completed.facts.get("prompt_tokens", 0))
    return {
        "input_tokens": text,
        "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
        "output_tokens": 0,
        "total_tokens": text,
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
