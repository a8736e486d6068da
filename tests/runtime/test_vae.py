"""Large images go through the autoencoder in tiles, and come out as if they had gone whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from sd2rt.engines.kinds import PartName
from sd2rt.engines.manifest import Latents
from sd2rt.engines.session import Engine, shape_of
from sd2rt.export.networks import skeleton
from sd2rt.export.onnx_part import Dimensions, interface
from sd2rt.export.part_modules import Decoder, Encoder
from sd2rt.export.random_configs import SMALL
from sd2rt.export.random_weights import RandomWeights
from sd2rt.export.tiled_modules import TiledDecoder, TiledEncoder, count_norms
from sd2rt.runtime import vae as vae_module
from sd2rt.runtime.tiles import Tiling
from sd2rt.runtime.vae import Vae

Array = NDArray[np.float32]
Network = Callable[..., Any]

LATENTS = Latents(channels=4, vae_factor=8, scaling_factor=0.18215)
TILE = 32
STEP = 2 / 255
"""One of 255, in an image of -1 to 1."""
MODULES: dict[PartName, Callable[[Any], nn.Module]] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "tiled_decoder": TiledDecoder,
    "tiled_encoder": TiledEncoder,
}


def _autoencoder(seed: int) -> Any:
    model = skeleton("vae", SMALL.vae)
    model.load_state_dict(RandomWeights(SMALL, seed=seed).tensors("vae"), assign=True)
    return model.eval()


@cache
def network(part: PartName, seed: int = 0) -> nn.Module:
    """The real one, of random weights."""
    return MODULES[part](_autoencoder(seed))


@cache
def dimensions() -> Dimensions:
    vae = skeleton("vae", SMALL.vae)
    return Dimensions(
        text_width=1,
        channels=4,
        factor=8,
        norms={
            "tiled_decoder": count_norms(vae.get_submodule("decoder")),
            "tiled_encoder": count_norms(vae.get_submodule("encoder")),
        },
        groups=4,
        tokens_width=24,
    )


class TorchBuffer:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.host = np.zeros(shape, np.float32)
        self.shape = shape

    def write(self, array: Array) -> None:
        assert array.shape == self.host.shape
        np.copyto(self.host, array)

    def pull(self) -> Array:
        return self.host

    def read(self) -> Array:
        return self.host.copy()


class TorchEngine:
    """A PyTorch module where an engine is expected. It keeps the sizes that it was asked for."""

    def __init__(self, part: PartName, network: Network) -> None:
        self.network = network
        self.tensors = interface(part, dimensions(), "float32")
        self.asked: list[tuple[int, int]] = []
        self.launches = 0

    def session(self, dims: Mapping[str, int]) -> TorchSession:
        self.asked.append((dims["h"], dims["w"]))
        return TorchSession(self, dims)


class TorchSession:
    def __init__(self, engine: TorchEngine, dims: Mapping[str, int]) -> None:
        self._engine = engine
        tensors = (*engine.tensors.inputs, *engine.tensors.outputs)
        assert dims.keys() == {"h", "w", "M" if len(tensors) > 2 else "B"}
        self.buffers = {tensor.name: TorchBuffer(shape_of(tensor, dims)) for tensor in tensors}

    def launch(self) -> None:
        self._engine.launches += 1
        tensors = self._engine.tensors
        inputs = [torch.from_numpy(self.buffers[tensor.name].host) for tensor in tensors.inputs]
        with torch.no_grad():
            found = self._engine.network(*inputs)
        outputs = found if isinstance(found, tuple) else (found,)
        for tensor, output in zip(tensors.outputs, outputs, strict=True):
            self.buffers[tensor.name].write(output.numpy())


def vae(part: PartName, of: Network, tile: int = TILE) -> tuple[Vae, TorchEngine]:
    engine = TorchEngine(part, of)
    engines = {part: cast(Engine, engine)}
    return Vae(engines.__getitem__, LATENTS, tile), engine


def whole(of: Network, array: Array) -> Array:
    with torch.no_grad():
        return cast(Array, of(torch.from_numpy(array[None]))[0].numpy())


def smooth(channels: int, height: int, width: int, waves: float = 1.5) -> Array:
    """A few slow waves across the picture."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    draw = np.random.default_rng(7)
    planes = []
    for _ in range(channels):
        a, b, p, q = draw.uniform(0.5, 1, 4)
        planes.append(np.sin(6.3 * waves * (a * x + b * y) + p) * np.cos(6.3 * waves * (b * x - a * y) + q))
    return np.stack(planes).astype(np.float32)


def noise(channels: int, height: int, width: int) -> Array:
    return np.random.default_rng(3).standard_normal((channels, height, width)).astype(np.float32)


@pytest.mark.parametrize("size", [(16, 16), (3, 8)])
def test_what_fits_is_one_call_and_equal_to_the_bit(size: tuple[int, int]) -> None:
    h, w = size
    decoding, decoder = vae("decoder", network("decoder"), tile=16)
    latents = noise(4, h, w)
    assert np.array_equal(decoding.decode(latents), whole(network("decoder"), latents))
    encoding, encoder = vae("encoder", network("encoder"), tile=16)
    image = smooth(3, 8 * h, 8 * w)
    assert np.array_equal(encoding.encode(image), whole(network("encoder"), image))
    assert decoder.asked == encoder.asked == [size]


def gradient(channels: int, height: int, width: int) -> Array:
    y, x = np.mgrid[:height, :width] / max(height, width)
    slopes = np.random.default_rng(1).uniform(-1, 1, (channels, 3))
    return np.stack([2 * a * x + 2 * b * y + c for a, b, c in slopes]).astype(np.float32)


