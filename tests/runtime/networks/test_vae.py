"""Large images are encoded and decoded in tiles, with nearly the same result as whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.runtime.networks import vae as vae_module
from sd2rt.runtime.networks.vae import Vae
from sd2rt.runtime.tiling.tiling import Tiling

Array = NDArray[np.float32]
TILE = 32


class Engines:
    """A bundle's parts, opened on first use; records the sizes of their sessions."""

    def __init__(self, bundle: Path, stack: ExitStack) -> None:
        self.bundle = open_bundle(bundle)
        self._stack = stack
        self._open: dict[PartName, OnnxRuntimeEngine] = {}
        self.requested: list[tuple[PartName, Mapping[str, int]]] = []
        self.launches = 0

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def __call__(self, part: PartName) -> Any:
        if part not in self._open:
            entry = self.manifest.parts[part]
            engine = OnnxRuntimeEngine(entry, self.bundle.file(entry.onnxruntime))
            self._open[part] = self._stack.enter_context(engine)
        return Watched(self, part, self._open[part])


class Watched:
    """An engine that records its sessions and launches."""

    def __init__(self, engines: Engines, part: PartName, engine: OnnxRuntimeEngine) -> None:
        self._engines, self._part, self._engine = engines, part, engine

    def session(self, dims: Mapping[str, int]) -> Any:
        self._engines.requested.append((self._part, dict(dims)))
        session = self._engine.session(dims)
        original = type(session).launch

        def launch() -> None:
            self._engines.launches += 1
            original(session)

        session.launch = launch  # type: ignore[method-assign]
        return session


@pytest.fixture
def engines(opened: Engines) -> Engines:
    opened.requested.clear()
    opened.launches = 0
    return opened


@pytest.fixture(scope="module")
def opened(small_bundle: Path) -> Iterator[Engines]:
    with ExitStack() as stack:
        yield Engines(small_bundle, stack)


def vae(engines: Engines, tile: int = TILE) -> Vae:
    return Vae(engines, engines.manifest.latents, tile)


