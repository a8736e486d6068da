"""The record of a batch: a line of JSON for each row that was drawn or failed, by the row's hash."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.json_text import parse_json

NAME = "manifest.jsonl"
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
