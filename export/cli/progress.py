"""Progress of a build or a comparison: a bar for each part, a line of a log, or a line of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sd2rt.engines.console import progress_bar

PART_LABELS = {
    "text_encoder": "text encoder",
    "denoiser": "denoiser",
    "decoder": "decoder",
    "encoder": "encoder",
    "tiled_decoder": "decoder of tiles",
    "tiled_encoder": "encoder of tiles",
    "depth_estimator": "depth estimator",
    "bundle": "writing",
}

Say = Callable[[str], None]


def _label(what: str) -> str:
    """A part, or an engine of one and its sizes, for people."""
    name, _, rest = what.partition(" ")
    return f"{PART_LABELS.get(name, name)}{rest and f' {rest}'}"


@contextmanager
def display(as_json: bool) -> Iterator[tuple[Say, Callable[[str, float], None]]]:
    """Progress for people (a bar per part), for machines (a JSON line per event), or for a log (a line each)."""
    if as_json:

        def emit(**fields: Any) -> None:
            print(json.dumps(fields), flush=True)

        yield (
            lambda message: emit(event="note", message=message),
            lambda part, fraction: emit(event="progress", part=part, fraction=round(fraction, 3)),
        )
        return
    with progress_bar("spinner", "{task.description}", "bar", "elapsed") as bar:
        if bar is None:

            def line(part: str, fraction: float) -> None:
                if fraction in (0.0, 1.0):
                    print(f"{_label(part)}: {'done' if fraction else 'started'}", file=sys.stderr, flush=True)

            yield lambda message: print(message, file=sys.stderr, flush=True), line
            return
        tasks: dict[str, Any] = {}

        def draw(part: str, fraction: float) -> None:
            if part not in tasks:
                tasks[part] = bar.add_task(_label(part), total=1.0)
            bar.update(tasks[part], completed=fraction)

        yield lambda message: bar.console.print(message, highlight=False, markup=False), draw