def smooth(channels: int, height: int, width: int) -> Array:
    """A few slow waves across the image."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    draw = np.random.default_rng(7)
    planes = []
    for _ in range(channels):
        a, b, p, q = draw.uniform(0.5, 1, 4)
        planes.append(np.sin(9.4 * (a * x + b * y) + p) * np.cos(9.4 * (b * x - a * y) + q))
    return np.stack(planes).astype(np.float32)


def gradient(channels: int, height: int, width: int) -> Array:
    y, x = np.mgrid[:height, :width] / max(height, width)
    slopes = np.random.default_rng(1).uniform(-1, 1, (channels, 3))
    return np.stack([2 * a * x + 2 * b * y + c for a, b, c in slopes]).astype(np.float32)


def blobs(channels: int, height: int, width: int) -> Array:
    y, x = np.mgrid[:height, :width] / max(height, width)
    draw = np.random.default_rng(5)
    planes = np.zeros((channels, height, width))
    for plane in planes:
        for a, p, q in zip(draw.normal(0, 1.5, 5), draw.uniform(0, 1, 5), draw.uniform(0, 1, 5), strict=True):
            plane += a * np.exp(-((x - p) ** 2 + (y - q) ** 2) / 0.02)
    return planes.astype(np.float32)


def noise(channels: int, height: int, width: int) -> Array:
    return np.random.default_rng(3).standard_normal((channels, height, width)).astype(np.float32)


def difference(actual: Array, expected: Array) -> Array:
    """Difference of two decoded images, clipped to their visible range, in 1/255."""
    error: Array = np.abs(actual.clip(-1, 1) - expected.clip(-1, 1)) * np.float32(127.5)
    return error


@pytest.mark.parametrize("size", [(16, 16), (8, 16)])
def test_what_fits_is_one_call_of_the_ordinary_graph(engines: Engines, size: tuple[int, int]) -> None:
    h, w = size
    coder = vae(engines, tile=16)
    coder.decode(noise(4, h, w))
    coder.encode(smooth(3, 8 * h, 8 * w))
    assert engines.requested == [("decoder", {"B": 1, "h": h, "w": w}), ("encoder", {"B": 1, "h": h, "w": w})]
    assert engines.launches == 2


@pytest.mark.parametrize("content", [smooth, gradient, blobs, noise])
def test_tiles_decode_as_the_whole(engines: Engines, content: Callable[..., Array]) -> None:
    """Within 2/255 on smooth content and on noise; separate tiles are 4 to 125 off."""
    latents = content(4, 96, 64)
    whole = vae(engines, tile=96)
    expected = whole.decode(latents)
    engines.launches = 0
    error = difference(vae(engines, tile=64).decode(latents), expected)
    tiling = Tiling(96, 64, 64, 16)
    assert engines.launches <= vae_module._MAX_PASSES * len(tiling.boxes)
    plain = difference(tiling.blend((whole.decode(box.cut(latents)) for box in tiling.boxes), 8), expected)
    assert error.max() <= 2
    assert error.mean() <= 0.1 * plain.mean()


def test_tiles_encode_as_the_whole(engines: Engines) -> None:
    image = smooth(3, 512, 768)
    expected = vae(engines, tile=96).encode(image)[:4]
    error = np.abs(vae(engines, tile=64).encode(image)[:4] - expected) / expected.std()
    assert error.max() <= 0.4
    assert error.mean() <= 0.01


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_a_tile_that_knows_of_nothing_else_is_worked_on_as_ever(engines: Engines, part: PartName) -> None:
    tiled: PartName = "tiled_decoder" if part == "decoder" else "tiled_encoder"
    array = noise(4, 8, 16) if part == "decoder" else noise(3, 64, 128)
    source, target = ("latents", "image") if part == "decoder" else ("image", "moments")
    session = engines(tiled).session({"h": 8, "w": 16, "M": 3})
    session.buffers[source].write(array[None])
    session.buffers["weights"].write(np.full((8, 16), 0.5, np.float32))
    session.buffers["context_bias"].write(np.full(3, -1000, np.float32))
    session.launch()
    coder = vae(engines)
    expected = coder.decode(array) if part == "decoder" else coder.encode(array)
    actual = session.buffers[target].read()[0]
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("size", [(40, 32), (16, 72), (48, 40), (41, 31), (9, 75)])
def test_no_call_is_larger_than_a_tile_and_all_are_of_one_shape(
    engines: Engines, size: tuple[int, int]
) -> None:
    h, w = size
    coder = vae(engines)
    assert coder.decode(noise(4, h, w)).shape == (3, 8 * h, 8 * w)
    assert coder.encode(noise(3, 8 * h, 8 * w)).shape == (8, h, w)
    tile = {"h": min(h, TILE), "w": min(w, TILE), "M": h * w}
    # One session for all tiles of all passes.
    assert engines.requested == [("tiled_decoder", tile), ("tiled_encoder", tile)]


@pytest.mark.parametrize(("content", "axis"), [(smooth, 1), (noise, 2)])
def test_no_seam_is_seen_where_tiles_meet(engines: Engines, content: Callable[..., Array], axis: int) -> None:
    size = (72, 16) if axis == 1 else (16, 72)
    image = np.moveaxis(vae(engines).decode(content(4, *size)), axis, 2)
    # Differences across the borders of latents 1, 2, ...: all at one phase of the decoder's upsampling.
    steps = np.abs(image[:, :, 8::8] - image[:, :, 7:-1:8]).mean((0, 1))
    boxes = Tiling(*size, TILE, 16).boxes
    starts = sorted({box.top if axis == 1 else box.left for box in boxes})
    meet = sorted({*starts[1:], *(start + TILE for start in starts[:-1])})
    at_seams = np.isin(np.arange(1, 72), meet)
    assert len(meet) >= 4
    assert steps[at_seams].mean() <= 1.25 * steps[~at_seams].mean()


def test_an_image_without_a_whole_number_of_latents_is_refused(engines: Engines) -> None:
    with pytest.raises(ValueError, match="260x256"):
        vae(engines).encode(smooth(3, 256, 260))


def test_weights_are_stored_once(engines: Engines) -> None:
    """The graphs for tiles use the weights of the ordinary graphs."""
    parts = engines.manifest.parts
    for tiled, half in (("tiled_decoder", "decoder"), ("tiled_encoder", "encoder")):
        data = {file.path for file in parts[tiled].files if file.path.endswith(".data")}  # type: ignore[index]
        assert data == {f"{half}/model.onnx.data"}
        graph = next(file for file in parts[tiled].files if file.path == parts[tiled].onnx)  # type: ignore[index]
        assert graph.size < 300_000
