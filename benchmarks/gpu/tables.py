"""Results of the GPU check as Markdown: outcomes of all stages, then a table of each one's records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any


def shown(value: object) -> str:
    """Format a cell: floats to four digits, a spread as median with 10th and 90th percentile."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "NO"
        case float():
            return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
        case int():
            return f"{value:,}"
        case {"median": median, "p10": low, "p90": high}:
            return f"{shown(median)} ({shown(low)} to {shown(high)})"
        case dict():
            return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
        case list() | tuple():
            return ", ".join(map(shown, value))
        case _:
            return str(value)


def markdown(result: dict[str, Any]) -> str:
    """Render the result as a page."""
    facts = result["machine"]
    lines = [
        "# sd2rt on a GPU",
        "",
        f"{facts['date']}, commit {facts['commit'] or 'unknown'}{' with changes' if facts['dirty'] else ''}; "
        f"{facts['cpu']}, {facts['cores']} cores; Python {facts['python']}; "
        + ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        + ".",
        "",
    ]
    stages = result["stages"]
    rows = [(name, s["outcome"], s.get("seconds"), s.get("reason")) for name, s in stages.items()]
    lines += table(("stage", "outcome", "s", "reason"), rows)
    for name, stage in stages.items():
        records = stage.get("records") or []
        if records:
            lines += ["", f"## {name}", "", *record_tables(records)]
    return "\n".join(lines) + "\n"


def record_tables(records: Sequence[dict[str, Any]]) -> list[str]:
    """A table for each run of consecutive records with the same first column."""
    lines: list[str] = []
    group: list[dict[str, Any]] = []
    for record in [*records, {}]:
        if group and next(iter(record), None) != next(iter(group[0])):
            header = list(dict.fromkeys(key for item in group for key in item))
            lines += table(header, [[item.get(key) for key in header] for item in group])
            lines.append("")
            group = []
        group.append(record)
    return lines[:-1]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Render rows as a Markdown table."""
    lines = [header, ["---"] * len(header), *[[_cell(value) for value in row] for row in rows]]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: object) -> str:
    return " ".join(shown(value).split()).replace("|", "\\|")


def dumped(result: dict[str, Any]) -> str:
    """Render the result as JSON."""
    return json.dumps(result, indent=1) + "\n"
