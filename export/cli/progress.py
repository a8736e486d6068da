"""Progress of a build or a comparison: bars on a terminal, log lines, or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sd2rt.engines.console import print_line, progress_bar
from sd2rt.engines.printable import printable

PART_LABELS = {
    "text_encoder": "text encoder",
    "denoiser": "denoiser",
    "decoder": "decoder",
    "encoder": "encoder",
    "tiled_decoder": "tile decoder",
    "tiled_encoder": "tile encoder",
    "depth_estimator": "depth estimator",
    "bundle": "writing",
}

Say = Callable[[str], None]


def _label(item: str) -> str:
    """Readable label of a part, or of one of its engines with its sizes."""
    name, _, rest = item.partition(" ")
    return f"{PART_LABELS.get(name, name)}{rest and f' {rest}'}"


@contextmanager
def display(as_json: bool) -> Iterator[tuple[Say, Callable[[str, float], None]]]:
    """Report notes and progress: bars on a terminal, else log lines; with ``as_json``, a JSON line for each event."""
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
                    print_line(f"{_label(part)}: {'done' if fraction else 'started'}")

            yield print_line, line
            return
        tasks: dict[str, Any] = {}

        def draw(part: str, fraction: float) -> None:
            if part not in tasks:
                tasks[part] = bar.add_task(_label(part), total=1.0)
            bar.update(tasks[part], completed=fraction)

        yield lambda message: bar.console.print(printable(message), highlight=False, markup=False), draw
