"""The files of a prepared graph: recorded when they are written, and verified when they are opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sd2rt.engines.bundle.checksum import checksum
from sd2rt.engines.bundle.files import describe
from sd2rt.engines.bundle.open_files import OpenFiles
from sd2rt.engines.bundle.receipts import Receipts, stamp
from sd2rt.engines.bundle.schema import File, Model, Sha256
from sd2rt.engines.errors import BundleError
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.regular_file import read_regular

GRAPH, WEIGHTS, RECORD = "model.onnx", "model.onnx.data", "prepared.json"
_MAX_RECORD_BYTES = 1 << 20
_REMEDY = "run 'sd2rt prepare' again"

Loaded = TypeVar("Loaded")


class PreparedRecord(Model):
    """``prepared.json``."""

    bundle: str
    """Path of the bundle that the graph was prepared from; it is removed after the bundle."""
    version: str
    """Version and build of ONNX Runtime."""
    files: tuple[File, ...]
    checksum: Sha256
    """Of the other entries; see :func:`sd2rt.engines.bundle.checksum.checksum`."""


@dataclass(frozen=True, slots=True)
class PreparedFiles:
    """Verified and open files of a prepared graph."""

    listed: tuple[File, ...]
    files: OpenFiles

    def load(self, opening: Callable[[Path], Loaded], discard: Callable[[Loaded], None]) -> Loaded:
        """Load the graph by its path; see :meth:`sd2rt.engines.bundle.open_files.OpenFiles.load`."""
        return self.files.load(self.listed, lambda folder: opening(folder / GRAPH), discard)


def write_record(folder: Path, target: Path, *, bundle: Path, version: str) -> None:
    """Record the files in ``folder``, which will be moved to ``target``, with receipts for them there.

    Raises:
        OSError: a file cannot be read or written.
    """
    receipts = Receipts(target, use=False)
    files = []
    for name in (GRAPH, WEIGHTS):
        found = stamp((folder / name).stat())
        files.append(describe(folder, name))
        receipts.add(files[-1], found)
    facts = {
        "bundle": str(bundle),
        "version": version,
        "files": [file.model_dump(mode="json") for file in files],
    }
    (folder / RECORD).write_text(json.dumps({**facts, "checksum": checksum(facts)}))
    receipts.save()


def read_record(folder: Path) -> PreparedRecord:
    """Read the record in a folder.

    Raises:
        FileNotFoundError: there is none.
        BundleError: it cannot be read, or is damaged.
    """
    path = folder / RECORD
    try:
        data = parse_json(read_regular(path, _MAX_RECORD_BYTES))
        record = PreparedRecord.model_validate_json(json.dumps(data), strict=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): {_REMEDY}") from None
    except ValueError:
        raise BundleError(f"{path} is damaged: {_REMEDY}") from None
    if record.checksum != checksum(data) or {file.path for file in record.files} != {GRAPH, WEIGHTS}:
        raise BundleError(f"{path} is damaged: {_REMEDY}")
    return record


def open_prepared_files(folder: Path, *, trust_receipts: bool) -> PreparedFiles | None:
    """Open and verify the files of a prepared graph; None if there is none.

    A file is hashed, unless a receipt vouches for it: its size, times and inode are those of the file that was
    hashed last.

    Raises:
        BundleError: a file is missing or damaged.
    """
    try:
        files = OpenFiles(folder, _REMEDY)
    except OSError:
        return None
    receipts = Receipts(folder, use=trust_receipts)
    try:
        record = read_record(files.root)
    except FileNotFoundError:
        if files.replaced:
            return None
        raise BundleError(f"{folder / RECORD} is missing: {_REMEDY}") from None
    except BundleError as error:
        raise BundleError(str(error).replace(str(files.root), str(folder))) from None
    for file in record.files:
        files.open(file)
        if files.verify(file, receipts, lambda file, read: None) is None:
            files.record(file, receipts)
    receipts.save()
    return PreparedFiles(record.files, files)
