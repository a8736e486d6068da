"""The API's document in OpenAPI 3.1, made of the fields' own types and of what this server serves."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from sd2rt.runtime.server.errors import ANSWERS
from sd2rt.runtime.server.http.api.openapi_answers import ANSWER_SCHEMAS
from sd2rt.runtime.server.http.api.openapi_bodies import ENCODING, IMAGE_TYPES, make_bodies
from sd2rt.runtime.server.http.front import Front

Schema = dict[str, Any]
_BODY_ERRORS = (400, 401, 404, 408, 413, 415, 429, 500, 503, 504)
_PLAIN_ERRORS = (400, 401, 404, 429, 500, 503)


def make_document(front: Front) -> Schema:
    """Make the document. Before the models are loaded, it has none of their names."""
    bodies = make_bodies(front)
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
                    body={"application/json": {"schema": bodies.generation}},
                )
            },
            "/v1/images/edits": {
                "post": _operation(
                    "editImages",
                    "Generate images from an image",
                    {200: {**_json("ImagesResponse"), **streamed}},
                    _BODY_ERRORS,
                    body={"multipart/form-data": {"schema": bodies.edit, "encoding": ENCODING}},
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
                            "application/json": {"schema": bodies.job},
                            "multipart/form-data": {"schema": bodies.job_form, "encoding": ENCODING},
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
                    {200: {name: {} for name in IMAGE_TYPES.split(", ")}},
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
            "schemas": {**ANSWER_SCHEMAS, **bodies.components},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


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
