"""OpenAI's image API: generations, edits and models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, Event, GenerationRequest, ModelInfo, Partial, Stepped
from sd2rt.runtime.server.http.api.image_fields import EditFields, ImageFields, parse_fields
from sd2rt.runtime.server.http.api.openai_answers import (
    EventPrefix,
    ImageAnswer,
    comment,
    error_event,
    server_event,
)
from sd2rt.runtime.server.http.api.submission import find_model, make_submission
from sd2rt.runtime.server.http.api.uploads import Upload, read_form, read_json
from sd2rt.runtime.server.http.error_answers import INTERNAL, notes
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.http.streaming import Relay, while_connected

FIRST_SECONDS = 1.0
"""Time within which a refusal can still be a stream's status; after that, it is an event of the stream."""
STREAM_HEADERS = {"cache-control": "no-cache, no-store", "x-accel-buffering": "no"}


async def generations(request: Request) -> Response:
    """Generate images from a prompt."""
    return await _images(request, await read_json(request), ImageFields, "image_generation")


async def edits(request: Request) -> Response:
    """Generate images from an image: with a mask inside of it, else by the kind of the model."""
    upload = await read_form(request)
    if "image" not in upload.images:
        raise ServerError("invalid_value", "image is missing: upload a PNG, JPEG or WebP", param="image")
    return await _images(request, upload, EditFields, "image_edit")


async def _images(request: Request, upload: Upload, kind: type[ImageFields], prefix: EventPrefix) -> Response:
    front: Front = request.app.state.front
    fields, ignored = parse_fields(kind, upload)
    noted = notes(request.scope)
    submission = make_submission(front, fields, upload.images, fairness_key(request))
    noted["model"], noted["generation"] = submission.model, submission.request_id
    answer = ImageAnswer(submission, fields, ignored, front.client.models[submission.model])
    if fields.stream:
        relay = Relay(front.events(submission))
        await relay.first(request.receive, FIRST_SECONDS)
        return StreamingResponse(
            _stream(relay, answer, prefix, noted), media_type="text/event-stream", headers=STREAM_HEADERS
        )
    completed = await while_connected(request.receive, _completed(front, submission))
    return Response(answer.body(completed), media_type="application/json")


async def _completed(front: Front, submission: GenerationRequest) -> Completed:
    last: Event | None = None
    async for event in front.events(submission):
        last = event
    assert isinstance(last, Completed)
    return last


async def _stream(
    relay: Relay[Event], answer: ImageAnswer, prefix: EventPrefix, noted: dict[str, object]
) -> AsyncIterator[bytes]:
    try:
        async for event in relay:
            match event:
                case None:
                    yield comment("waiting")
                case Stepped():
                    yield comment(f"step {event.step}/{event.steps}")
                case Partial():
                    yield server_event(answer.partial(event, prefix), f"{prefix}.partial_image")
                case Completed():
                    yield server_event(answer.completed(event, prefix), f"{prefix}.completed")
    except ServerError as error:
        noted["code"] = error.code
        yield error_event(error)
    except Exception:
        noted["code"] = INTERNAL.code
        yield error_event(INTERNAL)
        raise
    finally:
        await relay.aclose()


async def models(request: Request) -> Response:
    """List the served models."""
    front: Front = request.app.state.front
    front.require_started()
    return JSONResponse(
        {"object": "list", "data": [_described(info) for info in front.client.models.values()]}
    )


async def model(request: Request) -> Response:
    """Describe one model."""
    front: Front = request.app.state.front
    front.require_started()
    return JSONResponse(_described(find_model(front.client.models, request.path_params["model"])))


def _described(info: ModelInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "object": "model",
        "created": info.created,
        "owned_by": "sd2rt",
        "sd2rt": {
            "kind": info.kind,
            "tasks": {
                name: {
                    "steps": task.steps,
                    "guidance_scale": task.guidance_scale,
                    "strength": task.strength,
                    "noise_level": task.noise_level,
                }
                for name, task in info.tasks.items()
            },
            "size": f"{info.width}x{info.height}",
            "size_multiple": info.size_multiple,
            "smallest_side": info.smallest_side,
            "largest_side": info.largest_side,
            "sampler": info.sampler,
            "upscale_factor": info.upscale_factor,
            "precision": info.precision,
            "identity": info.identity,
            "license": info.license,
            "memory_bytes": info.memory_bytes,
            "loras": list(info.loras),
            "loaded": info.loaded,
        },
    }


def caller_of(request: Request) -> str | None:
    """Return the caller of a request by its key; None if the server has no keys."""
    caller = notes(request.scope).get("caller")
    return caller if isinstance(caller, str) else None


def fairness_key(request: Request) -> str | None:
    """Return whom a request counts for when callers take turns: its key, or else its address."""
    return caller_of(request) or (request.client.host if request.client is not None else None)
