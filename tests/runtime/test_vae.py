"""Large images go through the autoencoder in tiles, and come out as if they had gone whole.

They do where a network has no view of the whole: with the statistics of its group normalisations held, and
without attention. What it costs that the real one sees a tile alone is tested apart, on latents without
structure, where it is little; on smooth pictures, where random weights make much of it, only seams are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from sd2rt.engines.kinds import PartName
from sd2rt.engines.manifest import Latents
from sd2rt.engines.session import Engine
from sd2rt.export.networks import skeleton
from sd2rt.export.part_modules import Decoder, Encoder
from sd2rt.export.random_configs import SMALL
from sd2rt.export.random_weights import RandomWeights
from sd2rt.runtime.tiles import Tiling
from sd2rt.runtime.vae import Vae

Array = NDArray[np.float32]
Network = Callable[[torch.Tensor], torch.Tensor]

LATENTS = Latents(channels=4, vae_factor=8, scaling_factor=0.18215)
TILE = 32
STEP = 2 / 255
"""One of 255, in an image of -1 to 1."""


class TorchBuffer:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.host = np.zeros(shape, np.float32)

    def write(self, array: Array) -> None:
        assert array.shape == self.host.shape
        np.copyto(self.host, array)

    def read(self) -> Array:
        return self.host.copy()


class TorchSession:
    def __init__(self, network: Network, source: TorchBuffer, target: TorchBuffer, names: list[str]) -> None:
        self._network, self._source, self._target = network, source, target
        self.buffers = dict(zip(names, (source, target), strict=True))

    def launch(self) -> None:
        with torch.no_grad():
            output = self._network(torch.from_numpy(self._source.host))
        np.copyto(self._target.host, output.numpy())


class TorchEngine:
    """A PyTorch module where an engine is expected. It keeps the sizes that it was asked for."""

    def __init__(self, part: PartName, network: Network, factor: int = 8) -> None:
        self._part, self._network, self._factor = part, network, factor
        self.asked: list[tuple[int, int]] = []

    def session(self, dims: Mapping[str, int]) -> TorchSession:
        assert dims.keys() == {"B", "h", "w"}
        assert dims["B"] == 1
        h, w = dims["h"], dims["w"]
        self.asked.append((h, w))
        image = TorchBuffer((1, 3, h * self._factor, w * self._factor))
        if self._part == "decoder":
            return TorchSession(self._network, TorchBuffer((1, 4, h, w)), image, ["latents", "image"])
        return TorchSession(self._network, image, TorchBuffer((1, 8, h, w)), ["image", "moments"])


class Held(nn.Module):
    """A group normalisation that goes on using the statistics of the first input that it saw."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.statistics: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = x.reshape(len(x), self.norm.num_groups, -1)
        if self.statistics is None:
            self.statistics = groups.mean(2, keepdim=True), groups.var(2, keepdim=True, unbiased=False)
        mean, variance = self.statistics
        normal = ((groups - mean) / (variance + self.norm.eps).sqrt()).view_as(x)
        scaled: torch.Tensor = normal * self.norm.weight.view(-1, 1, 1) + self.norm.bias.view(-1, 1, 1)
        return scaled


def _autoencoder(attention: bool) -> Any:
    configs = replace(SMALL, vae={**SMALL.vae, "mid_block_add_attention": attention})
    model = skeleton("vae", configs.vae)
    model.load_state_dict(RandomWeights(configs, seed=0).tensors("vae"), assign=True)
    return model.eval()


@cache
def network(part: PartName) -> nn.Module:
    """The real one, of random weights."""
    return Decoder(_autoencoder(True)) if part == "decoder" else Encoder(_autoencoder(True))


def held_network(part: PartName) -> nn.Module:
    """One without attention that has its statistics from its first input."""
    module = Decoder(_autoencoder(False)) if part == "decoder" else Encoder(_autoencoder(False))
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, Held(child))
    return module


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


@pytest.mark.parametrize("size", [(48, 32), (16, 53)])
@pytest.mark.parametrize("content", [smooth, noise])
def test_tiles_decode_as_the_whole_where_statistics_are_held(
    size: tuple[int, int], content: Callable[..., Array]
) -> None:
    of = held_network("decoder")
    latents = content(4, *size)
    expected = whole(of, latents)
    tiled, _ = vae("decoder", of)
    assert np.abs(tiled.decode(latents) - expected).max() <= 2 * STEP


def test_tiles_encode_as_the_whole_where_statistics_are_held() -> None:
    of = held_network("encoder")
    image = smooth(3, 640, 256)
    expected = whole(of, image)
    tiled, _ = vae("encoder", of, tile=64)
    assert np.abs(tiled.encode(image) - expected).max() <= 0.02 * expected[:4].std()


@pytest.mark.parametrize("part", ["decoder", "encoder"])
@pytest.mark.parametrize("size", [(33, 32), (16, 100), (80, 48)])
def test_no_call_is_larger_than_a_tile_and_all_are_of_one_shape(
    part: PartName, size: tuple[int, int]
) -> None:
    h, w = size
    if part == "decoder":
        coder, engine = vae(part, lambda x: x[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3))
        made = coder.decode(smooth(4, h, w))
        assert made.shape == (3, 8 * h, 8 * w)
    else:
        coder, engine = vae(part, lambda x: x[:, [0, 1, 2, 0, 1, 2, 0, 1], ::8, ::8])
        made = coder.encode(smooth(3, 8 * h, 8 * w))
        assert made.shape == (8, h, w)
    assert made.dtype == np.float32
    assert set(engine.asked) == {(min(h, TILE), min(w, TILE))}
    assert len(engine.asked) > 1


def test_the_real_network_decodes_latents_without_structure_much_as_the_whole() -> None:
    latents = noise(4, 48, 64)
    expected = whole(network("decoder"), latents)
    tiled, _ = vae("decoder", network("decoder"), tile=48)
    error = np.abs(tiled.decode(latents) - expected)
    assert error.mean() <= 0.5 * STEP
    assert error.max() <= 8 * STEP


@pytest.mark.parametrize(("content", "axis"), [(smooth, 1), (noise, 2)])
def test_the_real_network_shows_no_seam_where_tiles_meet(content: Callable[..., Array], axis: int) -> None:
    tiled, _ = vae("decoder", network("decoder"))
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
