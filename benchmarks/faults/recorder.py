"""Record cases of a fault search as they end, and count their outcomes by group."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

Outcome = Literal["held", "wrong", "hang", "exit 1", "left behind", "socket", "memory"]
"""``held``: the right picture, or a refusal in one line with its exit code. The others are faults: another picture
or value without a word, a case over its time limit, an exit with a traceback, files left behind, a network
connection, memory above its bound."""

FAULTS: tuple[Outcome, ...] = tuple(outcome for outcome in get_args(Outcome) if outcome != "held")


class Recorder:
    """Cases of one kind of fault; a context manager that owns the file of cases.

    Args:
        path: JSON lines, one a case, each written when its case ends; None to keep counts only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._counts: dict[str, Counter[Outcome]] = {}
        self._numbers: dict[str, list[dict[str, Any]]] = {}
        self.faults: list[dict[str, str]] = []
        """Every case that did not hold."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file = None if path is None else path.open("w")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def record(self, group: str, outcome: Outcome, case: str, detail: str = "") -> None:
        """Record a case that ended.

        Args:
            group: row of the table of counts.
            case: name of the case, from which it can be repeated with the run's seed.
            detail: the message or the difference, in one line.
        """
        self._counts.setdefault(group, Counter())[outcome] += 1
        entry = {"group": group, "outcome": outcome, "case": case, "detail": detail}
        if outcome != "held":
            self.faults.append(entry)
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def note(self, group: str, numbers: dict[str, Any]) -> None:
        """Keep what was measured in a case of a group."""
        self._numbers.setdefault(group, []).append(numbers)

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of cases by group and outcome, in the order of first appearance."""
        return {
            group: {str(name): n for name, n in counter.items()} for group, counter in self._counts.items()
        }

    def facts(self) -> dict[str, Any]:
        """Counts, the cases that did not hold, and what was measured, as stored in a result."""
        numbers = {"numbers": self._numbers} if self._numbers else {}
        return {"counts": self.counts(), "faults": self.faults} | numbers

    def rows(self) -> list[list[object]]:
        """Rows of the printed table: group, cases that held, all cases, and the number of each fault."""
        return [
            [group, f"{counter['held']} of {counter.total()}", *(counter[fault] for fault in FAULTS)]
            for group, counter in self._counts.items()
        ]
