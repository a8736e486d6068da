"""Recognise the things in an image of the demo's world, by code and without a network.

Things are saturated regions on an unsaturated background. A thing's colour is its hue; its shape is the world's shape
with the largest overlap, and its size and place are those of that shape's best fit. Mixing with grey, at a blurred
edge or in shade, keeps the hue and reduces the saturation proportionally, so the method also works on soft images.
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
"""Minimum difference between a pixel's largest and smallest channel: the darkest purple has 108, an edge half."""
_EDGE = 0.5
"""Share of a thing's saturation below which a pixel belongs to the background."""
_LEAST, _MOST = 90, 2400
"""Pixels of a thing: a small triangle has 274, a large square 1866."""
_CROWDED = 0.4
"""Share of saturated pixels above which an image has no background, and so no things: noise, a flat colour."""
_SIMILAR = 0.78
"""Smallest overlap (intersection over union) at which a thing has a shape."""
_THING = 0.55
"""Smallest overlap at which a region is a thing."""
_DISTINCT = 0.03
"""Smallest lead in overlap of a thing's shape over any other shape."""
_BLUR = 0.7
_STENCIL_SIDE = 512


@dataclass(frozen=True, slots=True)
class DetectedThing:
    """A thing found in an image; its shape is None if it is ambiguous or unknown.

    ``center`` and ``half`` (half the extent) are in pixels.
    """

    shape: str | None
    color: str
    size: str
    place: str
    center: tuple[float, float]
    half: float


@dataclass(frozen=True, slots=True)
class Reading:
    """Things from largest to smallest, and the background's grey levels at the top and bottom."""

    things: tuple[DetectedThing, ...]
    top: float
    bottom: float

    @property
    def background(self) -> str:
        """Name of the nearest background of the world."""

        def distance(name: str) -> float:
            top, bottom = world.BACKGROUNDS[name]
            return float(np.hypot(top - self.top, bottom - self.bottom))

        return min(world.BACKGROUNDS, key=distance)


def read(picture: NDArray[np.uint8]) -> Reading:
    """Analyse an image [128, 128, 3]; ValueError for another shape."""
    pixels = _smooth(picture)
    things = [thing for mask in _thing_masks(pixels) for thing in _split_bridge(pixels, mask)]
    things.sort(key=lambda thing: -thing.half)
    top, bottom = _grey(pixels, ndimage.binary_dilation(_saturation(pixels) > _SATURATED / 2, iterations=2))
    return Reading(tuple(things), top, bottom)


def thing_mask(picture: NDArray[np.uint8]) -> Mask:
    """Mask [128, 128] of all things in an image [128, 128, 3]; ValueError for another shape."""
    masks = _thing_masks(_smooth(picture))
    return np.logical_or.reduce(masks) if masks else np.zeros(picture.shape[:2], np.bool_)


def relation(first: tuple[float, float], second: tuple[float, float]) -> str:
    """Position of the first centre relative to the second, along the axis of the larger distance."""
    x, y = first[0] - second[0], first[1] - second[1]
    if abs(x) > abs(y):
        return "left of" if x < 0 else "right of"
    return "above" if y < 0 else "below"


def place(center: tuple[float, float]) -> str:
    """Name of the place nearest to a centre."""
    return min(world.PLACES, key=lambda name: np.hypot(*np.subtract(world.PLACES[name], center)))


