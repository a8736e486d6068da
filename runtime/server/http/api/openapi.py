"""The API's document in OpenAPI 3.1, made of the fields' own types and of what this server serves."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS, SCHEDULES, schedules_of
from sd2rt.engines.bundle.sizes import SIZE_MULTIPLE
from sd2rt.runtime.server.errors import ANSWERS
from sd2rt.runtime.server.generation import ModelInfo
from sd2rt.runtime.server.http.api.image_fields import EditFields, ImageFields, JobFields
from sd2rt.runtime.server.http.api.openapi_answers import ANSWER_SCHEMAS
from sd2rt.runtime.server.http.front import Front

Schema = dict[str, Any]
_EDIT_TASKS = ("image-to-image", "inpainting", "depth-to-image", "upscaling")
_BODY_ERRORS = (400, 401, 404, 408, 413, 415, 429, 500, 503, 504)
_PLAIN_ERRORS = (400, 401, 404, 429, 500, 503)
_IMAGE_TYPES = "image/png, image/jpeg, image/webp"


def make_document(front: Front) -> Schema:
    """Make the document. Before the models are loaded, it has none of their names."""
    models = list(front.client.models.values())
    drawing = [info for info in models if "text-to-image" in info.tasks]
    editing = [info for info in models if set(_EDIT_TASKS) & info.tasks.keys()]
    fields = _field_schemas()
    draw = _limited(fields["ImageFields"], front, drawing)
    edit = _limited(fields["EditFields"], front, editing)
    job = _limited(fields["JobFields"], front, drawing)
    form = _form(edit)
    job_form = _form(_limited(fields["JobFields"], front, editing))
    # No schema describes text that is a PNG: tools that make examples would only make bad ones.
    job["description"] = "Its image, mask and depth_map are base64, if a model is chosen that takes them."
    job["properties"]["stream"] = {"type": ["boolean", "null"], "enum": [False, None]}
    job_form["properties"]["stream"] = {"type": "boolean", "enum": [False]}
    streamed = {"text/event-stream": {"schema": {"$ref": "#/components/schemas/ServerSentEvent"}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sd2rt",
            "version": version("sd2rt"),
            "description": "Images from Stable Diffusion 2: OpenAI's image API, and jobs.",
        },
        "security": [{"key": []}] if front.keyring else [],
        "paths": {
            "/v1/images/generations": {
                "post": _operation(
                    "generateImages",
                    "Generate images from a prompt",
                    {200: {**_json("ImagesResponse"), **streamed}},
                    _BODY_ERRORS,
                    body={"application/json": {"schema": draw}},
                )
            },
            "/v1/images/edits": {
                "post": _operation(
                    "editImages",
                    "Generate images from an image",
                    {200: {**_json("ImagesResponse"), **streamed}},
                    _BODY_ERRORS,
                    body={"multipart/form-data": {"schema": form, "encoding": _encoding()}},
                )
            },
            "/v1/jobs": {
                "post": {
                    **_operation(
                        "createJob",
                        "Generate images without waiting",
                        {200: _json("Job"), 202: _json("Job")},
                        (*_BODY_ERRORS, 409),
                        body={
                            "application/json": {"schema": job},
                            "multipart/form-data": {"schema": job_form, "encoding": _encoding()},
                        },
                        links={
                            202: {
                                name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
                                for name in ("getJob", "deleteJob")
                            }
                        },
                    ),
                    "parameters": [
                        {
                            "name": "Idempotency-Key",
                            "in": "header",
                            "required": False,
                            "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
                        }
                    ],
                }
            },
            "/v1/jobs/{id}": {
                "parameters": [_path_parameter("id")],
                "get": _operation("getJob", "Describe a job", {200: _json("Job")}, _PLAIN_ERRORS),
                "delete": _operation("deleteJob", "Cancel and forget a job", {204: {}}, _PLAIN_ERRORS),
            },
            "/v1/jobs/{id}/events": {
                "parameters": [_path_parameter("id")],
                "get": _operation("watchJob", "Stream a job's progress", {200: streamed}, _PLAIN_ERRORS),
            },
            "/v1/jobs/{id}/image": {
                "parameters": [
                    _path_parameter("id"),
                    {
                        "name": "index",
                        "in": "query",
                        "required": False,
                        "schema": {"type": "integer", "minimum": 0, "maximum": 99},
                    },
                ],
                "get": _operation(
                    "getJobImage",
                    "Fetch an image of a job",
                    {200: {name: {} for name in _IMAGE_TYPES.split(", ")}},
                    _PLAIN_ERRORS,
                ),
            },
            "/v1/models": {
                "get": _operation("listModels", "List models", {200: _json("Models")}, _PLAIN_ERRORS)
            },
            "/v1/models/{model}": {
                "parameters": [_path_parameter("model")],
                "get": _operation("getModel", "Describe a model", {200: _json("Model")}, _PLAIN_ERRORS),
            },
            **{
                path: {"get": {**_operation(name, title, answers, ()), "security": []}}
                for path, name, title, answers in (
                    (
                        "/livez",
                        "livez",
                        "Is the process alive?",
                        {200: _json("Status"), 503: _json("Status")},
                    ),
                    ("/readyz", "readyz", "Is new work taken?", {200: _json("Status"), 503: _json("Status")}),
                    ("/healthz", "healthz", "Status and load", {200: _json("Status"), 503: _json("Status")}),
                    ("/health", "health", "Status and load", {200: _json("Status"), 503: _json("Status")}),
                )
            },
            "/version": {"get": _operation("version", "Version", {200: _json("Version")}, (401, 429, 500))},
        },
        "components": {
            "schemas": {**ANSWER_SCHEMAS, "LoraFields": fields["LoraFields"]},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _field_schemas() -> dict[str, Schema]:
    kinds: Sequence[type[BaseModel]] = (ImageFields, EditFields, JobFields)
    references, whole = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    names = {kind: references[kind, "validation"]["$ref"].rpartition("/")[2] for kind in kinds}
    definitions = whole["$defs"]
    schemas = {kind.__name__: definitions[names[kind]] for kind in kinds}
    return {**schemas, "LoraFields": definitions["LoraFields"]}


def _limited(schema: Schema, front: Front, models: Sequence[ModelInfo]) -> Schema:
    """Add this server's limits, models and LoRAs, and what fields allow together."""
    config = front.config
    properties = dict(schema["properties"])
    properties["num_inference_steps"] = _optional(
        {"type": "integer", "minimum": 1, "maximum": config.max_steps}
    )
    properties["n"] = _optional({"type": "integer", "minimum": 1, "maximum": config.max_images})
    properties["size"] = _optional({"type": "string", "enum": ["auto", *_sizes(config.max_side)]})
    if models:
        properties["model"] = _optional({"type": "string", "enum": [info.id for info in models]})
    loras = sorted(set.intersection(*(set(info.loras) for info in models))) if models else []
    if loras:
        lora = {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": loras},
                "scale": {"type": "number", "minimum": -1e6, "maximum": 1e6},
            },
            "required": ["name"],
            "additionalProperties": False,
        }
        properties["loras"] = _optional({"type": "array", "items": lora, "maxItems": 1})
    else:
        properties["loras"] = _optional({"type": "array", "maxItems": 0})
    return {
        **{name: value for name, value in schema.items() if name != "properties"},
        "properties": properties,
        "additionalProperties": True,
        "allOf": [_one_streamed_image(), *_schedules()],
    }


