"""Records of the quick check: one JSON line each, written through to the disk before the next is computed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.worker import sound

FILE = "records.jsonl"
OUTCOME = "outcome"
"""Key of the line that ends a stage."""


def append(path: Path, stage: str, record: dict[str, Any]) -> None:
    """Add a record of a stage; it survives the process, and the machine's other files."""
    line = json.dumps({"stage": stage, **sound(record)})
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Records by stage, in order; a line that a kill cut short is left out."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for record in _lines(path):
        stages.setdefault(record.pop("stage"), []).append(record)
    return stages


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "stage" in record:
            yield record


def outcome(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Outcome of a stage's last run; ``unfinished`` if its process was killed."""
    if not records:
        return {}
    last = records[-1]
    return (
        last if OUTCOME in last else {OUTCOME: "unfinished", "reason": "its process or the check was stopped"}
    )