def _smooth(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Remove speckles and most noise without moving edges: [128, 128, 3]."""
    if picture.shape != (world.SIDE, world.SIDE, 3):
        raise ValueError(f"the picture has the shape {picture.shape}, expected {(world.SIDE, world.SIDE, 3)}")
    calm = ndimage.median_filter(picture.astype(np.float32), size=(3, 3, 1))
    return np.asarray(ndimage.gaussian_filter(calm, (_BLUR, _BLUR, 0)), np.float32)


def _saturation(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    red, green, blue = (
        pixels[..., channel] for channel in range(3)
    )  # three planes are ten times faster than an axis of length three
    return np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)


def _thing_masks(pixels: NDArray[np.float32]) -> list[Mask]:
    """One mask per thing."""
    saturation = _saturation(pixels)
    saturated = saturation > _SATURATED
    pieces: list[Mask] = []
    if saturated.mean() > _CROWDED:
        return pieces
    for region in _regions(saturated):
        dense = region & (saturation > _EDGE * np.percentile(saturation[region], 80))
        for piece in _regions(dense):
            pieces += _split_colors(pixels, piece)
    return [
        ndimage.binary_fill_holes(mask)
        for mask in pieces
        if mask.sum() <= 2 * _MOST and not _touches_border(mask)
    ]


def _touches_border(mask: Mask) -> bool:
    """Return True if a region touches the border; things of the world stay at least 6 pixels away."""
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _regions(mask: Mask, least: int = _LEAST) -> list[Mask]:
    """Connected regions of at least ``least`` pixels."""
    if np.count_nonzero(mask) < least:
        return []
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    return [labels == label for label in range(1, count + 1) if sizes[label] >= least]


def _split_colors(pixels: NDArray[np.float32], region: Mask) -> list[Mask]:
    """Split a region where things of different colours touch."""
    labels = np.full(region.shape, -1)
    labels[region] = _nearest_colors(pixels[region])
    pieces = [
        piece
        for color in np.flatnonzero(np.bincount(labels[region]) >= _LEAST)
        for piece in _regions(ndimage.binary_opening(labels == color, iterations=2))
    ]
    # The rim of one thing may have a neighbouring hue; pieces of two things are compact and far apart.
    if len(pieces) < 2 or _spread(pieces) < 2 * min(world.SIZES.values()):
        return [region]
    return _split_by_cores(region, pieces)


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
    """Indices [n] of the colours nearest in hue to pixels [n, 3]."""
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


def _split_bridge(pixels: NDArray[np.float32], mask: Mask) -> list[DetectedThing]:
    """The thing in a mask, or two things of one colour if the mask has no shape but splits at a bridge."""
    whole = _detect(pixels, mask)
    if whole is not None and whole.shape is not None:
        return [whole]
    for width in range(1, 12):
        cores = _regions(ndimage.binary_erosion(mask, iterations=width), _LEAST // 2)
        if len(cores) == 2:
            pieces = [_detect(pixels, piece) for piece in _split_by_cores(mask, cores)]
            shaped = [piece for piece in pieces if piece is not None and piece.shape is not None]
            if len(shaped) == 2:
                return shaped
    return [] if whole is None else [whole]


def _split_by_cores(mask: Mask, cores: list[Mask]) -> list[Mask]:
    """Split a mask: each pixel goes to its nearest core."""
    nearest = np.argmin([ndimage.distance_transform_edt(~core) for core in cores], axis=0)
    return [mask & (nearest == index) for index in range(len(cores))]


def _detect(pixels: NDArray[np.float32], mask: Mask) -> DetectedThing | None:
    """The thing in a mask, or None if the mask does not fit any shape."""
    fits = {shape: _fit(mask, shape) for shape in world.SHAPES}
    ranking = sorted(fits, key=lambda shape: -fits[shape][0])
    best, second = ranking[:2]
    overlap, center, half = fits[best]
    if overlap < _THING or mask.sum() > _MOST:
        return None
    clear = overlap >= _SIMILAR and overlap - fits[second][0] >= _DISTINCT
    core = ndimage.binary_erosion(mask, iterations=2)
    color = np.median(pixels[core if core.sum() >= _LEAST / 4 else mask], axis=0)
    return DetectedThing(
        shape=best if clear else None,
        color=tuple(world.COLORS)[int(_nearest_colors(color[None])[0])],
        size=min(world.SIZES, key=lambda name: abs(np.log(world.SIZES[name] / half))),
        place=place(center),
        center=center,
        half=half,
    )


def _fit(mask: Mask, shape: str) -> tuple[float, tuple[float, float], float]:
    """Fit a shape by the mask's area and centroid; return overlap, centre and half extent.

    Blur rounds off corners but hardly changes the area or the centroid.
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
    """Stencil indices of points given in half extents; points outside map to the empty border cells."""
    return ((points / _STENCIL_REACH + 1) / 2 * count).clip(0, count - 1).astype(np.intp)


_STENCIL_REACH = world.SIDE / 2 / world.SIZES["large"]
"""Distance from a stencil's centre to its border, in half extents of the thing."""


@functools.cache
def _stencil(shape: str) -> tuple[Mask, float, tuple[float, float]]:
    """A shape at high resolution, with its area and centroid in units of its half extent."""
    middle = world.SIDE / 2
    thing = world.Thing(shape, next(iter(world.COLORS)), "large", "in the center", (middle, middle))
    stencil = world.cover(thing, _STENCIL_SIDE) >= 0.5
    pitch = 2 * _STENCIL_REACH / _STENCIL_SIDE
    y, x = ((c + 0.5) * pitch - _STENCIL_REACH for c in _centroid(stencil))
    return stencil, float(stencil.sum()) * pitch**2, (x, y)


def _grey(pixels: NDArray[np.float32], covered: Mask) -> tuple[float, float]:
    """Grey levels at the top and bottom, extrapolated from the uncovered upper and lower eighths."""
    rows = world.SIDE // 8
    levels = []
    for part in (np.s_[:rows], np.s_[-rows:]):
        free = pixels[part][~covered[part]]
        levels.append(float(np.median(free if len(free) else pixels[part])))
    top, bottom = levels
    # Extrapolate from the middles of the eighths to the borders.
    beyond = (top - bottom) * rows / 2 / (world.SIDE - rows)
    return top + beyond, bottom - beyond
