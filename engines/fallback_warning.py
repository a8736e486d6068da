"""Warnings that something slower is used, for the caller and for the log."""

from __future__ import annotations

import logging
import warnings


def warn_of_fallback(
    log: logging.Logger, message: str, category: type[Warning] = RuntimeWarning, stacklevel: int = 1
) -> None:
    """Warn the caller, and write the same line to the log.

    Args:
        stacklevel: like that of :func:`warnings.warn`, counted from the function that calls this one.
    """
    warnings.warn(message, category, stacklevel=stacklevel + 1)
    log.warning("%s", message)