def plain_tiles(of: Network, latents: Array, tile: int) -> Array:
    """What overlapping tiles are worth that know nothing of each other."""
    tiling = Tiling(*latents.shape[1:], tile, max(tile // 4, 16))
    return tiling.blend((whole(of, box.cut(latents)) for box in tiling.boxes), 8)


@pytest.mark.parametrize(
    ("seed", "content", "size", "tile"),
    [
        (0, smooth, (48, 32), 32),
        (1, gradient, (32, 48), 32),
        (0, gradient, (48, 32), 32),
    ],
)
def test_tiles_of_smooth_latents_decode_as_the_whole(
    seed: int, content: Callable[..., Array], size: tuple[int, int], tile: int
) -> None:
    latents = content(4, *size)
    expected = whole(network("decoder", seed), latents)
    tiled, engine = vae("tiled_decoder", network("tiled_decoder", seed), tile)
    error = np.abs(tiled.decode(latents) - expected)
    plain = np.abs(plain_tiles(network("decoder", seed), latents, tile) - expected)
    assert error.max() <= 2 * STEP
    assert error.mean() <= 0.1 * plain.mean()
    tiles = len(Tiling(*size, tile, 16).boxes)
    assert engine.launches <= vae_module._MOST_PASSES * tiles


def test_tiles_of_noise_decode_no_worse_than_apart() -> None:
    latents = noise(4, 48, 32)
    expected = whole(network("decoder"), latents)
    tiled, engine = vae("tiled_decoder", network("tiled_decoder"))
    error = np.abs(tiled.decode(latents) - expected)
    plain = np.abs(plain_tiles(network("decoder"), latents, TILE) - expected)
    assert error.max() <= min(2 * STEP, plain.max())
    assert engine.launches <= 4 * 2


def test_tiles_of_a_smooth_image_encode_as_the_whole() -> None:
    image = smooth(3, 384, 256)
    expected = whole(network("encoder"), image)
    tiled, _ = vae("tiled_encoder", network("tiled_encoder"))
    error = np.abs(tiled.encode(image) - expected)[:4] / expected[:4].std()
    assert error.max() <= 0.25
    assert error.mean() <= 0.02


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_a_tile_that_knows_of_nothing_else_is_worked_on_as_ever(part: PartName) -> None:
    tiled: PartName = "tiled_decoder" if part == "decoder" else "tiled_encoder"
    array = noise(4, 8, 16) if part == "decoder" else noise(3, 64, 128)
    session = TorchEngine(tiled, network(tiled)).session({"h": 8, "w": 16, "M": 3})
    names = list(session.buffers)
    session.buffers[names[0]].write(array[None])
    session.buffers["weights"].write(np.full((8, 16), 0.5, np.float32))
    session.buffers["context_bias"].write(np.full(3, -1000, np.float32))
    session.launch()
    expected = whole(network(part), array)
    found = session.buffers["image" if part == "decoder" else "moments"].read()[0]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("part", ["tiled_decoder", "tiled_encoder"])
@pytest.mark.parametrize("size", [(33, 32), (16, 100), (80, 48)])
def test_no_call_is_larger_than_a_tile_and_all_are_of_one_shape(
    part: PartName, size: tuple[int, int]
) -> None:
    h, w = size

    def fake(x: torch.Tensor, stats: torch.Tensor, given: Any, weights: torch.Tensor, *context: Any) -> Any:
        tokens = torch.zeros(24, *weights.shape)
        if part == "tiled_decoder":
            return x[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3), torch.ones_like(stats), tokens
        return x[:, [0, 1, 2, 0, 1, 2, 0, 1], ::8, ::8], torch.ones_like(stats), tokens

    coder, engine = vae(part, fake)
    array = smooth(4, h, w) if part == "tiled_decoder" else smooth(3, 8 * h, 8 * w)
    if part == "tiled_decoder":
        made, expected = coder.decode(array), array[:3].repeat(8, 1).repeat(8, 2)
    else:
        made, expected = coder.encode(array), array[[0, 1, 2, 0, 1, 2, 0, 1], ::8, ::8]
    np.testing.assert_allclose(made, expected, atol=1e-5)
    assert made.dtype == np.float32
    # One session for all tiles of all passes: here the first, and one that finds that nothing has moved.
    assert engine.asked == [(min(h, TILE), min(w, TILE))]
    assert engine.launches == 2 * len(Tiling(h, w, TILE, 16).boxes)


@pytest.mark.parametrize(("content", "axis"), [(smooth, 1), (noise, 2)])
def test_no_seam_is_seen_where_tiles_meet(content: Callable[..., Array], axis: int) -> None:
    tiled, _ = vae("tiled_decoder", network("tiled_decoder"))
    size = (72, 16) if axis == 1 else (16, 72)
    image = np.moveaxis(tiled.decode(content(4, *size)), axis, 2)
    # From one latent to the next, where all steps are of one phase of the decoder's upsampling: 1, 2, ...
    steps = np.abs(image[:, :, 8::8] - image[:, :, 7:-1:8]).mean((0, 1))
    boxes = Tiling(*size, TILE, 16).boxes
    starts = sorted({box.top if axis == 1 else box.left for box in boxes})
    meet = sorted({*starts[1:], *(start + TILE for start in starts[:-1])})
    at_seams = np.isin(np.arange(1, 72), meet)
    assert len(meet) >= 4
    assert steps[at_seams].mean() <= 1.25 * steps[~at_seams].mean()


def test_an_image_without_a_whole_number_of_latents_is_refused() -> None:
    coder, _ = vae("encoder", network("encoder"))
    with pytest.raises(ValueError, match="260x256"):
        coder.encode(smooth(3, 256, 260))
