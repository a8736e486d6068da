"""Bodies of AUTOMATIC1111's answers to requests for images."""

from __future__ import annotations

import base64
import json
import time
from importlib.metadata import version
from typing import Any

from sd2rt.runtime.metadata.sampler_names import SAMPLERS
from sd2rt.runtime.server.generation import Completed, GeneratedImage, ModelInfo
from sd2rt.runtime.server.http.sdapi.bodies import GenerationBody, Img2ImgBody
from sd2rt.runtime.server.http.sdapi.submissions import Plan
from sd2rt.runtime.server.http.sdapi.tasks import Task, images_of


def generation_answer(
    body: GenerationBody, plan: Plan, task: Task, completed: list[Completed], model: ModelInfo
) -> dict[str, Any]:
    """Return the answer to txt2img and img2img: images, the request's known fields, and facts as a JSON string."""
    images = images_of(completed)
    return {
        "images": [] if body.send_images is False else [base64_of(image.data) for image in images],
        "parameters": _parameters(body),
        "info": json.dumps(_info(body, plan, task, completed, model)),
    }


def _parameters(body: GenerationBody) -> dict[str, Any]:
    """Repeat the known fields; what else a client has put into its body may be secret."""
    pictures = {"init_images", "mask", "latent_mask"}
    if isinstance(body, Img2ImgBody) and body.include_init_images:
        pictures = set()
    return body.model_dump(mode="json", exclude=pictures) | dict.fromkeys(
        pictures & type(body).model_fields.keys()
    )


def _info(
    body: GenerationBody, plan: Plan, task: Task, completed: list[Completed], model: ModelInfo
) -> dict[str, Any]:
    images = images_of(completed)
    facts = completed[0].facts if completed else {}
    seeds = [image.seed for image in images]
    prompt, negative = body.prompt or "", body.negative_prompt or ""
    used = facts.get("sampler")
    labels = {str(name): label for name, label in SAMPLERS.items()}
    warnings = list(dict.fromkeys(text for each in completed for text in each.facts.get("warnings", [])))
    if task.failure is not None:
        warnings.append(f"iteration {task.iteration + 1} of {task.iterations} failed: {task.failure}")
    if plan.options.model not in (None, model.id):
        warnings.append(f"the chosen checkpoint cannot do this: {model.id} was used")
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(images),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(images),
        "seed": seeds[0] if seeds else -1,
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(images),
        "subseed_strength": 0,
        "width": facts.get("width", body.width or model.width),
        "height": facts.get("height", body.height or model.height),
        "sampler_name": body.sampler_name or body.sampler_index or labels.get(used or "", used),
        "cfg_scale": facts.get("guidance_scale", body.cfg_scale),
        "steps": facts.get("steps", body.steps),
        "batch_size": plan.request.count,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model.id,
        "sd_model_hash": model.identity[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": plan.request.fields.get("strength"),
        "extra_generation_params": _masking(plan),
        "index_of_first_image": 0,
        "infotexts": [text for each in completed for text in each.facts.get("infotexts", [])],
        "styles": [],
        "job_timestamp": task.stamp,
        "clip_skip": plan.request.fields.get("clip_skip", 0) + 1,
        "is_using_inpainting_conditioning": "mask" in plan.request.images,
        "version": f"sd2rt {version('sd2rt')}",
        "interrupted": task.interrupted or task.skipped,
        "sd2rt": {"id": plan.request.request_id, "warnings": warnings, "finished": int(time.time())},
    }


def _masking(plan: Plan) -> dict[str, Any]:
    """Describe the use of a mask, in AUTOMATIC1111's words."""
    settings = plan.request.preparation
    if settings is None or "mask" not in plan.request.images:
        return {}
    area = "Only masked" if settings.only_masked else "Whole picture"
    return {
        "Mask blur": settings.mask_blur[0],
        "Inpaint area": area,
        **({"Masked area padding": settings.padding} if settings.only_masked else {}),
        **({"Mask mode": "Inpaint not masked"} if settings.invert_mask else {}),
    }


def upscaling_answer(images: list[GeneratedImage | bytes], several: bool) -> dict[str, Any]:
    """Return the answer to requests for larger images."""
    sent = [base64_of(image if isinstance(image, bytes) else image.data) for image in images]
    sizes = [f"{image.width}x{image.height}" for image in images if not isinstance(image, bytes)]
    html = f"<p>{', '.join(sizes)}</p>" if sizes else ""
    return {"html_info": html, **({"images": sent} if several else {"image": sent[0]})}


def base64_of(data: bytes) -> str:
    """Encode as text."""
    return base64.b64encode(data).decode("ascii")
