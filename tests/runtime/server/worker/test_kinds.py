"""Every kind of bundle in one worker, with images as bytes: the pictures of the Python API."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sd2rt.runtime import Pipeline
from sd2rt.runtime.server.generation import Completed, GenerationRequest, ImageRole
from sd2rt.runtime.server.worker_settings import WorkerSettings

from ..serving import completed, serve

FIELDS: dict[str, Any] = {"prompt": "a fox", "seed": 3, "num_inference_steps": 3}
_ARGUMENT: dict[ImageRole, str] = {"image": "image", "mask": "mask_image", "depth_map": "depth_map"}


def picture(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, np.uint8))


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_all_kinds_beside_each_other(
    small_bundle: Path, small_inpainting_bundle: Path, small_depth_bundle: Path, small_upscaler_bundle: Path
) -> None:
    half = Image.fromarray(np.tile(np.array([0, 255], np.uint8).repeat(32), (64, 1)))
    cases: list[tuple[str, Path, dict[ImageRole, Image.Image], dict[str, Any]]] = [
        ("small", small_bundle, {"image": picture((64, 64))}, {"strength": 0.7}),
        ("inpaint", small_inpainting_bundle, {"image": picture((64, 64)), "mask": half}, {"paste": True}),
        ("depth", small_depth_bundle, {"image": picture((64, 64))}, {}),
        (
            "depth",
            small_depth_bundle,
            {"image": picture((64, 64)), "depth_map": picture((64, 64), "L")},
            {"strength": 1.0},
        ),
        ("upscale", small_upscaler_bundle, {"image": picture((18, 16))}, {"noise_level": 10}),
    ]
    expected = []
    for _, bundle, images, fields in cases:
        with Pipeline.open(bundle, threads=1) as pipe:
            named: dict[str, Any] = {_ARGUMENT[role]: image for role, image in images.items()}
            options: dict[str, Any] = FIELDS | fields | named | {"negative_prompt": ""}
            output = pipe(**options)
            expected.append(np.asarray(output.images[0]))
    settings = WorkerSettings(bundles={name: str(bundle) for name, bundle, _, _ in cases}, threads=1)
    with serve(settings) as serving:
        models = serving.client.models
        assert {name: model.kind for name, model in models.items()} == {
            "small": "base",
            "inpaint": "inpainting",
            "depth": "depth",
            "upscale": "upscaler",
        }
        assert models["upscale"].upscale_factor == 4
        assert all(model.loaded for model in models.values())

        async def all_at_once() -> list[Completed]:
            requests = [
                GenerationRequest(
                    request_id=name,
                    model=name,
                    fields=FIELDS | fields,
                    images={role: encoded(image) for role, image in images.items()},
                )
                for name, _, images, fields in cases
            ]
            return await asyncio.gather(*(completed(serving.client, request) for request in requests))

        for case, result, image in zip(cases, serving(all_at_once), expected, strict=True):
            made = np.asarray(Image.open(io.BytesIO(result.images[0].data)))
            assert np.array_equal(made, image), case[0]
            assert (result.facts["width"], result.facts["height"]) == image.shape[1::-1]
