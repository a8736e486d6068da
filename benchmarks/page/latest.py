"""The results that are kept: the newest of each benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class NotMeasuredError(Exception):
    """A value that a report wants is not among the results; the message says which."""


@dataclass(frozen=True, slots=True)
class Result:
    """A result and the file that it is in."""

    path: Path
    value: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.value["benchmark"])

    @property
    def date(self) -> str:
        """When it was made: ISO 8601, in UTC."""
        return str(self.value["machine"]["date"])


class Results:
    """All results of a folder: the files that have a benchmark's name and the machine that it ran on.

    Raises:
        ValueError: a file is not JSON; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        found = []
        for path in sorted(folder.glob("*.json")):
            try:
                value = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path} is not JSON ({error}): remove it, or measure again") from None
            if isinstance(value, dict) and "benchmark" in value and "date" in value.get("machine", {}):
                found.append(Result(path, value))
        self._found = sorted(found, key=lambda result: result.date)

    def newest(self, name: str, which: Callable[[dict[str, Any]], bool] = lambda value: True) -> Result:
        """The newest result of a benchmark that ``which`` is true of. Raises NotMeasuredError where there is none."""
        for result in reversed(self._found):
            if result.name == name and which(result.value):
                return result
        raise NotMeasuredError(f"no result of {name}")

    def each(self, name: str, key: Callable[[dict[str, Any]], object]) -> Iterator[Result]:
        """The newest result of a benchmark for every ``key``, the key's first result first.

        Raises NotMeasuredError where there is none at all.
        """
        found = {key(result.value): result for result in self._found if result.name == name}
        if not found:
            raise NotMeasuredError(f"no result of {name}")
        yield from found.values()
