"""Schemas of the API's request bodies, with this server's models and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sd2rt.engines.bundle.sampler_config import (
    A1111_SCHEDULES,
    SAMPLER_OPTIONS,
    SCHEDULES,
    A1111Schedule,
    SamplerName,
    schedules_of,
)
from sd2rt.engines.bundle.sizes import SIZE_MULTIPLE, SMALLEST_SIDE
from sd2rt.runtime.request.presets import PRESETS
from sd2rt.runtime.server.generation import ModelInfo
from sd2rt.runtime.server.http.api.image_fields import EditFields, ImageFields, JobFields
from sd2rt.runtime.server.http.front import Front

Schema = dict[str, Any]
IMAGE_TYPES = "image/png, image/jpeg, image/webp"
ENCODING = {"image": {"contentType": IMAGE_TYPES}}
_FROM_AN_IMAGE = ("image-to-image", "depth-to-image", "upscaling")
_OF_KINDS = ("strength", "noise_level", "paste_blur", "only_masked", "mask_padding", "resize_mode")
"""Fields that only some kinds of model take."""
_USUAL_GRID: Schema = {"enum": [None, "diffusers"]}
_DEPENDENT = (*_OF_KINDS, "num_inference_steps", "schedule", "grid", "preset")
"""Fields whose values depend on others, or on the model."""
_FORM_WORDS = (
    "Also: mask, a PNG of the image's size whose transparent areas are edited; depth_map, by a depth model; "
    "strength, above 0 to 1; num_inference_steps, enough for the strength; noise_level, by upscalers, which takes no "
    "size; paste_blur, 0 to 256; only_masked with mask_padding, for masks; resize_mode stretch, crop or fill; n, 1 "
    "if it is streamed; schedule, one that the sampler has; preset, whose schedule the sampler has; grid, diffusers "
    "or a1111, which has some samplers and no presets. Other fields are ignored."
)
_JSON_WORDS = (
    "Also: image, mask and depth_map in base64, with the fields of the form. Other fields are ignored."
)


@dataclass(frozen=True, slots=True)
class Bodies:
    """The schemas, and those that they refer to."""

    generation: Schema
    edit: Schema
    job: Schema
    job_form: Schema
    components: dict[str, Schema]


def make_bodies(front: Front) -> Bodies:
    """Make the schemas.

    Tools make requests of them, so they are exact: what they allow is taken. JSON has conditions between fields. A
    form has none, since its files are no JSON, and leaves dependent fields to its description.
    """
    models = list(front.client.models.values())
    drawing = [info for info in models if "text-to-image" in info.tasks]
    editing = [info for info in models if set(_FROM_AN_IMAGE) & info.tasks.keys()]
    fields, components = _field_schemas()
    no_stream = {"type": ["boolean", "null"], "enum": [False, None]}
    job = _json_body(fields[JobFields], front, drawing, {"stream": no_stream})
    job["description"] = _JSON_WORDS
    return Bodies(
        generation=_json_body(fields[ImageFields], front, drawing, {}),
        edit=_form(fields[EditFields], front, editing, {}),
        job=job,
        job_form=_form(fields[JobFields], front, editing, {"stream": no_stream}),
        components=components,
    )


def _field_schemas() -> tuple[dict[type[BaseModel], Schema], dict[str, Schema]]:
    kinds: Sequence[type[BaseModel]] = (ImageFields, EditFields, JobFields)
    references, whole = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    definitions = whole["$defs"]
    names = {kind: references[kind, "validation"]["$ref"].rpartition("/")[2] for kind in kinds}
    others = {name: schema for name, schema in definitions.items() if name not in names.values()}
    return {kind: definitions[name] for kind, name in names.items()}, others


def _json_body(schema: Schema, front: Front, models: Sequence[ModelInfo], changed: Schema) -> Schema:
    properties = limited(schema["properties"], front, models) | changed
    return {
        **schema,
        "properties": {name: value for name, value in properties.items() if name not in _OF_KINDS},
        "additionalProperties": True,
        "allOf": [_one_streamed_image(), *schedule_rules()],
    }


def _form(schema: Schema, front: Front, models: Sequence[ModelInfo], changed: Schema) -> Schema:
    properties = limited(schema["properties"], front, models) | changed
    # A form has no null: fields are left out.
    kept = {name: _without_null(value) for name, value in properties.items() if name not in _DEPENDENT}
    if front.config.max_images > 1 and "stream" not in changed:
        # It depends on whether the answer is streamed.
        del kept["n"]
    if any(info.upscale_factor is not None for info in models):
        del kept["size"]
    kept["image"] = {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"}
    return {
        **schema,
        "description": _FORM_WORDS,
        "properties": kept,
        "additionalProperties": True,
        "required": [*schema["required"], "image"],
    }


def limited(properties: Schema, front: Front, models: Sequence[ModelInfo]) -> Schema:
    """Return properties with this server's limits, and with the names of models and LoRAs."""
    config = front.config
    limited = {
        "num_inference_steps": {"type": "integer", "minimum": 1, "maximum": config.max_steps},
        "n": {"type": "integer", "minimum": 1, "maximum": config.max_images},
        "size": {"type": "string", "pattern": _size_pattern(sides_of(config.max_side, models))},
        "loras": _loras(models),
    }
    if models:
        limited["model"] = {"type": "string", "enum": [info.id for info in models]}
        layers = min(info.text_layers for info in models)
        limited["clip_skip"] = {"type": "integer", "minimum": 0, "maximum": layers - 1}
    return properties | {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in limited.items()}


