"""Probes, version, metrics and the document of the API."""

from __future__ import annotations

import json
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.http.api.openapi import make_document
from sd2rt.runtime.server.http.error_answers import error_headers
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.http.metrics import CONTENT_TYPE

PROBES = frozenset({"/livez", "/readyz", "/healthz", "/health"})
"""Paths that need no key."""


async def livez(request: Request) -> Response:
    """Answer 200 while the process can work; 503 once its workers have failed for good."""
    front: Front = request.app.state.front
    failed = front.failure is not None or front.client.state == "failed"
    return JSONResponse({"status": "failed" if failed else "alive"}, 503 if failed else 200)


async def readyz(request: Request) -> Response:
    """Answer 200 while new work is taken, else 503."""
    front: Front = request.app.state.front
    status = front.readiness()
    try:
        front.require_ready()
    except ServerError as error:
        return JSONResponse({"status": status}, 503, headers=error_headers(error))
    return JSONResponse({"status": status})


async def health(request: Request) -> Response:
    """Answer as ``/readyz`` does, with the load beside the status."""
    front: Front = request.app.state.front
    answer = await readyz(request)
    stats = front.client.stats
    body = {
        "status": front.readiness(),
        "models": list(front.client.models),
        "workers": dict(stats.up),
        "waiting_images": stats.waiting,
        "running_images": stats.running,
    }
    headers = {name: value for name, value in answer.headers.items() if name in ("retry-after", "connection")}
    return JSONResponse(body, answer.status_code, headers=headers)


async def show_version(request: Request) -> Response:
    """Name the version of sd2rt."""
    return JSONResponse({"version": version("sd2rt")})


async def metrics(request: Request) -> Response:
    """Show the metrics in Prometheus' text format."""
    front: Front = request.app.state.front
    return Response(front.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def openapi(request: Request) -> Response:
    """Show the document of the API."""
    front: Front = request.app.state.front
    if not front.started.is_set():
        return JSONResponse(make_document(front))
    if front.document is None:
        front.document = json.dumps(make_document(front)).encode()
    return Response(front.document, media_type="application/json")
