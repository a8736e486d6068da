"""The autoencoder: latents to pixels and back, in tiles for large images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, cast

import numpy as np

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import Latents
from sd2rt.engines.interface import Engine, Float32Array, Session
from sd2rt.runtime.tiling.statistics import CoarseGrid, TileStatistics, change
from sd2rt.runtime.tiling.tiling import Tiling

TiledPart = Literal["tiled_decoder", "tiled_encoder"]

_MAX_PASSES = 12
_MARGIN = 4
"""Latents ignored at a tile's inner edges, in the image and in its statistics."""
_TOLERANCE = 1e-2
"""Change of the statistics, in standard deviations, at which passes end: what remains comes from tile edges."""
_MIN_OVERLAP = 16
"""In latents. With less overlap, the zero padding beyond a tile's edge would show before the blend fades it out."""


class Vae:
    """A bundle's encoder and decoder, for images of any size in the memory of one tile.

    Images with a side of more than ``tile`` latents are processed in tiles of one shape. Neighbours overlap by a
    quarter of a side, at least 16 latents, and decoded pixels or encoded moments are blended there. Smaller images
    take one call, without any of this.

    Group normalization and attention span the whole input of a network, so tiles processed separately differ in
    tone. Therefore all tiles are processed in several passes. Each pass combines the tiles' statistics and tokens
    into those of the whole image, which the next pass uses, until they no longer change.

    Difference from decoding without tiles, in 1/255, as maximum and mean, measured with ONNX Runtime on the smallest
    network with random weights, which exaggerate slow changes of tone; tiles of 64 in 96x64 and 96x96 latents:

    ================  ====================  ==================
    decoded latents   separate tiles        with statistics
    ================  ====================  ==================
    slow waves        21 to 24, 3.5         0.8 to 1.1, 0.1
    gradients         80 to 125, 7 to 11    0.5 to 1.1, 0.1
    blobs             61 to 100, 7          1.0 to 1.5, 0.1
    noise             4 to 9, 0.3           0.8 to 1.0, 0.02
    ================  ====================  ==================

    Encoded means of slow waves are off by 0.004 of their standard deviation on average and 0.3 at most. Smaller tiles
    are worse: 1.4 to 3.5 of 255 with tiles of 32. Noise took 3 passes and smooth images up to 8, each 1.5 to 3 times
    as long as processing separate tiles. Beyond 2048x2048 pixels, one token of the whole image is the mean of four or
    more tokens.

    Args:
        engine: returns the engine of a part; called for the encoder only when an image is encoded.
        latents: the manifest's entry.
        tile: the longest side, in latents, that the networks process at once.
        turn: makes a context in which the engines' buffers belong to the calling thread.
    """

    def __init__(
        self,
        engine: Callable[[PartName], Engine],
        latents: Latents,
        tile: int,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._engine, self._turn = engine, turn
        self._factor = latents.vae_factor
        self._tile = tile

    def decode(self, latents: Float32Array) -> Float32Array:
        """Decode latents [C, h, w], as a sampler returns them, to an image [3, H, W], nominally in [-1, 1].

        Raises:
            EngineError: the device failed or ran out of memory.
        """
        _, h, w = latents.shape
        with self._turn():
            if max(h, w) > self._tile:
                return self._run_tiled("tiled_decoder", latents, h, w)
            session = self._engine("decoder").session({"B": 1, "h": h, "w": w})
            session.buffers["latents"].write(latents[None])
            session.launch()
            return cast(Float32Array, session.buffers["image"].read()[0])

    def encode(self, image: Float32Array) -> Float32Array:
        """Encode an image [3, H, W] in [-1, 1] to the moments of its latents, [2C, h, w]: means, then log variances.

        Raises:
            ValueError: a side of the image is not a multiple of the autoencoder's factor.
            EngineError: the device failed or ran out of memory.
        """
        _, height, width = image.shape
        if height % self._factor or width % self._factor:
            raise ValueError(
                f"the image is {width}x{height}, but its sides must be multiples of {self._factor}"
            )
        h, w = height // self._factor, width // self._factor
        with self._turn():
            if max(h, w) > self._tile:
                return self._run_tiled("tiled_encoder", image, h, w)
            session = self._engine("encoder").session({"B": 1, "h": h, "w": w})
            session.buffers["image"].write(image[None])
            session.launch()
            return cast(Float32Array, session.buffers["moments"].read()[0])

    def _run_tiled(self, part: TiledPart, array: Float32Array, h: int, w: int) -> Float32Array:
        overlap = max(self._tile // 4, _MIN_OVERLAP)
        tiling = Tiling(h, w, self._tile, overlap, margin=_MARGIN)
        grid = CoarseGrid(h, w)
        first_box = tiling.boxes[0]
        session = self._engine(part).session({"h": first_box.height, "w": first_box.width, "M": grid.count})
        # In the first pass each tile uses its own statistics and does not attend to other tiles.
        previous = np.zeros(session.buffers["stats"].shape, np.float32)
        session.buffers["given"].write(np.zeros(1, np.float32))
        session.buffers["context"].write(np.zeros(session.buffers["context"].shape))
        blended: Float32Array | None = None
        for passes in range(_MAX_PASSES):
            # Free the last result first: never hold two of them in memory.
            blended = None
            session.buffers["stats"].write(previous)
            tile_statistics = TileStatistics(grid)
            results = self._run_pass(part, session, array, tiling, grid, not passes, tile_statistics)
            blended = tiling.blend(results, self._factor if part == "tiled_decoder" else 1)
            current = tile_statistics.statistics()
            # NaN compares false, so statistics that are not finite end the loop too: more passes would not help.
            if passes and not change(previous, current) > _TOLERANCE:
                break
            previous = current
            session.buffers["given"].write(np.ones(1, np.float32))
            session.buffers["context"].write(tile_statistics.context())
        assert blended is not None
        return blended

    def _run_pass(
        self,
        part: TiledPart,
        session: Session,
        array: Float32Array,
        tiling: Tiling,
        grid: CoarseGrid,
        first_pass: bool,
        statistics: TileStatistics,
    ) -> Iterator[Float32Array]:
        """Run the network on each tile, yield its result, and add its statistics and tokens to ``statistics``."""
        source, target = ("latents", "image") if part == "tiled_decoder" else ("image", "moments")
        scale = 1 if part == "tiled_decoder" else self._factor
        buffers = session.buffers
        for box, weights in zip(tiling.boxes, tiling.weights(), strict=True):
            buffers[source].write(box.scaled(scale).cut(array)[None])
            buffers["weights"].write(weights)
            buffers["context_bias"].write(grid.mask_all() if first_pass else grid.log_counts_outside(box))
            session.launch()
            statistics.add(box, weights, buffers["own"].pull(), buffers["tokens"].pull())
            yield buffers[target].pull()[0]