def _sizes(largest: int) -> list[str]:
    """Square sizes, and the others up to 1024 pixels; the server takes any two sides."""
    sides = range(SIZE_MULTIPLE, largest + 1, SIZE_MULTIPLE)
    return [
        f"{width}x{height}"
        for width in sides
        for height in sides
        if width == height or max(width, height) <= 1024
    ]


def _one_streamed_image() -> Schema:
    return {
        "not": {
            "properties": {"stream": {"const": True}, "n": {"type": "integer", "minimum": 2}},
            "required": ["stream", "n"],
        }
    }


def _schedules() -> list[Schema]:
    """Conditions on the schedule, for samplers that do not have all."""
    return [
        {
            "if": {"properties": {"sampler": {"const": sampler}}, "required": ["sampler"]},
            "then": {"properties": {"schedule": {"enum": [None, *schedules_of(sampler)]}}},
        }
        for sampler in SAMPLER_OPTIONS
        if len(schedules_of(sampler)) < len(SCHEDULES)
    ]


def _form(schema: Schema) -> Schema:
    """The same fields with files."""
    file = {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"}
    # A form has no null: fields are left out.
    properties = {name: _without_null(value) for name, value in schema["properties"].items()}
    properties["image"] = file
    return {**schema, "properties": properties, "required": [*schema["required"], "image"]}


def _without_null(schema: Schema) -> Schema:
    members = schema.get("anyOf", [schema])
    (only,) = [member for member in members if member.get("type") != "null"]
    return {**{name: value for name, value in schema.items() if name not in ("anyOf", "default")}, **only}


def _encoding() -> Schema:
    return {"image": {"contentType": _IMAGE_TYPES}}


def _optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _path_parameter(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _json(name: str) -> Schema:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _operation(
    name: str,
    title: str,
    answers: dict[int, Schema],
    errors: Sequence[int],
    *,
    body: Schema | None = None,
    links: dict[int, Schema] | None = None,
) -> Schema:
    responses: Schema = {}
    for status, content in answers.items():
        responses[str(status)] = {"description": "As asked", "headers": _headers()}
        if content:
            responses[str(status)]["content"] = content
        if links and status in links:
            responses[str(status)]["links"] = links[status]
    for status in sorted(errors):
        codes = [code for code, answer in ANSWERS.items() if answer.status == status]
        responses[str(status)] = {
            "description": ", ".join(codes),
            "headers": _headers(),
            "content": _json("Error"),
        }
    operation: Schema = {"operationId": name, "summary": title, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _headers() -> Schema:
    return {"x-request-id": {"required": True, "schema": {"type": "string", "minLength": 1}}}
