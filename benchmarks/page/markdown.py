"""Format values in Markdown: tables, spreads and the origin of a result."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page.latest import Result


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: first column left-aligned, the others right-aligned."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines)


def number(value: float) -> str:
    """Format with three significant digits and no exponent; whole numbers in full."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-3 else f"{value:.6f}"


def spread(values: Mapping[str, float], scale: float = 1.0) -> str:
    """The median, with the range in brackets: 10th to 90th percentile if recorded, else minimum to maximum."""
    low, high = (values.get(inner, values[outer]) for inner, outer in (("p10", "min"), ("p90", "max")))
    middle = number(values["median"] * scale)
    return middle if low == high else f"{middle} ({number(low * scale)} to {number(high * scale)})"


def inverse(ratio: Mapping[str, float]) -> dict[str, float]:
    """The reciprocal ratio."""
    return {"median": 1 / ratio["median"], "min": 1 / ratio["max"], "max": 1 / ratio["min"]}


def yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def link(result: Result, folder: Path, file: str | None = None) -> str:
    """Relative path from a folder to a result's file, or to another file beside it."""
    target = result.path if file is None else result.path.parent / file
    return Path(os.path.relpath(target, folder)).as_posix()


def origin(result: Result, folder: Path) -> str:
    """One line about the origin of a result: file, date, commit, machine and load."""
    machine: dict[str, Any] = result.value["machine"]
    commit = (machine.get("commit") or "unknown")[:10] + (" with changes" if machine.get("dirty") else "")
    load = machine.get("load_average", [0.0])[0]
    return (
        f"[{result.path.name}]({link(result, folder)}): {result.date[:10]}, commit {commit}, "
        f"{machine['cores']} cores of {machine['cpu']}, load {load:g} before."
    )
