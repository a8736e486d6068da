"""Render the page on reliability: counts of every kind of fault that was searched for."""

from __future__ import annotations

from pathlib import Path
from string import Template

from benchmarks.faults.__main__ import KINDS
from benchmarks.faults.recorder import FAULTS
from benchmarks.page import markdown
from benchmarks.page.latest import NotMeasuredError, Result, Results

TEMPLATE = Path(__file__).resolve().parent.parent / "reliability.md.in"


def page(results: Results, folder: Path) -> str:
    """Render docs/reliability.md; its links are relative to ``folder``."""
    found: dict[str, Result] = {}
    missing = []
    for kind in KINDS:
        try:
            found[kind] = results.newest(f"faults-{kind}")
        except NotMeasuredError:
            missing.append(kind)
    return Template(TEMPLATE.read_text()).substitute(
        counts=markdown.table(("kind", "cases", "held", *FAULTS), _rows(found)),
        missing=f"Not measured yet: {', '.join(missing)}." if missing else "All kinds are measured.",
        origins="\n".join(
            f"- {kind}, seed {result.value['seed']}: {markdown.origin(result, folder)}"
            + ("" if result.value["complete"] else " The search was interrupted.")
            for kind, result in found.items()
        ),
    )


def _rows(found: dict[str, Result]) -> list[list[object]]:
    return [
        [
            kind,
            group,
            f"{counts.get('held', 0)} of {sum(counts.values())}",
            *(counts.get(fault, 0) for fault in FAULTS),
        ]
        for kind, result in found.items()
        for group, counts in result.value["counts"].items()
    ]
