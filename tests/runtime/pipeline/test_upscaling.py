"""Upscaling in tiles: no seams, no more memory than one tile takes, and reproducible images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sd2rt.engines.errors import RequestError
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.runtime import Pipeline
from sd2rt.runtime.request.fields import CallOptions
from sd2rt.runtime.rng.select import make_generator
from sd2rt.runtime.tiling.noise import ImageNoise, TileGenerator
from sd2rt.runtime.tiling.tiling import Tiling

TILE = 32
OPTIONS: dict[str, Any] = {"num_inference_steps": 3, "seed": 3, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe(small_upscaler_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_upscaler_bundle, tile=TILE) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def whole(small_upscaler_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_upscaler_bundle) as pipeline:
        yield pipeline


def picture(width: int, height: int, textured: bool) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x / width, y / height, 1 - (x + y) / (width + height)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 0.15 if textured else 0.0, smooth.shape)
    return Image.fromarray(((smooth + noise).clip(0, 1) * 255).round().astype(np.uint8))


def steps(image: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Mean absolute difference between neighbouring columns or rows along an axis."""
    return np.asarray(np.abs(np.diff(image.astype(np.float64), axis=axis)).mean(axis=(1 - axis, 2)))


@pytest.mark.parametrize("sampler", [{}, {"sampler": "ddim", "eta": 1.0}], ids=["plain", "fresh noise"])
@pytest.mark.parametrize("textured", [False, True])
def test_no_seams(pipe: Pipeline, whole: Pipeline, textured: bool, sampler: dict[str, Any]) -> None:
    """Pixels across the edges of tiles differ no more than elsewhere, nor than in an untiled image."""
    source = picture(72, 56, textured)
    tiled = pipe("a hill", image=source, **OPTIONS, **sampler).images[0]
    untiled = whole("a hill", image=source, **OPTIONS, **sampler).images[0]
    assert tiled.shape == untiled.shape == (224, 288, 3)
    tiling = Tiling(56, 72, TILE, TILE // 4)
    assert len(tiling.boxes) >= 6
    for axis, edges in (
        (0, {e for b in tiling.boxes for e in (b.top, b.top + b.height)}),
        (1, {e for b in tiling.boxes for e in (b.left, b.left + b.width)}),
    ):
        seams = [4 * edge - 1 for edge in edges if 0 < 4 * edge < tiled.shape[axis]]
        actual, expected = steps(tiled, axis), steps(untiled, axis)
        inner = np.delete(actual, seams)
        assert actual[seams].mean() <= 1.2 * inner.mean()
        assert actual[seams].max() <= 1.5 * np.sort(inner)[-8]
        # Upsampling leaves a step every four or eight pixels, in the untiled image too.
        assert (
            actual[seams].mean() / inner.mean()
            <= 1.15 * expected[seams].mean() / np.delete(expected, seams).mean()
        )
    # Blending does not blur the overlaps.
    assert tiled.std() == pytest.approx(untiled.std(), rel=0.25)


@pytest.mark.parametrize("max_batch", [1, 3])
def test_batches_of_tiles_do_not_matter(small_upscaler_bundle: Path, pipe: Pipeline, max_batch: int) -> None:
    source = picture(64, 40, textured=True)
    more: dict[str, Any] = {"sampler": "ddim", "eta": 1.0}
    expected = pipe("a hill", image=source, **OPTIONS, **more).images
    with Pipeline.open(small_upscaler_bundle, tile=TILE, max_batch=max_batch) as other:
        actual = other("a hill", image=source, **OPTIONS, **more).images
    assert np.abs(actual - expected).max() <= 1e-4


def test_memory_is_that_of_a_tile(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, dict[str, int]]] = []
    original = OnnxRuntimeEngine.session

    def session(self: OnnxRuntimeEngine, dims: Mapping[str, int], *rest: Any) -> Any:
        seen.append((self.part.onnx, dict(dims)))
        return original(self, dims, *rest)

    monkeypatch.setattr(OnnxRuntimeEngine, "session", session)
    image = pipe(
        "a hill", image=picture(200, 72, textured=False), **{**OPTIONS, "output_type": "pil"}
    ).images[0]
    assert image.size == (800, 288)
    sized = [(part, dims) for part, dims in seen if "h" in dims]
    assert sized
    for part, dims in sized:
        assert max(dims["h"], dims["w"]) <= TILE, part
        assert dims.get("B", 1) <= pipe.max_batch


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (33, 8), (64, 3)])
def test_any_size(pipe: Pipeline, size: tuple[int, int]) -> None:
    image = pipe.upscale(picture(*size, textured=True), num_inference_steps=1, seed=1).images[0]
    assert image.size == (4 * size[0], 4 * size[1])


