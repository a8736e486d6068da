"""Jobs: make one, watch it, fetch its images, delete it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.http.api.image_fields import JobFields, parse_fields
from sd2rt.runtime.server.http.api.job_store import Job, JobStore
from sd2rt.runtime.server.http.api.openai_answers import comment, server_event
from sd2rt.runtime.server.http.api.openai_routes import STREAM_HEADERS, caller_of, fairness_key
from sd2rt.runtime.server.http.api.submission import make_submission
from sd2rt.runtime.server.http.api.uploads import read_json_or_form
from sd2rt.runtime.server.http.error_answers import notes
from sd2rt.runtime.server.http.front import Front, new_id
from sd2rt.runtime.server.http.streaming import Relay

_REFUSAL_SECONDS = 0.5
"""Time within which a refusal is the answer's status; after that, the job fails."""
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_INDEX = re.compile(r"[0-9]{1,2}")


async def jobs(request: Request) -> Response:
    """Start a job; the same ``Idempotency-Key`` and body return the same one."""
    front: Front = request.app.state.front
    store: JobStore = request.app.state.jobs
    caller = caller_of(request)
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise ServerError(
            "invalid_value",
            "Idempotency-Key is empty, too long, or not of visible ASCII characters",
            param="idempotency-key",
        )
    upload = await read_json_or_form(request)
    body = _canonical(upload.fields, upload.images)
    if key is not None and (job := store.repeated(caller, key, body)) is not None:
        return JSONResponse(_described(job, front), 200, headers={"location": f"/v1/jobs/{job.id}"})
    fields, ignored = parse_fields(JobFields, upload)
    if fields.stream:
        raise ServerError(
            "invalid_value", "stream is true, but a job is watched at /v1/jobs/ID/events", param="stream"
        )
    submission = make_submission(
        front, fields, upload.images, fairness_key(request), identity=new_id("job"), watched=True
    )
    noted = notes(request.scope)
    noted["model"], noted["generation"] = submission.model, submission.request_id
    job = await store.create(submission, ignored, caller=caller, key=key, body=body, seconds=_REFUSAL_SECONDS)
    return JSONResponse(_described(job, front), 202, headers={"location": f"/v1/jobs/{job.id}"})


async def job(request: Request) -> Response:
    """Describe a job, or delete it."""
    store: JobStore = request.app.state.jobs
    found = _job(request)
    if request.method == "DELETE":
        await store.delete(found)
        return Response(status_code=204)
    found.fetched = found.fetched or found.error is not None
    return JSONResponse(_described(found, request.app.state.front))


async def events(request: Request) -> Response:
    """Stream a job's progress until it has ended."""
    store: JobStore = request.app.state.jobs
    relay = Relay(store.watch(_job(request)))
    return StreamingResponse(
        _events(relay, request.app.state.front), media_type="text/event-stream", headers=STREAM_HEADERS
    )


async def image(request: Request) -> Response:
    """Send an image of a completed job; ``?index=`` chooses among several."""
    found = _job(request)
    index = request.query_params.get("index", "0")
    if not _INDEX.fullmatch(index):
        raise ServerError("invalid_value", "index is no number: count images from 0", param="index")
    if found.status == "failed":
        raise ServerError("not_found", "the job failed: GET /v1/jobs/ID has its error", param="id")
    if found.completed is None:
        raise ServerError("not_found", "the job has not ended: watch /v1/jobs/ID/events", param="id")
    images = found.completed.images
    if int(index) >= len(images):
        raise ServerError("not_found", f"the job has {len(images)} images: count from 0", param="index")
    chosen = images[int(index)]
    found.fetched = True
    headers = {"x-seed": str(chosen.seed), "cache-control": "private, no-store"}
    return Response(chosen.data, media_type=f"image/{found.request.output_format}", headers=headers)


async def depth_map(request: Request) -> Response:
    """Send the depth map of a job, as a gray PNG of 16 bits: depth models make one if the job has previews.

    204 if it has none: the job is there.
    """
    found = _job(request)
    if found.depth_map is None:
        return Response(status_code=204)
    return Response(found.depth_map, media_type="image/png", headers={"cache-control": "private, no-store"})


def _job(request: Request) -> Job:
    store: JobStore = request.app.state.jobs
    return store.get(request.path_params["id"], caller_of(request))


async def _events(relay: Relay[Job], front: Front) -> AsyncIterator[bytes]:
    async with aclosing(relay):
        async for found in relay:
            if found is None:
                yield comment("waiting")
            elif found.deleted:
                yield server_event({"id": found.id}, "deleted")
            elif found.active:
                yield server_event(_progress(found, front), "progress")
            else:
                yield server_event(_described(found, front), found.status)


def _progress(found: Job, front: Front) -> dict[str, Any]:
    progress: dict[str, Any] = {
        "id": found.id,
        "status": found.status,
        "step": found.step,
        "steps": found.steps,
        "queue_position": front.client.queue_position(found.id),
        "depth_map": _depth_map_path(found),
    }
    if found.preview is not None:
        progress["preview_b64"] = base64.b64encode(found.preview).decode("ascii")
    return progress


def _depth_map_path(found: Job) -> str | None:
    return None if found.depth_map is None else f"/v1/jobs/{found.id}/depth_map"


def _described(found: Job, front: Front) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": found.id,
        "object": "image.job",
        "status": found.status,
        "created": int(found.created),
        "model": found.request.model,
        "step": found.step,
        "steps": found.steps,
        "queue_position": front.client.queue_position(found.id),
        "depth_map": _depth_map_path(found),
        "error": None if found.error is None else found.error.body(),
        "images": [],
        "ignored": found.ignored,
    }
    if found.completed is not None:
        facts = found.completed.facts
        described["images"] = [
            {
                "path": f"/v1/jobs/{found.id}/image?index={index}",
                "seed": picture.seed,
                "size": f"{picture.width}x{picture.height}",
            }
            for index, picture in enumerate(found.completed.images)
        ]
        described |= {name: facts.get(name) for name in ("sampler", "queue_ms", "warnings")}
    return described


def _canonical(fields: dict[str, Any], images: Any) -> bytes:
    """Return a body as bytes that are equal for equal requests."""
    text = json.dumps(fields, sort_keys=True, default=str).encode()
    return b"\0".join([text, *(part for role in sorted(images) for part in (role.encode(), images[role]))])
