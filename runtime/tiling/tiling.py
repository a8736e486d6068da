"""Arrays cut into overlapping tiles, and results put back together without seams: NumPy, and no network."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.interface import Array


@dataclass(frozen=True, slots=True)
class Box:
    """A tile's place in an array, in its elements."""

    top: int
    left: int
    height: int
    width: int

    def scaled(self, factor: int) -> Box:
        """The same place in an array ``factor`` times as large."""
        return Box(self.top * factor, self.left * factor, self.height * factor, self.width * factor)

    def cut(self, array: Array) -> Array:
        """What of ``array`` [..., H, W] lies in the box: a view."""
        return array[..., self.top : self.top + self.height, self.left : self.left + self.width]


class Tiling:
    """How a ``height`` x ``width`` array is cut into tiles.

    An axis that fits in one tile has one, of its own length. On a longer one all tiles are ``tile`` long,
    rounded down to ``multiple``, so that one size of buffers serves them and any larger array; there are as few
    as neighbours that share at least ``overlap`` elements allow, spread evenly. They begin at multiples of
    ``multiple``, so that a network that halves its input sees the same grid in each; where the axis is no
    multiple itself, the last begins where it must to end with the axis.

    Args:
        height: of the array.
        width: of the array.
        tile: the longest side of a tile.
        overlap: what neighbours share at least.
        multiple: where tiles may begin.
        margin: how much of an end that a tile shares counts nothing: what is made near an edge may be wrong.

    Raises:
        ValueError: no tiles can be made so.
    """

    def __init__(
        self, height: int, width: int, tile: int, overlap: int, multiple: int = 8, margin: int = 0
    ) -> None:
        if height < 1 or width < 1 or multiple < 1:
            raise ValueError(f"an array of {height}x{width} in multiples of {multiple} cannot be cut")
        side = tile // multiple * multiple
        if not 0 <= overlap <= side - multiple:
            raise ValueError(
                f"tiles of {tile} that share {overlap} do not advance by {multiple}: "
                "give a larger tile or a smaller overlap"
            )
        if not 0 <= 2 * margin <= overlap:
            raise ValueError(f"tiles that share {overlap} cannot both leave out {margin} of it")
        self.height, self.width = height, width
        self._rows = _Axis.cut(height, side, overlap, multiple, margin)
        self._columns = _Axis.cut(width, side, overlap, multiple, margin)
        self.boxes: tuple[Box, ...] = tuple(
            Box(top, left, self._rows.side, self._columns.side)
            for top in self._rows.starts
            for left in self._columns.starts
        )
        """Row by row."""

    def weights(self, factor: int = 1) -> Iterator[NDArray[np.float32]]:
        """What each of a tile's results counts where tiles are blended: [box.height * factor, box.width * factor].

        One for each of :attr:`boxes`, in their order. Those of any element of the array sum to one.
        """
        for down, across in itertools.product(self._rows.weights(factor), self._columns.weights(factor)):
            yield np.outer(down, across)

    def blend(self, results: Iterable[Array], factor: int = 1) -> NDArray[np.float32]:
        """What was made of the tiles, as one array [C, height * factor, width * factor] of float32.

        Where tiles overlap, each fades into the next along a raised cosine; the weights of any element sum to
        one. Results are taken one at a time, so a generator of them needs little memory beside the whole.

        Args:
            results: one for each of :attr:`boxes`, in their order: [C, box.height * factor, box.width * factor].
            factor: how much larger than its tile a result is.

        Raises:
            ValueError: there are more or fewer results than tiles, or one has another shape.
        """
        blended: NDArray[np.float32] | None = None
        for box, weight, result in zip(self.boxes, self.weights(factor), results, strict=True):
            place = box.scaled(factor)
            if blended is None:
                blended = np.zeros((len(result), self.height * factor, self.width * factor), np.float32)
            if result.shape != (len(blended), place.height, place.width):
                raise ValueError(
                    f"a tile's result has the shape {list(result.shape)}, "
                    f"expected {[len(blended), place.height, place.width]}"
                )
            # What is not finite stays so, and it is the caller's to say it.
            with np.errstate(invalid="ignore"):
                for target, plane in zip(place.cut(blended), result, strict=True):
                    target += weight * plane
        assert blended is not None
        return blended


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of a tiling: where its tiles begin, and how long each is."""

    starts: tuple[int, ...]
    side: int
    margin: int

    @classmethod
    def cut(cls, length: int, side: int, overlap: int, multiple: int, margin: int) -> _Axis:
        if length <= side:
            return cls((0,), length, margin)
        # In multiples: how far the last tile is from the first, and how far one may be from the next.
        distance = -(-(length - side) // multiple)
        steps = -(-distance // ((side - overlap) // multiple))
        starts = (min(i * distance // steps * multiple, length - side) for i in range(steps + 1))
        return cls(tuple(starts), side, margin)

    def weights(self, factor: int) -> list[NDArray[np.float32]]:
        """For each tile, the weight of each of its results' elements along this axis.

        Tile i + 1 fades in, ``fades[i]``, over exactly what it shares with tile i, less the margins. A tile's
        weight is a product, its own fade times what the next tile's leaves, so the weights sum to one even
        where three tiles overlap.
        """
        places = (np.arange((self.starts[-1] + self.side) * factor) + 0.5) / factor
        fades = []
        for start, after in itertools.pairwise(self.starts):
            begin, shared = after + self.margin, start + self.side - after - 2 * self.margin
            done = np.clip((places - begin) / shared, 0, 1) if shared else (places > begin).astype(np.float64)
            fades.append(0.5 - 0.5 * np.cos(np.pi * done))
        weights = []
        earlier = np.ones_like(places)
        for index, start in enumerate(self.starts):
            rest = 1 - fades[index] if index < len(fades) else 1.0
            weight = (earlier * rest)[start * factor : (start + self.side) * factor]
            weights.append(weight.astype(np.float32))
            if index < len(fades):
                earlier = earlier * fades[index]
        return weights
