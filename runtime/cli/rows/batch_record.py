"""The record of a batch: a line of JSON for each row that was drawn or failed, by the row's hash."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.json_text import parse_json
from sd2rt.runtime.cli.rows.row import Row

NAME = "manifest.jsonl"
_PATHS = ("image", "mask_image", "depth_map")
DONE, FAILED = "done", "failed"


class BatchRecord:
    """Results and errors of a batch's rows in its folder; a later command takes the rows that are done as they are.

    Args:
        folder: the batch's output.

    Raises:
        RequestError: the record cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._folder = folder / NAME, folder
        self._done: set[str] = set()
        try:
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise RequestError(
                f"{self.path} cannot be read ({error.strerror}): choose another folder"
            ) from None
        for line in text.splitlines():
            # The last line may be cut short if the command was killed.
            try:
                entry = parse_json(line)
                row, files, done = entry["row"], entry.get("files", []), entry["status"] == DONE
                if done and all(os.path.isfile(folder / file) for file in files):
                    self._done.add(str(row))
                else:
                    self._done.discard(str(row))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def is_done(self, row: str) -> bool:
        """Return whether the files of a row with this hash are there."""
        return row in self._done

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write an entry at the end.

        Raises:
            EngineError: it cannot be written.
        """
        try:
            with open(self.path, "ab") as file:
                if file.tell() and not self._ends_a_line():
                    file.write(b"\n")
                file.write(json.dumps(entry).encode() + b"\n")
        except OSError as error:
            raise EngineError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def _ends_a_line(self) -> bool:
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


class RowHashes:
    """Hashes of rows, by all that their images depend on. Equal rows are numbered, and have different ones.

    Args:
        settings: the command's options, and the identities of the bundle and its LoRAs, as JSON values.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._seen: dict[str, int] = {}

    def of(self, row: Row, seed: int | None) -> str:
        """Hash the next row.

        Args:
            seed: seed of its first image; None if it is random.
        """
        content = {
            "settings": self._settings,
            "prompt": row.prompt,
            "fields": row.fields,
            "count": row.count,
            "seed": seed,
            "files": [_state(row.fields[name]) for name in _PATHS if name in row.fields],
        }
        text = json.dumps(content, sort_keys=True, default=repr)
        number = self._seen[text] = self._seen.get(text, 0) + 1
        return hashlib.sha256(f"{text}\n{number}".encode()).hexdigest()


def _state(path: str) -> list[int]:
    """Size and time of a file, which change with its content."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]
