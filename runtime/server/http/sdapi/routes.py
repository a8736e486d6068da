"""Paths of AUTOMATIC1111's API."""

from __future__ import annotations

from starlette.routing import Route

from sd2rt.runtime.server.http.sdapi import generation_routes, listing_routes, task_routes

LISTS = {
    "samplers": listing_routes.samplers,
    "schedulers": listing_routes.schedulers,
    "upscalers": listing_routes.upscalers,
    "sd-models": listing_routes.sd_models,
    "loras": listing_routes.loras,
    "embeddings": listing_routes.embeddings,
    "scripts": listing_routes.scripts,
    "memory": listing_routes.memory,
    "cmd-flags": listing_routes.cmd_flags,
    "sd-vae": listing_routes.nothing,
    "hypernetworks": listing_routes.nothing,
    "face-restorers": listing_routes.nothing,
    "realesrgan-models": listing_routes.nothing,
    "latent-upscale-modes": listing_routes.nothing,
    "prompt-styles": listing_routes.nothing,
    "script-info": listing_routes.nothing,
    "extensions": listing_routes.nothing,
}
"""By the last part of the path."""
REFRESHES = ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings")
_POSTS = {
    "txt2img": generation_routes.txt2img,
    "img2img": generation_routes.img2img,
    "extra-single-image": generation_routes.extra_single_image,
    "extra-batch-images": generation_routes.extra_batch_images,
    "png-info": task_routes.png_info,
    "interrupt": task_routes.interrupt,
    "skip": task_routes.skip,
    **dict.fromkeys(REFRESHES, listing_routes.refreshed),
}
BASE = "/sdapi/v1"

SDAPI_ROUTES = [
    *(Route(f"{BASE}/{name}", endpoint, methods=["POST"]) for name, endpoint in _POSTS.items()),
    *(Route(f"{BASE}/{name}", endpoint, methods=["GET"]) for name, endpoint in LISTS.items()),
    Route(f"{BASE}/progress", task_routes.progress, methods=["GET"]),
    Route(f"{BASE}/options", task_routes.options, methods=["GET", "POST"]),
]
