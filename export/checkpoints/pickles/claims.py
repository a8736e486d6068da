"""Check what a pickled checkpoint claims to hold, without PyTorch, before PyTorch allocates memory for it.

PyTorch's weights-only unpickler runs no code, but it calls constructors of tensors and storages of any size, and
loops as often as a file wants.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from sd2rt.export.checkpoints.pickles.unpickler import Storage, Unpickler

_MAGIC = 0x1950A86A20F9469CFC6C
"""First object in files from before PyTorch 1.6, which are several pickles and then the storages' bytes."""
_LEGACY_PICKLES = 5


@dataclass(frozen=True, slots=True)
class Claims:
    """Contents of a file of ``torch.save``: containers with :class:`ClaimedTensor` and :class:`Inert`."""

    content: Any
    foreign: bool
    """It has objects of classes that are not known."""
    storages: Mapping[str, tuple[int, int]]
    """Positions and sizes in bytes of the storages in the file, by key."""


def check_claims(path: Path) -> Claims:
    """Check a file of ``torch.save``, zip archive or older, without importing or calling anything it names.

    Raises:
        CodeError: its pickle calls what can run code.
        ValueError: it claims larger storages or tensors than the file can hold, or too many of them.
        Exception: anything else, if the file is damaged.
    """
    size = os.stat(path).st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            return _check_archive(archive, file, size)
    with path.open("rb") as file:
        if Unpickler(file, size).load() != _MAGIC:
            raise ValueError("no magic number")
        for _ in range(_LEGACY_PICKLES - 3):
            Unpickler(file, size).load()
        objects = Unpickler(file, size)
        content = objects.load()
        keys = Unpickler(file, size).load()
        return Claims(content, objects.foreign, _older_storages(file, size, keys, objects.known))


def _older_storages(
    file: BinaryIO, size: int, keys: Any, known: Mapping[str, Storage]
) -> dict[str, tuple[int, int]]:
    """Positions of an older file's storages: each is a count and as many numbers, in the order of ``keys``."""
    places, position = {}, file.tell()
    for key in keys:
        file.seek(position)
        (count,) = struct.unpack("<q", file.read(8))
        length = count * known[key].item_bytes
        if not 0 <= length <= size - position - 8:
            raise ValueError(f"a storage of {count} elements, which the file does not hold")
        places[key] = (position + 8, length)
        position += 8 + length
    return places


def _check_archive(archive: zipfile.ZipFile, file: BinaryIO, size: int) -> Claims:
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError("no data.pkl")
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise ValueError("compressed, which torch.save never does")
    folder = pickles[0].removesuffix("data.pkl") + "data/"
    storages = {
        name.removeprefix(folder): info.file_size for name, info in entries.items() if name.startswith(folder)
    }
    with archive.open(pickles[0]) as code:
        objects = Unpickler(cast(BinaryIO, code), size, storages)
        content = objects.load()
    places = {key: (_data_offset(file, entries[folder + key]), storages[key]) for key in objects.known}
    return Claims(content, objects.foreign, places)


def _data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Position of an entry's bytes: after its header, whose length only the header itself has."""
    file.seek(entry.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    return int(entry.header_offset + 30 + name + extra)
