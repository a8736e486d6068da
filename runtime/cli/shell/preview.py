"""Rough images while they are made: as files, or drawn by a terminal that knows kitty's graphics protocol."""

from __future__ import annotations

import os
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.runtime.cli.run_output import check_output

if TYPE_CHECKING:
    from PIL.Image import Image

Show = Callable[[str, "Image"], None]
"""Shows a picture, of pixels that are latents, of the image with a name."""

_CHUNK = 4096
"""Most bytes of one escape sequence."""
_ROWS = 16
_SECONDS = 0.1


def preview_of(option: str | None) -> Show | None:
    """Return the function that shows previews for ``--preview``; None for none.

    Raises:
        RequestError: the terminal cannot draw, or the folder cannot be written to.
    """
    if option is None or option == "none":
        return None
    if option == "kitty":
        if not sys.stderr.isatty():
            raise RequestError(
                "--preview kitty draws on a terminal, and standard error is none: name a folder"
            )
        return _Kitty()
    folder = Path(option)
    if folder.suffix and not os.path.isdir(folder):
        raise RequestError(f"--preview {option} is neither a folder, kitty nor none: name a folder")
    check_output(folder, 1, option="--preview")
    return _Files(folder)


class _Files:
    """Writes the newest preview of each image to a PNG of its own, which viewers can reload."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str, picture: Image) -> None:
        from sd2rt.runtime.images.write import save_png

        path = self._folder / f"{name}.png"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_png(picture, path, {})
        except OSError as error:
            raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error


class _Kitty:
    """Draws previews on the terminal, each in place of the one before, at most ten a second."""

    def __init__(self) -> None:
        self._drawn, self._name = -_SECONDS, ""

    def __call__(self, name: str, picture: Image) -> None:
        now = time.monotonic()
        if name == self._name and now - self._drawn < _SECONDS:
            return
        text = "" if name == self._name else "\n" * (_ROWS + 1) + f"\x1b[{_ROWS + 1}A"
        sys.stderr.write(text + _escapes(picture))
        sys.stderr.flush()
        self._drawn, self._name = now, name


def _escapes(picture: Image) -> str:
    """Escape sequences that draw a picture at the cursor, which stays, in place of the last one."""
    file = BytesIO()
    picture.save(file, format="PNG", compress_level=1)
    data = b64encode(file.getvalue()).decode()
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    first = f"a=T,f=100,i=2500,p=1,q=2,C=1,r={_ROWS},"
    return "".join(
        f"\x1b_G{first if number == 0 else ''}m={int(number < len(chunks) - 1)};{chunk}\x1b\\"
        for number, chunk in enumerate(chunks)
    )
