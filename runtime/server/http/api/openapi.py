"""The API's document in OpenAPI 3.1, made of the fields' own types and of what this server serves."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from sd2rt.runtime.server.http.api.openapi_answers import ANSWER_SCHEMAS
from sd2rt.runtime.server.http.api.openapi_bodies import ENCODING, IMAGE_TYPES, make_bodies
from sd2rt.runtime.server.http.api.openapi_hf import make_hf
from sd2rt.runtime.server.http.api.openapi_operations import (
    BODY_ERRORS,
    PLAIN_ERRORS,
    json_content,
    operation,
    path_parameter,
)
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.http.sdapi.openapi import make_sdapi

Schema = dict[str, Any]


def make_document(front: Front) -> Schema:
    """Make the document. Before the models are loaded, it has none of their names."""
    bodies = make_bodies(front)
    sdapi_paths, sdapi_schemas = make_sdapi(front)
    hf_paths, hf_schemas = make_hf(front)
    status = {200: json_content("Status"), 503: json_content("Status")}
    streamed = {"text/event-stream": {"schema": {"$ref": "#/components/schemas/ServerSentEvent"}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sd2rt",
            "version": version("sd2rt"),
            "description": "Images from Stable Diffusion 2: OpenAI's image API and jobs; AUTOMATIC1111's API, which "
            "also takes Basic authentication with a key as the password; and Hugging Face's.",
        },
        "security": [{"key": []}] if front.keyring else [],
        "paths": {
            "/v1/images/generations": {
                "post": operation(
                    "generateImages",
                    "Generate images from a prompt",
                    {200: {**json_content("ImagesResponse"), **streamed}},
                    BODY_ERRORS,
                    body={"application/json": {"schema": bodies.generation}},
                )
            },
            "/v1/images/edits": {
                "post": operation(
                    "editImages",
                    "Generate images from an image",
                    {200: {**json_content("ImagesResponse"), **streamed}},
                    BODY_ERRORS,
                    body={"multipart/form-data": {"schema": bodies.edit, "encoding": ENCODING}},
                )
            },
            "/v1/jobs": {
                "post": {
                    **operation(
                        "createJob",
                        "Generate images without waiting",
                        {200: json_content("Job"), 202: json_content("Job")},
                        (*BODY_ERRORS, 409),
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
                "parameters": [path_parameter("id")],
                "get": operation("getJob", "Describe a job", {200: json_content("Job")}, PLAIN_ERRORS),
                "delete": operation("deleteJob", "Cancel and forget a job", {204: {}}, PLAIN_ERRORS),
            },
            "/v1/jobs/{id}/events": {
                "parameters": [path_parameter("id")],
                "get": operation("watchJob", "Stream a job's progress", {200: streamed}, PLAIN_ERRORS),
            },
            "/v1/jobs/{id}/image": {
                "parameters": [
                    path_parameter("id"),
                    {
                        "name": "index",
                        "in": "query",
                        "required": False,
                        "schema": {"type": "integer", "minimum": 0, "maximum": 99},
                    },
                ],
                "get": operation(
                    "getJobImage",
                    "Fetch an image of a job",
                    {200: {name: {} for name in IMAGE_TYPES.split(", ")}},
                    PLAIN_ERRORS,
                ),
            },
            "/v1/jobs/{id}/depth_map": {
                "parameters": [path_parameter("id")],
                "get": operation(
                    "getJobDepthMap",
                    "Fetch the depth map of a job, if it has one",
                    {200: {"image/png": {}}, 204: {}},
                    PLAIN_ERRORS,
                ),
            },
            "/v1/options": {
                "get": operation(
                    "listOptions", "List samplers and limits", {200: json_content("Options")}, (401, 429, 500)
                )
            },
            "/v1/models": {
                "get": operation("listModels", "List models", {200: json_content("Models")}, PLAIN_ERRORS)
            },
            "/v1/models/{model}": {
                "parameters": [path_parameter("model")],
                "get": operation("getModel", "Describe a model", {200: json_content("Model")}, PLAIN_ERRORS),
            },
            **sdapi_paths,
            **hf_paths,
            **{
                path: {"get": {**operation(name, title, status, ()), "security": []}}
                for path, name, title in (
                    ("/livez", "livez", "Is the process alive?"),
                    ("/readyz", "readyz", "Is new work taken?"),
                    ("/healthz", "healthz", "Status and load"),
                    ("/health", "health", "Status and load"),
                )
            },
            "/version": {
                "get": operation("version", "Version", {200: json_content("Version")}, (401, 429, 500))
            },
        },
        "components": {
            "schemas": {**ANSWER_SCHEMAS, **bodies.components, **sdapi_schemas, **hf_schemas},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
