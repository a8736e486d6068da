"""What a picture of the demo's world shows, read by code and not by a network.

Things are what is saturated before a background that is not. A thing's colour is its hue, its shape the one of the
world's that overlaps most with it, its size and place those of that shape's best fit. What is mixed with a grey, at a
blurred edge or in the shade, keeps its hue and loses saturation in proportion, so both hold in soft pictures.
"""

from __future__ import annotations

import colorsys
import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.demo import world

Mask = NDArray[np.bool_]

_SATURATED = 42.0
"""Levels between a pixel's largest and smallest channel: the darkest purple has 108, a mixture at an edge half."""
_EDGE = 0.5
"""Of a thing's own saturation: what has less is more background than thing."""
_LEAST, _MOST = 90, 2400
"""Pixels of a thing: a small triangle has 274, a large square 1866."""
_CROWDED = 0.4
"""Share of saturated pixels above which there is no background, and so nothing before it: noise, a flat colour."""
_SIMILAR = 0.78
"""Overlap (intersection over union) of a thing with a shape, below which it is of none."""
_THING = 0.55
"""The same, below which it is no thing at all."""
_DISTINCT = 0.03
"""How much more a thing overlaps with its shape than with any other."""
_BLUR = 0.7
_STENCIL_SIDE = 512


@dataclass(frozen=True, slots=True)
class Seen:
    """A thing in a picture; its shape is None where it is between two, or none of the world's.

    ``center`` and ``half``, half of the extent, are in pixels.
    """

    shape: str | None
    color: str
    size: str
    place: str
    center: tuple[float, float]
    half: float


@dataclass(frozen=True, slots=True)
class Reading:
    """The things from the largest to the smallest, and the background's grey levels at the top and at the bottom."""

    things: tuple[Seen, ...]
    top: float
    bottom: float

    @property
    def background(self) -> str:
        """The nearest of the world's."""

        def distance(name: str) -> float:
            top, bottom = world.BACKGROUNDS[name]
            return float(np.hypot(top - self.top, bottom - self.bottom))

        return min(world.BACKGROUNDS, key=distance)


def read(picture: NDArray[np.uint8]) -> Reading:
    """Everything that a picture [128, 128, 3] shows. Raises ValueError for another shape."""
    pixels = _smooth(picture)
    found = [seen for mask in _things(pixels) for seen in _apart(pixels, mask)]
    found.sort(key=lambda seen: -seen.half)
    top, bottom = _grey(pixels, ndimage.binary_dilation(_saturation(pixels) > _SATURATED / 2, iterations=2))
    return Reading(tuple(found), top, bottom)


def thing_mask(picture: NDArray[np.uint8]) -> Mask:
    """Where a picture [128, 128, 3] has things: [128, 128]. Raises ValueError for another shape."""
    masks = _things(_smooth(picture))
    return np.logical_or.reduce(masks) if masks else np.zeros(picture.shape[:2], np.bool_)


def relation(first: tuple[float, float], second: tuple[float, float]) -> str:
    """How a centre lies to another: the larger of the two distances decides."""
    x, y = first[0] - second[0], first[1] - second[1]
    if abs(x) > abs(y):
        return "left of" if x < 0 else "right of"
    return "above" if y < 0 else "below"


def place(center: tuple[float, float]) -> str:
    """The place that a centre is nearest to."""
    return min(world.PLACES, key=lambda name: np.hypot(*np.subtract(world.PLACES[name], center)))


