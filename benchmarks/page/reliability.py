"""Render the page on reliability: counts of every kind of fault that was searched for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from string import Template

from benchmarks.faults.__main__ import KINDS
from benchmarks.faults.ray_serve import CLIENTS, REPLICAS
from benchmarks.faults.recorder import FAULTS
from benchmarks.page import markdown
from benchmarks.page.latest import NotMeasuredError, Result, Results
from benchmarks.recording import report

_SECONDS = {
    "worker_gone_seconds": "its worker is gone",
    "whole_seconds": "all replicas are ready, with a worker each",
    "last_error_seconds": "the last error",
    "longest_pause_seconds": "longest time without a picture",
    "slowest_picture_seconds": "slowest picture",
}
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
        clients=CLIENTS,
        replicas=REPLICAS,
        ray=_ray(found.get("ray-serve")),
        missing=f"Not measured yet: {', '.join(missing)}." if missing else "All kinds are measured.",
        origins="\n".join(
            f"- {kind}, seed {result.value['seed']}: {markdown.origin(result, folder)}"
            + ("" if result.value["complete"] else " The search was interrupted.")
            for kind, result in found.items()
        ),
    )


def _ray(result: Result | None) -> str:
    """Seconds to recover, and errors by kind, of replicas of Ray Serve; empty if they were not measured."""
    if result is None:
        return ""
    rows: list[list[object]] = []
    for group, cases in result.value["numbers"].items():
        errors: Counter[str] = Counter()
        for case in cases:
            errors.update(case["errors"])
        rows.append(
            [
                group,
                *(markdown.spread(report.summary(case[key] for case in cases)) for key in _SECONDS),
                sum(case["pictures"] for case in cases),
                ", ".join(f"{kind}: {count}" for kind, count in sorted(errors.items())) or "none",
            ]
        )
    header = ("", *_SECONDS.values(), "pictures meanwhile", "errors in all")
    return "Under Ray Serve, seconds since the kill, and what clients saw until then:\n\n" + markdown.table(
        header, rows
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
