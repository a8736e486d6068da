"""Check paths that callers pass, before anything is opened by them."""

from __future__ import annotations

import os
from pathlib import Path

from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import repr_of, shown


def checked_path(value: object, name: str) -> Path:
    """Return a path that the operating system can take; ``name`` is that of the argument, for messages.

    Raises:
        RequestError: it is not a path, or holds a character that no file name can have.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise RequestError(f"{name} is {shown(repr_of(value))}: use the path of a file or folder, as text")
    if not is_path(text):
        raise RequestError(f"{name} is {shown(repr(text))}, which no file name can be: use another")
    return Path(text)


def is_path(text: str) -> bool:
    """Return whether the operating system can take a text as a path, or as an argument of a command."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        # A lone surrogate that does not stand for a byte.
        return False
