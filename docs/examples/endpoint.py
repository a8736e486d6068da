"""Serve images from one bundle over HTTP, with a Pipeline in a FastAPI application.

    SD2RT_BUNDLE=demo uvicorn --app-dir docs/examples endpoint:app

Generating an image blocks for seconds, so it runs in a thread and leaves the event loop free. A pipeline runs one
request at a time: others wait on an asyncio lock, which occupies no thread. This is a single process; authentication,
rate limits and a bounded queue belong in front of it.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

import sd2rt
from sd2rt import Pipeline, RequestError, Sd2rtError

MAX_SIDE = 1024
MAX_STEPS = 50
POLL_SECONDS = 0.1


class ImageRequest(BaseModel):
    """Everything a client may choose; file paths are excluded."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, max_length=2000)]
    negative_prompt: Annotated[str, Field(max_length=2000)] = ""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 20
    guidance: Annotated[float, Field(ge=0, le=30)] = 4.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    width: Annotated[int, Field(le=MAX_SIDE)] | None = None
    height: Annotated[int, Field(le=MAX_SIDE)] | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Opened once: it verifies the bundle and loads its engines.
    with Pipeline.open(os.environ.get("SD2RT_BUNDLE", "demo")) as pipe:
        app.state.pipe = pipe
        app.state.turn = asyncio.Lock()
        yield


app = FastAPI(title="sd2rt example", version=sd2rt.__version__, lifespan=lifespan)


def paint(pipe: Pipeline, asked: ImageRequest, cancelled: threading.Event) -> bytes | None:
    """Make one image as a PNG, or None if ``cancelled`` is set on the way; checked between two steps."""
    request = sd2rt.Request(
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance,
        seed=asked.seed,
        width=asked.width,
        height=asked.height,
    )
    with pipe.stream_requests([request]) as run:
        for _ in run:
            if cancelled.is_set():
                return None
        image = run.result()[0].images[0]
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@app.post("/images", response_class=Response, responses={200: {"content": {"image/png": {}}}})
async def images(asked: ImageRequest, http: Request) -> Response:
    cancelled = threading.Event()
    async with app.state.turn:
        work = asyncio.create_task(asyncio.to_thread(paint, app.state.pipe, asked, cancelled))
        try:
            while not work.done():
                await asyncio.wait([work], timeout=POLL_SECONDS)
                if await http.is_disconnected():
                    cancelled.set()
            png = work.result()
        except RequestError as error:
            raise HTTPException(400, str(error)) from error
        except Sd2rtError as error:
            raise HTTPException(500, str(error)) from error
        finally:
            cancelled.set()
    if png is None:
        raise HTTPException(499, "the client left")
    return Response(png, media_type="image/png", headers={"x-seed": str(asked.seed)})


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok", "bundle": app.state.pipe.manifest.name, "backend": app.state.pipe.backend}
