"""Parts of the API's document: operations with their answers and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sd2rt.runtime.server.errors import ANSWERS

Schema = dict[str, Any]
BODY_ERRORS = (400, 401, 404, 408, 413, 415, 429, 500, 503, 504)
"""Statuses of errors of requests with a body."""
PLAIN_ERRORS = (400, 401, 404, 429, 500, 503)


def path_parameter(name: str) -> Schema:
    """Return a parameter in the path that is not empty."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def json_content(name: str) -> Schema:
    """Return a body in JSON, of a schema by its name."""
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def operation(
    name: str,
    title: str,
    answers: Mapping[int, Schema],
    errors: Sequence[int],
    *,
    body: Schema | None = None,
    links: dict[int, Schema] | None = None,
    error: Schema | None = None,
) -> Schema:
    """Return an operation.

    Args:
        name: identity in the document.
        title: in a few words.
        answers: content by status; empty for an answer without a body.
        errors: statuses of errors.
        body: content of the request.
        links: by status.
        error: content of errors; None for OpenAI's form.
    """
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
            "content": json_content("Error") if error is None else error,
        }
    described: Schema = {"operationId": name, "summary": title, "responses": responses}
    if body is not None:
        described["requestBody"] = {"required": True, "content": body}
    return described


def _headers() -> Schema:
    return {"x-request-id": {"required": True, "schema": {"type": "string", "minLength": 1}}}
