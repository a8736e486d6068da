"""Choices and limits that hold for every model of a server."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS, schedules_of
from sd2rt.runtime.server.generation import MAX_PROMPT
from sd2rt.runtime.server.http.front import Front


async def options(request: Request) -> Response:
    """List samplers with their schedules, and limits of a request."""
    front: Front = request.app.state.front
    config = front.config
    return JSONResponse(
        {
            "object": "options",
            "samplers": [{"name": name, "schedules": schedules_of(name)} for name in SAMPLER_OPTIONS],
            "limits": {
                "max_images": config.max_images,
                "max_steps": config.max_steps,
                "max_side": config.max_side,
                "max_queue": config.max_queue,
                "max_body_bytes": config.max_body_bytes,
                "max_prompt": MAX_PROMPT,
            },
        }
    )
