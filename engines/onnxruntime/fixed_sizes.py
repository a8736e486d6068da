"""Sizes with a session of their own, in whose graph no dimension is left open.

ONNX Runtime then computes all shapes when it opens the graph, instead of at every launch. Each such session has its
own copy of the weights: ONNX Runtime copies external initialisers into each session, and shares only those that are
given to it after constants were folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import Part, shape_of, symbols_of

_TOKENS = 77


def named_sizes(manifest: Manifest, name: PartName) -> list[dict[str, int]]:
    """Sizes of a part for one image of the bundle's default size: with guidance, and without."""
    width, height = manifest.native_sizes[0]
    rows, columns = manifest.latents.sides(width, height)
    symbols = symbols_of(manifest.parts[name])
    found: list[dict[str, int]] = []
    for evaluations in (2, 1):
        sizes = {"B": 1, "R": evaluations, "P": 1, "L": _TOKENS, "h": rows, "w": columns}
        chosen = {symbol: sizes[symbol] for symbol in symbols}
        if chosen not in found:
            found.append(chosen)
    return found


def open_dimensions(session: Any, part: Part, sizes: Mapping[str, int]) -> dict[str, int]:
    """The size of each open dimension of a session's inputs, by its name in the graph.

    Args:
        session: an ONNX Runtime session of the part's graph.
        sizes: sizes of the part's symbols.

    Raises:
        ValueError: a symbol has no size, or a dimension of the graph has two.
    """
    tensors = {tensor.name: tensor for tensor in part.inputs}
    found: dict[str, int] = {}
    for value in session.get_inputs():
        for side, size in zip(value.shape, shape_of(tensors[value.name], sizes), strict=True):
            # Numbers are fixed already.
            if isinstance(side, str) and found.setdefault(side, size) != size:
                raise ValueError(f"{value.name}: {side} would be {found[side]} and {size}")
    return found