def _loras(models: Sequence[ModelInfo]) -> Schema:
    """One of the LoRAs that all models have: more of them at once are allowed, but take an engine for each set."""
    names = sorted(set.intersection(*(set(info.loras) for info in models))) if models else []
    if not names:
        return {"type": "array", "maxItems": 0}
    lora = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "enum": names},
            "scale": {"type": "number", "minimum": -1e6, "maximum": 1e6},
            "text_scale": {"anyOf": [{"type": "number", "minimum": -1e6, "maximum": 1e6}, {"type": "null"}]},
        },
        "required": ["name"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": lora, "maxItems": 1}


def sides_of(largest: int, models: Sequence[ModelInfo]) -> list[int]:
    """Sides of images that all models take, up to the server's limit."""
    multiple = max((info.size_multiple for info in models), default=SIZE_MULTIPLE)
    return list(range(SMALLEST_SIDE, largest + 1, multiple))


def _size_pattern(sides: Sequence[int]) -> str:
    either = "|".join(map(str, sides))
    return f"^(auto|({either})x({either}))$"


def _one_streamed_image() -> Schema:
    return {
        "not": {
            "properties": {"stream": {"const": True}, "n": {"type": "integer", "minimum": 2}},
            "required": ["stream", "n"],
        }
    }


def schedule_rules() -> list[Schema]:
    """Return conditions on the schedule: for samplers that do not have all, and presets that name such a sampler."""
    rules = [_schedule_rule("sampler", sampler, sampler) for sampler in SAMPLER_OPTIONS]
    rules += [_schedule_rule("preset", name, preset.sampler) for name, preset in PRESETS.items()]
    return [rule for rule in rules if rule is not None] + _grid_rules()


def _schedule_rule(field: str, value: str, sampler: str) -> Schema | None:
    there = schedules_of(cast(SamplerName, sampler))
    if len(there) == len(SCHEDULES):
        return None
    return {
        "if": {"properties": {field: {"const": value}, "grid": _USUAL_GRID}, "required": [field]},
        "then": {"properties": {"schedule": {"enum": [None, *there]}}},
    }


def _grid_rules() -> list[Schema]:
    """Conditions on the schedule by the grid, and on the sampler."""
    listed = [name for name, schedules in A1111_SCHEDULES.items() if len(schedules) == 1]
    return [
        {
            "if": {"properties": {"grid": _USUAL_GRID}},
            "then": {"properties": {"schedule": {"enum": [None, *SCHEDULES]}}},
            "else": {
                "properties": {
                    "schedule": {"enum": [None, *get_args(A1111Schedule)]},
                    "sampler": {"enum": [None, *A1111_SCHEDULES]},
                    # Presets name schedules of the other grid.
                    "preset": {"const": None},
                }
            },
        },
        {
            "if": {
                "properties": {"grid": {"const": "a1111"}, "sampler": {"enum": listed}},
                "required": ["grid", "sampler"],
            },
            "then": {"properties": {"schedule": {"enum": [None, "automatic"]}}},
        },
    ]


def _without_null(schema: Schema) -> Schema:
    schema = {name: value for name, value in schema.items() if name != "default"}
    if isinstance(schema.get("type"), list):
        (only,) = [kind for kind in schema["type"] if kind != "null"]
        return {**schema, "type": only, "enum": [value for value in schema["enum"] if value is not None]}
    members = schema.pop("anyOf", [{}])
    (only,) = [member for member in members if member.get("type") != "null"]
    return {**schema, **only}
