"""AUTOMATIC1111's progress, interrupt and skip, its options, and settings read from a picture."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import shown
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.http.api.image_fields import parse_body
from sd2rt.runtime.server.http.api.uploads import decoded, read_json
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.http.sdapi.bodies import PngInfoBody
from sd2rt.runtime.server.http.sdapi.generation_routes import sdapi_caller
from sd2rt.runtime.server.http.sdapi.options import OptionStore
from sd2rt.runtime.server.http.sdapi.tasks import Tasks, progress_of

_MAX_ID = 200
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


async def progress(request: Request) -> Response:
    """Show the progress of the caller's own tasks, or of one by ``?task_id=``."""
    tasks: Tasks = request.app.state.sdapi_tasks
    skip = request.query_params.get("skip_current_image", "false").lower()
    if skip not in _TRUTH:
        raise ServerError(
            "invalid_value",
            f"skip_current_image is {shown(skip)!r}: use true or false",
            param="skip_current_image",
        )
    found = tasks.of(sdapi_caller(request), _task_id(request))
    return JSONResponse(progress_of(found, with_image=not _TRUTH[skip]))


async def interrupt(request: Request) -> Response:
    """End the caller's own tasks, or one by ``?task_id=``."""
    tasks: Tasks = request.app.state.sdapi_tasks
    tasks.interrupt(sdapi_caller(request), _task_id(request))
    return JSONResponse({})


async def skip(request: Request) -> Response:
    """End the iteration that the caller's own task is at, or that of one by ``?task_id=``."""
    tasks: Tasks = request.app.state.sdapi_tasks
    tasks.skip(sdapi_caller(request), _task_id(request))
    return JSONResponse({})


async def options(request: Request) -> Response:
    """Show the caller's options, or change them for its later requests."""
    front: Front = request.app.state.front
    store: OptionStore = request.app.state.sdapi_options
    front.require_started()
    caller = sdapi_caller(request).origin
    models = front.client.models
    if request.method == "POST":
        values = (await read_json(request)).fields
        store.put(caller, store.get(caller).changed(values, models, "the body"))
        return JSONResponse({})
    return JSONResponse(store.get(caller).shown(models))


async def png_info(request: Request) -> Response:
    """Show the settings that a picture has in its file."""
    front: Front = request.app.state.front
    body = parse_body(PngInfoBody, await read_json(request))
    data = decoded(body.image.strip(), "image")
    try:
        texts = await asyncio.to_thread(partial(_texts, data, front.config.max_image_pixels))
    except RequestError as error:
        raise ServerError("invalid_image", str(error), param="image") from None
    info = texts.pop("parameters", "")
    return JSONResponse({"info": info, "items": texts, "parameters": _parameters(info)})


def _texts(data: bytes, max_pixels: int | None) -> dict[str, str]:
    # Imported on use: most front processes are never asked, and Pillow takes memory.
    from sd2rt.runtime.images.read import MAX_PIXELS, read_text

    return read_text(data, "the image", MAX_PIXELS if max_pixels is None else max_pixels)


def _parameters(info: str) -> dict[str, str]:
    """Parse AUTOMATIC1111's text into its names and values."""
    from sd2rt.runtime.metadata.infotext import parse_parameters

    if not info.strip():
        return {}
    parsed = parse_parameters(info)
    values = {"Prompt": parsed.prompt, "Negative prompt": parsed.negative_prompt, **parsed.values}
    width, by, height = values.get("Size", "").partition("x")
    return values | ({"Size-1": width, "Size-2": height} if by else {})


def _task_id(request: Request) -> str | None:
    identity = request.query_params.get("task_id")
    if identity is not None and not 0 < len(identity) <= _MAX_ID:
        raise ServerError(
            "invalid_value", f"task_id has {len(identity)} characters: use 1 to {_MAX_ID}", param="task_id"
        )
    return identity
