"""The autoencoder: latents to pixels and back, in tiles where an image is large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, cast

import numpy as np

from sd2rt.engines.bundle.manifest import Latents
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.interface import Engine, Float32Array, Session
from sd2rt.runtime.tiling.statistics import CoarseGrid, TileStatistics, change
from sd2rt.runtime.tiling.tiling import Tiling

TiledPart = Literal["tiled_decoder", "tiled_encoder"]

_MOST_PASSES = 12
_MARGIN = 4
"""Latents at a tile's inner edges that count nothing, in the image and in its statistics."""
_SETTLED = 1e-2
"""Standard deviations that statistics may still move: below, what is left comes from the tiles' edges."""
_LEAST_SHARED = 16
"""Latents. With fewer, a tile's edge, beyond which it sees zeros, would show before it has faded."""


class Vae:
    """A bundle's encoder and decoder, for images of any size in the memory of one tile.

    What has a side of more than ``tile`` latents goes through in tiles, all of one shape, that share at least a
    quarter of a side, and 16: decoded pixels, or encoded moments, fade from each into the next. Smaller images
    are one call, and are not changed by any of this.

    A group normalisation's statistics and the attention are over all that a network is given, so tiles that know
    nothing of each other differ in tone. Here they are gone through several times: what every tile says of
    itself is put together to the whole image's statistics and tokens, which the next pass works with, until
    nothing moves any more. Measured through ONNX Runtime on the smallest network with random weights, which make
    much of slow changes of tone, in 255ths, worst and mean, with tiles of 64 in 96x64 and 96x96 latents:

    ================  ====================  ==================
    decoded latents   tiles apart           told of the whole
    ================  ====================  ==================
    slow waves        21 to 24, 3.5         0.8 to 1.1, 0.1
    gradients         80 to 125, 7 to 11    0.5 to 1.1, 0.1
    blobs             61 to 100, 7          1.0 to 1.5, 0.1
    noise             4 to 9, 0.3           0.8 to 1.0, 0.02
    ================  ====================  ==================

    Encoded means of slow waves are off by 0.004 of their spread on average and 0.3 at most. Smaller tiles are worse
    (of 32, 1.4 to 3.5 of 255). It took 3 passes of noise and up to 8 of smooth pictures, each 1.5
    to 3 times as long as plain tiles. Beyond 2048x2048 pixels a token of the whole image is the mean of four or
    more.

    Args:
        engine: gives a part's engine; the encoder's is asked for only where something is encoded.
        latents: the manifest's entry.
        tile: the longest side, in latents, that the networks work on at once.
    """

    def __init__(self, engine: Callable[[PartName], Engine], latents: Latents, tile: int) -> None:
        self._engine = engine
        self._factor = latents.vae_factor
        self._tile = tile

    def decode(self, latents: Float32Array) -> Float32Array:
        """Latents [C, h, w], as the sampler leaves them, to an image [3, H, W], nominally in [-1, 1].

        Raises:
            EngineError: the device failed, or had no memory left.
        """
        _, h, w = latents.shape
        if max(h, w) > self._tile:
            return self._in_tiles("tiled_decoder", latents, h, w)
        session = self._engine("decoder").session({"B": 1, "h": h, "w": w})
        session.buffers["latents"].write(latents[None])
        session.launch()
        return cast(Float32Array, session.buffers["image"].read()[0])

    def encode(self, image: Float32Array) -> Float32Array:
        """An image [3, H, W] in [-1, 1] to its latents' moments [2C, h, w]: mean, then logarithm of variance.

        Raises:
            ValueError: the image's sides are no multiples of the autoencoder's factor.
            EngineError: the device failed, or had no memory left.
        """
        _, height, width = image.shape
        if height % self._factor or width % self._factor:
            raise ValueError(f"an image of {width}x{height} has no whole number of latents")
        h, w = height // self._factor, width // self._factor
        if max(h, w) > self._tile:
            return self._in_tiles("tiled_encoder", image, h, w)
        session = self._engine("encoder").session({"B": 1, "h": h, "w": w})
        session.buffers["image"].write(image[None])
        session.launch()
        return cast(Float32Array, session.buffers["moments"].read()[0])

    def _in_tiles(self, part: TiledPart, array: Float32Array, h: int, w: int) -> Float32Array:
        shared = max(self._tile // 4, _LEAST_SHARED)
        tiling = Tiling(h, w, self._tile, shared, margin=_MARGIN)
        cells = CoarseGrid(h, w)
        side = tiling.boxes[0]
        session = self._engine(part).session({"h": side.height, "w": side.width, "M": cells.count})
        # At first each tile uses its own statistics, and sees nothing of the others.
        known = np.zeros(session.buffers["stats"].shape, np.float32)
        session.buffers["given"].write(np.zeros(1, np.float32))
        session.buffers["context"].write(np.zeros(session.buffers["context"].shape))
        whole: Float32Array | None = None
        for done in range(_MOST_PASSES):
            # Not two of them at once: the one before goes before the next is begun.
            whole = None
            session.buffers["stats"].write(known)
            survey = TileStatistics(cells)
            results = self._results(part, session, array, tiling, cells, not done, survey)
            whole = tiling.blend(results, self._factor if part == "tiled_decoder" else 1)
            found = survey.statistics()
            # What is not finite is never settled, and more passes would not help it.
            if done and not change(known, found) > _SETTLED:
                break
            known = found
            session.buffers["given"].write(np.ones(1, np.float32))
            session.buffers["context"].write(survey.context())
        assert whole is not None
        return whole

    def _results(
        self,
        part: TiledPart,
        session: Session,
        array: Float32Array,
        tiling: Tiling,
        cells: CoarseGrid,
        lonely: bool,
        survey: TileStatistics,
    ) -> Iterator[Float32Array]:
        """What the network makes of each tile, while the survey takes in what it says beside."""
        source, target = ("latents", "image") if part == "tiled_decoder" else ("image", "moments")
        scale = 1 if part == "tiled_decoder" else self._factor
        buffers = session.buffers
        for box, weights in zip(tiling.boxes, tiling.weights(), strict=True):
            buffers[source].write(box.scaled(scale).cut(array)[None])
            buffers["weights"].write(weights)
            buffers["context_bias"].write(cells.none() if lonely else cells.outside(box))
            session.launch()
            survey.add(box, weights, buffers["own"].pull(), buffers["tokens"].pull())
            yield buffers[target].pull()[0]
