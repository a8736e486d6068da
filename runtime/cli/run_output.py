"""Output files of `sd2rt run`: checked before generation; only a file that was named is overwritten."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd2rt.engines.console import print_path, report
from sd2rt.engines.errors import EngineError, RequestError, Sd2rtError, UnsafeContentError
from sd2rt.engines.printable import shown
from sd2rt.runtime.images.formats import SUFFIXES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sd2rt.runtime.cli.output_options import OutputOptions
    from sd2rt.runtime.metadata.save import ImageTarget
    from sd2rt.runtime.pipeline.pipeline import Pipeline
    from sd2rt.runtime.provenance.safety import Safety
    from sd2rt.runtime.provenance.stamps import Stamps


_TEMPORARY = "..123456.part"
"""As long as :func:`sd2rt.engines.bundle.files.atomic_write` lengthens a name."""
_LONGEST_NAME = f"{2**64}v{2**64}-1000000.png"


def check_output(output: Path, total: int, option: str = "--output") -> None:
    """Check that ``total`` images can be saved to ``output``, a file or a folder, before any is made.

    Raises:
        RequestError: they cannot.
    """
    if output.suffix.lower() in SUFFIXES and not os.path.isdir(output):
        if total > 1:
            raise RequestError(f"{option} {output} is one file, and there are {total} images: name a folder")
        folder = output.parent
    else:
        if output.suffix and not os.path.isdir(output):
            raise RequestError(
                f"{option} {output} is neither a folder nor a .png, .jpg or .webp file: name one of these"
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


def target_of(options: OutputOptions, stamps: Stamps) -> ImageTarget | None:
    """Return the file or folder of the output options; None for standard output, as PNG by default.

    Raises:
        RequestError: they contradict each other.
    """
    from sd2rt.runtime.metadata.save import ImageTarget

    if str(options.output) != "-":
        check_output(options.output, 1)
        return ImageTarget.of(options.output, options.file_format, options.quality, stamps=stamps)
    if options.as_json:
        raise RequestError("--json and --output - both write to standard output: use one of them")
    if sys.stdout.isatty():
        raise RequestError(
            "--output - writes the bytes of an image, and standard output is a terminal: redirect it"
        )
    return None


class ImageFiles:
    """Saves the images of a run, and prints their paths or settings.

    Raises:
        RequestError: the output options contradict each other.
    """

    def __init__(self, options: OutputOptions, stamps: Stamps) -> None:
        from sd2rt.runtime.metadata.save import ImageTarget

        self._options = options
        self._target = target_of(options, stamps)
        self._encoding = self._target or ImageTarget.of(
            ".", options.file_format, options.quality, stamps=stamps
        )
        self._saved = 0

    def check(self, total: int) -> None:
        """Check that ``total`` images can be saved, before any is made; raises like :func:`check_output`."""
        if self._target is not None:
            check_output(self._options.output, total)
        elif total > 1:
            raise RequestError(f"--output - writes one image, and there are {total}: name a folder")

    def save(self, image: Any, facts: dict[str, Any], timing: dict[str, Any]) -> None:
        """Save an image and print its path.

        Raises:
            EngineError: the file cannot be written.
            RequestError: it is the second for one file.
        """
        if self._saved and (self._target is None or self._target.is_file):
            raise RequestError(
                f"--output {self._options.output} is one image, and there are more: name a folder"
            )
        self._saved += 1
        if self._target is None:
            sys.stdout.buffer.write(self._encoding.encoded(image, facts))
            sys.stdout.buffer.flush()
            return
        saved = self._target.save(image, facts)
        if self._options.as_json:
            print(json.dumps({"path": str(saved), **facts, **timing}), flush=True)
        elif not self._options.quiet:
            print_path(saved)


class Failures:
    """Images and rows that failed, for the exit code and the last line."""

    def __init__(self) -> None:
        self.made = 0
        self._images = self._rows = 0
        self._first: Sd2rtError | None = None
        self._only_unsafe = True

    def add(self, error: EngineError) -> None:
        """Count an image that failed."""
        self._images += 1
        self._first = self._first or error
        self._only_unsafe &= isinstance(error, UnsafeContentError)

    def add_row(self, error: RequestError) -> None:
        """Count a row that cannot be drawn, and print why: others go on."""
        self._rows += 1
        self._first = self._first or error
        report(f"warning: {error}")

    def check(self) -> None:
        """Raise an error like the first one if there was one."""
        if self._first is None:
            return
        total = self.made + self._images
        counts = [f"{self._images} of {total} images failed"] if self._images and total > 1 else []
        if self._rows:
            counts.append(f"{self._rows} line{'' if self._rows == 1 else 's'} could not be drawn")
        text = f"{' and '.join(counts)}, the first: {self._first}" if counts else str(self._first)
        if not self._images:
            raise RequestError(text)
        raise UnsafeContentError(text) if self._only_unsafe else EngineError(text)


def safety_of(options: OutputOptions) -> Safety | None:
    """Load the safety check of the options; raises like :func:`sd2rt.runtime.provenance.safety.load_safety`."""
    if options.safety is None:
        return None
    from sd2rt.runtime.provenance.safety import load_safety

    return load_safety(options.safety)


def refused(safety: Safety, image: Any) -> EngineError | None:
    """Check an image, and return the error if it must not be saved."""
    try:
        safety.check(image)
    except EngineError as error:
        return error
    return None


def placed(pipeline: Pipeline) -> dict[str, str]:
    """Return what a picture records of the place of a bundle outside of the cache, which remembers it.

    The home folder is written as ~, since pictures are shown to others.
    """
    from sd2rt.engines.bundle.cache import cache_dir, remember_bundle

    path = pipeline.bundle.path
    if path.parent == Path(os.path.realpath(cache_dir() / "bundles")):
        return {}
    remember_bundle(pipeline.manifest.identity, path)
    home = os.path.expanduser("~")
    inside = home not in ("~", "/") and path.is_relative_to(home)
    return {"place": f"~/{path.relative_to(home)}" if inside else str(path)}


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
