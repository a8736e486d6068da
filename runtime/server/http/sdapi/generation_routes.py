"""AUTOMATIC1111's requests for images: txt2img, img2img and larger images."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, GeneratedImage, GenerationRequest
from sd2rt.runtime.server.http.api.image_fields import parse_body
from sd2rt.runtime.server.http.api.openai_routes import caller_of, fairness_key
from sd2rt.runtime.server.http.api.uploads import decoded, read_json
from sd2rt.runtime.server.http.error_answers import notes
from sd2rt.runtime.server.http.front import Front, new_id
from sd2rt.runtime.server.http.sdapi.answers import generation_answer, upscaling_answer
from sd2rt.runtime.server.http.sdapi.bodies import (
    BatchUpscalingBody,
    GenerationBody,
    Img2ImgBody,
    SingleUpscalingBody,
    Txt2ImgBody,
    UpscalingBody,
)
from sd2rt.runtime.server.http.sdapi.options import OptionStore
from sd2rt.runtime.server.http.sdapi.submissions import Plan, plan_img2img, plan_txt2img, upscaling_request
from sd2rt.runtime.server.http.sdapi.tasks import Caller, Task, Tasks
from sd2rt.runtime.server.http.streaming import while_connected


async def txt2img(request: Request) -> Response:
    """Generate images from a prompt."""
    body = parse_body(Txt2ImgBody, await read_json(request))
    return await _generated(request, body, "txt2img", lambda *rest: plan_txt2img(rest[0], body, *rest[1:]))


async def img2img(request: Request) -> Response:
    """Generate images from an image, with a mask inside of it."""
    body = parse_body(Img2ImgBody, await read_json(request))
    return await _generated(request, body, "img2img", lambda *rest: plan_img2img(rest[0], body, *rest[1:]))


async def _generated(
    request: Request, body: GenerationBody, name: str, make_plan: Callable[..., Plan]
) -> Response:
    front: Front = request.app.state.front
    tasks: Tasks = request.app.state.sdapi_tasks
    options: OptionStore = request.app.state.sdapi_options
    caller = sdapi_caller(request)
    plan = make_plan(front, options.get(caller.origin), caller.origin)
    noted = notes(request.scope)
    noted["model"], noted["generation"] = plan.request.model, plan.request.request_id
    task = Task(body.force_task_id or new_id("task"), name, caller, plan.iterations)
    completed = await while_connected(request.receive, tasks.run(task, front, plan))
    model = front.client.models[plan.request.model]
    return JSONResponse(generation_answer(body, plan, task, completed, model))


async def extra_single_image(request: Request) -> Response:
    """Enlarge an image."""
    body = parse_body(SingleUpscalingBody, await read_json(request))
    return await _upscaled(request, body, [decoded(body.image, "image")], several=False)


async def extra_batch_images(request: Request) -> Response:
    """Enlarge several images."""
    body = parse_body(BatchUpscalingBody, await read_json(request))
    front: Front = request.app.state.front
    if (count := len(body.imageList)) > front.config.max_images:
        raise ServerError(
            "invalid_value",
            f"imageList has {count} images, more than this server's {front.config.max_images}: ask again",
            param="imageList",
        )
    images = [decoded(image.data, "imageList") for image in body.imageList]
    return await _upscaled(request, body, images, several=True)


async def _upscaled(request: Request, body: UpscalingBody, images: list[bytes], *, several: bool) -> Response:
    front: Front = request.app.state.front
    key = fairness_key(request)
    wanted = [upscaling_request(front, body, data, key) for data in images]
    for each in wanted:
        if each is not None:
            notes(request.scope)["model"] = each.model

    async def work() -> list[GeneratedImage | bytes]:
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(_one(front, each, data)) for each, data in zip(wanted, images, strict=True)
            ]
        return [task.result() for task in running]

    try:
        found = await while_connected(request.receive, work())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return JSONResponse(upscaling_answer(found, several))


async def _one(front: Front, request: GenerationRequest | None, data: bytes) -> GeneratedImage | bytes:
    if request is None:
        return data
    async for event in front.events(request):
        if isinstance(event, Completed):
            found = event.images[0]
    return found


def sdapi_caller(request: Request) -> Caller:
    """Return who sends a request."""
    return Caller(caller_of(request), fairness_key(request))
