"""Load stored results and pick the newest of each benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class NotMeasuredError(Exception):
    """A value that a page needs is missing from the results; the message names it."""


@dataclass(frozen=True, slots=True)
class Result:
    """A result and its file."""

    path: Path
    value: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.value["benchmark"])

    @property
    def date(self) -> str:
        """Time of measurement: ISO 8601, UTC."""
        return str(self.value["machine"]["date"])


class Results:
    """All results in a folder: JSON files with a benchmark name and a machine.

    Raises:
        ValueError: a file is not JSON; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        results = []
        for path in sorted(folder.glob("*.json")):
            try:
                value = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path} is not JSON ({error}): remove it, or measure again") from None
            if isinstance(value, dict) and "benchmark" in value and "date" in value.get("machine", {}):
                results.append(Result(path, value))
        self._by_date = sorted(results, key=lambda result: result.date)

    def newest(self, name: str, accept: Callable[[dict[str, Any]], bool] = lambda value: True) -> Result:
        """Return the newest result of a benchmark for which ``accept`` is true; NotMeasuredError if there is none."""
        for result in reversed(self._by_date):
            if result.name == name and accept(result.value):
                return result
        raise NotMeasuredError(f"no result of {name}")

    def each(self, name: str, key: Callable[[dict[str, Any]], object]) -> Iterator[Result]:
        """Yield the newest result of a benchmark for each value of ``key``, ordered by the first result of each.

        Raises:
            NotMeasuredError: the benchmark has no result.
        """
        newest = {key(result.value): result for result in self._by_date if result.name == name}
        if not newest:
            raise NotMeasuredError(f"no result of {name}")
        yield from newest.values()
