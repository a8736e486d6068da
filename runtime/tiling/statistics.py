"""What an image's tiles tell of the whole: NumPy, and no network."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.interface import Array
from sd2rt.runtime.tiling.tiling import Box

_CELLS = 256 * 256
"""At most so many tokens stand for the whole image, however large it is: a token each up to 2048x2048 pixels."""
_NOWHERE = -1000.0
"""The logarithm of no position: nothing beside any other score, and finite in fp16."""


class CoarseGrid:
    """A grid of equal squares over the latents of an image, of which those at its end may be cut off."""

    def __init__(self, height: int, width: int) -> None:
        # Powers of two: most tiles, which begin at multiples of eight, then begin where cells do.
        self.side = 1
        while -(-height // self.side) * -(-width // self.side) > _CELLS:
            self.side *= 2
        self._sides = height, width
        self.rows, self.columns = -(-height // self.side), -(-width // self.side)
        self.count = self.rows * self.columns

    def positions(self, box: Box | None = None) -> NDArray[np.float64]:
        """How many positions of the box, or of the whole image, each cell has: [rows, columns]."""
        if box is None:
            box = Box(0, 0, *self._sides)
        down = np.bincount(self._of(box.top, box.height), minlength=self.rows)
        across = np.bincount(self._of(box.left, box.width), minlength=self.columns)
        return np.outer(down, across).astype(np.float64)

    def outside(self, box: Box) -> NDArray[np.float32]:
        """The logarithm of how many positions outside of the box each cell has: [M]."""
        left = (self.positions() - self.positions(box)).reshape(-1)
        return np.where(left > 0, np.log(np.maximum(left, 1)), _NOWHERE).astype(np.float32)

    def none(self) -> NDArray[np.float32]:
        """The logarithm of how many positions each cell has for a tile that is to see no other: [M]."""
        return np.full(self.count, _NOWHERE, np.float32)

    def add(self, sums: Array, array: Array, box: Box) -> None:
        """Add what lies at the box's positions [C, h, w] to the sums of their cells [C, rows, columns]."""
        for axis, start in ((1, box.top), (2, box.left)):
            cells = self._of(start, array.shape[axis])
            array = np.add.reduceat(array, np.flatnonzero(np.diff(cells, prepend=-1)), axis)
        top, left = box.top // self.side, box.left // self.side
        sums[:, top : top + array.shape[1], left : left + array.shape[2]] += array

    def _of(self, start: int, length: int) -> Array:
        return np.arange(start, start + length) // self.side


class TileStatistics:
    """The whole image's statistics and tokens, put together from its tiles' own.

    Each tile counts at each position as much as it does in the blended image. Nothing is kept of a tile, so the
    memory that this takes does not grow with their number.
    """

    def __init__(self, cells: CoarseGrid) -> None:
        self._cells = cells
        self._total = 0.0
        self._mean: Array = np.zeros(())
        self._sum: Array = np.zeros(())
        self._tokens: Array | None = None

    def add(self, box: Box, weights: Array, own: Array, tokens: Array) -> None:
        """Take in a tile: its groups' means and variances [N, G, 2] under its weights, and its tokens [C, h, w]."""
        own = own.astype(np.float64)
        weight = float(weights.sum(dtype=np.float64))
        # Chan, Golub and LeVeque 1979: sums of squares about the mean, joined without cancellation.
        before, self._total = self._total, self._total + weight
        moved = own[..., 0] - self._mean
        self._mean = self._mean + moved * (weight / self._total)
        self._sum = self._sum + weight * (own[..., 1] + moved**2 * (before / self._total))
        if self._tokens is None:
            self._tokens = np.zeros((len(tokens), self._cells.rows, self._cells.columns), np.float32)
        self._cells.add(self._tokens, tokens * weights, box)

    def statistics(self) -> NDArray[np.float32]:
        """Means and variances of the whole image [N, G, 2]."""
        return np.stack([self._mean, self._sum / self._total], axis=-1).astype(np.float32)

    def context(self) -> NDArray[np.float32]:
        """The mean token of each cell [M, C]."""
        assert self._tokens is not None
        means = self._tokens / self._cells.positions().astype(np.float32)
        return cast(Array, means.reshape(len(means), -1).T)


def change(old: NDArray[np.float32], new: NDArray[np.float32]) -> float:
    """How far statistics are from others at most: means, in standard deviations, or the logarithms of those."""
    a, b = old.astype(np.float64), new.astype(np.float64)
    tiny = np.finfo(np.float32).tiny
    std = np.sqrt(b[..., 1] + tiny)
    means = np.abs(a[..., 0] - b[..., 0]) / std
    spreads = np.abs(np.log(np.sqrt(a[..., 1] + tiny) / std))
    return float(np.maximum(means, spreads).max())
