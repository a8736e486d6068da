"""The sizes that engines are built for: each symbol of a part's shapes, from the least over the usual to the most."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sd2rt.engines.bundle.engine_entry import Profile
from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import UNTILED, PartName
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.bundle.shapes import symbols_of
from sd2rt.engines.bundle.sizes import TILE
from sd2rt.engines.errors import RequestError

Rows = Literal["any", "guided", "unguided"]

_TOKENS = 77
_MOST_CELLS = 256 * 256
_BATCHED: tuple[PartName, ...] = ("denoiser",)
"""Parts that a call of several images goes through at once; the others take one after another."""
_LARGEST_BATCH = 32


@dataclass(frozen=True, slots=True)
class Shapes:
    """What engines are asked to take.

    Args:
        sizes: width and height of images, in pixels.
        batches: images of a call, as ranges from the least to the most; each becomes a profile tuned for its most.
        rows: whether guided and unguided samples, or only one kind of them, make up a call. Fewer choices leave a
            backend more to fix: with one image and one kind, everything.
        chunks: prompts of at most this many times 77 tokens.
        prompts: prompts composed to one image, at most (``AND``).
    """

    sizes: tuple[tuple[int, int], ...]
    batches: tuple[tuple[int, int], ...] = ((1, 1),)
    rows: Rows = "any"
    chunks: int = 1
    prompts: int = 1


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """One engine to be built: of a part, for these sizes; ``label`` stands for them in a file's name."""

    part: PartName
    label: str
    profiles: tuple[Profile, ...]


def parse_batches(text: str) -> tuple[tuple[int, int], ...]:
    """``1,4,8`` as buckets 1, 2 to 4 and 5 to 8; ``1-4`` as one of 1 to 4.

    Raises:
        RequestError: it is something else, or its numbers do not rise.
    """
    ranges: list[tuple[int, int]] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", item)
        if match is None:
            raise RequestError(f"--batch {text!r} is no list of numbers or ranges, such as 1,4,8 or 1-4")
        last = ranges[-1][1] if ranges else 0
        most = int(match[2] or match[1])
        # A number alone is the end of a bucket that begins where the last one ended.
        least = int(match[1]) if match[2] else last + 1
        if not last < least <= most:
            raise RequestError(f"--batch {text!r}: its numbers do not rise: write them as in 1,4,8 or 1-4")
        if most > _LARGEST_BATCH:
            raise RequestError(
                f"--batch {text!r}: {most} images are more than {_LARGEST_BATCH}, the most of a call"
            )
        ranges.append((least, most))
    return tuple(ranges)


def plan_engines(manifest: Manifest, parts: Sequence[PartName], shapes: Shapes) -> tuple[EnginePlan, ...]:
    """The engines that these parts need for these shapes, each once: those that know no size have one for all."""
    plans: dict[tuple[PartName, str], EnginePlan] = {}
    for width, height in shapes.sizes:
        for name in parts:
            plan = _plan(manifest, name, width, height, shapes)
            if plan is not None:
                plans.setdefault((name, plan.label), plan)
    return tuple(plans.values())


def _plan(manifest: Manifest, name: PartName, width: int, height: int, shapes: Shapes) -> EnginePlan | None:
    part, factor = manifest.parts[name], manifest.latents.vae_factor
    symbols, h, w = symbols_of(part), height // factor, width // factor
    tiled = max(h, w) > TILE
    if name in UNTILED:
        if not tiled:
            return None
        h, w = min(h, TILE), min(w, TILE)
    elif name in UNTILED.values() and tiled:
        # Such images go through the part that works on tiles.
        return None
    elif manifest.low_resolution is not None and tiled:
        # The upscaler's whole way is one of tiles.
        h, w = min(h, TILE), min(w, TILE)
    batches = shapes.batches if name in _BATCHED else ((1, 1),)
    profiles = tuple(_profile(part, h, w, batch, shapes) for batch in batches)
    label = "-".join(
        [
            *([f"{w * factor}x{h * factor}"] if "h" in symbols else []),
            "b" + ".".join(str(most) for _, most in batches),
            *([shapes.rows] if shapes.rows != "any" and "R" in symbols else []),
        ]
    )
    return EnginePlan(name, label, profiles)


def _profile(part: Part, h: int, w: int, batch: tuple[int, int], shapes: Shapes) -> Profile:
    least, most = batch
    rows = {"any": (least, 2 * most), "guided": (2 * least, 2 * most), "unguided": (least, most)}[shapes.rows]
    if shapes.prompts > 1 and shapes.rows != "unguided":
        rows = (rows[0], (1 + shapes.prompts) * most)
    known = {
        "B": (least, most, most),
        # Tuned for one prompt each, with guidance where there may be any.
        "R": (rows[0], most if shapes.rows == "unguided" else 2 * most, rows[1]),
        "P": (1, 1, shapes.prompts),
        "L": (_TOKENS, _TOKENS, _TOKENS * shapes.chunks),
        "h": (h, h, h),
        "w": (w, w, w),
        "M": (1, min(_MOST_CELLS, 4 * h * w), _MOST_CELLS),
    }
    name = f"batch {least}" if least == most else f"batch {least} to {most}"
    return Profile(name=name, dims={symbol: known[symbol] for symbol in symbols_of(part)})
