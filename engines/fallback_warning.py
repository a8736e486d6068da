"""Warnings that something slower is used, for the caller and for the log."""

from __future__ import annotations

import logging
import warnings


def warn_of_fallback(
    log: logging.Logger, message: str, category: type[Warning] = RuntimeWarning, stacklevel: int = 1
) -> None:
    """Warn the caller, and write the same line to the log.

    Without a handler for the log, there is only the warning: Python would print both.

    Args:
        stacklevel: like that of :func:`warnings.warn`, counted from the function that calls this one.
    """
    warnings.warn(message, category, stacklevel=stacklevel + 1)
    if log.hasHandlers():
        log.warning("%s", message)
