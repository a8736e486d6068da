"""Functions that a call calls after every step: the caller's, and a bar of progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.console import progress_bar
from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import repr_of, shown
from sd2rt.runtime.pipeline.progress import Progress

Watching = bool | Callable[[Progress], object]
"""True to show a bar on standard error, or a function to call with the progress after every step."""


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


@contextmanager
def watched(progress: Watching) -> Iterator[Callable[[Progress], object]]:
    """Yield a function to call after every step.

    Raises:
        RequestError: ``progress`` is neither a flag nor a function.
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise RequestError(f"progress is {shown(repr_of(progress))}: use True, False or a function")
    if not isinstance(progress, bool):
        yield progress
        return
    with progress_bar("bar", "count", "elapsed", "remaining", hidden=not progress) as bar:
        if bar is None:
            yield lambda state: None
            return
        task = bar.add_task("", total=None)
        yield lambda state: bar.update(task, completed=state.done, total=state.total)
