"""AUTOMATIC1111's lists of what a server has."""

from __future__ import annotations

import os
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sd2rt.engines.bundle.sampler_config import schedules_of
from sd2rt.runtime.metadata.sampler_names import SAMPLERS, SCHEDULE_NAMES, UNNAMED_SAMPLERS
from sd2rt.runtime.server.generation import ModelInfo
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.http.sdapi.options import title_of


async def samplers(request: Request) -> Response:
    """List samplers by AUTOMATIC1111's names, where it has them."""
    names = {**SAMPLERS, **{name: name for name in UNNAMED_SAMPLERS}}
    return JSONResponse(
        [
            {"name": label, "aliases": [name], "options": {"schedules": ", ".join(schedules_of(name))}}
            for name, label in names.items()
        ]
    )


async def schedulers(request: Request) -> Response:
    """List schedule types."""
    labels = {"automatic": "Automatic"} | {name: label for name, (label, _) in SCHEDULE_NAMES.items()}
    return JSONResponse(
        [
            {"name": name, "label": label, "aliases": None, "default_rho": None, "need_inner_model": False}
            for name, label in labels.items()
        ]
    )


async def upscalers(request: Request) -> Response:
    """List the upscaling bundles, after None, which leaves an image as it is."""
    found = [("None", 1)] + [
        (model.id, model.upscale_factor) for model in _models(request) if model.upscale_factor is not None
    ]
    return JSONResponse(
        [
            {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": scale}
            for name, scale in found
        ]
    )


async def sd_models(request: Request) -> Response:
    """List the bundles. A file name is the bundle's name: paths of the server are its own affair."""
    return JSONResponse(
        [
            {
                "title": title_of(model),
                "model_name": model.id,
                "hash": model.identity[:10],
                "sha256": model.identity,
                "filename": model.id,
                "config": None,
            }
            for model in _models(request)
        ]
    )


async def loras(request: Request) -> Response:
    """List the LoRAs that the operator has named."""
    names = dict.fromkeys(name for model in _models(request) for name in model.loras)
    return JSONResponse([{"name": name, "alias": name, "path": name, "metadata": {}} for name in names])


async def embeddings(request: Request) -> Response:
    """List the textual inversions that the operator has named."""
    found = {each[0]: each for model in _models(request) for each in model.embeddings}
    loaded = {
        token: {
            "step": None,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            "shape": size,
            "vectors": count,
        }
        for token, count, size in found.values()
    }
    return JSONResponse({"loaded": loaded, "skipped": {}})


async def scripts(request: Request) -> Response:
    """List scripts: none."""
    return JSONResponse({"txt2img": [], "img2img": []})


async def nothing(request: Request) -> Response:
    """List what this server has none of."""
    return JSONResponse([])


async def refreshed(request: Request) -> Response:
    """Look for new files: none, since the operator names them at start."""
    return JSONResponse({})


async def memory(request: Request) -> Response:
    """Show the memory of this machine, and what workers use of their devices."""
    front: Front = request.app.state.front
    used = front.client.stats.device_memory_bytes
    return JSONResponse({"ram": _ram(), "cuda": {"workers": dict(used)}})


async def cmd_flags(request: Request) -> Response:
    """Show the settings that clients may want to know; keys and paths are not among them."""
    front: Front = request.app.state.front
    config = front.config
    return JSONResponse(
        {
            "api": True,
            "nowebui": True,
            "api_auth": bool(front.keyring),
            "max_images": config.max_images,
            "max_steps": config.max_steps,
            "max_side": config.max_side,
            "lowvram": False,
            "medvram": False,
        }
    )


def _models(request: Request) -> list[ModelInfo]:
    front: Front = request.app.state.front
    front.require_started()
    return list(front.client.models.values())


def _ram() -> dict[str, Any]:
    """Return bytes of memory; empty where the system does not say."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return {}
    return {"free": free, "used": total - free, "total": total}
