"""Evaluation of symbolic tensor shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd2rt.engines.bundle.schema import Part, Tensor

_PRODUCT = re.compile(r"(?:(\d+)\*)?([A-Za-z]\w*)")


def shape_of(tensor: Tensor, dims: Mapping[str, int]) -> tuple[int, ...]:
    """Evaluate a tensor's symbolic shape with the symbol sizes in ``dims``.

    Raises:
        ValueError: ``dims`` has no size for a symbol.
    """
    shape = []
    for item in tensor.shape:
        if isinstance(item, int):
            shape.append(item)
        else:
            match = _PRODUCT.fullmatch(item)
            if match is None or match[2] not in dims:
                raise ValueError(
                    f"{tensor.name} has the dimension {item!r}, but there are sizes for {sorted(dims)} only"
                )
            shape.append(int(match[1] or 1) * dims[match[2]])
    return tuple(shape)


def symbols_of(part: Part) -> tuple[str, ...]:
    """Symbols in a part's shapes, in order of first use."""
    symbols: dict[str, None] = {}
    for tensor in (*part.inputs, *part.outputs):
        for item in tensor.shape:
            if isinstance(item, str) and (match := _PRODUCT.fullmatch(item)):
                symbols[match[2]] = None
    return tuple(symbols)
