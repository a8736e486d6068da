"""Result of a caller's function that is called after every step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import repr_of, shown


def latents_of(changes: object, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Return the latents that a callback replaces, of this shape, or None.

    Raises:
        RequestError: it returned something other than None or a mapping, or latents that are not numbers or of
            another shape.
    """
    if changes is None:
        return None
    if not isinstance(changes, Mapping):
        raise RequestError(
            f"callback_on_step_end returned {shown(repr_of(changes))}: return None, or a mapping with latents"
        )
    if "latents" not in changes:
        return None
    try:
        # Numbers outside float32's range become infinite, and are found as such in the next step.
        with np.errstate(over="ignore"):
            latents = np.asarray(changes["latents"], np.float32)
    except (TypeError, ValueError, OverflowError):
        raise RequestError(
            f"callback_on_step_end returned latents of type {type(changes['latents']).__name__}: return an array"
        ) from None
    if latents.shape != shape:
        raise RequestError(
            f"callback_on_step_end returned latents of shape {list(latents.shape)}: return the shape {list(shape)}"
        )
    return latents
