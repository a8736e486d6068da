"""Images that a batch has written, by row and place in the row, from all kinds of its files."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = ("folder", "parquet", "webdataset")
Images = dict[tuple[str, int], str]
"""Hashes of pixels by row and place in the row."""


def images_in(folder: Path, kind: str) -> Images:
    """Return the images of a batch's folder.

    Raises:
        ValueError: an image is there twice, or is in no row.
        OSError: a file cannot be read.
        KeyError: a file lacks something.
    """
    readers = {"folder": _of_folder, "parquet": _of_parquet, "webdataset": _of_webdataset}
    return _unique(readers[kind](folder))


def _unique(images: Iterable[tuple[str, int, bytes]]) -> Images:
    found: Images = {}
    for row, number, data in images:
        if (row, number) in found:
            raise ValueError(f"image {number} of row {row} is there twice")
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        found[row, number] = hashlib.sha256(pixels.tobytes()).hexdigest()
    return found


def _of_folder(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    named = set()
    for line in (folder / "manifest.jsonl").read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            # The line of a killed command, which the next one does not go on with.
            continue
        for number, name in enumerate(entry["files"]):
            named.add(name)
            yield entry["row"], number, (folder / name).read_bytes()
    if unnamed := {path.name for path in folder.glob("*.png")} - named:
        raise ValueError(f"{unnamed} are in no row")


def _of_parquet(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    from pyarrow import parquet

    for path in folder.glob("*.parquet"):
        for row in parquet.read_table(path).to_pylist():
            if row["error"] is not None:
                raise ValueError(row["error"])
            yield row["row"], row["image_index"], row["image_bytes"]


def _of_webdataset(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    if failed := list(folder.glob("failed-*")):
        raise ValueError(failed[0].read_text())
    for path in folder.glob("part-*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                row, _, number = member.name.partition("-")
                file = archive.extractfile(member)
                assert file is not None
                if member.name.endswith(".png"):
                    yield row, int(number.removesuffix(".png")), file.read()
