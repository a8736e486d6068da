"""Output files of `sd2rt run`: checked before generation; only a file that was named is overwritten."""

from __future__ import annotations

import os
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.printable import shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_TEMPORARY = "..123456.part"
"""As long as :func:`sd2rt.engines.bundle.files.atomic_write` lengthens a name."""
_LONGEST_NAME = f"{2**64}v{2**64}-1000000.png"


def check_output(output: Path, total: int, option: str = "--output") -> None:
    """Check that ``total`` images can be saved to ``output``, a .png file or a folder, before any is made.

    Raises:
        RequestError: they cannot.
    """
    if output.suffix.lower() == ".png" and not os.path.isdir(output):
        if total > 1:
            raise RequestError(f"{option} {output} is one file, and there are {total} images: name a folder")
        folder = output.parent
    else:
        if output.suffix and not os.path.isdir(output):
            raise RequestError(
                f"{option} {output} is neither a .png file nor a folder: images are saved as PNG"
            )
        folder = output
    # Missing folders are made later, inside the first that exists.
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(existing):
        raise RequestError(f"{option} {output}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RequestError(f"{option} {output}: {existing} cannot be written to: choose another folder")
    _check_length(output if folder is not output else output / _LONGEST_NAME, existing, option)


def _check_length(path: Path, existing: Path, option: str) -> None:
    """Check that the names in a path, and of the temporary file beside it, are short enough for the file system."""
    absolute = Path(os.path.abspath(path.with_name(path.name + _TEMPORARY)))
    try:
        longest, total = (os.pathconf(existing, name) for name in ("PC_NAME_MAX", "PC_PATH_MAX"))
    except OSError:
        return
    names = [len(os.fsencode(name)) for name in absolute.parts]
    # The system counts the byte that ends a path.
    if max(names) > longest or len(os.fsencode(absolute)) + 1 > total:
        raise RequestError(f"{option} {shown(str(path))} is too long for its file system: use a shorter one")


def check_save_depth(path: Path | None, output: Path) -> None:
    """Check that a depth map can be saved to ``path``, beside the images in ``output``.

    Raises:
        RequestError: it cannot.
    """
    if path is None:
        return
    if path.suffix.lower() != ".png" or os.path.isdir(path):
        raise RequestError(f"--save-depth {path} is not a .png file: depth maps are saved as PNG")
    if path.absolute() == output.absolute():
        raise RequestError(f"--save-depth and --output are both {path}: use different names")
    check_output(path, 1, option="--save-depth")


def save_image(image: Any, facts: dict[str, Any], output: Path) -> Path:
    """Save an image to ``output``, a file or a folder, and return the path of the file.

    Raises:
        EngineError: the file cannot be written.
    """
    from sd2rt.runtime.images.write import save_new_png, save_png
    from sd2rt.runtime.metadata.png import png_text

    text = png_text(facts)
    named = output.suffix.lower() == ".png" and not os.path.isdir(output)
    name = _name(facts)
    path = output if named else output / f"{name}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if named:
            save_png(image, path, text)
            return path
        # Images of earlier runs are kept.
        return save_new_png(image, chain((path,), (output / f"{name}-{n}.png" for n in count(1))), text)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error


def write_depth(depth: NDArray[np.float32], path: Path) -> None:
    """Save a depth map [H, W], making its folder.

    Raises:
        EngineError: it cannot be written.
    """
    from sd2rt.runtime.images.depth_map import save_depth

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_depth(depth, path)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error


def _name(facts: dict[str, Any]) -> str:
    """Name a file by the seed, and by the seed of a variation."""
    settings = facts["request"]
    return (
        f"{facts['seed']}v{settings['variation_seed']}"
        if "variation_strength" in settings
        else f"{facts['seed']}"
    )
