"""Hugging Face's inference API: one model a path, JSON or an image in, the bytes of an image out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS
from sd2rt.engines.printable import repr_of, shown
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, GenerationRequest, ImageRole, OutputFormat
from sd2rt.runtime.server.http.api.image_fields import SETTINGS, EditFields, parse_body, parse_fields
from sd2rt.runtime.server.http.api.openai_routes import fairness_key
from sd2rt.runtime.server.http.api.submission import find_model, make_submission
from sd2rt.runtime.server.http.api.uploads import Upload, check_image, decoded, media_type, read_json
from sd2rt.runtime.server.http.error_answers import notes
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.http.streaming import while_connected

SCHEDULERS: dict[str, str] = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "DPMSolverSinglestepScheduler": "dpmpp-2s",
    "DPMSolverSDEScheduler": "dpmpp-sde",
    "EulerAncestralDiscreteScheduler": "euler-a",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "IPNDMScheduler": "ipndm",
    "KDPM2AncestralDiscreteScheduler": "dpm2-a",
    "KDPM2DiscreteScheduler": "dpm2",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "pndm",
    "SASolverScheduler": "sa-solver",
    "TCDScheduler": "tcd",
    "UniPCMultistepScheduler": "unipc",
}
"""Samplers by the names of diffusers' classes."""
_FORMATS: dict[str, OutputFormat] = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}
_BASE64_IMAGES = ("iVBORw0KGgo", "/9j/", "UklGR", "data:image/")
"""Beginnings of a PNG, a JPEG and a WebP in base64."""
PARAMETERS = (*SETTINGS, "output_format", "output_compression")
"""Fields of OpenAI's API and sd2rt's own that are parameters here too."""
_SIDES = {"width", "height"}
_OWN = ("width", "height", "target_size", "scheduler", "mask_image")


class HfBody(BaseModel):
    """A prompt, or an image in base64 whose prompt is a parameter."""

    model_config = ConfigDict(extra="ignore", title="HfRequest")

    inputs: Annotated[str, Field(description="A prompt, or an image in base64.")]
    parameters: dict[str, Any] | None = None


async def generate(request: Request) -> Response:
    """Generate an image with a model, from a prompt or from an image."""
    front: Front = request.app.state.front
    front.require_started()
    model = find_model(front.client.models, request.path_params["model"])
    drawing = "text-to-image" in model.tasks
    prompt, image, parameters = await _inputs(request, drawing)
    fields = _fields(prompt, model.id, parameters, _format(request))
    images: dict[ImageRole, bytes] = {} if image is None else {"image": image}
    if (mask := parameters.get("mask_image")) is not None:
        images["mask"] = decoded(mask, "mask_image")
    submission = make_submission(front, fields, images, fairness_key(request))
    noted = notes(request.scope)
    noted["model"], noted["generation"] = submission.model, submission.request_id
    completed = await while_connected(request.receive, _completed(front, submission))
    picture = completed.images[0]
    return Response(
        picture.data,
        media_type=f"image/{submission.output_format}",
        headers={"x-seed": str(picture.seed), "cache-control": "private, no-store"},
    )


async def _completed(front: Front, submission: GenerationRequest) -> Completed:
    async for event in front.events(submission):
        if isinstance(event, Completed):
            found = event
    return found


async def _inputs(request: Request, drawing: bool) -> tuple[str, bytes | None, dict[str, Any]]:
    """Return prompt, image and parameters. Clients without parameters send an image as it is, of any type."""
    kind = media_type(request)
    if kind in _FORMATS or kind in ("", "application/octet-stream"):
        return "", check_image(await request.body(), "the body"), {}
    body = parse_body(HfBody, await read_json(request))
    parameters = {
        name: value
        for name, value in (body.parameters or {}).items()
        if value is not None or name not in PARAMETERS
    }
    if drawing and "prompt" not in parameters and not body.inputs.startswith(_BASE64_IMAGES):
        return body.inputs, None, parameters
    prompt = parameters.pop("prompt", "")
    if not isinstance(prompt, str):
        raise ServerError("invalid_value", f"prompt is {shown(repr_of(prompt))}: use text", param="prompt")
    return prompt, decoded(body.inputs, "inputs"), parameters


def _fields(
    prompt: str, model: str, parameters: Mapping[str, Any], output_format: OutputFormat
) -> EditFields:
    """Check the parameters.

    Raises:
        ServerError: ``not_supported`` for one that nobody reads, or ``invalid_value``.
    """
    values = {name: value for name, value in parameters.items() if name != "mask_image"}
    if "target_size" in values:
        size = values.pop("target_size")
        if not isinstance(size, dict):
            raise ServerError(
                "invalid_value",
                f"target_size is {shown(repr_of(size))}: use width and height",
                param="target_size",
            )
        values |= {name: size.get(name) for name in ("width", "height")}
    sides = {name: values.pop(name, None) for name in ("width", "height")} if _SIDES & values.keys() else {}
    if sides:
        values["size"] = "x".join(_side(name, side) for name, side in sides.items())
    if "scheduler" in values:
        if values.get("sampler") is not None:
            raise ServerError(
                "invalid_value", "scheduler and sampler are both given: use one", param="sampler"
            )
        values["sampler"] = _sampler(values.pop("scheduler"))
    for name in parameters:
        if name not in PARAMETERS and name not in _OWN:
            raise ServerError(
                "not_supported", f"no parameter is named {shown(name)!r}: leave it out", param=shown(name)
            )
    values.setdefault("output_format", output_format)
    return parse_fields(EditFields, Upload({**values, "prompt": prompt, "model": model}))[0]


def _side(name: str, side: object) -> str:
    if isinstance(side, float) and side.is_integer():
        side = int(side)
    if not isinstance(side, int) or isinstance(side, bool) or not 0 < side < 1_000_000:
        raise ServerError(
            "invalid_value", f"{name} is {shown(repr_of(side))}: send width and height in pixels", param=name
        )
    return str(side)


def _sampler(scheduler: object) -> str:
    if isinstance(scheduler, str):
        if scheduler in SCHEDULERS:
            return SCHEDULERS[scheduler]
        if scheduler in SAMPLER_OPTIONS:
            return scheduler
    raise ServerError(
        "not_supported",
        f"no scheduler is named {shown(repr_of(scheduler))}: use one of diffusers' classes",
        param="scheduler",
    )


def _format(request: Request) -> OutputFormat:
    """Return the first format that the client accepts, by default PNG."""
    for part in request.headers.get("accept", "").split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in _FORMATS:
            return _FORMATS[kind]
    return "png"
