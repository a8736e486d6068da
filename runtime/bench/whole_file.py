"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.errors import EngineError, RequestError


def check_target(option: str, path: Path | None) -> None:
    """See that a file can be written, before anything is measured.

    Raises:
        RequestError: it cannot.
    """
    if path is None:
        return
    if path.is_dir():
        raise RequestError(f"{option} {path} is a folder: give a file")
    if not path.parent.is_dir():
        raise RequestError(f"{option} {path}: there is no folder {path.parent}: make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise RequestError(f"{option} {path}: {path.parent} cannot be written to: choose another folder")


def write_whole(path: Path, text: str) -> None:
    """Write a file; it appears whole.

    Raises:
        EngineError: it cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error
