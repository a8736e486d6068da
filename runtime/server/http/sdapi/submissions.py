"""Make a request to a worker from the fields of AUTOMATIC1111's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS, SamplerName
from sd2rt.engines.printable import shown
from sd2rt.runtime.images.preparation import Enlargement, Preparation, ResizeMode
from sd2rt.runtime.metadata.sampler_names import FoundSampler, find_sampler, find_schedule
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import GenerationRequest, ImageRole, ModelInfo
from sd2rt.runtime.server.http.api.image_fields import EditFields
from sd2rt.runtime.server.http.api.submission import make_submission, wanted_tasks
from sd2rt.runtime.server.http.api.uploads import decoded
from sd2rt.runtime.server.http.front import Front, new_id
from sd2rt.runtime.server.http.sdapi.bodies import GenerationBody, Img2ImgBody, UpscalingBody
from sd2rt.runtime.server.http.sdapi.options import Options, most_layers
from sd2rt.runtime.server.http.sdapi.prompt_tags import refuse_tags, take_loras
from sd2rt.runtime.server.http.sdapi.refusals import refuse_generation, refuse_img2img, refuse_upscaling

_MODES: tuple[ResizeMode, ...] = ("stretch", "crop", "fill")
_MASK_BLUR = 4
_WITH_ETA: tuple[SamplerName, ...] = ("ddim", "tcd")
FRESH_NOISE: tuple[SamplerName, ...] = ("euler-a", "dpm2-a", "dpmpp-2m-sde", "dpmpp-sde")
"""Samplers whose ``eta`` is 1 here."""
_CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 0.0, "s_noise": 1.0}
"""Options of stochastic samplers and the values that AUTOMATIC1111's clients always send; its ``s_tmax`` of 0 is no
limit."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Requests that a client's request becomes: one after another, of equal size."""

    request: GenerationRequest
    """The first; others have other seeds."""
    iterations: int
    options: Options

    def iteration(self, index: int, first_seed: int | None) -> GenerationRequest:
        """Return a request.

        Args:
            index: from 0.
            first_seed: of the first image, once it is known.
        """
        if index == 0:
            return self.request
        fields = self.request.fields
        if first_seed is not None:
            fields = {**fields, "seed": first_seed + index * self.request.count}
        return replace(self.request, request_id=new_id("img"), fields=fields)


def plan_txt2img(front: Front, body: GenerationBody, options: Options, key: str | None) -> Plan:
    """Plan a request for images from a prompt.

    Raises:
        ServerError: it asks for something that is not done, or has a wrong value.
    """
    front.require_ready()
    refuse_generation(body)
    return _plan(front, body, options, key, {})


def plan_img2img(front: Front, body: Img2ImgBody, options: Options, key: str | None) -> Plan:
    """Plan a request for images from an image.

    Raises:
        ServerError: it asks for something that is not done, or has a wrong value.
    """
    front.require_ready()
    refuse_generation(body)
    refuse_img2img(body)
    if not body.init_images:
        raise ServerError(
            "invalid_value", "init_images is missing: send one image in base64", param="init_images"
        )
    if len(body.init_images) > 1:
        raise ServerError(
            "not_supported",
            f"init_images has {len(body.init_images)} images: send one a request",
            param="init_images",
        )
    if body.denoising_strength == 0:
        raise ServerError(
            "invalid_value",
            "denoising_strength is 0, which leaves the image as it is: use more",
            param="denoising_strength",
        )
    images: dict[ImageRole, bytes] = {"image": decoded(body.init_images[0], "init_images")}
    if body.mask:
        images["mask"] = decoded(body.mask, "mask")
    plan = _plan(front, body, options, key, images)
    return replace(plan, request=replace(plan.request, preparation=_preparation(body)))


def upscaling_request(
    front: Front, body: UpscalingBody, data: bytes, key: str | None
) -> GenerationRequest | None:
    """Make the request for a larger image; None if the image is asked for as it is.

    Raises:
        ServerError: it asks for something that is not done, or has a wrong value.
    """
    front.require_ready()
    refuse_upscaling(body)
    if body.upscaler_1 in (None, "", "None"):
        return None
    models = front.client.models
    names = [name for name, model in models.items() if model.upscale_factor is not None]
    if body.upscaler_1 not in names:
        raise ServerError(
            "not_supported",
            f"no upscaler is named {shown(body.upscaler_1 or '')!r}: this server has {', '.join(['None', *names])}",
            param="upscaler_1",
        )
    fields = EditFields(prompt="", model=body.upscaler_1)
    request = make_submission(front, fields, {"image": data}, key)
    return replace(request, enlargement=_enlargement(body))


def _enlargement(body: UpscalingBody) -> Enlargement:
    if body.resize_mode == 1:
        return Enlargement(
            width=body.upscaling_resize_w or 512,
            height=body.upscaling_resize_h or 512,
            crop=body.upscaling_crop is not False,
        )
    return Enlargement(factor=2.0 if body.upscaling_resize is None else body.upscaling_resize)