def test_upscale_takes_lists_and_outputs(whole: Pipeline) -> None:
    sources = [picture(8, 8, textured=True), picture(16, 8, textured=True)]
    output = whole.upscale(sources, ["a", "b"], num_inference_steps=1, seed=1)
    assert [image.size for image in output.images] == [(32, 32), (64, 32)]
    again = whole.upscale(output, num_inference_steps=1, seed=1)
    assert [image.size for image in again.images] == [(128, 128), (256, 128)]
    with pytest.raises(RequestError, match="image"):
        whole.upscale(sources, ["a", "b", "c"], num_inference_steps=1)


def test_upscale_takes_arrays_and_embeddings(whole: Pipeline) -> None:
    common: dict[str, Any] = {"num_inference_steps": 1, "seed": 1}
    pixels = np.stack([np.asarray(picture(8, 8, textured=True))] * 2)
    assert [image.size for image in whole.upscale(pixels, "a", **common).images] == [(32, 32)] * 2
    assert whole.upscale(pixels[0].astype(np.float32) / 255, "a", **common).images[0].size == (32, 32)
    embeds = np.zeros((1, 77, 32), np.float32)
    options: dict[str, Any] = {"prompt_embeds": embeds, "guidance_scale": 1.0, **common}
    assert whole.upscale([picture(8, 8, textured=True)], None, **options).images[0].size == (32, 32)
    for images, reason in ((np.zeros((1, 4, 8, 8), np.float32), "not 'latent'"), ([], "no image to upscale")):
        with pytest.raises(RequestError, match=reason):
            whole.upscale(images, "a", **common)
    with pytest.raises(RequestError, match="leave it out"):
        whole.upscale(pixels, "a", image=pixels[0], **common)


def test_arrays_of_several_sizes_are_refused_before_they_are_made(whole: Pipeline) -> None:
    sources = [picture(8, 8, textured=True), picture(16, 8, textured=True)]
    with pytest.raises(RequestError, match="images of several sizes"):
        whole(["a", "b"], image=sources, output_type="np", num_inference_steps=1)


@pytest.mark.parametrize("value", [True, "0.5", b"1"])
def test_strength_is_a_number(value: Any) -> None:
    from sd2rt.runtime.request.request import make_request

    with pytest.raises(RequestError, match=r"strength is .*: use a number"):
        make_request(prompt="a", image=picture(64, 64, textured=False), strength=value)
    assert make_request(prompt="a", strength=np.float32(0.5)).strength == 0.5


@pytest.mark.parametrize("side", ["width", "height"])
def test_size_is_the_images_own(whole: Pipeline, side: str) -> None:
    with pytest.raises(RequestError, match="4 times the size of the image"):
        whole("a", **cast(CallOptions, {"image": picture(8, 8, textured=False), side: 64}))


@pytest.mark.parametrize("rng", ["cpu", "cuda"])
def test_tiles_share_their_noise(rng: str) -> None:
    noise = ImageNoise(5, (4, 64, 96), rng)
    tiling = Tiling(64, 96, 32, 8)
    tiles = [TileGenerator(noise, box) for box in tiling.boxes]
    for number in range(4):
        # Tiles of a later batch repeat draws that are no longer cached.
        expected = ImageNoise(5, (4, 64, 96), rng).draw(number)
        for tile, box in zip(tiles, tiling.boxes, strict=True):
            np.testing.assert_array_equal(tile.randn((4, 32, 32)), box.cut(expected))
    first, second = (ImageNoise(5, (4, 64, 96), rng).draw(number) for number in (0, 1))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(first.ravel(), make_generator(rng, 5).randn((4, 64, 96)).ravel())[0, 1]) < 0.05