def _smooth(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Without speckles and most of the noise; edges stay where they are: [128, 128, 3]."""
    if picture.shape != (world.SIDE, world.SIDE, 3):
        raise ValueError(f"the picture has the shape {picture.shape}, expected {(world.SIDE, world.SIDE, 3)}")
    calm = ndimage.median_filter(picture.astype(np.float32), size=(3, 3, 1))
    return np.asarray(ndimage.gaussian_filter(calm, (_BLUR, _BLUR, 0)), np.float32)


def _saturation(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    red, green, blue = (
        pixels[..., channel] for channel in range(3)
    )  # three planes are ten times as fast as an axis of three
    return np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)


def _things(pixels: NDArray[np.float32]) -> list[Mask]:
    """The pixels of each thing."""
    saturation = _saturation(pixels)
    saturated = saturation > _SATURATED
    found: list[Mask] = []
    if saturated.mean() > _CROWDED:
        return found
    for part in _parts(saturated):
        whole = part & (saturation > _EDGE * np.percentile(saturation[part], 80))
        for piece in _parts(whole):
            found += _by_color(pixels, piece)
    return [
        ndimage.binary_fill_holes(mask) for mask in found if mask.sum() <= 2 * _MOST and not _cut_off(mask)
    ]


def _cut_off(mask: Mask) -> bool:
    """Whether a part reaches the border, which no thing of the world comes nearer to than 6 pixels."""
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _parts(mask: Mask, least: int = _LEAST) -> list[Mask]:
    """What hangs together, without what is too small for a thing."""
    if np.count_nonzero(mask) < least:
        return []
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    return [labels == label for label in range(1, count + 1) if sizes[label] >= least]


def _by_color(pixels: NDArray[np.float32], part: Mask) -> list[Mask]:
    """A part as it is, or where things of several colours touch, each of them by itself."""
    labels = np.full(part.shape, -1)
    labels[part] = _nearest_colors(pixels[part])
    pieces = [
        piece
        for color in np.flatnonzero(np.bincount(labels[part]) >= _LEAST)
        for piece in _parts(ndimage.binary_opening(labels == color, iterations=2))
    ]
    # The rim of one thing may shimmer in a neighbouring hue: two things are both compact and far apart.
    if len(pieces) < 2 or _spread(pieces) < 2 * min(world.SIZES.values()):
        return [part]
    return _divided(part, pieces)


def _spread(pieces: list[Mask]) -> float:
    centers = np.array([_centroid(piece) for piece in pieces])
    return float(min(np.hypot(*(a - b)) for i, a in enumerate(centers) for b in centers[:i]))


def _centroid(mask: Mask) -> tuple[float, float]:
    """Row and column."""
    rows, columns = np.nonzero(mask)
    return float(rows.mean()), float(columns.mean())


def _hue(color: tuple[float, ...] | NDArray[np.float32]) -> float:
    """In turns, 0 to 1."""
    red, green, blue = (float(level) / 255 for level in color)
    return colorsys.rgb_to_hsv(red, green, blue)[0]


_HUES = np.array([_hue(color) for color in world.COLORS.values()])


def _nearest_colors(pixels: NDArray[np.float32]) -> NDArray[np.intp]:
    """Numbers of the colours whose hues are nearest to pixels' [n, 3]: [n]."""
    low, high = pixels.min(-1), pixels.max(-1)
    spread = np.maximum(high - low, 1e-6)
    red, green, blue = pixels.T
    hue = np.select(
        [red == high, green == high],
        [(green - blue) / spread, 2 + (blue - red) / spread],
        4 + (red - green) / spread,
    )
    turn = abs(hue[:, None] / 6 % 1 - _HUES)
    return np.asarray(np.minimum(turn, 1 - turn).argmin(-1))


def _apart(pixels: NDArray[np.float32], mask: Mask) -> list[Seen]:
    """The thing of a mask; or where that has no shape, the two of one colour that a bridge joins."""
    whole = _seen(pixels, mask)
    if whole is not None and whole.shape is not None:
        return [whole]
    for width in range(1, 12):
        cores = _parts(ndimage.binary_erosion(mask, iterations=width), _LEAST // 2)
        if len(cores) == 2:
            pieces = [_seen(pixels, piece) for piece in _divided(mask, cores)]
            shaped = [piece for piece in pieces if piece is not None and piece.shape is not None]
            if len(shaped) == 2:
                return shaped
    return [] if whole is None else [whole]


def _divided(mask: Mask, cores: list[Mask]) -> list[Mask]:
    """A mask's pixels by the core that each is nearest to."""
    nearest = np.argmin([ndimage.distance_transform_edt(~core) for core in cores], axis=0)
    return [mask & (nearest == index) for index in range(len(cores))]


def _seen(pixels: NDArray[np.float32], mask: Mask) -> Seen | None:
    """The thing of a mask, or None where that is no thing's outline."""
    fits = {shape: _fit(mask, shape) for shape in world.SHAPES}
    ranking = sorted(fits, key=lambda shape: -fits[shape][0])
    best, second = ranking[:2]
    overlap, center, half = fits[best]
    if overlap < _THING or mask.sum() > _MOST:
        return None
    clear = overlap >= _SIMILAR and overlap - fits[second][0] >= _DISTINCT
    core = ndimage.binary_erosion(mask, iterations=2)
    color = np.median(pixels[core if core.sum() >= _LEAST / 4 else mask], axis=0)
    return Seen(
        shape=best if clear else None,
        color=tuple(world.COLORS)[int(_nearest_colors(color[None])[0])],
        size=min(world.SIZES, key=lambda name: abs(np.log(world.SIZES[name] / half))),
        place=place(center),
        center=center,
        half=half,
    )


def _fit(mask: Mask, shape: str) -> tuple[float, tuple[float, float], float]:
    """A shape of a mask's area and centroid: its overlap with the mask, its centre and half of its extent.

    Blur and the half-saturated edge it leaves round corners off, but hardly change either of the two.
    """
    stencil, area, offset = _stencil(shape)
    y, x = _centroid(mask)
    half = float(np.sqrt(mask.sum() / area))
    center = x + 0.5 - offset[0] * half, y + 0.5 - offset[1] * half
    points = np.arange(world.SIDE) + 0.5
    columns, rows = (_cells((points - middle) / half, len(stencil)) for middle in center)
    drawn = stencil[np.ix_(rows, columns)]
    union = np.count_nonzero(drawn | mask)
    return np.count_nonzero(drawn & mask) / union, center, half


def _cells(points: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Where a stencil has points in units of half its extent; the cells at its border are empty."""
    return ((points / _STENCIL_REACH + 1) / 2 * count).clip(0, count - 1).astype(np.intp)


_STENCIL_REACH = world.SIDE / 2 / world.SIZES["large"]
"""How far a stencil goes beyond its middle, in units of half of a thing's extent."""


@functools.cache
def _stencil(shape: str) -> tuple[Mask, float, tuple[float, float]]:
    """A shape in fine pixels, its area and its centroid in units of half its extent."""
    middle = world.SIDE / 2
    thing = world.Thing(shape, next(iter(world.COLORS)), "large", "in the center", (middle, middle))
    stencil = world.cover(thing, _STENCIL_SIDE) >= 0.5
    pitch = 2 * _STENCIL_REACH / _STENCIL_SIDE
    y, x = ((c + 0.5) * pitch - _STENCIL_REACH for c in _centroid(stencil))
    return stencil, float(stencil.sum()) * pitch**2, (x, y)


def _grey(pixels: NDArray[np.float32], covered: Mask) -> tuple[float, float]:
    """The background's levels in the upper and lower eighth, from what nothing covers."""
    rows = world.SIDE // 8
    levels = []
    for part in (np.s_[:rows], np.s_[-rows:]):
        free = pixels[part][~covered[part]]
        levels.append(float(np.median(free if len(free) else pixels[part])))
    top, bottom = levels
    # The eighths' middles are not the borders.
    beyond = (top - bottom) * rows / 2 / (world.SIDE - rows)
    return top + beyond, bottom - beyond
