"""Cut arrays into overlapping tiles, and blend the tiles' results without seams, in NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.interface import Array


@dataclass(frozen=True, slots=True)
class Box:
    """Position and size of a tile in an array, in elements."""

    top: int
    left: int
    height: int
    width: int

    def scaled(self, factor: int) -> Box:
        """Scale the box to an array ``factor`` times as large."""
        return Box(self.top * factor, self.left * factor, self.height * factor, self.width * factor)

    def cut(self, array: Array) -> Array:
        """Return the part of ``array`` [..., H, W] in the box, as a view."""
        return array[..., self.top : self.top + self.height, self.left : self.left + self.width]


class Tiling:
    """Division of a ``height`` x ``width`` array into tiles.

    An axis no longer than ``tile`` has one tile of its length. On a longer axis all tiles have the length ``tile``,
    rounded down to ``multiple``, so buffers of one size serve every larger array. The tiles are as few as the overlap
    allows, evenly spread. They start at multiples of ``multiple``, so that a network that halves its input sees the
    same grid in each tile; if the axis is not a multiple itself, the last tile starts where it ends with the axis.

    Args:
        height: height of the array.
        width: width of the array.
        tile: the longest side of a tile.
        overlap: the least overlap of neighbours.
        multiple: tiles start at multiples of this.
        margin: elements at a tile's inner edges to ignore, because results there may be wrong.

    Raises:
        ValueError: no such tiles exist.
    """

    def __init__(
        self, height: int, width: int, tile: int, overlap: int, multiple: int = 8, margin: int = 0
    ) -> None:
        if height < 1 or width < 1 or multiple < 1:
            raise ValueError(f"cannot cut an array of {height}x{width} at multiples of {multiple}")
        side = tile // multiple * multiple
        if not 0 <= overlap <= side - multiple:
            raise ValueError(
                f"tiles of {tile} with an overlap of {overlap} advance by less than {multiple}: "
                "use a larger tile or a smaller overlap"
            )
        if not 0 <= 2 * margin <= overlap:
            raise ValueError(f"an overlap of {overlap} is too small for two margins of {margin}")
        self.height, self.width = height, width
        self._rows = _Axis.cut(height, side, overlap, multiple, margin)
        self._columns = _Axis.cut(width, side, overlap, multiple, margin)
        self.boxes: tuple[Box, ...] = tuple(
            Box(top, left, self._rows.side, self._columns.side)
            for top in self._rows.starts
            for left in self._columns.starts
        )
        """Tiles, row by row."""

    def weights(self, factor: int = 1) -> Iterator[NDArray[np.float32]]:
        """Yield each tile's blending weights [box.height * factor, box.width * factor], in the order of ``boxes``.

        The weights of all tiles sum to one at each element of the array.
        """
        for vertical, horizontal in itertools.product(
            self._rows.weights(factor), self._columns.weights(factor)
        ):
            yield np.outer(vertical, horizontal)

    def blend(self, results: Iterable[Array], factor: int = 1) -> NDArray[np.float32]:
        """Blend the tiles' results into one float32 array [C, height * factor, width * factor].

        In overlaps each tile fades into the next along a raised cosine. Results are consumed one at a time, so with a
        generator only one is in memory.

        Args:
            results: one per box, in the order of ``boxes``: [C, box.height * factor, box.width * factor].
            factor: size of a result relative to its tile.

        Raises:
            ValueError: the number of results or the shape of one is wrong.
        """
        blended: NDArray[np.float32] | None = None
        for box, weight, result in zip(self.boxes, self.weights(factor), results, strict=True):
            target_box = box.scaled(factor)
            if blended is None:
                blended = np.zeros((len(result), self.height * factor, self.width * factor), np.float32)
            if result.shape != (len(blended), target_box.height, target_box.width):
                raise ValueError(
                    f"a tile's result has shape {list(result.shape)}, "
                    f"expected {[len(blended), target_box.height, target_box.width]}"
                )
            # The caller reports values that are not finite; here they must not warn.
            with np.errstate(invalid="ignore"):
                for target, plane in zip(target_box.cut(blended), result, strict=True):
                    target += weight * plane
        assert blended is not None
        return blended


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of a tiling: the starts of its tiles, and their length."""

    starts: tuple[int, ...]
    side: int
    margin: int

    @classmethod
    def cut(cls, length: int, side: int, overlap: int, multiple: int, margin: int) -> _Axis:
        if length <= side:
            return cls((0,), length, margin)
        # In units of ``multiple``: from the first tile to the last, then the number of steps between neighbours.
        distance = -(-(length - side) // multiple)
        steps = -(-distance // ((side - overlap) // multiple))
        starts = (min(i * distance // steps * multiple, length - side) for i in range(steps + 1))
        return cls(tuple(starts), side, margin)

    def weights(self, factor: int) -> list[NDArray[np.float32]]:
        """Compute each tile's weights along this axis.

        Tile i + 1 fades in by ``fades[i]`` over its overlap with tile i, without the margins. A tile's weight is the
        product of its own fade and what the next tile leaves, so weights sum to one even where three tiles overlap.
        """
        positions = (np.arange((self.starts[-1] + self.side) * factor) + 0.5) / factor
        fades = []
        for start, next_start in itertools.pairwise(self.starts):
            begin, overlap = next_start + self.margin, start + self.side - next_start - 2 * self.margin
            ramp = (
                np.clip((positions - begin) / overlap, 0, 1)
                if overlap
                else (positions > begin).astype(np.float64)
            )
            fades.append(0.5 - 0.5 * np.cos(np.pi * ramp))
        weights = []
        remaining = np.ones_like(positions)
        for index, start in enumerate(self.starts):
            share = 1 - fades[index] if index < len(fades) else 1.0
            weight = (remaining * share)[start * factor : (start + self.side) * factor]
            weights.append(weight.astype(np.float32))
            if index < len(fades):
                remaining = remaining * fades[index]
        return weights
