"""Warnings of one request: for its client instead of the log, which has no texts of clients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

_TEXTS: ContextVar[list[str] | None] = ContextVar("request_warnings", default=None)


def collect() -> list[str]:
    """Return the list to which this task's warnings are added from now on, each text once.

    Threads count as the task's if they run in its context.
    """
    texts: list[str] = []
    _TEXTS.set(texts)
    return texts


def install() -> None:
    """Add each warning to the list of the task that it concerns; others go where they went before.

    Changes the process: a warning is shown every time, since the next request may have the same.
    """
    warnings.simplefilter("always", UserWarning)
    others: Callable[..., None] = warnings.showwarning

    def show(message: Warning | str, *arguments: Any, **options: Any) -> None:
        texts = _TEXTS.get()
        if texts is None:
            others(message, *arguments, **options)
        elif (text := str(message)) not in texts:
            texts.append(text)

    warnings.showwarning = show