def _plan(
    front: Front,
    body: GenerationBody,
    stored: Options,
    key: str | None,
    images: Mapping[ImageRole, bytes],
) -> Plan:
    models = front.client.models
    strict = Options().changed(body.override_settings or {}, models, "override_settings")
    options = stored.changed(body.override_settings or {}, models, "override_settings")
    prompt, loras = take_loras(body.prompt or "")
    refuse_tags(body.negative_prompt or "")
    sampler = _sampler(body)
    strength = body.denoising_strength if images else None
    fields = EditFields(
        prompt=prompt,
        negative_prompt=body.negative_prompt,
        n=body.batch_size,
        size=_size(body),
        num_inference_steps=body.steps,
        guidance_scale=body.cfg_scale,
        seed=None if body.seed in (None, -1) else body.seed,
        sampler=None if sampler is None else sampler.sampler,
        prompt_syntax="a1111",
        clip_skip=_clip_skip(body, strict, stored, models),
        output_format=options.file_format,
        strength=strength,
        loras=loras or None,
    )
    fields.model = strict.model or _preferred(models, options.model, fields, images)
    iterations = body.n_iter or 1
    count = (body.batch_size or 1) * iterations
    if count > front.config.max_images:
        raise ServerError(
            "invalid_value",
            f"batch_size times n_iter is {count}, more than this server's {front.config.max_images}: ask again",
            param="n_iter",
        )
    request = make_submission(front, fields, images, key, watched=True)
    more = _sampling(body, sampler)
    if options.rng is not None:
        more["rng"] = options.rng
    # The result is pasted by the preparation.
    values = {name: value for name, value in request.fields.items() if name != "paste"} | more
    return Plan(replace(request, fields=values, previews=True, infotexts=True), iterations, options)


def _preferred(
    models: Mapping[str, ModelInfo], name: str | None, fields: EditFields, images: Mapping[ImageRole, bytes]
) -> str | None:
    """Return the caller's checkpoint if it can do the task: a mask, for one, needs a model of its own."""
    if name is None or name not in models:
        return None
    return name if any(task in models[name].tasks for task in wanted_tasks(fields, images)) else None


def _size(body: GenerationBody) -> str | None:
    if (body.width is None) != (body.height is None):
        missing = "width" if body.width is None else "height"
        raise ServerError("invalid_value", f"{missing} is missing: send both or none", param=missing)
    return None if body.width is None else f"{body.width}x{body.height}"


def _clip_skip(
    body: GenerationBody, strict: Options, stored: Options, models: Mapping[str, ModelInfo]
) -> int | None:
    """Return the layers to skip; all names for them count the layer to stop at, from the end."""
    most = most_layers(models.values())
    if body.clip_skip is not None and body.clip_skip > most:
        raise ServerError(
            "invalid_value", f"clip_skip is {body.clip_skip}: use 1 to {most}", param="clip_skip"
        )
    stop = next(
        (each for each in (strict.clip_stop, body.clip_skip, stored.clip_stop) if each is not None), 1
    )
    return stop - 1 if stop > 1 else None


def _sampler(body: GenerationBody) -> FoundSampler | None:
    label = body.sampler_name or body.sampler_index
    if not label:
        return None
    found = find_sampler(label, body.scheduler or "automatic")
    if found is None:
        raise ServerError(
            "not_supported",
            f"no sampler is named {shown(label)!r}: GET /sdapi/v1/samplers lists them",
            param="sampler_name",
        )
    if found.missing is not None:
        raise ServerError(
            "not_supported",
            f"{found.sampler} has no scheduler {shown(found.missing)!r}: leave it out, or use automatic",
            param="scheduler",
        )
    return found


def _sampling(body: GenerationBody, sampler: FoundSampler | None) -> dict[str, Any]:
    """Return fields of the request that OpenAI's API has not."""
    churn = {
        name: value for name, rest in _CHURN.items() if (value := getattr(body, name)) not in (None, rest)
    }
    if sampler is None:
        if body.scheduler and body.scheduler.casefold() != "automatic":
            return {"grid": "a1111", "schedule": find_schedule(body.scheduler) or body.scheduler}
        return {}
    fields: dict[str, Any] = {}
    if sampler.schedule is not None:
        fields["schedule"] = sampler.schedule
    fields["grid"] = sampler.grid
    # Samplers without such options ignore them in AUTOMATIC1111 too.
    known = {name: value for name, value in churn.items() if name in SAMPLER_OPTIONS[sampler.sampler]}
    if options := {**sampler.options, **known}:
        fields["sampler_options"] = options
    if body.eta is not None and sampler.sampler in _WITH_ETA:
        fields["eta"] = body.eta
    elif body.eta not in (None, 1) and sampler.sampler in FRESH_NOISE:
        raise ServerError(
            "not_supported", f"eta of {sampler.sampler} is {body.eta:g}: it can only be 1", param="eta"
        )
    return fields


def _preparation(body: Img2ImgBody) -> Preparation | None:
    mode = _MODES[body.resize_mode or 0]
    if not body.mask:
        # Requests resize in the same way by themselves.
        return None if mode == "stretch" else Preparation(resize_mode=mode)
    across, down = (
        body.mask_blur if body.mask_blur is not None else (_MASK_BLUR if blur is None else blur)
        for blur in (body.mask_blur_x, body.mask_blur_y)
    )
    return Preparation(
        resize_mode=mode,
        mask_blur=(float(across), float(down)),
        invert_mask=bool(body.inpainting_mask_invert),
        fill_masked=not body.inpainting_fill,
        only_masked=body.inpaint_full_res is not False,
        padding=body.inpaint_full_res_padding or 0,
    )
