"""Symbolic shapes of tensors: their symbols, and the numbers that they stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd2rt.engines.bundle.schema import Part, Tensor

_PRODUCT = re.compile(r"(?:(\d+)\*)?([A-Za-z]\w*)")


def shape_of(tensor: Tensor, dims: Mapping[str, int]) -> tuple[int, ...]:
    """The numbers that a tensor's symbolic shape stands for, ``dims`` giving each symbol's.

    Raises:
        ValueError: a symbol has no size in ``dims``.
    """
    shape = []
    for item in tensor.shape:
        if isinstance(item, int):
            shape.append(item)
        else:
            match = _PRODUCT.fullmatch(item)
            if match is None or match[2] not in dims:
                raise ValueError(
                    f"{tensor.name} has the dimension {item!r}, and sizes are given for {sorted(dims)}"
                )
            shape.append(int(match[1] or 1) * dims[match[2]])
    return tuple(shape)


def symbols_of(part: Part) -> tuple[str, ...]:
    """The symbols of a part's shapes, in the order in which its inputs have them."""
    found: dict[str, None] = {}
    for tensor in (*part.inputs, *part.outputs):
        for item in tensor.shape:
            if isinstance(item, str) and (match := _PRODUCT.fullmatch(item)):
                found[match[2]] = None
    return tuple(found)
