"""Files of a batch: images in a folder, or parts of Parquet or WebDataset, each of which appears as a whole.

Parts are their own record: a row is done if a part has it. Rows that failed are in parts of their own, which a later
run removes to draw them again.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.errors import EngineError, MissingDependencyError, RequestError
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.printable import shown
from sd2rt.runtime.images.formats import FileFormat, suffix_of
from sd2rt.runtime.ray.drawer import DrawnImage, DrawnRow
from sd2rt.runtime.ray.fence import writing
from sd2rt.runtime.rows.record import DONE, FAILED

OutputKind = Literal["folder", "parquet", "webdataset"]
KINDS: tuple[OutputKind, ...] = get_args(OutputKind)
_PART, _FAILED = "part", "failed"
_SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar"}


@dataclass(frozen=True, slots=True)
class PartWriter:
    """Writes drawn rows into the folder of a run; it is sent to the actors.

    Attributes:
        token: of the run, see :func:`sd2rt.runtime.ray.fence.newest_run`.
    """

    folder: Path
    kind: OutputKind
    file_format: FileFormat
    token: str

    def write(self, rows: Sequence[DrawnRow]) -> list[dict[str, Any]]:
        """Write rows, and return an entry of the record for each.

        The names of files depend on the rows alone: rows that are written again replace their own files.

        Raises:
            EngineError: a file cannot be written, or a newer run has started.
        """
        try:
            with writing(self.folder, self.token):
                if self.kind == "folder":
                    return [self._write_images(row) for row in rows]
                done = [row for row in rows if row.error is None]
                failed = [row for row in rows if row.error is not None]
                names = {_PART: self._write_part(_PART, done), _FAILED: self._write_part(_FAILED, failed)}
                return [entry_of(row, [names[_PART if row.error is None else _FAILED]]) for row in rows]
        except OSError as error:
            raise EngineError(f"{self.folder} cannot be written: {error.strerror or error}") from error

    def _write_images(self, row: DrawnRow) -> dict[str, Any]:
        images = [(image.name, image.data) for image in row.images if image.data is not None]
        for name, data in images:
            with atomic_write(self.folder / name) as temporary:
                temporary.write_bytes(data)
        return entry_of(row, [name for name, _ in images])

    def _write_part(self, state: str, rows: list[DrawnRow]) -> str:
        """Write a part of rows, and return its name; an empty one if there are none."""
        if not rows:
            return ""
        identities = "".join(row.key or str(row.error) for row in rows)
        digest = hashlib.sha256(identities.encode()).hexdigest()[:24]
        encode: Callable[[list[DrawnRow]], bytes]
        if self.kind == "parquet":
            suffix, encode = _SUFFIXES["parquet"], self._parquet
        elif state == _PART:
            suffix, encode = _SUFFIXES["webdataset"], self._webdataset
        else:
            # A sample without an image is none.
            suffix, encode = ".jsonl", _json_lines
        name = f"{state}-{digest}{suffix}"
        data = encode(rows)
        with atomic_write(self.folder / name, durable=True) as temporary:
            temporary.write_bytes(data)
        return name

    def _parquet(self, rows: list[DrawnRow]) -> bytes:
        """Encode rows with a line for each image."""
        import pyarrow as pa
        from pyarrow import parquet

        lines = [(row, number, image) for row in rows for number, image in enumerate(row.images)]
        table = pa.table(
            {
                "row": pa.array([row.key for row, _, _ in lines], pa.string()),
                "line": pa.array([row.line for row, _, _ in lines], pa.int64()),
                "prompt": pa.array([row.prompt for row, _, _ in lines], pa.string()),
                "options": pa.array([_options(row) for row, _, _ in lines], pa.string()),
                "image_index": pa.array([number for _, number, _ in lines], pa.int32()),
                "image_seed": pa.array([image.seed for _, _, image in lines], pa.uint64()),
                "image_bytes": pa.array([image.data for _, _, image in lines], pa.binary()),
                "error": pa.array([image.error for _, _, image in lines], pa.string()),
            }
        )
        file = io.BytesIO()
        # Encoded images do not shrink further.
        parquet.write_table(table, file, compression={"image_bytes": "NONE"} | dict.fromkeys(_TEXTS, "ZSTD"))
        return file.getvalue()

    def _webdataset(self, rows: list[DrawnRow]) -> bytes:
        """Encode rows with a sample for each image: its file, and a .json."""
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for row in rows:
                for number, image in enumerate(row.images):
                    for suffix, data in _sample(row, number, image, suffix_of(self.file_format)):
                        # Without times and owners: equal rows are equal files.
                        member = tarfile.TarInfo(f"{row.key}-{number}{suffix}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
        return file.getvalue()


_TEXTS = ("row", "line", "prompt", "options", "image_index", "image_seed", "error")


def _options(row: DrawnRow) -> str:
    return json.dumps(row.fields, sort_keys=True, default=repr)


def _sample(row: DrawnRow, number: int, image: DrawnImage, suffix: str) -> Iterator[tuple[str, bytes]]:
    assert image.data is not None
    facts = {
        "row": row.key,
        "line": row.line,
        "prompt": row.prompt,
        "options": row.fields,
        "image_index": number,
        "image_seed": image.seed,
    }
    yield suffix, image.data
    yield ".json", json.dumps(facts, default=repr).encode()


def _json_lines(rows: list[DrawnRow]) -> bytes:
    return b"".join(json.dumps(entry_of(row, [])).encode() + b"\n" for row in rows)


def entry_of(row: DrawnRow, files: list[str]) -> dict[str, Any]:
    """Return the entry of a row, with the keys that `sd2rt batch` records."""
    if not row.key:
        return {"status": FAILED, "error": row.error}
    seeds = [image.seed for image in row.images if image.data is not None]
    entry = {"row": row.key, "line": row.line, "status": DONE if row.error is None else FAILED}
    entry |= {"prompt": row.prompt, "files": files, "seeds": seeds}
    return entry if row.error is None else {**entry, "error": row.error}


def rows_in_parts(folder: Path, kind: OutputKind) -> set[str]:
    """Return the hashes of the rows that parts in a folder have, and remove parts of rows that failed.

    Raises:
        RequestError: a part cannot be read, or is of another program.
        EngineError: a part cannot be removed.
        MissingDependencyError: they are Parquet files, and pyarrow is not installed.
    """
    done: set[str] = set()
    for path in sorted(folder.glob(f"{_PART}-*{_SUFFIXES[kind]}")):
        try:
            done.update(_rows_of_parquet(path) if kind == "parquet" else _rows_of_tar(path))
        except (OSError, ValueError, KeyError, tarfile.TarError) as error:
            reason = " ".join(str(error).split())
            raise RequestError(
                f"{path} is not a part of a batch ({shown(reason)}): choose another folder"
            ) from None
    for path in folder.glob(f"{_FAILED}-*"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise EngineError(f"{path} cannot be removed: {error.strerror or error}") from error
    return done


def _rows_of_parquet(path: Path) -> list[str]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingDependencyError(
            f"{path} needs pyarrow, which is not installed: {install_hint('ray')}"
        ) from None
    with parquet.ParquetFile(path) as file:
        rows: list[str] = file.read(columns=["row"])["row"].to_pylist()
    return rows


def _rows_of_tar(path: Path) -> Iterator[str]:
    with tarfile.open(path) as archive:
        for member in archive:
            yield member.name.partition("-")[0]
