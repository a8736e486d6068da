"""Arrays in the place of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError


def is_array(source: object) -> bool:
    """Whether NumPy would take it for an array; tensors of other libraries are among them."""
    return hasattr(source, "__array__")


def as_array(source: Any, what: str) -> NDArray[Any]:
    """A NumPy array; ``what`` names it in messages.

    Raises:
        RequestError: a tensor that NumPy cannot read, as one on a GPU.
    """
    try:
        return np.asarray(source)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{what} cannot be read as an array ({reason}): give a NumPy array") from None


def described(array: NDArray[Any]) -> str:
    """``float32[64, 64]``, for messages."""
    return f"{array.dtype}{list(array.shape)}"


def to_bytes(unit: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Floats in [0, 1] to 8 bits, rounded half to even.

    Raises:
        RequestError: a value is not finite, or outside.
    """
    # So written that NaN fails too.
    if not ((unit >= 0) & (unit <= 1)).all():
        raise RequestError(
            f"{what} holds floats from {unit.min():g} to {unit.max():g}: give floats in [0, 1], or uint8"
        )
    return (unit.astype(np.float32) * np.float32(255)).round().astype(np.uint8)
