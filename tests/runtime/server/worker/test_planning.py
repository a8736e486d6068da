"""Requests from elsewhere: only bytes are decoded, limits hold before work is done, and codes say what is wrong."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.preparation import Preparation
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import MAX_PROMPT, GenerationRequest
from sd2rt.runtime.server.worker.failures import server_error
from sd2rt.runtime.server.worker.planning import FIELDS, PlannedGeneration, plan_generation

_BOMB_BYTES = 20_000_000


def file_of(
    size: tuple[int, int] = (64, 64), mode: str = "RGB", kind: str = "PNG", colour: Any = None
) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour or 0).save(file, kind)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(min(1 + (width + 7) // 8, _BOMB_BYTES))
    # The last ones may be missing: nobody gets as far.
    rows = min(height, _BOMB_BYTES // len(row))
    data = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def base(small_bundle: Path) -> Manifest:
    return read_manifest(small_bundle)


def plan(manifest: Manifest, images: Any = None, count: int = 1, **fields: Any) -> PlannedGeneration:
    request = GenerationRequest(
        request_id="a", model="small", fields={"prompt": "x"} | fields, images=images or {}, count=count
    )
    return plan_generation(request, manifest, max_steps=100, max_image_pixels=None)


def refused(manifest: Manifest, images: Any = None, **fields: Any) -> ServerError:
    with pytest.raises((ServerError, RequestError)) as raised:
        plan(manifest, images, **fields)
    return server_error(raised.value)


def test_images_have_consecutive_seeds(base: Manifest) -> None:
    planned = plan(base, count=3, seed=7)
    assert [each.request.seed for each in planned.images] == [7, 8, 9]
    varied = plan(base, count=2, seed=7, variation_seed=1, variation_strength=0.5)
    assert [each.request.seed for each in varied.images] == [7, 7]
    assert [each.request.variation_seed for each in varied.images] == [1, 2]
    assert plan(base).images[0].request.seed != plan(base).images[0].request.seed


def test_no_field_names_a_file(base: Manifest, tmp_path: Path) -> None:
    """Neither paths nor addresses are opened, wherever they stand."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # opened by mistake, it would hang
    for name in (
        "image",
        "mask_image",
        "depth_map",
        "latents",
        "prompt_embeds",
        "max_image_pixels",
        "output_type",
    ):
        assert name not in FIELDS
        for value in ("/etc/passwd", "-", str(fifo), "file:///etc/passwd", "http://127.0.0.1:1/"):
            error = refused(base, **{name: value})
            assert (error.code, error.param) == ("invalid_value", name)


@pytest.mark.parametrize(
    "data",
    [
        b"/etc/passwd",
        b"-",
        b"file:///etc/passwd",
        b"http://127.0.0.1:1/",
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a" + bytes(50),
    ],
)
@pytest.mark.parametrize("role", ["image", "mask", "depth_map"])
def test_strings_as_images_are_no_images(base: Manifest, data: bytes, role: str) -> None:
    error = refused(base, {role: data})
    assert (error.code, error.param) == ("invalid_image", role)
    assert "root:" not in error.message


def test_bombs_are_refused_before_they_are_decoded(base: Manifest) -> None:
    for size in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (100_000, 1000)):
        data = bomb(*size)
        assert len(data) < 100_000
        error = refused(base, {"image": data})
        assert (error.code, error.param) == ("too_many_pixels", "image")
        assert error.answer.status == 413


