"""The ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.http.api import (
    health_routes,
    hf_routes,
    job_routes,
    openai_routes,
    option_routes,
)
from sd2rt.runtime.server.http.api.job_store import JobStore
from sd2rt.runtime.server.http.error_answers import on_http_error, on_server_error
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.http.middleware import AroundRequests
from sd2rt.runtime.server.http.page.routes import page_routes
from sd2rt.runtime.server.http.sdapi.options import OptionStore
from sd2rt.runtime.server.http.sdapi.routes import SDAPI_ROUTES
from sd2rt.runtime.server.http.sdapi.tasks import Tasks

_ENDPOINTS = {
    "/v1/images/generations": "generations",
    "/v1/images/edits": "edits",
    "/v1/jobs": "jobs",
    "/v1/models": "models",
    "/sdapi/v1/txt2img": "sdapi_txt2img",
    "/sdapi/v1/img2img": "sdapi_img2img",
    "/sdapi/v1/extra-": "sdapi_upscaling",
    "/sdapi/": "sdapi",
    "/hf/": "hf",
}


def make_app(front: Front) -> Starlette:
    """Make the application; its lifespan starts the workers without waiting for them, and ends them.

    Args:
        front: shared state, with workers that are not started.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        starting = asyncio.create_task(front.start())
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.wait((starting,))
            await front.client.close(0)

    app = Starlette(
        routes=[
            Route("/v1/images/generations", openai_routes.generations, methods=["POST"]),
            Route("/v1/images/edits", openai_routes.edits, methods=["POST"]),
            Route("/v1/models", openai_routes.models, methods=["GET"]),
            Route("/v1/models/{model}", openai_routes.model, methods=["GET"]),
            Route("/v1/jobs", job_routes.jobs, methods=["POST"]),
            # One route a path: a second one for another method would be left out of the header `allow`.
            Route("/v1/jobs/{id}", job_routes.job, methods=["GET", "DELETE"]),
            Route("/v1/jobs/{id}/events", job_routes.events, methods=["GET"]),
            Route("/v1/jobs/{id}/image", job_routes.image, methods=["GET"]),
            Route("/v1/jobs/{id}/depth_map", job_routes.depth_map, methods=["GET"]),
            Route("/v1/options", option_routes.options, methods=["GET"]),
            *page_routes(),
            Route("/hf/{model}", hf_routes.generate, methods=["POST"]),
            *SDAPI_ROUTES,
            Route("/livez", health_routes.livez, methods=["GET"]),
            Route("/readyz", health_routes.readyz, methods=["GET"]),
            Route("/healthz", health_routes.health, methods=["GET"]),
            Route("/health", health_routes.health, methods=["GET"]),
            Route("/version", health_routes.show_version, methods=["GET"]),
            Route("/metrics", health_routes.metrics, methods=["GET"]),
            Route("/openapi.json", health_routes.openapi, methods=["GET"]),
        ],
        middleware=[Middleware(AroundRequests, front, _ENDPOINTS)],
        exception_handlers={
            ServerError: on_server_error,
            HTTPException: on_http_error,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.front = front
    app.state.jobs = JobStore(front)
    app.state.sdapi_tasks = Tasks()
    app.state.sdapi_options = OptionStore()
    return app
