"""AUTOMATIC1111's API in the document of the API: exact schemas, so that tools can make requests of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sd2rt.runtime.metadata.sampler_names import SAMPLERS, UNNAMED_SAMPLERS
from sd2rt.runtime.server.generation import ModelInfo
from sd2rt.runtime.server.http.api.openapi_bodies import sides_of
from sd2rt.runtime.server.http.api.openapi_operations import (
    BODY_ERRORS,
    PLAIN_ERRORS,
    json_content,
    operation,
)
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.http.sdapi.bodies import (
    BatchUpscalingBody,
    Img2ImgBody,
    PngInfoBody,
    SingleUpscalingBody,
    Txt2ImgBody,
)
from sd2rt.runtime.server.http.sdapi.options import (
    FIXED,
    FORMATS,
    GENERATORS,
    NO_VAE,
    most_layers,
    title_of,
)
from sd2rt.runtime.server.http.sdapi.routes import BASE, LISTS, REFRESHES
from sd2rt.runtime.server.http.sdapi.submissions import FRESH_NOISE

Schema = dict[str, Any]
_KINDS: tuple[type[BaseModel], ...] = (
    Txt2ImgBody,
    Img2ImgBody,
    SingleUpscalingBody,
    BatchUpscalingBody,
    PngInfoBody,
)
_OFF: Schema = {"enum": [None, False]}
_ZERO: Schema = {"enum": [None, 0]}
_NO_NAME: Schema = {"enum": [None, "", "None"]}
_REFUSED: Schema = {
    **dict.fromkeys(("enable_hr", "restore_faces", "tiling", "disable_extra_networks"), _OFF),
    **dict.fromkeys(("subseed_strength", "s_min_uncond"), _ZERO),
    **{name: {"enum": [None, -1, 0]} for name in ("seed_resize_from_h", "seed_resize_from_w")},
    **dict.fromkeys(("script_name", "refiner_checkpoint", "infotext"), _NO_NAME),
    **{name: {"type": ["array", "null"], "maxItems": 0} for name in ("styles", "controlnet_units")},
    "alwayson_scripts": {
        "type": ["object", "null"],
        "additionalProperties": {
            "type": "object",
            "properties": {"args": {"type": "array", "items": {"enum": [False, None]}}},
        },
    },
}
"""Fields that clients always send, with the values that are taken."""
_SCHEDULER: Schema = {
    "enum": [None, "automatic", "Automatic"],
    "description": "Also those of GET /sdapi/v1/schedulers that the sampler has.",
}
_OF_FACES = ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility")
_OF_MASKS = ("mask", "latent_mask", "mask_round")
_IMG2IMG_WORDS = (
    "Also: steps and denoising_strength, above 0 to 1, enough for a step; mask, as init_images, of the image's size, "
    "by an inpainting model: white is repainted. Other fields are ignored."
)
_UPSCALING_WORDS = (
    "Also: resize_mode 1 with upscaling_resize_w and upscaling_resize_h, up to four times the image. Other fields "
    "are ignored."
)
ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {"$ref": "#/components/schemas/Error/properties/error"},
        "detail": {"type": "string"},
    },
    "required": ["error", "detail"],
}


def make_sdapi(front: Front) -> tuple[Schema, Schema]:
    """Return the paths, and the schemas that they refer to."""
    models = list(front.client.models.values())
    bodies, components = _bodies(front, models)
    components["SdapiError"] = ERROR
    posts = {
        "txt2img": (bodies[Txt2ImgBody], _answer("images", "parameters", "info")),
        "img2img": (bodies[Img2ImgBody], _answer("images", "parameters", "info")),
        "extra-single-image": (bodies[SingleUpscalingBody], _answer("image", "html_info")),
        "extra-batch-images": (bodies[BatchUpscalingBody], _answer("images", "html_info")),
        "png-info": (bodies[PngInfoBody], _answer("info", "items", "parameters")),
    }
    paths: Schema = {
        f"{BASE}/{name}": {"post": _operation(name, {200: answer}, BODY_ERRORS, body)}
        for name, (body, answer) in posts.items()
    }
    task = _query("task_id", {"type": "string", "minLength": 1, "maxLength": 200})
    skipped = _query("skip_current_image", {"type": "boolean"})
    for name in ("interrupt", "skip"):
        paths[f"{BASE}/{name}"] = {"parameters": [task], "post": _operation(name, {200: _ANY}, PLAIN_ERRORS)}
    for name in REFRESHES:
        paths[f"{BASE}/{name}"] = {"post": _operation(name, {200: _ANY}, PLAIN_ERRORS)}
    paths[f"{BASE}/progress"] = {
        "parameters": [skipped, task],
        "get": _operation("progress", {200: _answer("progress", "eta_relative", "state")}, PLAIN_ERRORS),
    }
    paths[f"{BASE}/options"] = {
        "get": _operation("options", {200: _answer("sd_model_checkpoint")}, PLAIN_ERRORS),
        "post": _operation("set-options", {200: _ANY}, BODY_ERRORS, _options(models)),
    }
    for name in LISTS:
        paths[f"{BASE}/{name}"] = {"get": _operation(name, {200: _ANY}, PLAIN_ERRORS)}
    return paths, components


def _bodies(front: Front, models: Sequence[ModelInfo]) -> tuple[dict[type[BaseModel], Schema], Schema]:
    references, whole = models_json_schema(
        [(kind, "validation") for kind in _KINDS], ref_template="#/components/schemas/{model}"
    )
    definitions = whole["$defs"]
    names = {kind: references[kind, "validation"]["$ref"].rpartition("/")[2] for kind in _KINDS}
    bodies = {kind: definitions[name] for kind, name in names.items()}
    bodies[Txt2ImgBody] = _generation(bodies[Txt2ImgBody], front, models, ())
    left_out = ("steps", "denoising_strength", *_OF_MASKS)
    one = {"type": "array", "items": _image(bodies[PngInfoBody]), "minItems": 1, "maxItems": 1}
    body = _generation(bodies[Img2ImgBody], front, models, left_out)
    body["properties"] |= {
        "init_images": one,
        "resize_mode": {"enum": [None, 0, 1, 2]},
        "initial_noise_multiplier": {"enum": [None, 1]},
    }
    bodies[Img2ImgBody] = {**body, "description": _IMG2IMG_WORDS, "required": ["init_images"]}
    upscalers = {"enum": [None, "", "None", *(model.id for model in models if model.upscale_factor)]}
    for kind in (SingleUpscalingBody, BatchUpscalingBody):
        dependent = ("resize_mode", "upscaling_resize_w", "upscaling_resize_h", "upscaling_resize")
        properties = {
            name: value for name, value in bodies[kind]["properties"].items() if name not in dependent
        }
        properties |= {
            **dict.fromkeys(_OF_FACES, _ZERO),
            "upscaling_resize": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 4},
            "upscaler_1": upscalers,
        }
        bodies[kind] = {**bodies[kind], "description": _UPSCALING_WORDS, "properties": properties}
    batch = bodies[BatchUpscalingBody]["properties"]
    batch["imageList"] = {**batch["imageList"], "maxItems": front.config.max_images}
    return bodies, {name: schema for name, schema in definitions.items() if name not in names.values()}


def _generation(schema: Schema, front: Front, models: Sequence[ModelInfo], left_out: Sequence[str]) -> Schema:
    properties = {name: value for name, value in schema["properties"].items() if name not in left_out}
    config = front.config
    names = [*SAMPLERS.values(), *UNNAMED_SAMPLERS]
    sides = sides_of(config.max_side, models)
    properties |= {name: value for name, value in _REFUSED.items() if name in properties}
    properties |= {
        "scheduler": _SCHEDULER,
        **{name: {"enum": [None, *names]} for name in ("sampler_name", "sampler_index")},
        **{name: {"enum": [None, *sides]} for name in ("width", "height")},
        **{name: _up_to(1, config.max_images) for name in ("batch_size", "n_iter")},
        "clip_skip": _up_to(0, most_layers(models)),
        "override_settings": {"anyOf": [_options(models), {"type": "null"}]},
    }
    if "steps" in properties:
        properties["steps"] = _up_to(1, config.max_steps)
    labels = [SAMPLERS[name] for name in FRESH_NOISE]
    return {
        **schema,
        "properties": properties,
        "additionalProperties": True,
        "allOf": [
            {
                "if": {"properties": {field: {"enum": labels}}, "required": [field]},
                "then": {"properties": {"eta": {"enum": [None, 1]}}},
            }
            for field in ("sampler_name", "sampler_index")
        ]
        + [_together("width", "height"), _together("height", "width")],
    }


def _together(field: str, other: str) -> Schema:
    """Return the condition that a field with a value needs another with one."""
    return {
        "if": {"properties": {field: {"type": "integer"}}, "required": [field]},
        "then": {"properties": {other: {"type": "integer"}}, "required": [other]},
    }


def _options(models: Sequence[ModelInfo]) -> Schema:
    known = [name for model in models for name in (model.id, title_of(model), model.identity[:10])]
    properties: dict[str, Schema] = {
        "sd_model_checkpoint": {"enum": [None, "", *known]},
        "sd_checkpoint_hash": {},
        "CLIP_stop_at_last_layers": _up_to(1, most_layers(models)),
        "samples_format": {"enum": [None, *FORMATS]},
        "randn_source": {"enum": [None, *GENERATORS]},
        **{name: {"enum": [None, value]} for name, value in FIXED.items()},
        "sd_vae": {"enum": list(NO_VAE)},
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _image(png_info: Schema) -> Schema:
    found: Schema = png_info["properties"]["image"]
    return found


def _up_to(low: int, high: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


_ANY: Schema = {"application/json": {"schema": {"type": ["object", "array"]}}}


def _answer(*required: str) -> Schema:
    return {"application/json": {"schema": {"type": "object", "required": list(required)}}}


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _operation(
    name: str, answers: Mapping[int, Schema], errors: Sequence[int], body: Schema | None = None
) -> Schema:
    return operation(
        f"sdapi-{name}",
        f"AUTOMATIC1111: {name}",
        answers,
        (*errors, 422) if body is not None else errors,
        body=None if body is None else {"application/json": {"schema": body}},
        error=json_content("SdapiError"),
    )