def test_animated_and_damaged_images_are_refused(base: Manifest) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    whole = file_of((64, 64), kind="JPEG")
    for data in (file.getvalue(), whole[: len(whole) // 2], file_of()[:-30]):
        assert refused(base, {"image": data}).code == "invalid_image"


@pytest.mark.parametrize("size", [(72, 64), (904, 600), (136, 4088)])
def test_sizes_in_multiples_of_8(base: Manifest, earlier_bundle: Path, size: tuple[int, int]) -> None:
    width, height = size
    planned = plan(base, width=width, height=height)
    assert (planned.width, planned.height) == size
    error = refused(read_manifest(earlier_bundle), width=width, height=height)
    assert error.code == "size_not_supported"
    assert f"width {width} is not a multiple of 64 from 64 to 4096: use" in str(error)


@pytest.mark.parametrize("settings", [None, Preparation(resize_mode="crop")])
def test_an_image_to_start_from_decides_the_size(
    base: Manifest, earlier_bundle: Path, settings: Preparation | None
) -> None:
    for manifest, expected in ((base, (200, 120)), (read_manifest(earlier_bundle), (192, 64))):
        request = GenerationRequest(
            request_id="a",
            model="small",
            fields={"prompt": "x", "strength": 0.5},
            images={"image": file_of((203, 127))},
            preparation=settings,
        )
        planned = plan_generation(request, manifest, max_steps=100, max_image_pixels=None)
        assert (planned.width, planned.height) == expected


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"width": 100}, "size_not_supported", "size"),
        ({"height": 8192}, "size_not_supported", "size"),
        ({"width": "64"}, "invalid_value", "size"),
        ({"num_inference_steps": 101}, "invalid_value", "num_inference_steps"),
        ({"num_inference_steps": 0}, "invalid_value", "num_inference_steps"),
        ({"sigmas": [1.0] * 101}, "invalid_value", None),
        ({"guidance_scale": [1.0] * 101}, "invalid_value", None),
        ({"prompt": "x" * (MAX_PROMPT + 1)}, "invalid_value", "prompt"),
        ({"prompt": None}, "invalid_value", None),
        ({"prompt": "\ud800"}, "invalid_value", "prompt"),
        ({"sampler": "none"}, "invalid_value", "sampler"),
        ({"strength": 0.5}, "task_not_supported", None),
        ({"noise_level": 20}, "task_not_supported", None),
        ({"<script>": 1}, "invalid_value", "<script>"),
    ],
)
def test_codes(base: Manifest, fields: dict[str, Any], code: str, param: str | None) -> None:
    error = refused(base, **fields)
    assert (error.code, error.param) == (code, param)
    assert error.answer.status == 400


def test_the_kind_that_can_is_named(base: Manifest) -> None:
    error = refused(base, {"image": file_of(), "depth_map": file_of(mode="L")})
    assert error.code == "task_not_supported"
    assert "needs a bundle of kind depth" in error.message


def test_a_mask_of_another_size_is_refused(small_inpainting_bundle: Path) -> None:
    manifest = read_manifest(small_inpainting_bundle)
    error = refused(manifest, {"image": file_of((64, 64)), "mask": file_of((32, 64), "L")})
    assert error.code == "invalid_image"
    assert "32x64" in error.message
    planned = plan(
        manifest, {"image": file_of((64, 64)), "mask": file_of((64, 64), "L", colour=255)}, paste=True
    )
    assert (planned.width, planned.height) == (64, 64)


def test_the_size_of_an_image_decides(base: Manifest) -> None:
    planned = plan(base, {"image": file_of((100, 130))})
    assert (planned.width, planned.height) == (96, 128)


def test_the_size_of_an_upscaled_image_cannot_be_asked_for(small_upscaler_bundle: Path) -> None:
    manifest = read_manifest(small_upscaler_bundle)
    planned = plan(manifest, {"image": file_of((20, 16))})
    assert (planned.width, planned.height) == (80, 64)
    assert refused(manifest, {"image": file_of((16, 16))}, width=64, height=64).code == "size_not_supported"


def test_the_largest_side_holds_for_images_too(base: Manifest) -> None:
    request = GenerationRequest(
        request_id="a", model="small", fields={"prompt": "x"}, images={"image": file_of((256, 64))}
    )
    plan_generation(request, base, max_steps=100, max_image_pixels=None, max_side=256)
    with pytest.raises(ServerError, match="256x64 pixels: a side can be at most 128") as raised:
        plan_generation(request, base, max_steps=100, max_image_pixels=None, max_side=128)
    assert raised.value.code == "size_not_supported"
