"""Hugging Face's API in the document of the API."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS
from sd2rt.runtime.server.http.api.hf_routes import PARAMETERS, SCHEDULERS
from sd2rt.runtime.server.http.api.image_fields import EditFields
from sd2rt.runtime.server.http.api.openapi_bodies import IMAGE_TYPES, limited, schedule_rules, sides_of
from sd2rt.runtime.server.http.api.openapi_operations import BODY_ERRORS, json_content, operation
from sd2rt.runtime.server.http.front import Front

Schema = dict[str, Any]
_WORDS = (
    "inputs is a prompt; or an image in base64, with its prompt in parameters, and with strength, mask_image and "
    "target_size where the model has them. An image alone can be the body, as image/png, image/jpeg or image/webp."
)
_NULL: Schema = {"enum": [None]}
_OF_IMAGES = ("strength", "noise_level", "paste_blur", "only_masked", "mask_padding", "resize_mode")


def make_hf(front: Front) -> tuple[Schema, Schema]:
    """Return the paths, and the schemas that they refer to."""
    models = [info for info in front.client.models.values() if "text-to-image" in info.tasks]
    fields = limited(EditFields.model_json_schema()["properties"], front, models)
    parameters = {name: fields[name] for name in PARAMETERS if name not in _OF_IMAGES}
    sides = sides_of(front.config.max_side, models)
    # One of both: a scheduler is a sampler too.
    parameters |= {
        "scheduler": {"enum": [*SCHEDULERS, *SAMPLER_OPTIONS]},
        "width": {"enum": sides},
        "height": {"enum": sides},
    }
    body = {
        "type": "object",
        "description": _WORDS,
        "properties": {
            "inputs": {"type": "string", "maxLength": 32_000},
            "parameters": {
                "type": ["object", "null"],
                "properties": parameters,
                "additionalProperties": False,
                "dependentRequired": {"width": ["height"], "height": ["width"]},
                "allOf": [
                    *schedule_rules(),
                    {
                        "if": {"required": ["scheduler"]},
                        "then": {"properties": {"sampler": _NULL, "schedule": _NULL}},
                    },
                ],
            },
        },
        "required": ["inputs"],
    }
    names = [info.id for info in models]
    name = {"type": "string", **({"enum": names} if names else {"minLength": 1})}
    path = {
        "parameters": [{"name": "model", "in": "path", "required": True, "schema": name}],
        "post": operation(
            "hf-generate",
            "Hugging Face: generate an image",
            {200: {kind: {} for kind in IMAGE_TYPES.split(", ")}},
            (*BODY_ERRORS, 422),
            body={"application/json": {"schema": body}},
            error=json_content("HfError"),
        ),
    }
    error = {
        "type": "object",
        "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
        "required": ["error", "error_type"],
    }
    return {"/hf/{model}": path}, {"HfError": error}
