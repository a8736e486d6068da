"""Write text files atomically."""

from __future__ import annotations

from pathlib import Path

from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.errors import EngineError


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically.

    Raises:
        EngineError: the file cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error
