"""Whole-image statistics and attention tokens, accumulated tile by tile in NumPy."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.interface import Array
from sd2rt.runtime.tiling.tiling import Box

_MAX_CELLS = 256 * 256
"""The most tokens for a whole image: up to 2048x2048 pixels one per latent, in larger images one per group."""
_MASKED = -1000.0
"""Attention bias of a cell without positions: negligible against any other score, and finite in fp16."""


class CoarseGrid:
    """A grid of square cells over the latents of an image; cells at its bottom and right edge may be cut off."""

    def __init__(self, height: int, width: int) -> None:
        # A power of two, so that most tiles, which start at multiples of 8, are aligned with cells.
        self.side = 1
        while -(-height // self.side) * -(-width // self.side) > _MAX_CELLS:
            self.side *= 2
        self._shape = height, width
        self.rows, self.columns = -(-height // self.side), -(-width // self.side)
        self.count = self.rows * self.columns

    def positions(self, box: Box | None = None) -> NDArray[np.float64]:
        """Count the positions of the box, or of the whole image, in each cell: [rows, columns]."""
        if box is None:
            box = Box(0, 0, *self._shape)
        rows = np.bincount(self._cell_indices(box.top, box.height), minlength=self.rows)
        columns = np.bincount(self._cell_indices(box.left, box.width), minlength=self.columns)
        return np.outer(rows, columns).astype(np.float64)

    def log_counts_outside(self, box: Box) -> NDArray[np.float32]:
        """Attention bias [M]: the logarithm of each cell's number of positions outside the box."""
        counts = (self.positions() - self.positions(box)).reshape(-1)
        return np.where(counts > 0, np.log(np.maximum(counts, 1)), _MASKED).astype(np.float32)

    def mask_all(self) -> NDArray[np.float32]:
        """Attention bias [M] that hides all cells, so that a tile sees only itself."""
        return np.full(self.count, _MASKED, np.float32)

    def add(self, sums: Array, array: Array, box: Box) -> None:
        """Add the values of a box [C, h, w] to the sums of their cells [C, rows, columns]."""
        for axis, start in ((1, box.top), (2, box.left)):
            cells = self._cell_indices(start, array.shape[axis])
            array = np.add.reduceat(array, np.flatnonzero(np.diff(cells, prepend=-1)), axis)
        top, left = box.top // self.side, box.left // self.side
        sums[:, top : top + array.shape[1], left : left + array.shape[2]] += array

    def _cell_indices(self, start: int, length: int) -> Array:
        return np.arange(start, start + length) // self.side


class TileStatistics:
    """Statistics and tokens of a whole image, accumulated from its tiles.

    Tiles have the same weights as in the blended image. No tile is stored, so memory does not grow with their number.
    """

    def __init__(self, grid: CoarseGrid) -> None:
        self._grid = grid
        self._total = 0.0
        self._mean: Array = np.zeros(())
        self._squares: Array = np.zeros(())
        self._tokens: Array | None = None

    def add(self, box: Box, weights: Array, moments: Array, tokens: Array) -> None:
        """Add a tile: weighted means and variances of its groups [N, G, 2], and its tokens [C, h, w]."""
        moments = moments.astype(np.float64)
        weight = float(weights.sum(dtype=np.float64))
        # Chan, Golub and LeVeque 1979: combine sums of squares about the mean without cancellation.
        before, self._total = self._total, self._total + weight
        delta = moments[..., 0] - self._mean
        self._mean = self._mean + delta * (weight / self._total)
        self._squares = self._squares + weight * (moments[..., 1] + delta**2 * (before / self._total))
        if self._tokens is None:
            self._tokens = np.zeros((len(tokens), self._grid.rows, self._grid.columns), np.float32)
        self._grid.add(self._tokens, tokens * weights, box)

    def statistics(self) -> NDArray[np.float32]:
        """Compute means and variances of the whole image, [N, G, 2]."""
        return np.stack([self._mean, self._squares / self._total], axis=-1).astype(np.float32)

    def context(self) -> NDArray[np.float32]:
        """Compute the mean token of each cell, [M, C]."""
        assert self._tokens is not None
        means = self._tokens / self._grid.positions().astype(np.float32)
        return cast(Array, means.reshape(len(means), -1).T)


def change(old: NDArray[np.float32], new: NDArray[np.float32]) -> float:
    """Largest change between two sets of statistics: of a mean in standard deviations, or of a log deviation."""
    a, b = old.astype(np.float64), new.astype(np.float64)
    tiny = np.finfo(np.float32).tiny
    std = np.sqrt(b[..., 1] + tiny)
    mean_change = np.abs(a[..., 0] - b[..., 0]) / std
    std_change = np.abs(np.log(np.sqrt(a[..., 1] + tiny) / std))
    return float(np.maximum(mean_change, std_change).max())
