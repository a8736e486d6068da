"""Schemas of the API's answers."""

from __future__ import annotations

from typing import Any

from sd2rt.runtime.server.errors import ANSWERS

_TEXT = {"type": "string"}
_WHOLE = {"type": "integer"}
_COUNT = {"type": "integer", "minimum": 0}
_MAYBE_TEXT = {"type": ["string", "null"]}
_MAYBE_WHOLE = {"type": ["integer", "null"]}
_MAYBE_NUMBER = {"type": ["number", "null"]}
_TEXTS = {"type": "array", "items": _TEXT}
_SIZE = {"type": "string", "pattern": "^[0-9]+x[0-9]+$"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


_ERROR = _object(
    {
        "message": _TEXT,
        "type": {"enum": sorted({answer.type for answer in ANSWERS.values()})},
        "param": _MAYBE_TEXT,
        "code": {"enum": list(ANSWERS)},
    }
)

ANSWER_SCHEMAS: dict[str, Any] = {
    "Error": _object({"error": _ERROR}),
    "ImagesResponse": _object(
        {
            "created": _WHOLE,
            "data": {
                "type": "array",
                "minItems": 1,
                "items": _object(
                    {"b64_json": {"type": "string", "contentEncoding": "base64"}, "seed": _WHOLE}
                ),
            },
            "output_format": {"enum": ["png", "jpeg", "webp"]},
            "size": _SIZE,
            "background": {"const": "opaque"},
            "usage": _object(
                {
                    "input_tokens": _COUNT,
                    "input_tokens_details": _object({"text_tokens": _COUNT, "image_tokens": _COUNT}),
                    "output_tokens": _COUNT,
                    "total_tokens": _COUNT,
                }
            ),
            "sd2rt": _object(
                {
                    "id": _TEXT,
                    "model": _TEXT,
                    "seeds": {"type": "array", "items": _WHOLE},
                    "sampler": _MAYBE_TEXT,
                    "steps": _MAYBE_WHOLE,
                    "queue_ms": _MAYBE_NUMBER,
                    "ignored": _TEXTS,
                    "warnings": _TEXTS,
                }
            ),
        },
        {"safety_identifier": _TEXT},
    ),
    "Job": _object(
        {
            "id": _TEXT,
            "object": {"const": "image.job"},
            "status": {"enum": ["queued", "running", "completed", "failed"]},
            "created": _WHOLE,
            "model": _TEXT,
            "step": _COUNT,
            "steps": _MAYBE_WHOLE,
            "queue_position": _MAYBE_WHOLE,
            "depth_map": _MAYBE_TEXT,
            "error": {"anyOf": [_ERROR, {"type": "null"}]},
            "images": {
                "type": "array",
                "items": _object({"path": _TEXT, "seed": _WHOLE, "size": _SIZE}),
            },
            "ignored": _TEXTS,
        },
        {"sampler": _MAYBE_TEXT, "queue_ms": _MAYBE_NUMBER, "warnings": {"type": ["array", "null"]}},
    ),
    "Model": _object(
        {"id": _TEXT, "object": {"const": "model"}, "created": _WHOLE, "owned_by": _TEXT},
        {"sd2rt": {"type": "object"}},
    ),
    "Models": _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        }
    ),
    "Options": _object(
        {
            "object": {"const": "options"},
            "samplers": {"type": "array", "items": _object({"name": _TEXT, "schedules": _TEXTS})},
            "limits": _object(
                dict.fromkeys(
                    ("max_images", "max_steps", "max_side", "max_queue", "max_body_bytes", "max_prompt"),
                    _WHOLE,
                )
            ),
        }
    ),
    # As tools read streams: each event by itself, with its data as text.
    "ServerSentEvent": _object({}, {"event": _TEXT, "data": _TEXT}),
    "Status": _object({"status": _TEXT}),
    "Version": _object({"version": _TEXT}),
}
