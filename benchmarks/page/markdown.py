"""Values as they stand in a report: tables, spreads, and where they come from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page.latest import Result


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines)


def number(value: float) -> str:
    """Three digits, and no exponent; what is whole, as it is."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-3 else f"{value:.6f}"


def spread(found: Mapping[str, float], scale: float = 1.0) -> str:
    """The median, and between what the values lay."""
    low, high = (found.get(inner, found[outer]) for inner, outer in (("p10", "min"), ("p90", "max")))
    middle = number(found["median"] * scale)
    return middle if low == high else f"{middle} ({number(low * scale)} to {number(high * scale)})"


def inverse(found: Mapping[str, float]) -> dict[str, float]:
    """The ratio the other way round."""
    return {"median": 1 / found["median"], "min": 1 / found["max"], "max": 1 / found["min"]}


def yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def link(result: Result, folder: Path, file: str | None = None) -> str:
    """The way from a folder to a result's file, or to another one beside it."""
    target = result.path if file is None else result.path.parent / file
    return Path(os.path.relpath(target, folder)).as_posix()


def origin(result: Result, folder: Path) -> str:
    """A line about where a result comes from."""
    told: dict[str, Any] = result.value["machine"]
    commit = (told.get("commit") or "unknown")[:10] + (" with changes" if told.get("dirty") else "")
    load = told.get("load_average", [0.0])[0]
    return (
        f"[{result.path.name}]({link(result, folder)}): {result.date[:10]}, commit {commit}, "
        f"{told['cores']} cores of {told['cpu']}, load {load:g} before."
    )
