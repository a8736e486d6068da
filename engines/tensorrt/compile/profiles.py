"""Plan which engines to build, and the minimum, optimum and maximum of each symbol in their profiles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sd2rt.engines.bundle.engine_entry import Profile
from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import UNTILED, PartName
from sd2rt.engines.bundle.schema import Part, symbols_of
from sd2rt.engines.bundle.sizes import TILE, check_sides
from sd2rt.engines.errors import RequestError

Rows = Literal["any", "guided", "unguided"]

_Sides = tuple[int, int] | tuple[()]
"""Latent rows and columns; none for parts without an image size."""
_LISTED = 8
"""Most sizes that a label lists: it is part of a file's name."""
_TOKENS = 77
_MOST_CELLS = 256 * 256
_BATCHED: tuple[PartName, ...] = ("denoiser",)
"""Parts that process all images of a batch at once; the others take one image at a time."""
_LARGEST_BATCH = 32


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes that engines must support.

    Args:
        sizes: width and height of images, in pixels.
        batches: ranges of batch sizes, minimum to maximum; each becomes a profile tuned for its maximum.
        rows: guided samples, unguided samples, or any mix in a call. Fewer choices let a backend fix more
            dimensions: all of them for one image of one kind.
        chunks: maximum prompt length, in chunks of 77 tokens.
        prompts: maximum number of prompts composed in one image (``AND``).
        shared: one engine for all sizes of a part, with profiles for each, instead of one for each size.
    """

    sizes: tuple[tuple[int, int], ...]
    batches: tuple[tuple[int, int], ...] = ((1, 1),)
    rows: Rows = "any"
    chunks: int = 1
    prompts: int = 1
    shared: bool = False


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """One engine to build for a part; ``label`` describes its sizes in file names."""

    part: PartName
    label: str
    profiles: tuple[Profile, ...]


def parse_batches(text: str) -> tuple[tuple[int, int], ...]:
    """Parse ``--batch``: ``1,4,8`` to the ranges 1, 2 to 4 and 5 to 8; ``1-4`` to the range 1 to 4.

    Raises:
        RequestError: the text has another form, or its numbers do not rise.
    """
    ranges: list[tuple[int, int]] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", item)
        if match is None:
            raise RequestError(f"--batch {text!r} is not a list of numbers or ranges, such as 1,4,8 or 1-4")
        last = ranges[-1][1] if ranges else 0
        maximum = int(match[2] or match[1])
        # A single number is the end of a range that starts after the previous one.
        minimum = int(match[1]) if match[2] else last + 1
        if not last < minimum <= maximum:
            raise RequestError(f"--batch {text!r}: its numbers do not rise: write them as in 1,4,8 or 1-4")
        if maximum > _LARGEST_BATCH:
            raise RequestError(
                f"--batch {text!r}: {maximum} images are more than the maximum of {_LARGEST_BATCH}"
            )
        ranges.append((minimum, maximum))
    return tuple(ranges)


def plan_engines(manifest: Manifest, parts: Sequence[PartName], shapes: Shapes) -> tuple[EnginePlan, ...]:
    """Plan the engines that these parts need for these shapes; parts without an image size need one for all sizes.

    Raises:
        RequestError: the bundle does not take images of one of the sizes.
    """
    wanted: dict[tuple[PartName, _Sides], None] = {}
    for width, height in shapes.sizes:
        check_sides(width, height, manifest.latents.size_multiple)
        for name in parts:
            sides = _sides(manifest, name, width, height)
            if sides is not None:
                wanted[name, sides] = None
    if not shapes.shared:
        return tuple(_plan(manifest, name, (sides,), shapes) for name, sides in wanted)
    return tuple(
        _plan(manifest, name, tuple(sides for part, sides in wanted if part == name), shapes)
        for name in dict.fromkeys(part for part, _ in wanted)
    )


def _sides(manifest: Manifest, name: PartName, width: int, height: int) -> _Sides | None:
    """Latent rows and columns that a part processes for images of this size.

    Returns:
        () if all sizes are one for the part, None if it does not process these images.
    """
    part, factor = manifest.parts[name], manifest.latents.vae_factor
    h, w = height // factor, width // factor
    tiled = max(h, w) > TILE
    if name in UNTILED:
        if not tiled:
            return None
        h, w = min(h, TILE), min(w, TILE)
    elif name in UNTILED.values() and tiled:
        # Images larger than a tile use the tiled part instead.
        return None
    elif manifest.low_resolution is not None and tiled:
        # The upscaler processes large images in tiles throughout.
        h, w = min(h, TILE), min(w, TILE)
    return (h, w) if "h" in symbols_of(part) else ()


def _plan(manifest: Manifest, name: PartName, sizes: tuple[_Sides, ...], shapes: Shapes) -> EnginePlan:
    part, factor = manifest.parts[name], manifest.latents.vae_factor
    batches = shapes.batches if name in _BATCHED else ((1, 1),)
    written = [f"{sides[1] * factor}x{sides[0] * factor}" for sides in sizes if sides]
    prefixes = [f"{size}, " for size in written] if len(written) > 1 else [""]
    profiles = tuple(
        _profile(part, sides, batch, shapes, prefix)
        for sides, prefix in zip(sizes, prefixes, strict=True)
        for batch in batches
    )
    label = "-".join(
        [
            *([".".join(written) if len(written) <= _LISTED else f"{len(written)}sizes"] if written else []),
            "b" + ".".join(str(maximum) for _, maximum in batches),
            *([shapes.rows] if shapes.rows != "any" and "R" in symbols_of(part) else []),
        ]
    )
    return EnginePlan(name, label, profiles)


def _profile(part: Part, sides: _Sides, batch: tuple[int, int], shapes: Shapes, prefix: str) -> Profile:
    smallest, largest = batch
    rows = {
        "any": (smallest, 2 * largest),
        "guided": (2 * smallest, 2 * largest),
        "unguided": (smallest, largest),
    }[shapes.rows]
    if shapes.prompts > 1 and shapes.rows != "unguided":
        rows = (rows[0], (1 + shapes.prompts) * largest)
    ranges = {
        "B": (smallest, largest, largest),
        # Tuned for one prompt per image, with guidance unless that is excluded.
        "R": (rows[0], largest if shapes.rows == "unguided" else 2 * largest, rows[1]),
        "P": (1, 1, shapes.prompts),
        "L": (_TOKENS, _TOKENS, _TOKENS * shapes.chunks),
    }
    if sides:
        h, w = sides
        ranges |= {"h": (h, h, h), "w": (w, w, w), "M": (1, min(_MOST_CELLS, 4 * h * w), _MOST_CELLS)}
    name = f"batch {smallest}" if smallest == largest else f"batch {smallest} to {largest}"
    return Profile(name=prefix + name, dims={symbol: ranges[symbol] for symbol in symbols_of(part)})
